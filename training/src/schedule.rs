//! Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state.

use serde::{Deserialize, Serialize};

/// A run may miss its clock by this share of its steps before its end is moved once more.
const CLOCK_SLACK_FRAC: f64 = 0.02;

/// The shape of the learning rate over a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Warm-up, then the peak to the end.
    Constant,
    /// Warm-up, then half a cosine down to the floor (Loshchilov and Hutter 2017).
    Cosine,
    /// Warm-up, stable at the peak, then a linear decay over the last `decay_frac` of the run (MiniCPM 2024). The only one whose
    /// end can be chosen while it runs, which `max_hours` needs.
    Wsd,
}

/// Options of the schedule. Learning rates are per optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Shape.
    pub kind: ScheduleKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Fraction of the run spent decaying (`wsd` only).
    pub decay_frac: f64,
    /// Learning rate at the end, as a fraction of the peak.
    pub final_lr_frac: f64,
}

/// Learning rate of step `step` (counted from 0) in a run of `n_steps`.
pub fn lr_at(schedule: &ScheduleConfig, n_steps: u64, step: u64) -> f64 {
    if step < schedule.warmup_steps {
        return schedule.lr * (step + 1) as f64 / schedule.warmup_steps as f64;
    }
    let floor = schedule.final_lr_frac;
    let frac = match schedule.kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Cosine => {
            let done = progress(step, schedule.warmup_steps, n_steps);
            floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
        }
        ScheduleKind::Wsd => 1.0 - (1.0 - floor) * progress(step, decay_start(schedule, n_steps), n_steps),
    };
    schedule.lr * frac
}

/// First step of the decay of a `wsd` run of `n_steps`.
pub fn decay_start(schedule: &ScheduleConfig, n_steps: u64) -> u64 {
    n_steps - (n_steps as f64 * schedule.decay_frac).round() as u64
}

/// The number of steps at which a `wsd` run of `planned` steps, which now would end at `n_steps`, must end so that the clock stops it with
/// its decay complete, `left_s` seconds from now at `s_per_step` seconds a step.
///
/// Returns `None` while the choice can wait (the decay of the longest affordable run has not begun) and when `n_steps` is right or nearly so.
pub fn n_steps_by_clock(
    schedule: &ScheduleConfig,
    planned: u64,
    n_steps: u64,
    step: u64,
    s_per_step: f64,
    left_s: f64,
) -> Option<u64> {
    let affordable = step + (left_s.max(0.0) / s_per_step.max(1e-9)) as u64;
    if step < decay_start(schedule, affordable).min(decay_start(schedule, n_steps)) {
        return None;
    }
    // The decay begins now, whatever was lost to a slow spell: its length is the planned fraction of the steps done so far.
    let stable_frac = 1.0 - schedule.decay_frac;
    let full_decay = if stable_frac > 0.0 { (step as f64 / stable_frac).round() as u64 } else { affordable };
    let end = full_decay.min(affordable).min(planned).max(step);
    let is_near = end.abs_diff(n_steps) as f64 <= n_steps as f64 * CLOCK_SLACK_FRAC;
    (!is_near).then_some(end)
}

fn progress(step: u64, from: u64, to: u64) -> f64 {
    if to <= from { 1.0 } else { (step.saturating_sub(from) as f64 / (to - from) as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> ScheduleConfig {
        ScheduleConfig { kind, lr: 2.0, warmup_steps: 10, decay_frac: 0.2, final_lr_frac: 0.1 }
    }

    #[test]
    fn warmup_is_linear_and_ends_at_the_peak() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            let s = schedule(kind);
            assert!((lr_at(&s, 100, 0) - 0.2).abs() < 1e-12);
            assert!((lr_at(&s, 100, 9) - 2.0).abs() < 1e-12);
            assert!((lr_at(&s, 100, 10) - 2.0).abs() < 1e-12);
        }
    }

    #[test]
    fn wsd_is_stable_then_falls_in_a_line_to_the_floor() {
        let s = schedule(ScheduleKind::Wsd);
        assert_eq!(decay_start(&s, 100), 80);
        assert!((lr_at(&s, 100, 79) - 2.0).abs() < 1e-12);
        assert!((lr_at(&s, 100, 90) - 2.0 * 0.55).abs() < 1e-12);
        assert!((lr_at(&s, 100, 100) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let s = schedule(ScheduleKind::Cosine);
        assert!((lr_at(&s, 100, 55) - 2.0 * 0.55).abs() < 1e-12);
        assert!((lr_at(&s, 100, 100) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn lr_is_positive_everywhere_even_in_degenerate_runs() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            for n_steps in [1, 5, 10, 11] {
                for step in 0..n_steps {
                    let lr = lr_at(&schedule(kind), n_steps, step);
                    assert!(lr > 0.0 && lr <= 2.0, "{kind:?} {n_steps} {step} {lr}");
                }
            }
        }
    }

    #[test]
    fn the_clock_ends_a_run_with_its_decay() {
        let s = schedule(ScheduleKind::Wsd);
        let end = |n_steps, step, s_per_step, left_s| n_steps_by_clock(&s, 1000, n_steps, step, s_per_step, left_s);
        // One second a step, 100 s allowed, 1000 steps planned: decay starts at step 80 and the run ends at 100.
        assert_eq!(end(1000, 79, 1.0, 21.0), None);
        assert_eq!(end(1000, 80, 1.0, 20.0), Some(100));
        // In time, or nearly: nothing to change.
        assert_eq!(end(100, 80, 1.0, 20.0), None);
        assert_eq!(end(100, 90, 1.0, 9.0), None);
        // A slow spell in the decay shortens it, and a fast one brings back what was lost, but never more than was planned.
        assert_eq!(end(100, 90, 2.0, 10.0), Some(95));
        assert_eq!(end(95, 92, 1.0, 9.0), Some(101));
        assert_eq!(end(95, 92, 0.1, 9.0), Some(115));
        assert_eq!(n_steps_by_clock(&s, 100, 95, 92, 1.0, 9.0), Some(100));
        // Time is over: end now.
        assert_eq!(end(1000, 50, 1.0, -3.0), Some(50));
    }
}
