//! A batch on its way to the device: ids, targets, documents and plans in one block of words, copied beside the work on the last one.
//!
//! Where a section begins depends on the shape of the batch alone, so that a captured graph finds the next batch where the last one was.

use std::collections::HashMap;

use cudarc::driver::{CudaEvent, PinnedHostSlice};

use super::super::op::Op;
use super::super::step_data::HostPlan;
use super::super::{StepData, Tape};
use super::device::{Device, DeviceBuffer};
use super::gpu::{Gpu, driver};
use super::layout::Layout;
use crate::config::ModelConfig;
use crate::error::Result;

/// Rows of one id that a warp adds up: more of them are shared out.
const PIECE_ROWS: usize = 64;
/// Rows of a tile of the grouped products.
const TILE_ROWS: usize = 128;
/// Queries that have one common bound of the keys that they see.
const QUERIES: usize = 64;

/// A section: its first word, and the most rows that it may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Section(usize);

/// Rows sorted by id, in pieces; the words of the kernels `sum_pieces` and `add_pieces`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    pub(super) order: Section,
    pub(super) first: Section,
    pub(super) ids: Section,
    pub(super) pieces: Section,
    pub(super) n_pieces: Section,
    pub(super) n_ids: Section,
    /// Bounds of their numbers.
    pub(super) most_pieces: usize,
    pub(super) most_ids: usize,
}

/// The sections of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PlanSections {
    pub(super) token: Section,
    pub(super) weight: Option<Section>,
    pub(super) shared_weight: Option<Section>,
    /// Assignments by token.
    pub(super) first: Section,
    pub(super) assignment: Section,
    pub(super) tiles: Section,
    pub(super) n_tiles: Section,
    pub(super) most_tiles: usize,
    /// Stretches by expert.
    pub(super) expert_first: Section,
    pub(super) stretches: Section,
    pub(super) n_experts: usize,
}

/// The sections of a batch: equal ones mean that the same launches serve both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sections {
    pub(super) scale: Section,
    pub(super) ids: Section,
    pub(super) buckets: Section,
    pub(super) targets: Section,
    /// First key of each query, and the least of them of each 64 queries.
    pub(super) starts: Option<(Section, Section)>,
    pub(super) by_id: Pieces,
    pub(super) by_bucket: Pieces,
    pub(super) plans: Vec<PlanSections>,
    /// Where the weights of a list of experts begin.
    pub(super) experts: HashMap<Vec<usize>, Section>,
    /// Of rows that go on with sequences whose keys and values are kept.
    pub(super) kept: Option<KeptSections>,
}

/// Where rows belong, and which of them are asked for their logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeptSections {
    pub(super) sequence: Section,
    pub(super) position: Section,
    pub(super) wanted: Section,
}

/// The same on the host.
pub(super) struct KeptRows {
    pub(super) sequence_N: Vec<u32>,
    pub(super) position_N: Vec<u32>,
    pub(super) wanted: Vec<u32>,
}

/// Words and where they go.
#[derive(Default)]
struct Writer {
    words: Vec<u32>,
}

impl Writer {
    /// A section of room for `capacity` words, at 16 bytes.
    fn push(&mut self, values: impl IntoIterator<Item = u32>, capacity: usize) -> Section {
        let start = self.words.len();
        self.words.extend(values);
        debug_assert!(self.words.len() <= start + capacity, "{} words in {capacity}", self.words.len() - start);
        self.words.resize((start + capacity.max(1)).next_multiple_of(4), 0);
        Section(start)
    }

    fn all(&mut self, values: &[u32]) -> Section {
        self.push(values.iter().copied(), values.len())
    }

    fn floats(&mut self, values: &[f32]) -> Section {
        self.push(values.iter().map(|x| x.to_bits()), values.len())
    }

    fn pieces(&mut self, ids: &[u32], n_rows: usize) -> Pieces {
        let n = ids.len();
        let (starts, order) = grouped(ids, n_rows);
        let (mut first, mut distinct, mut pieces) = (vec![0u32], Vec::new(), vec![0u32]);
        for (id, ends) in starts.windows(2).enumerate().filter(|(_, ends)| ends[0] < ends[1]) {
            distinct.push(id as u32);
            first.extend((ends[0]..ends[1]).step_by(PIECE_ROWS).skip(1));
            first.push(ends[1]);
            pieces.push(first.len() as u32 - 1);
        }
        let most_ids = n.min(n_rows);
        let most_pieces = most_ids + n / PIECE_ROWS;
        let counts = [first.len() as u32 - 1, distinct.len() as u32];
        Pieces {
            order: self.all(&order),
            first: self.push(first, most_pieces + 1),
            ids: self.push(distinct, most_ids),
            pieces: self.push(pieces, most_ids + 1),
            n_pieces: self.all(&counts[..1]),
            n_ids: self.all(&counts[1..]),
            most_pieces,
            most_ids,
        }
    }

    /// The plan of `n` tokens in `b` sequences.
    fn plan(&mut self, plan: &HostPlan, (b, n): (usize, usize), n_experts: usize) -> PlanSections {
        let a = plan.token_A.len();
        let (first, assignment) = grouped(&plan.token_A, n);
        let stretches: Vec<_> = plan.stretches().collect();
        let mut tiles = Vec::new();
        for (expert, rows) in &stretches {
            let starts = rows.clone().step_by(TILE_ROWS);
            tiles.extend(
                starts.flat_map(|start| [*expert as u32, start as u32, (start + TILE_ROWS).min(rows.end) as u32]),
            );
        }
        let expert_of: Vec<u32> = stretches.iter().map(|(expert, _)| *expert as u32).collect();
        let (expert_first, by_expert) = grouped(&expert_of, n_experts);
        let ends = by_expert.iter().flat_map(|&i| {
            let rows = &stretches[i as usize].1;
            [rows.start as u32, rows.end as u32]
        });
        // Numbers of runs differ from batch to batch; bounds of them need not: a sequence of one language is part of one run.
        let most_runs = stretches.len().next_power_of_two().max(n_experts).max(b);
        let most_tiles = a / TILE_ROWS + most_runs;
        let n_tiles = [tiles.len() as u32 / 3];
        PlanSections {
            token: self.all(&plan.token_A),
            weight: plan.weight_A.as_ref().map(|weight_A| self.floats(weight_A)),
            shared_weight: plan.shared_weight_N.as_ref().map(|weight_N| self.floats(weight_N)),
            first: self.all(&first),
            assignment: self.all(&assignment),
            tiles: self.push(tiles, 3 * most_tiles),
            n_tiles: self.all(&n_tiles),
            most_tiles,
            expert_first: self.all(&expert_first),
            stretches: self.push(ends, 2 * most_runs),
            n_experts,
        }
    }
}

/// Indices of `groups` by their value, in order: where each of `n` values' indices begin, and the indices.
fn grouped(groups: &[u32], n: usize) -> (Vec<u32>, Vec<u32>) {
    let mut first = vec![0u32; n + 1];
    groups.iter().for_each(|&group| first[group as usize + 1] += 1);
    (1..=n).for_each(|i| first[i] += first[i - 1]);
    let (mut next, mut order) = (first.clone(), vec![0u32; groups.len()]);
    for (i, &group) in groups.iter().enumerate() {
        order[next[group as usize] as usize] = i as u32;
        next[group as usize] += 1;
    }
    (first, order)
}

/// Sizes that bound the sections.
pub(super) struct Bounds {
    pub(super) vocab_size: usize,
    pub(super) bigram_buckets: usize,
    pub(super) n_experts: usize,
    /// Each list of experts of the tape, and where their weights begin.
    pub(super) experts: Vec<(Vec<usize>, Vec<u32>)>,
}

impl Bounds {
    pub(super) fn new(config: &ModelConfig, tape: &Tape, layout: &Layout) -> Bounds {
        let mut experts = Vec::new();
        for op in &tape.ops {
            if let Op::ExpertLinear { weights, .. } = op {
                let ids: Vec<usize> = weights.iter().map(|id| id.0).collect();
                let starts = ids.iter().map(|&idx| layout.unit(idx)).collect();
                experts.push((ids, starts));
            }
        }
        experts.dedup();
        let n_experts = config.moe.as_ref().map_or(0, |moe| moe.n_experts);
        Bounds { vocab_size: config.vocab_size, bigram_buckets: config.bigram_buckets, n_experts, experts }
    }
}

/// The words of a batch; without those of gradients for rows of `kept`.
pub(super) fn words(data: &StepData, scale: f32, bounds: &Bounds, kept: Option<&KeptRows>) -> (Sections, Vec<u32>) {
    let mut writer = Writer::default();
    let is_trained = kept.is_none();
    let pieces = |writer: &mut Writer, ids: &[u32], n_rows| match is_trained {
        true => writer.pieces(ids, n_rows),
        false => Pieces::default(),
    };
    let n = data.id_N.len();
    let starts = data.start_N.as_ref().map(|start_N| {
        let blocks = start_N.chunks(data.l.max(1)).flat_map(|starts| starts.chunks(QUERIES));
        let low = blocks.map(|starts| starts.iter().copied().min().unwrap_or(0)).collect::<Vec<u32>>();
        (writer.all(start_N), writer.all(&low))
    });
    let sections = Sections {
        scale: writer.floats(&[scale]),
        ids: writer.all(&data.id_N),
        buckets: writer.all(&data.bucket_N),
        targets: writer.all(&data.target_N),
        starts,
        by_id: pieces(&mut writer, &data.id_N, bounds.vocab_size),
        by_bucket: pieces(&mut writer, &data.bucket_N, bounds.bigram_buckets),
        plans: data.plans.iter().map(|plan| writer.plan(plan, (data.b, n), bounds.n_experts)).collect(),
        experts: bounds.experts.iter().map(|(ids, starts)| (ids.clone(), writer.all(starts))).collect(),
        kept: kept.map(|kept| KeptSections {
            sequence: writer.all(&kept.sequence_N),
            position: writer.all(&kept.position_N),
            wanted: writer.all(&kept.wanted),
        }),
    };
    (sections, writer.words)
}

/// Two blocks of pinned memory and of the device's, used in turn, and the one that kernels read.
pub(super) struct Uploads {
    stages: [Option<Stage>; 2],
    turn: usize,
    current: DeviceBuffer,
}

struct Stage {
    pinned: PinnedHostSlice<u32>,
    device: DeviceBuffer,
    /// When the device's block has been read.
    read: Option<CudaEvent>,
}

impl Uploads {
    pub(super) fn new(device: &Device) -> Result<Uploads> {
        Ok(Uploads { stages: [None, None], turn: 0, current: device.zeros(0)? })
    }

    /// Where a section lies on the device.
    pub(super) fn at(&self, section: Section) -> u64 {
        self.current.at + 4 * section.0 as u64
    }

    /// Queues the copy of `words` on the stream of copies; the stream of work takes them over when it comes to that. Waits only for the
    /// copy before the last one. Says whether the block has moved.
    pub(super) fn send(&mut self, device: &Device, words: &[u32]) -> Result<bool> {
        let Some(gpu) = device.gpu() else {
            let moved = device.grow(&mut self.current, 4 * words.len())?;
            return device.write(words, self.current.at).map(|()| moved);
        };
        let stage = &mut self.stages[self.turn];
        self.turn ^= 1;
        if stage.as_ref().is_none_or(|stage| stage.pinned.len() < words.len()) {
            device.wait()?;
            let room = words.len().next_power_of_two();
            // SAFETY: it is written before it is read.
            let pinned = unsafe { gpu.context.alloc_pinned_with_flags(room, 0) }.map_err(driver)?;
            *stage = Some(Stage { pinned, device: device.zeros(4 * room)?, read: None });
            device.wait()?;
        }
        let Some(stage) = stage else { return Ok(false) };
        if let Some(read) = &stage.read {
            read.synchronize().map_err(driver)?;
        }
        stage.pinned.as_mut_slice().map_err(driver)?[..words.len()].copy_from_slice(words);
        let copied = stage.send(gpu, words.len())?;
        let moved = device.grow(&mut self.current, stage.device.n_bytes)?;
        gpu.stream.wait(&copied).map_err(driver)?;
        device.copy(self.current.at, stage.device.at, 4 * words.len())?;
        stage.read = Some(gpu.mark(false)?);
        Ok(moved)
    }
}

impl Stage {
    fn send(&self, gpu: &Gpu, len: usize) -> Result<CudaEvent> {
        let from = &self.pinned.as_slice().map_err(driver)?[..len];
        let stream = &gpu.copies;
        // SAFETY: both blocks hold `len` words and live until the event that `send` waits for before it writes them again.
        unsafe { cudarc::driver::result::memcpy_htod_async(self.device.at, from, stream.cu_stream()) }
            .map_err(driver)?;
        stream.record_event(None).map_err(driver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(words: &[u32], section: Section, len: usize) -> &[u32] {
        &words[section.0..section.0 + len]
    }

    #[test]
    fn pieces_hold_every_row_once_by_id_and_in_order() {
        let ids: Vec<u32> = (0..500u32).map(|i| if i % 3 == 0 { 7 } else { i * i % 11 }).collect();
        let mut writer = Writer::default();
        let pieces = writer.pieces(&ids, 20);
        let words = &writer.words;
        let [n_pieces, n_ids] = [pieces.n_pieces, pieces.n_ids].map(|count| section(words, count, 1)[0] as usize);
        assert!(n_pieces <= pieces.most_pieces && n_ids <= pieces.most_ids);
        let (order, first) = (section(words, pieces.order, 500), section(words, pieces.first, n_pieces + 1));
        let (distinct, of_id) = (section(words, pieces.ids, n_ids), section(words, pieces.pieces, n_ids + 1));
        let mut seen = 0;
        for i in 0..n_ids {
            let rows = &order[first[of_id[i] as usize] as usize..first[of_id[i + 1] as usize] as usize];
            assert!(rows.iter().all(|&row| ids[row as usize] == distinct[i]) && rows.is_sorted());
            seen += rows.len();
        }
        assert_eq!(seen, 500);
        assert!(first.windows(2).all(|ends| ends[0] < ends[1] && ends[1] - ends[0] <= PIECE_ROWS as u32));
    }

    #[test]
    fn a_plan_is_cut_into_tiles_and_sorted_by_token_and_expert() {
        let plan = HostPlan { token_A: vec![2, 0, 2, 1], runs: vec![(1, 1), (0, 3)], ..HostPlan::default() };
        let mut writer = Writer::default();
        let sections = writer.plan(&plan, (1, 4), 3);
        let words = &writer.words;
        assert_eq!(section(words, sections.first, 5), [0, 1, 2, 4, 4]);
        assert_eq!(section(words, sections.assignment, 4), [1, 3, 0, 2]);
        assert_eq!(section(words, sections.n_tiles, 1), [2]);
        assert_eq!(section(words, sections.tiles, 6), [1, 0, 1, 0, 1, 4]);
        assert_eq!(section(words, sections.expert_first, 4), [0, 1, 2, 2]);
        assert_eq!(section(words, sections.stretches, 4), [1, 4, 0, 1]);
    }

    #[test]
    fn sections_of_batches_of_one_shape_lie_at_the_same_places() {
        let data = |seed: u32| StepData {
            b: 2,
            l: 100,
            id_N: (0..200).map(|i| (i * seed) % 50).collect(),
            target_N: vec![1; 200],
            start_N: Some((0..200).map(|i| i % 100 / 40 * 40).collect()),
            ..StepData::default()
        };
        let bounds = Bounds { vocab_size: 50, bigram_buckets: 0, n_experts: 0, experts: vec![(vec![3], vec![9])] };
        let ((first, words_1), (second, words_2)) =
            (words(&data(3), 0.5, &bounds, None), words(&data(10), 0.5, &bounds, None));
        assert_eq!((&first, words_1.len()), (&second, words_2.len()));
        let low = first.starts.unwrap().1;
        // Of each sequence's 64 and 36 queries.
        assert_eq!(section(&words_1, low, 4), [0, 40, 0, 40]);
        assert_eq!(section(&words_1, first.experts[&vec![3]], 1), [9]);
    }
}
