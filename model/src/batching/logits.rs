//! The logits of a pass on their way to the clients.

use std::sync::Arc;

use crate::error::{Error, Result};

/// Rows of `V` logits, in memory that the decoder writes again when nobody holds it any more.
///
/// Clients take their rows on their own threads: one thread that copied them all would take longer than the pass did.
#[derive(Clone)]
pub struct Logits {
    values: Arc<dyn AsRef<[f32]> + Send + Sync>,
    vocab_size: usize,
    softcap: f32,
}

impl Logits {
    /// `softcap` is `logit_softcap` of [`crate::ModelConfig`] where it is still to be applied, else 0.
    pub fn new(values: Arc<dyn AsRef<[f32]> + Send + Sync>, vocab_size: usize, softcap: f32) -> Logits {
        Logits { values, vocab_size, softcap }
    }

    /// A copy of row `n`, capped. Shape `V`.
    ///
    /// # Errors
    /// [`Error::Device`] where there are fewer rows.
    pub fn row(&self, n: usize) -> Result<Vec<f32>> {
        let v = self.vocab_size;
        let row = (*self.values).as_ref().get(n * v..(n + 1) * v);
        let row = row.ok_or_else(|| Error::Device(format!("row {n} of the logits is missing")))?;
        let cap = self.softcap;
        Ok(match cap > 0.0 {
            true => row.iter().map(|x| cap * (x / cap).tanh()).collect(),
            false => row.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_capped_and_those_that_are_missing_refused() {
        let values = Arc::new(vec![1.0f32, -2.0, 30.0, 0.0]);
        let (plain, capped) = (Logits::new(values.clone(), 2, 0.0), Logits::new(values, 2, 15.0));
        assert_eq!(plain.row(1).unwrap(), [30.0, 0.0]);
        assert_eq!(capped.row(1).unwrap(), [15.0 * 2f32.tanh(), 0.0]);
        assert_eq!(
            plain.row(2).unwrap_err().to_string(),
            Error::Device("row 2 of the logits is missing".into()).to_string()
        );
    }
}
