//! The ranks of a run. Only this module knows how they talk; today there is one.

use anyhow::Result;
use multicoder_model::Gradients;

/// The group of processes that train one model together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// One process, no communication: the reference that every other mode must equal.
    Single,
}

impl Mesh {
    /// Replaces each gradient by its sum over all ranks.
    pub fn sum_gradients(self, _gradients: &mut Gradients) -> Result<()> {
        match self {
            Mesh::Single => Ok(()),
        }
    }

    /// The sum of `value` over all ranks.
    pub fn sum(self, value: f64) -> Result<f64> {
        match self {
            Mesh::Single => Ok(value),
        }
    }

    /// Whether `ok` holds on all ranks.
    pub fn all(self, ok: bool) -> Result<bool> {
        match self {
            Mesh::Single => Ok(ok),
        }
    }
}
