//! How fast steps were: tokens and operations a second, and what was waited for.

#![allow(non_snake_case)]

use super::Facts;
use crate::step::StepReport;

/// Weight that the past keeps with each step in what a terminal shows.
const SMOOTHING: f64 = 0.95;
/// Share of the time spent waiting for the loader from which on a terminal says so.
const SLOW_LOADER: f64 = 0.05;

/// What one step did, or several: sums, or sums that forget.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) n_tokens: f64,
    pub(super) elapsed_s: f64,
    loader_wait_s: f64,
    comm_wait_s: f64,
}

impl Work {
    pub(super) fn of(report: &StepReport) -> Work {
        Work {
            n_tokens: report.n_tokens as f64,
            elapsed_s: report.elapsed_s.max(1e-9),
            loader_wait_s: report.loader_wait_s,
            comm_wait_s: report.comm_wait_s,
        }
    }

    /// Both together.
    pub(super) fn plus(self, newest: Work) -> Work {
        self.times(1.0, newest)
    }

    /// The newest step, and of the past what is not yet forgotten.
    pub(super) fn smoothed(self, newest: Work) -> Work {
        self.times(SMOOTHING, newest)
    }

    fn times(self, kept: f64, newest: Work) -> Work {
        Work {
            n_tokens: kept * self.n_tokens + newest.n_tokens,
            elapsed_s: kept * self.elapsed_s + newest.elapsed_s,
            loader_wait_s: kept * self.loader_wait_s + newest.loader_wait_s,
            comm_wait_s: kept * self.comm_wait_s + newest.comm_wait_s,
        }
    }

    pub(super) fn tokens_per_s(&self) -> f64 {
        self.n_tokens / self.elapsed_s
    }

    /// Operations a second of the products and of causal attention, forward and backward, all ranks together.
    pub(super) fn flops_per_s(&self, facts: &Facts) -> f64 {
        self.tokens_per_s() * facts.flops_per_token
    }

    /// Model FLOPs utilization (Chowdhery et al. 2022, arXiv 2204.02311): the share of what all ranks together could do, where that is
    /// known.
    pub(super) fn mfu(&self, facts: &Facts) -> Option<f64> {
        Some(self.flops_per_s(facts) / (facts.peak.as_ref()?.flops_per_s * facts.world as f64))
    }

    pub(super) fn loader_wait_share(&self) -> f64 {
        self.loader_wait_s / self.elapsed_s
    }

    pub(super) fn comm_share(&self) -> f64 {
        self.comm_wait_s / self.elapsed_s
    }

    /// What a terminal shows beside the step's number: with it at most 100 columns. `epochs` are those of the language that had most.
    pub(super) fn line(&self, facts: &Facts, loss: f64, epochs: f64, left_s: f64) -> String {
        let mut parts = vec![format!("loss {loss:.4}")];
        parts.push(format!("{} tokens/s", compact(self.tokens_per_s())));
        parts.extend(self.mfu(facts).map(|mfu| format!("MFU {}", percent(mfu))));
        if facts.world > 1 {
            parts.push(format!("comm {}", percent(self.comm_share())));
        }
        // A slow loader matters more, and there is no room for both.
        parts.push(match self.loader_wait_share() > SLOW_LOADER {
            true => format!("loader {}", percent(self.loader_wait_share())),
            false => format!("epoch {}", three_digits(epochs)),
        });
        parts.push(format!("{} left", duration(left_s)));
        parts.join("  ")
    }

    /// The same of a whole run.
    pub(super) fn summary(&self, facts: &Facts) -> String {
        let mut parts = vec![
            format!("{} tokens in {} of steps", compact(self.n_tokens), duration(self.elapsed_s)),
            format!("{} tokens/s", compact(self.tokens_per_s())),
        ];
        let mfu = self.mfu(facts).zip(facts.peak.as_ref());
        parts.extend(mfu.map(|(mfu, peak)| format!("MFU {} of {}", percent(mfu), peak.source)));
        parts.push(format!("waiting for the loader {}", percent(self.loader_wait_share())));
        if facts.world > 1 {
            parts.push(format!("for other ranks {}", percent(self.comm_share())));
        }
        parts.join(", ")
    }
}

/// Three digits or four: `9876`, `12.3k`, `4.56M`.
fn compact(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v < 1e4 => return format!("{v:.0}"),
        v if v < 1e6 => (v / 1e3, "k"),
        v if v < 1e9 => (v / 1e6, "M"),
        v => (v / 1e9, "G"),
    };
    format!("{}{unit}", three_digits(scaled))
}

fn three_digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent < 9.95 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

fn duration(seconds: f64) -> String {
    let s = seconds as u64;
    match (s / 3600, s / 60 % 60) {
        (0, 0) => format!("{s}s"),
        (0, m) => format!("{m}m{:02}s", s % 60),
        (h, m) => format!("{h}h{m:02}m"),
    }
}

/// How the tokens of a layer are shared out among its experts (Fedus et al. 2022, arXiv 2209.01667).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Balance {
    /// The largest share, times the number of experts: 1 is balanced.
    pub(super) largest: f64,
    /// Entropy of the shares, as a share of the largest that it can be: 1 is balanced, 0 is one expert for all.
    pub(super) entropy: f64,
    /// Share of the fifth of the experts that have most, and of the fifth that have least; at least one expert each.
    pub(super) top: f64,
    pub(super) bottom: f64,
    /// Share of the assignments that no expert had room for.
    pub(super) overflow: f64,
}

impl Balance {
    /// Of a layer's loads, which add up to one, or to less where there was no room; `None` where no token met an expert.
    pub(super) fn of(load_E: &[f32]) -> Option<Balance> {
        let total: f64 = load_E.iter().map(|&load| f64::from(load)).sum();
        if total <= 0.0 {
            return None;
        }
        let mut shares: Vec<f64> = load_E.iter().map(|&load| f64::from(load) / total).collect();
        shares.sort_by(f64::total_cmp);
        let n_experts = shares.len();
        let entropy = -shares.iter().filter(|share| **share > 0.0).map(|share| share * share.ln()).sum::<f64>();
        let fifth = (n_experts / 5).max(1);
        Some(Balance {
            largest: shares[n_experts - 1] * n_experts as f64,
            entropy: if n_experts > 1 { entropy / (n_experts as f64).ln() } else { 1.0 },
            top: shares[n_experts - fifth..].iter().sum(),
            bottom: shares[..fifth].iter().sum(),
            // Sums of float32 shares end a little off one.
            overflow: if total < 1.0 - 1e-4 { 1.0 - total } else { 0.0 },
        })
    }

    /// Each number with the name of its curve.
    pub(super) fn curves(self) -> [(&'static str, f64); 5] {
        [
            ("load_max", self.largest),
            ("load_entropy", self.entropy),
            ("load_top_fifth", self.top),
            ("load_bottom_fifth", self.bottom),
            ("overflow", self.overflow),
        ]
    }
}

/// How many experts it takes, the most loaded first, to have `share` of the assignments; 0 where there are none (Fedus et al. 2022, arXiv
/// 2209.01667; fairseq logs it for 80 %).
pub fn n_covering(load_E: &[f32], share: f32) -> usize {
    let mut loads = load_E.to_vec();
    loads.sort_by(|a, b| b.total_cmp(a));
    let all: f32 = loads.iter().sum();
    if all <= 0.0 {
        return 0;
    }
    let mut covered = 0.0;
    let is_short = |load: &&f32| {
        let before = covered;
        covered += **load;
        before < (share - 1e-6) * all
    };
    loads.iter().take_while(is_short).count()
}

#[cfg(test)]
mod tests {
    use super::super::peak::Peak;
    use super::*;

    fn facts(world: usize) -> Facts {
        let peak = Some(Peak { flops_per_s: 1e9, source: "products_peak".to_owned() });
        let (languages, moe_layers) = (Vec::new(), Vec::new());
        Facts { n_steps: 10, log_every_steps: 1, languages, moe_layers, flops_per_token: 1e6, peak, world }
    }

    fn work(n_tokens: f64, loader_wait_s: f64) -> Work {
        Work { n_tokens, elapsed_s: 2.0, loader_wait_s, comm_wait_s: 0.9 }
    }

    #[test]
    fn experts_that_cover_four_fifths() {
        assert_eq!(n_covering(&[0.1, 0.5, 0.1, 0.3], 0.8), 2);
        assert_eq!((n_covering(&[0.25; 4], 0.8), n_covering(&[0.0, 1.0], 0.8), n_covering(&[0.0; 3], 0.8)), (4, 1, 0));
        // Some had no room: shares of what was assigned.
        assert_eq!(n_covering(&[0.4, 0.1], 0.8), 1);
    }

    #[test]
    fn utilization_is_a_share_of_all_ranks() {
        assert_eq!([1, 2].map(|world| work(1000.0, 0.0).mfu(&facts(world))), [Some(0.5), Some(0.25)]);
        let both = work(1000.0, 0.0).plus(work(500.0, 1.0));
        assert_eq!((both.tokens_per_s(), both.loader_wait_share(), both.comm_share()), (375.0, 0.25, 0.45));
        let smooth = work(1000.0, 0.0).smoothed(work(0.0, 0.0));
        assert!((smooth.tokens_per_s() - 950.0 / 3.9).abs() < 1e-9);
    }

    #[test]
    fn a_line_says_what_is_unusual_and_fits_100_columns() {
        let line = work(2.4e6, 1.0).line(&facts(1200), 10.1234, 1.0, 359_999.0);
        assert_eq!(line, "loss 10.1234  1.20M tokens/s  MFU 100 %  comm 45 %  loader 50 %  99h59m left");
        assert!(format!("step 100000/100000  {line}").len() <= 100);
        let line = work(1800.0, 0.02).line(&facts(1), 2.5, 1.371, 5.4);
        assert_eq!(line, "loss 2.5000  900 tokens/s  MFU 90 %  epoch 1.37  5s left");
    }

    #[test]
    fn without_a_peak_there_is_no_utilization() {
        let facts = Facts { peak: None, ..facts(1) };
        assert_eq!(work(1000.0, 0.0).mfu(&facts), None);
        assert_eq!(work(1800.0, 0.02).line(&facts, 2.5, 12.34, 5.4), "loss 2.5000  900 tokens/s  epoch 12.3  5s left");
        assert!(!work(1800.0, 0.02).summary(&facts).contains("MFU"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(["5s", "2m05s", "3h02m"], [duration(5.4), duration(125.0), duration(3.0 * 3600.0 + 130.0)]);
        assert_eq!(["9876", "12.3k", "456k", "4.56M"], [9876.0, 12_345.0, 456_000.0, 4_560_000.0].map(compact));
        assert_eq!(["0.00", "9.99", "10.0", "100"], [0.0, 9.99, 9.999, 99.96].map(three_digits));
        assert_eq!(["0.4 %", "12 %"], [percent(0.004), percent(0.1234)]);
    }

    #[test]
    fn balance_is_one_where_experts_share_alike() {
        let of = |load_E: &[f32]| Balance::of(load_E).map(|balance| (balance.largest, balance.entropy));
        assert_eq!(of(&[0.25; 4]), Some((1.0, 1.0)));
        assert_eq!(of(&[0.0, 1.0, 0.0, 0.0]), Some((4.0, 0.0)));
        let (largest, entropy) = of(&[0.5, 0.5, 0.0, 0.0]).unwrap();
        assert!((largest - 2.0).abs() < 1e-12 && (entropy - 0.5).abs() < 1e-12);
        assert_eq!((of(&[1.0]), of(&[0.0; 4]), of(&[])), (Some((1.0, 1.0)), None, None));
    }

    #[test]
    fn the_ends_and_what_overflows_are_told() {
        let mut load_E = [0.075f32; 10];
        (load_E[3], load_E[7], load_E[9]) = (0.2, 0.1, 0.0);
        let balance = Balance::of(&load_E).unwrap();
        let total = 0.075 * 7.0 + 0.3;
        assert!((balance.top - 0.3 / total).abs() < 1e-6, "{balance:?}");
        assert!((balance.bottom - 0.075 / total).abs() < 1e-6, "{balance:?}");
        assert!((balance.overflow - (1.0 - total)).abs() < 1e-6, "{balance:?}");
        assert_eq!(Balance::of(&[0.5, 0.49999]).unwrap().overflow, 0.0);
    }
}
