//! Where the parts of a batch, each on threads of its own, add up what they count.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::bail;

use crate::exchange::ExpertExchange;

/// A sum that all parts of a batch wait for.
#[derive(Debug)]
pub(super) struct Meeting<'a> {
    n_parts: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// The other ranks: the last part to arrive asks them for all parts here.
    ranks: Option<&'a dyn ExpertExchange>,
}

#[derive(Debug, Default)]
struct State {
    /// Sums that are complete.
    round: usize,
    n_here: usize,
    /// What those that are here have said.
    sum: Vec<f64>,
    /// What all said in the last round: it stays until all are here again.
    result: Vec<f64>,
    /// Whether a part will come no more.
    has_left: bool,
}

/// One part's way in. Those who wait for it hear when it is dropped.
#[derive(Debug)]
pub(super) struct Seat<'a>(&'a Meeting<'a>);

impl<'a> Meeting<'a> {
    pub(super) fn new(n_parts: usize, ranks: Option<&'a dyn ExpertExchange>) -> Meeting<'a> {
        Meeting { n_parts, state: Mutex::default(), changed: Condvar::new(), ranks }
    }

    /// The way in of one part: taken once by each.
    pub(super) fn seat(&'a self) -> Seat<'a> {
        Seat(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.state().has_left = true;
        self.0.changed.notify_all();
    }
}

impl ExpertExchange for Seat<'_> {
    fn rank(&self) -> usize {
        self.0.ranks.map_or(0, |ranks| ranks.rank())
    }

    fn n_ranks(&self) -> usize {
        self.0.ranks.map_or(1, |ranks| ranks.n_ranks())
    }

    fn owner_of_expert(&self) -> Option<&[usize]> {
        None
    }

    fn is_idle(&self) -> bool {
        self.0.ranks.is_some_and(|ranks| ranks.is_idle())
    }

    fn sum(&self, values: &mut [f64]) -> candle_core::Result<()> {
        let mut state = self.0.state();
        if state.n_here == 0 {
            state.sum = vec![0.0; values.len()];
        }
        state.sum.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value);
        state.n_here += 1;
        if state.n_here == self.0.n_parts {
            self.0.ranks.map_or(Ok(()), |ranks| ranks.sum(&mut state.sum))?;
            state.result = std::mem::take(&mut state.sum);
            state.n_here = 0;
            state.round += 1;
            self.0.changed.notify_all();
        } else {
            let round = state.round;
            let waits = |state: &mut State| state.round == round && !state.has_left;
            state = self.0.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
            if state.round == round {
                bail!("another part of the batch failed");
            }
        }
        values.copy_from_slice(&state.result);
        Ok(())
    }

    fn send(&self, _parts: Vec<Vec<f32>>) -> candle_core::Result<Vec<Vec<f32>>> {
        bail!("rows of experts on other ranks do not travel on a tape")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_get_the_sum_of_all_of_them_round_after_round() {
        let meeting = Meeting::new(3, None);
        let part = |part: usize| {
            let seat = meeting.seat();
            let round = |round: usize| {
                let mut values = [(part * round) as f64, 1.0];
                seat.sum(&mut values).map(|()| values)
            };
            (0..50).map(round).collect::<candle_core::Result<Vec<_>>>()
        };
        let expected: Vec<[f64; 2]> = (0..50).map(|round| [(3 * round) as f64, 3.0]).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|i| scope.spawn(move || part(i))).collect();
            threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap().unwrap(), expected));
        });
    }

    #[test]
    fn nobody_waits_for_a_part_that_failed() {
        let meeting = Meeting::new(2, None);
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| meeting.seat().sum(&mut [1.0]));
            scope.spawn(|| drop(meeting.seat()));
            waiting.join().unwrap().unwrap_err().to_string()
        });
        assert!(error.contains("another part of the batch failed"), "{error}");
    }
}
