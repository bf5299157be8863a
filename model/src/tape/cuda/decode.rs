//! Tokens of many sequences computed in one pass: the forward tape of as many sequences of one token, over keys and values that are kept.
//!
//! A pass is padded to a power of two of rows. What it launches depends on shapes alone, so that it is captured as one graph when it comes
//! again, whatever languages, positions and sequences its rows have.

use super::super::op::{BufId, Op};
use super::super::record::record_forward;
use super::super::step::host_plans;
use super::super::step_data::HostPlan;
use super::super::{StepData, Tape};
use super::device::{Arg, Device, DeviceBuffer, Graph, Grid};
use super::gemm::{Product, Shape};
use super::kernels::Kernel;
use super::layout::{self, Arena, Layout};
use super::readback::Readback;
use super::run::{self, Run, Scratch};
use super::upload::{Bounds, KeptRows, KeptSections, Sections, Uploads, words};
use super::{check_model, optimizer};
use crate::batching::{Logits, Row, RowDecoder};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::lm::{CodeLm, bigram_bucket, check_ids};

/// Rows of a pass, at most.
const MAX_ROWS: usize = 256;
/// Graphs that are kept.
const MAX_PASSES: usize = 64;
/// Threads of a block of `attend_kept`.
const THREADS: usize = 256;

/// A model on a GPU that goes on with many sequences at once.
pub struct CudaDecoder {
    /// The newest last.
    passes: Vec<Pass>,
    memory: Memory,
}

/// What all passes use.
struct Memory {
    lm: CodeLm,
    n_sequences: usize,
    layout: Layout,
    bounds: Bounds,
    /// The output projection's place among the weights.
    head: usize,
    uploads: Uploads,
    scratch: Scratch,
    arena: DeviceBuffer,
    rope: DeviceBuffer,
    weights: DeviceBuffer,
    halves: DeviceBuffer,
    /// Keys and values of each layer: `[sequence][position][G][K]`.
    kept: Vec<[DeviceBuffer; 2]>,
    /// What the output projection reads, and the logits.
    wanted: DeviceBuffer,
    logits: DeviceBuffer,
    readback: Readback,
    device: Device,
}

/// What the launches of a pass depend on.
#[derive(PartialEq)]
struct Key {
    n_rows: usize,
    /// Rows of logits.
    n_wanted: usize,
    sections: Sections,
    /// Of each plan its assignments, whether rows stay in place, and whether its products go by the library. Tokens without an expert make
    /// no assignments: there can be fewer of them where sections are the same, whose sizes are rounded.
    plans: Vec<(usize, bool, bool)>,
}

/// A pass over so many rows.
struct Pass {
    key: Key,
    tape: Tape,
    /// What the output projection reads.
    out: BufId,
    arena: Arena,
    was_run: bool,
    graph: Option<Box<dyn Graph>>,
}

impl CudaDecoder {
    /// Takes the weights of `lm`, a model on the CPU, to GPU `ordinal`, with room for the keys and values of `n_sequences`.
    ///
    /// # Errors
    /// [`Error::Device`] without a GPU, its driver or its libraries, or for sizes that the kernels do not take; [`Error::Input`] for a model
    /// that no tape runs there.
    pub fn new(ordinal: usize, lm: CodeLm, n_sequences: usize) -> Result<CudaDecoder> {
        layout::check_sizes(lm.config())?;
        CudaDecoder::with_device(Device::open(ordinal, lm.config().d_head)?, lm, n_sequences)
    }

    pub(super) fn with_device(device: Device, lm: CodeLm, n_sequences: usize) -> Result<CudaDecoder> {
        check_model(&lm)?;
        let config = lm.config();
        let layout = Layout::new(lm.weights().iter().map(|(_, weight)| weight.elem_count()));
        let head = if config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let head = lm.weights().iter().position(|(name, _)| name == head);
        let head = head.ok_or_else(|| Error::Input("a model without an output projection".to_owned()))?;
        let rope = device.zeros(4 * lm.rope().table().len())?;
        device.write(lm.rope().table(), rope.at)?;
        let (weights, halves) = (device.zeros(4 * layout.len)?, device.zeros(2 * layout.len)?);
        let tensors = lm.weights().iter().map(|(_, weight)| weight);
        optimizer::send_weights(&device, &layout, tensors, (weights.at, halves.at))?;
        let kept_bytes = 2 * n_sequences * config.context_tokens * config.n_kv_heads * config.d_head;
        let kept = || Ok([device.zeros(kept_bytes)?, device.zeros(kept_bytes)?]);
        let memory = Memory {
            n_sequences,
            bounds: Bounds::new(config, &recorded(&lm, &data_of(&lm, &[Row::default()])?)?.0, &layout),
            head,
            uploads: Uploads::new(&device)?,
            scratch: Scratch::new(&device)?,
            arena: device.zeros(0)?,
            rope,
            weights,
            halves,
            kept: (0..config.n_layers).map(|_| kept()).collect::<Result<_>>()?,
            wanted: device.zeros(2 * MAX_ROWS * config.d_model)?,
            logits: device.zeros(4 * MAX_ROWS * config.vocab_size)?,
            readback: Readback::default(),
            layout,
            lm,
            device,
        };
        Ok(CudaDecoder { passes: Vec::new(), memory })
    }

    /// Passes that are graphs.
    pub fn n_graphs(&self) -> usize {
        self.passes.iter().filter(|pass| pass.graph.is_some()).count()
    }

    /// Makes the pass of these rows the newest one.
    fn come(&mut self, data: &StepData, n_wanted: usize, sections: Sections, moved: bool) -> Result<()> {
        let of = |plan: &HostPlan| (plan.token_A.len(), plan.is_plain(), run::uses_library(plan, data.b));
        let plans = data.plans.iter().map(of).collect();
        let key = Key { n_rows: data.b, n_wanted, sections, plans };
        let pass = match self.passes.iter().position(|pass| pass.key == key) {
            Some(known) => self.passes.remove(known),
            None => {
                let (tape, out) = recorded(&self.memory.lm, data)?;
                let arena = Arena::new(&tape);
                Pass { key, tape, out, arena, was_run: false, graph: None }
            }
        };
        let moved = moved | self.memory.device.grow(&mut self.memory.arena, pass.arena.n_bytes)?;
        self.passes.push(pass);
        if moved {
            self.passes.iter_mut().for_each(|pass| pass.graph = None);
        }
        if self.passes.len() > MAX_PASSES {
            self.passes.remove(0);
        }
        Ok(())
    }

    fn check(&self, rows: &[Row]) -> Result<()> {
        let (n, capacity) = (self.memory.n_sequences, self.memory.lm.config().context_tokens);
        if rows.is_empty() || rows.len() > MAX_ROWS {
            return Err(Error::Input(format!("{} rows: expected 1 to {MAX_ROWS}", rows.len())));
        }
        if let Some(row) = rows.iter().find(|row| row.sequence >= n || row.position >= capacity) {
            let message = format!("{row:?}: expected a sequence below {n}, a position below {capacity}");
            return Err(Error::Input(message));
        }
        let ids: Vec<u32> = rows.iter().flat_map(|row| [row.id, row.before]).collect();
        check_ids(&ids, self.memory.lm.config().vocab_size)
    }
}

impl RowDecoder for CudaDecoder {
    fn config(&self) -> &ModelConfig {
        self.memory.lm.config()
    }

    fn n_sequences(&self) -> usize {
        self.memory.n_sequences
    }

    fn max_rows(&self) -> usize {
        MAX_ROWS
    }

    fn decode(&mut self, rows: &[Row]) -> Result<Logits> {
        self.check(rows)?;
        let mut padded = rows.to_vec();
        // The last row again, which changes nothing.
        padded.resize(rows.len().next_power_of_two(), Row { is_wanted: false, ..rows[rows.len() - 1] });
        let data = data_of(&self.memory.lm, &padded)?;
        let kept = kept_rows(&padded);
        let (sections, words) = words(&data, 1.0, &self.memory.bounds, Some(&kept));
        let moved = self.memory.uploads.send(&self.memory.device, &words)?;
        self.come(&data, kept.wanted.len(), sections, moved)?;
        #[cfg(test)]
        self.memory.poison()?;
        if let Some(pass) = self.passes.last_mut() {
            self.memory.run(pass, &data)?;
        }
        self.memory.logits(rows.iter().filter(|row| row.is_wanted).count())
    }
}

impl Memory {
    /// Fills all that a pass writes before it reads with numbers that are none.
    #[cfg(test)]
    fn poison(&self) -> Result<()> {
        for buffer in [&self.arena, &self.wanted, &self.logits] {
            self.device.write(&vec![0xffu8; buffer.n_bytes], buffer.at)?;
        }
        Ok(())
    }

    /// Queues a pass: its launches the first time, a graph from then on.
    fn run(&self, pass: &mut Pass, data: &StepData) -> Result<()> {
        let Pass { key, tape, out, arena, was_run, graph } = pass;
        let run = Run {
            device: &self.device,
            config: self.lm.config(),
            tape,
            arena: (arena, self.arena.at),
            layout: &self.layout,
            weights: self.weights.at,
            halves: self.halves.at,
            gradients: 0,
            rope: self.rope.at,
            loss: 0,
            scratch: &self.scratch,
            uploads: &self.uploads,
            sections: &key.sections,
            data,
        };
        let Some(kept) = &key.sections.kept else { return Ok(()) };
        let mut queue = || self.queue(&run, kept, (*out, key.n_wanted));
        // Algorithms are looked for the first time. Products of one expert's rows each follow the languages: no graph can hold them.
        if !std::mem::replace(was_run, true) || key.plans.iter().any(|(.., by_library)| *by_library) {
            return queue();
        }
        if graph.is_none() {
            *graph = Some(self.device.capture(&mut queue)?);
        }
        graph.as_ref().map_or(Ok(()), |graph| graph.replay())
    }

    fn queue(&self, run: &Run, kept: &KeptSections, (out, n_wanted): (BufId, usize)) -> Result<()> {
        let mut layers = self.kept.iter();
        for op in &run.tape.ops {
            match op {
                Op::Attention { q, k, v, out, .. } => {
                    let Some([keys, values]) = layers.next() else { return Ok(()) };
                    self.attend(run, kept, [*q, *k, *v, *out], [keys.at, values.at])?;
                }
                op => run.op(op)?,
            }
        }
        let (d, v) = (self.lm.config().d_model, self.lm.config().vocab_size);
        run.take_rows(run.half(out)?, kept.wanted, self.wanted.at, (n_wanted, d))?;
        let head = self.halves.at + 2 * self.layout.span(self.head).start as u64;
        let shape = Shape::of((n_wanted, v, d), (false, true), true);
        let logits = self.logits.at;
        self.device.product(&Product {
            shape,
            a: self.wanted.at,
            b: head,
            c: logits,
            out: logits,
            alpha: 1.0,
            beta: 0.0,
        })
    }

    fn attend(&self, run: &Run, kept: &KeptSections, qkvo: [BufId; 4], [keys, values]: [u64; 2]) -> Result<()> {
        let ModelConfig { n_heads: h, n_kv_heads: g, d_head, context_tokens, .. } = *self.lm.config();
        let [q, k, v, out] = qkvo.map(|id| run.half(id).map(Arg::At));
        let places = [run.section(kept.sequence), run.section(kept.position)];
        let (keys, values, n) = (Arg::At(keys), Arg::At(values), run.data.b);
        let [rows, h_arg, g_arg, width, capacity] = [n, h, g, g * d_head, context_tokens].map(|n| Arg::Int(n as i32));
        let [sequence, position] = places;
        run.by_row(Kernel::Keep, n, &[k?, v?, sequence, position, keys, values, rows, width, capacity])?;
        // Of each group of threads the largest score, the sum and the part of the result.
        let n_groups = THREADS * 8 / d_head;
        let grid = Grid { blocks: (h, n, 1), threads: THREADS, shared_bytes: 4 * n_groups * (2 + d_head) };
        let args = [q?, keys, values, sequence, position, out?, h_arg, g_arg, capacity];
        self.device.launch(Kernel::AttendKept, grid, &args)
    }

    /// The first `n` rows of logits.
    fn logits(&mut self, n: usize) -> Result<Logits> {
        let (v, cap) = (self.lm.config().vocab_size, self.lm.config().logit_softcap);
        Ok(Logits::new(self.readback.read(&self.device, self.logits.at, n * v)?, v, cap))
    }
}

fn recorded(lm: &CodeLm, data: &StepData) -> Result<(Tape, BufId)> {
    let names: Vec<&str> = lm.weights().iter().map(|(name, _)| name.as_str()).collect();
    record_forward(lm.config(), &names, data)
}

/// Rows as sequences of one token.
fn data_of(lm: &CodeLm, rows: &[Row]) -> Result<StepData> {
    let id_N: Vec<u32> = rows.iter().map(|row| row.id).collect();
    let language_N: Vec<u32> = rows.iter().map(|row| row.language).collect();
    let bucket_N = match lm.config().bigram_buckets as u32 {
        0 => Vec::new(),
        buckets => rows.iter().map(|row| bigram_bucket(row.before, row.id, buckets)).collect(),
    };
    let plans = host_plans(lm, (&id_N, &language_N), None, None)?;
    Ok(StepData { b: rows.len(), l: 1, id_N, bucket_N, plans, ..StepData::default() })
}

/// Where rows belong; those that are wanted padded to a power of two by the first row.
fn kept_rows(rows: &[Row]) -> KeptRows {
    let mut wanted: Vec<u32> = (0u32..).zip(rows).filter(|(_, row)| row.is_wanted).map(|(n, _)| n).collect();
    wanted.resize(wanted.len().next_power_of_two(), 0);
    KeptRows {
        sequence_N: rows.iter().map(|row| row.sequence as u32).collect(),
        position_N: rows.iter().map(|row| row.position as u32).collect(),
        wanted,
    }
}
