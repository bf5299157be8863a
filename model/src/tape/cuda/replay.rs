//! Graphs of the tapes that were met last, and what they depend on: shapes, not the languages or the ids of a batch.

use super::super::op::{Buffer, Op};
use super::super::{StepData, Tape};
use super::device::Graph;
use super::layout::Arena;
use super::run::{Run, follows_stretches};
use super::upload::Sections;
use crate::error::Result;

/// Tapes that are kept: a step's last micro-batch may be shorter than the others.
const KEPT: usize = 4;
/// A tape that comes as often as this is captured: the first times see memory grow and algorithms be looked for.
const CAPTURED_FROM: usize = 3;

/// What graphs depend on.
#[derive(PartialEq)]
pub(super) struct Key {
    pub(super) ops: Vec<Op>,
    pub(super) buffers: Vec<Buffer>,
    pub(super) sections: Sections,
    pub(super) rows: (usize, usize),
    /// Which plans' products go by the library.
    pub(super) by_library: Vec<bool>,
}

/// A tape: how often it came, and its graphs once it has them.
pub(super) struct Recorded {
    pub(super) key: Key,
    pub(super) arena: Arena,
    n_runs: usize,
    /// Of each piece of the tape; none for one that follows the stretches of its plan.
    graphs: Vec<Option<Box<dyn Graph>>>,
}

/// The newest tapes, the last one last.
#[derive(Default)]
pub(super) struct Tapes(Vec<Recorded>);

impl Tapes {
    /// Makes the tape of `key` the last one. `moved`: memory that graphs know has gone elsewhere.
    pub(super) fn come(&mut self, key: Key, arena: Arena, moved: bool) {
        if moved {
            self.0.iter_mut().for_each(|recorded| (recorded.graphs, recorded.n_runs) = (Vec::new(), 0));
        }
        let known = self.0.iter().position(|recorded| recorded.key == key);
        let recorded = known.map(|idx| self.0.remove(idx));
        let mut recorded = recorded.unwrap_or_else(|| Recorded { key, arena, n_runs: 0, graphs: Vec::new() });
        recorded.n_runs += 1;
        self.0.push(recorded);
        if self.0.len() > KEPT {
            self.0.remove(0);
        }
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut Recorded> {
        self.0.last_mut()
    }
}

impl Recorded {
    pub(super) fn is_replayed(&self) -> bool {
        self.n_runs >= CAPTURED_FROM
    }

    /// Queues the graphs, made the first time, and between them what none can hold. `run` is of the arena and sections of this tape.
    pub(super) fn replay(graphs: &mut Vec<Option<Box<dyn Graph>>>, run: &Run) -> Result<()> {
        if graphs.is_empty() {
            *graphs = pieces(run.tape, run.data).map(|piece| captured(run, piece)).collect::<Result<_>>()?;
        }
        for (piece, graph) in pieces(run.tape, run.data).zip(graphs.iter()) {
            match graph {
                Some(graph) => graph.replay()?,
                None => piece.iter().try_for_each(|op| run.op(op))?,
            }
        }
        Ok(())
    }

    /// The graphs, and what a run of this tape reads.
    pub(super) fn parts(&mut self) -> (&mut Vec<Option<Box<dyn Graph>>>, &Arena, &Sections) {
        (&mut self.graphs, &self.arena, &self.key.sections)
    }
}

/// The operations in turns of those that follow the stretches of their plan, and those that a graph can hold.
fn pieces<'a>(tape: &'a Tape, data: &'a StepData) -> impl Iterator<Item = &'a [Op]> {
    tape.ops.chunk_by(|a, b| follows_stretches(a, data) == follows_stretches(b, data))
}

/// A graph of the operations, if one can hold them.
fn captured(run: &Run, ops: &[Op]) -> Result<Option<Box<dyn Graph>>> {
    let launches = |op: &Op| !matches!(op, Op::Ready { .. });
    if !ops.iter().any(launches) || ops.iter().any(|op| follows_stretches(op, run.data)) {
        return Ok(None);
    }
    run.device.capture(&mut || ops.iter().try_for_each(|op| run.op(op))).map(Some)
}
