//! Experts on other ranks, as the model sees them: [`ExpertExchange`] over the communication thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use candle_core::{Error, Result};
use multicoder_model::ExpertExchange;

use super::link::Link;

/// One rank's experts among all.
pub(super) struct Exchange {
    link: Arc<Link>,
    timeout: Duration,
    owner_of_expert: Option<Vec<usize>>,
    is_idle: AtomicBool,
}

impl Exchange {
    pub(super) fn new(link: Arc<Link>, timeout: Duration, owner_of_expert: Option<Vec<usize>>) -> Exchange {
        Exchange { link, timeout, owner_of_expert, is_idle: AtomicBool::new(false) }
    }

    pub(super) fn set_idle(&self, idle: bool) {
        self.is_idle.store(idle, Ordering::Relaxed);
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange(rank {} of {})", self.link.rank, self.link.world)
    }
}

fn wrapped(error: anyhow::Error) -> Error {
    Error::Msg(format!("{error:#}"))
}

impl ExpertExchange for Exchange {
    fn rank(&self) -> usize {
        self.link.rank
    }

    fn n_ranks(&self) -> usize {
        self.link.world
    }

    fn owner_of_expert(&self) -> Option<&[usize]> {
        self.owner_of_expert.as_deref()
    }

    fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed)
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let gathered = self.link.call(self.timeout, move |wire| wire.all_gather(bytes));
        values.fill(0.0);
        for bytes in self.link.wait(self.timeout, gathered).map_err(wrapped)? {
            let theirs = bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
            values.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn send(&self, parts: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let sent = self.link.call(self.timeout, move |wire| wire.all_to_all_v(parts));
        self.link.wait(self.timeout, sent).map_err(wrapped)
    }
}
