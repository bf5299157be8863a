//! Medians and their like, for whoever measures.

/// The value of `sorted` that has `share` (`0..=1`) of the others below it; nothing of none.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let idx = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(idx).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_and_the_middle() {
        let values = [1.0, 2.0, 3.0, 10.0, 20.0];
        assert_eq!([0.0, 0.5, 0.9, 1.0].map(|share| quantile(&values, share)), [1.0, 3.0, 20.0, 20.0].map(Some));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
