//! The gradients of the parts of a batch, added up while their backward passes go on.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::step::Ready;
use crate::error::{Error, Result};
use crate::gradients::Gradients;

/// Gradients to which a part adds nothing more.
pub(super) struct Complete {
    parameters: Range<usize>,
    /// Of each parameter; none where the part has no gradient.
    values: Vec<Option<Vec<f32>>>,
}

impl Complete {
    pub(super) fn of(gradients: &Gradients, parameters: Range<usize>) -> Complete {
        let values = parameters.clone().map(|idx| gradients.get(idx).map(<[f32]>::to_vec)).collect();
        Complete { parameters, values }
    }
}

/// The first part's end: adds what the others say to its own, in the order of the parts, so that the sum does not depend on the time.
pub(super) struct Merger {
    others: Vec<(Receiver<Complete>, Option<Complete>)>,
    /// What the first part has completed and not all others have, the earliest first.
    waiting: VecDeque<Range<usize>>,
}

impl Merger {
    /// For a first part and `n_others`, each of which gets a sender.
    pub(super) fn new(n_others: usize) -> (Merger, Vec<Sender<Complete>>) {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..n_others).map(|_| channel()).unzip();
        let others = receivers.into_iter().map(|receiver| (receiver, None)).collect();
        (Merger { others, waiting: VecDeque::new() }, senders)
    }

    /// The first part has completed `parameters`. Adds whatever all parts have completed, and waits for none.
    pub(super) fn add(&mut self, gradients: &mut Gradients, parameters: Range<usize>, ready: &mut Ready) -> Result<()> {
        self.waiting.push_back(parameters);
        self.merge(gradients, ready, |other| other.try_recv().ok())
    }

    /// Waits for the rest. What a part that has failed does not say is left out: its error is its own to report.
    pub(super) fn finish(&mut self, gradients: &mut Gradients, ready: &mut Ready) -> Result<()> {
        self.merge(gradients, ready, |other| other.recv().ok())
    }

    fn merge(
        &mut self,
        gradients: &mut Gradients,
        ready: &mut Ready,
        receive: fn(&Receiver<Complete>) -> Option<Complete>,
    ) -> Result<()> {
        while let Some(parameters) = self.waiting.front().cloned() {
            self.others.iter_mut().for_each(|(other, said)| *said = said.take().or_else(|| receive(other)));
            if self.others.iter().any(|(_, said)| said.is_none()) {
                return Ok(());
            }
            self.waiting.pop_front();
            for said in self.others.iter_mut().filter_map(|(_, said)| said.take()) {
                if said.parameters != parameters {
                    let (got, expected) = (said.parameters, parameters);
                    return Err(Error::Input(format!("a part of a batch completed {got:?}, expected {expected:?}")));
                }
                for (idx, values) in parameters.clone().zip(&said.values) {
                    values.iter().for_each(|values| gradients.add_values(idx, values));
                }
            }
            ready(gradients, parameters)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_have_completed_is_added_before_the_others_end() {
        let mut sum = Gradients::new([1, 1, 1]);
        let mut other = sum.clone();
        let (mut merger, senders) = Merger::new(1);
        let mut said = Vec::new();
        let mut ready = |gradients: &mut Gradients, parameters: Range<usize>| {
            said.push((parameters.start, gradients.get(parameters.start).map(|values| values[0])));
            Ok(())
        };
        sum.slice_mut(2)[0] = 1.0;
        merger.add(&mut sum, 2..3, &mut ready).unwrap();
        // The other part is behind; then it catches up.
        other.slice_mut(2)[0] = 10.0;
        senders[0].send(Complete::of(&other, 2..3)).unwrap();
        merger.add(&mut sum, 1..2, &mut ready).unwrap();
        other.slice_mut(1)[0] = 20.0;
        senders[0].send(Complete::of(&other, 1..2)).unwrap();
        senders[0].send(Complete::of(&other, 0..1)).unwrap();
        sum.slice_mut(0)[0] = 3.0;
        merger.add(&mut sum, 0..1, &mut ready).unwrap();
        merger.finish(&mut sum, &mut ready).unwrap();
        assert_eq!(said, [(2, Some(11.0)), (1, Some(20.0)), (0, Some(3.0))]);
    }

    #[test]
    fn a_part_that_fails_does_not_hang_the_others() {
        let mut sum = Gradients::new([1]);
        let (mut merger, senders) = Merger::new(1);
        merger.add(&mut sum, 0..1, &mut |_, _| Ok(())).unwrap();
        drop(senders);
        merger.finish(&mut sum, &mut |_, _| Err(Error::Input("not complete".to_owned()))).unwrap();
    }
}
