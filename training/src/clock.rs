//! Wall time of a run, and where `max_hours` ends it.

use std::time::Instant;

use crate::config::RunConfig;
use crate::schedule::n_steps_by_clock;

/// Weight of the newest step in the running mean of seconds a step, once there are so many that it is less than a plain mean's.
const NEWEST_STEP_FRAC: f64 = 0.02;
/// Steps after a start or a resume in which no end is chosen: the first ones tell little of the speed.
const SETTLING_STEPS: u64 = 50;

/// Wall time of the run over all its stretches, and what steps, validations and checkpoints cost in this one.
pub struct Clock {
    start: Instant,
    before_s: f64,
    n_steps: u64,
    s_per_step: f64,
    validation_s: f64,
    saving_s: f64,
}

impl Clock {
    /// A clock that goes on from `before_s` seconds of earlier stretches.
    pub fn start(before_s: f64) -> Clock {
        Clock { start: Instant::now(), before_s, n_steps: 0, s_per_step: 0.0, validation_s: 0.0, saving_s: 0.0 }
    }

    /// Seconds over all stretches.
    pub fn elapsed_s(&self) -> f64 {
        self.before_s + self.start.elapsed().as_secs_f64()
    }

    /// Seconds that `max_hours` leaves; without it, without an end.
    pub fn left_s(&self, config: &RunConfig) -> f64 {
        if config.max_hours == 0.0 { f64::INFINITY } else { (config.max_hours * 3600.0 - self.elapsed_s()).max(0.0) }
    }

    /// Counts one optimizer step, which alone took `elapsed_s` seconds.
    pub fn add_step(&mut self, elapsed_s: f64) {
        self.n_steps += 1;
        self.s_per_step += NEWEST_STEP_FRAC.max(1.0 / self.n_steps as f64) * (elapsed_s - self.s_per_step);
    }

    /// Says what the newest validation took, in seconds.
    pub fn set_validation(&mut self, elapsed_s: f64) {
        self.validation_s = elapsed_s;
    }

    /// Says what the newest checkpoint took, in seconds.
    pub fn set_saving(&mut self, elapsed_s: f64) {
        self.saving_s = elapsed_s;
    }

    /// The number of steps at which the run must end now that `step` steps are done, so that `max_hours` does not cut its decay off;
    /// `None` to leave `n_steps`.
    pub fn end_in_time(&self, config: &RunConfig, n_steps: u64, step: u64) -> Option<u64> {
        self.end_at(config, n_steps, step, self.elapsed_s())
    }

    fn end_at(&self, config: &RunConfig, n_steps: u64, step: u64, elapsed_s: f64) -> Option<u64> {
        let left_s = config.max_hours * 3600.0 - elapsed_s;
        if config.max_hours == 0.0 || (self.n_steps < SETTLING_STEPS && left_s > 0.0) {
            return None;
        }
        let per_step =
            |every_steps: u64, elapsed_s: f64| if every_steps == 0 { 0.0 } else { elapsed_s / every_steps as f64 };
        let s_per_step = self.s_per_step
            + per_step(config.eval.every_steps, self.validation_s)
            + per_step(config.checkpoint.every_steps, self.saving_s);
        n_steps_by_clock(&config.schedule, config.n_steps, n_steps, step, s_per_step, left_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse, preset, resolve, set};

    /// 36 s allowed, 1000 steps planned, the last fifth of them decay.
    fn config(sets: &[&str]) -> RunConfig {
        let mut table = parse(preset("smoke").unwrap(), "smoke").unwrap();
        let common = [
            "n_steps=1000",
            "max_hours=0.01",
            "schedule.decay_frac=0.2",
            "eval.every_steps=100",
            "checkpoint.every_steps=0",
        ];
        common.iter().chain(sets).for_each(|assignment| set(&mut table, assignment).unwrap());
        resolve(&table, "smoke").unwrap()
    }

    #[test]
    fn what_is_left_ends_at_nothing() {
        let config = |hours: f64| {
            let mut table = crate::config::parse(crate::config::preset("smoke").unwrap(), "smoke").unwrap();
            for change in [format!("max_hours={hours}"), "schedule.kind=\"wsd\"".to_owned()] {
                crate::config::set(&mut table, &change).unwrap();
            }
            let model = table.get_mut("model").and_then(toml::Value::as_table_mut).unwrap();
            model.entry("vocab_size").or_insert(toml::Value::Integer(512));
            crate::config::resolve(&table, "smoke").unwrap()
        };
        let clock = Clock::start(1800.0);
        assert_eq!(clock.left_s(&config(0.0)), f64::INFINITY);
        let left_s = clock.left_s(&config(1.0));
        assert!(left_s > 1700.0 && left_s <= 1800.0, "{left_s}");
        assert_eq!(clock.left_s(&config(0.25)), 0.0);
    }

    #[test]
    fn a_slow_first_step_after_a_resume_decides_nothing() {
        let mut clock = Clock::start(18.0);
        clock.set_validation(5.0);
        clock.add_step(2.0);
        // By its first step alone the run would end at once, at step 501 + 8.
        assert_eq!(clock.end_at(&config(&[]), 1000, 501, 20.0), None);
        (0..49).for_each(|_| clock.add_step(0.01));
        assert_eq!(clock.end_at(&config(&[]), 1000, 550, 20.5), None, "the steps that are left end in time");
    }

    #[test]
    fn validations_cost_their_share_of_every_step() {
        let mut clock = Clock::start(0.0);
        (0..60).for_each(|_| clock.add_step(0.05));
        // 32 s left at 0.05 s a step would be 640 steps, whose decay begins at 560; a validation of 5 s every 100 steps doubles the cost.
        assert_eq!(clock.end_at(&config(&[]), 1000, 400, 4.0), None);
        clock.set_validation(5.0);
        assert_eq!(clock.end_at(&config(&[]), 1000, 400, 16.0), None, "the decay need not begin yet");
        assert_eq!(clock.end_at(&config(&[]), 1000, 480, 24.0), Some(600));
        assert_eq!(clock.end_at(&config(&["max_hours=0.0"]), 1000, 480, 24.0), None);
    }

    #[test]
    fn a_run_whose_time_is_over_ends_even_while_it_settles() {
        let mut clock = Clock::start(40.0);
        clock.add_step(1.0);
        assert_eq!(clock.end_at(&config(&[]), 1000, 501, 41.0), Some(501));
    }
}
