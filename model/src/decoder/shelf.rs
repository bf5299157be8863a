//! Experts that are packed: those in use, and as many others as fit; what was used longest ago is packed anew when it is wanted again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::network::{Network, check_alike};
use crate::error::Result;

/// What experts may take, but for those of the pass that is under way.
const BUDGET_BYTES: usize = 128 << 20;

/// A layer, and the number of an expert in it.
pub(super) type Place = (usize, usize);

pub(super) struct Shelf {
    held: Mutex<Held>,
    budget: usize,
}

#[derive(Default)]
struct Held {
    /// With the pass that used each one last.
    networks: BTreeMap<Place, (Arc<Network>, u64)>,
    n_bytes: usize,
    pass: u64,
}

impl Shelf {
    /// For a router that chooses by language, one that holds the languages in use; else one that holds all.
    pub(super) fn new(is_by_language: bool) -> Shelf {
        Shelf { held: Mutex::default(), budget: if is_by_language { BUDGET_BYTES } else { usize::MAX } }
    }

    #[cfg(test)]
    pub(super) fn set_budget(&mut self, n_bytes: usize) {
        self.budget = n_bytes;
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a pass begins: what it takes stays until it ends.
    pub(super) fn begin_pass(&self) {
        self.lock().pass += 1;
    }

    /// The network of a place, packed now if it is not there; others may go for it.
    ///
    /// # Errors
    /// What `pack` says; a network whose input is not that of the others of its layer.
    pub(super) fn take(&self, place: Place, pack: impl FnOnce() -> Result<Network>) -> Result<Arc<Network>> {
        let mut held = self.lock();
        let pass = held.pass;
        if let Some((network, used)) = held.networks.get_mut(&place) {
            *used = pass;
            return Ok(network.clone());
        }
        let network = Arc::new(pack()?);
        let of_layer = held.networks.range((place.0, 0)..(place.0 + 1, 0)).map(|(_, (other, _))| other.first());
        check_alike(of_layer.chain([network.first()]), &format!("the experts of layer {}", place.0))?;
        held.n_bytes += network.n_bytes();
        held.networks.insert(place, (network.clone(), pass));
        held.make_room(self.budget);
        Ok(network)
    }

    /// Networks that are there, and their bytes.
    pub(super) fn in_memory(&self) -> (usize, usize) {
        let held = self.lock();
        (held.networks.len(), held.n_bytes)
    }
}

impl Held {
    fn make_room(&mut self, budget: usize) {
        while self.n_bytes > budget {
            let oldest = self.networks.iter().min_by_key(|(_, (_, used))| *used);
            let Some(place) = oldest.filter(|(_, (_, used))| *used < self.pass).map(|(place, _)| *place) else {
                return;
            };
            if let Some((network, _)) = self.networks.remove(&place) {
                self.n_bytes -= network.n_bytes();
            }
        }
    }
}
