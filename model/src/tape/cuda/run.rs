//! Each operation of a tape as launches on a device.

use super::super::op::{BufId, Op, ParamId};
use super::super::{StepData, Tape};
use super::device::{Arg, Device, Grid};
use super::gemm::{Product, Shape};
use super::kernels::Kernel;
use super::layout::{Arena, Layout};
use super::upload::{Pieces, Section, Sections, Uploads};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

mod experts;
mod loss;
mod scratch;

pub(super) use experts::{follows_stretches, uses_library};
pub(super) use scratch::Scratch;

/// Warps of a block of most kernels, each with a row.
const WARPS: usize = 4;
const WARP_THREADS: usize = 32 * WARPS;
/// Threads of a block of elementwise kernels, each with eight numbers.
const THREADS: usize = 256;
/// Blocks whose sums over rows are added up afterwards. A number of its own, so that sums do not depend on the device.
const PARTIALS: usize = 512;

/// All that a tape's operations read and write.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) device: &'a Device,
    pub(super) config: &'a ModelConfig,
    pub(super) tape: &'a Tape,
    pub(super) arena: (&'a Arena, u64),
    pub(super) layout: &'a Layout,
    /// Weights as float32 and as bfloat16, and gradients.
    pub(super) weights: u64,
    pub(super) halves: u64,
    pub(super) gradients: u64,
    /// Cosines and sines by position.
    pub(super) rope: u64,
    /// The float64 sum that losses are added to.
    pub(super) loss: u64,
    pub(super) scratch: &'a Scratch,
    pub(super) uploads: &'a Uploads,
    pub(super) sections: &'a Sections,
    pub(super) data: &'a StepData,
}

impl Run<'_> {
    /// Queues the launches of one operation.
    pub(super) fn op(&self, op: &Op) -> Result<()> {
        match op {
            Op::Embed { .. } | Op::EmbedGrad { .. } | Op::AddRows { .. } | Op::AddRowsGrad { .. } => self.tables(op),
            Op::Norm { .. } | Op::NormGrad { .. } => self.norms(op),
            Op::Rope { .. } | Op::HeadNormRope { .. } | Op::HeadNormRopeGrad { .. } => self.ropes(op),
            Op::Linear { .. } | Op::LinearGradInput { .. } | Op::LinearGradWeight { .. } => self.linears(op),
            Op::Attention { .. } | Op::AttentionGrad { .. } => self.attention(op),
            Op::Relu2 { .. } | Op::Relu2Grad { .. } | Op::Swiglu { .. } | Op::SwigluGrad { .. } => self.activations(op),
            Op::ExpertLinear { .. } | Op::ExpertLinearGradInput { .. } | Op::ExpertLinearGradWeight { .. } => {
                self.experts(op)
            }
            Op::Gather { .. }
            | Op::GatherGrad { .. }
            | Op::Combine { .. }
            | Op::CombineGrad { .. }
            | Op::WeighShared { .. } => self.dispatch(op),
            Op::LinearCrossEntropy { x, head, dx } => self.cross_entropy(*x, *head, *dx),
            Op::Ready { .. } => Ok(()),
            _ => Err(not_here(op)),
        }
    }

    fn shape(&self, id: BufId) -> (usize, usize) {
        let buffer = self.tape.buffers[id.0];
        (buffer.rows, buffer.cols)
    }

    /// The address of a float32 buffer.
    fn float(&self, id: BufId) -> Result<u64> {
        let place = self.arena.0.place(id);
        match place.is_float {
            true => Ok(self.arena.1 + place.offset as u64),
            false => Err(Error::Device(format!("buffer {}: expected float32, it is bfloat16", id.0))),
        }
    }

    /// The address of a buffer's bfloat16 numbers.
    pub(super) fn half(&self, id: BufId) -> Result<u64> {
        let offset = self.arena.0.place(id).half_offset;
        let offset = offset.ok_or_else(|| Error::Device(format!("buffer {}: it has no bfloat16 numbers", id.0)))?;
        Ok(self.arena.1 + offset as u64)
    }

    fn weight(&self, id: ParamId) -> u64 {
        self.weights + 4 * self.layout.span(id.0).start as u64
    }

    fn half_weight(&self, id: ParamId) -> u64 {
        self.halves + 2 * self.layout.span(id.0).start as u64
    }

    fn gradient(&self, id: ParamId) -> u64 {
        self.gradients + 4 * self.layout.span(id.0).start as u64
    }

    pub(super) fn section(&self, section: Section) -> Arg {
        Arg::At(self.uploads.at(section))
    }

    /// A launch with a warp for each of `rows`.
    pub(super) fn by_row(&self, kernel: Kernel, rows: usize, args: &[Arg]) -> Result<()> {
        self.device.launch(kernel, Grid::of(rows.div_ceil(WARPS), WARP_THREADS), args)
    }

    fn tables(&self, op: &Op) -> Result<()> {
        let (sections, none) = (self.sections, Arg::At(0));
        match *op {
            Op::Embed { table, bigrams, out } => {
                let (n, d) = self.shape(out);
                let (ids, buckets) = (self.section(sections.ids), self.section(sections.buckets));
                let bigrams = bigrams.map_or(none, |bigrams| Arg::At(self.weight(bigrams)));
                let (table, out) = (Arg::At(self.weight(table)), Arg::At(self.float(out)?));
                self.by_row(Kernel::Embed, n, &[table, ids, bigrams, buckets, out, int(n), int(d)])
            }
            Op::EmbedGrad { dout, table, bigrams } => {
                let (from, d) = (self.float(dout)?, self.shape(dout).1);
                self.table_grad(Kernel::SumPiecesFloat, from, d, &sections.by_id, table)?;
                bigrams.map_or(Ok(()), |bigrams| {
                    self.table_grad(Kernel::SumPiecesFloat, from, d, &sections.by_bucket, bigrams)
                })
            }
            Op::AddRows { table, x } => {
                let ((n, d), ids) = (self.shape(x), self.section(sections.ids));
                let (table, x) = (Arg::At(self.weight(table)), Arg::At(self.half(x)?));
                self.by_row(Kernel::AddRows, n, &[table, ids, x, int(n), int(d)])
            }
            Op::AddRowsGrad { dx, table } => {
                self.table_grad(Kernel::SumPieces, self.half(dx)?, self.shape(dx).1, &sections.by_id, table)
            }
            _ => Err(not_here(op)),
        }
    }

    fn table_grad(&self, kernel: Kernel, dout: u64, d: usize, pieces: &Pieces, table: ParamId) -> Result<()> {
        let [order, first, n_pieces] = [pieces.order, pieces.first, pieces.n_pieces].map(|s| self.section(s));
        let sums = Arg::At(self.scratch.pieces.at);
        self.by_row(kernel, pieces.most_pieces, &[Arg::At(dout), order, first, n_pieces, sums, int(d)])?;
        let [ids, of_id, n_ids] = [pieces.ids, pieces.pieces, pieces.n_ids].map(|s| self.section(s));
        let gradient = Arg::At(self.gradient(table));
        self.by_row(Kernel::AddPieces, pieces.most_ids, &[sums, ids, of_id, n_ids, gradient, int(d)])
    }

    fn norms(&self, op: &Op) -> Result<()> {
        match *op {
            Op::Norm { x, add, weight, out, inverse } => {
                let (n, d) = self.shape(x);
                let (add, sum) = match add {
                    Some((add, sum)) => (self.half(add)?, self.float(sum)?),
                    None => (0, 0),
                };
                let args = [self.float(x)?, add, sum, self.weight(weight), self.half(out)?, self.float(inverse)?];
                let numbers = [int(n), int(d), Arg::Float(self.config.norm_eps as f32)];
                self.by_row(Kernel::Norm, n, &[args.map(Arg::At).as_slice(), &numbers].concat())
            }
            Op::NormGrad { sum, inverse, weight, dout, dsum, accumulate } => {
                let (n, d) = self.shape(sum);
                let blocks = n.div_ceil(WARPS).min(PARTIALS);
                let grid = Grid { shared_bytes: 4 * WARPS * d, ..Grid::of(blocks, WARP_THREADS) };
                let args = [
                    self.float(sum)?,
                    self.float(inverse)?,
                    self.weight(weight),
                    self.half(dout)?,
                    self.float(dsum)?,
                    self.half(dsum)?,
                    self.scratch.partial.at,
                ];
                let numbers = [int(n), int(d), int(usize::from(accumulate))];
                self.device.launch(Kernel::NormGrad, grid, &[args.map(Arg::At).as_slice(), &numbers].concat())?;
                self.add_partials(blocks, d, weight)
            }
            _ => Err(not_here(op)),
        }
    }

    /// Adds the sums of `blocks` blocks to the gradient of a parameter of `d` values.
    fn add_partials(&self, blocks: usize, d: usize, parameter: ParamId) -> Result<()> {
        let args = [Arg::At(self.scratch.partial.at), Arg::At(self.gradient(parameter)), int(blocks), int(d)];
        self.device.launch(Kernel::AddColumns, Grid::of(d.div_ceil(32), THREADS), &args)
    }

    fn ropes(&self, op: &Op) -> Result<()> {
        let (l, k, table) = (self.data.l, self.config.d_head, Arg::At(self.rope));
        let position = self.sections.kept.map_or(Arg::At(0), |kept| self.section(kept.position));
        match *op {
            Op::Rope { x, backwards } => {
                let ((n, width), sign) = (self.shape(x), if backwards { -1.0 } else { 1.0 });
                let (h, x) = (width / k, Arg::At(self.half(x)?));
                self.by_row(
                    Kernel::Rope,
                    n * h,
                    &[x, table, position, int(n * h), int(h), int(k), int(l), Arg::Float(sign)],
                )
            }
            Op::HeadNormRope { x, weight, out, inverse } => {
                let (n, h) = self.shape(inverse);
                let [x, weight, out, inverse] =
                    [self.half(x)?, self.weight(weight), self.half(out)?, self.float(inverse)?].map(Arg::At);
                let numbers = [int(n * h), int(h), int(k), int(l), Arg::Float(self.config.norm_eps as f32)];
                self.by_row(
                    Kernel::HeadNormRope,
                    n * h,
                    &[[x, weight, table, position, out, inverse].as_slice(), &numbers].concat(),
                )
            }
            Op::HeadNormRopeGrad { x, inverse, weight, dout } => {
                let (n, h) = self.shape(inverse);
                let blocks = (n * h).div_ceil(WARPS).min(PARTIALS);
                let grid = Grid { shared_bytes: 4 * WARPS * k, ..Grid::of(blocks, WARP_THREADS) };
                let [x, inverse, weight_at, dout] =
                    [self.half(x)?, self.float(inverse)?, self.weight(weight), self.half(dout)?].map(Arg::At);
                let partial = Arg::At(self.scratch.partial.at);
                let numbers = [int(n * h), int(h), int(k), int(l)];
                let args = [[x, inverse, weight_at, table, dout, partial].as_slice(), &numbers].concat();
                self.device.launch(Kernel::HeadNormRopeGrad, grid, &args)?;
                self.add_partials(blocks, k, weight)
            }
            _ => Err(not_here(op)),
        }
    }

    fn linears(&self, op: &Op) -> Result<()> {
        match *op {
            Op::Linear { x, weight, bias, out } => {
                let ((n, d), f) = (self.shape(x), self.shape(out).1);
                let shape = Shape::of((n, f, d), (false, true), false);
                self.product(shape, self.half(x)?, self.half_weight(weight), self.half(out)?, false)?;
                let Some(bias) = bias else { return Ok(()) };
                let eights = n * f / 8;
                let args = [Arg::At(self.half(out)?), Arg::At(self.weight(bias)), Arg::Long(eights as u64), int(f)];
                self.device.launch(Kernel::AddBias, Grid::of(eights.div_ceil(THREADS), THREADS), &args)
            }
            Op::LinearGradInput { dout, weight, dx, accumulate } => {
                let ((n, f), d) = (self.shape(dout), self.shape(dx).1);
                let shape = Shape::of((n, d, f), (false, false), false);
                self.product(shape, self.half(dout)?, self.half_weight(weight), self.half(dx)?, accumulate)
            }
            Op::LinearGradWeight { x, dout, weight, bias } => {
                let ((n, d), f) = (self.shape(x), self.shape(dout).1);
                let shape = Shape::of((f, d, n), (true, false), true);
                self.product(shape, self.half(dout)?, self.half(x)?, self.gradient(weight), true)?;
                let Some(bias) = bias else { return Ok(()) };
                let blocks = n.div_ceil(8).min(PARTIALS);
                let args = [Arg::At(self.half(dout)?), Arg::At(self.scratch.partial.at), int(n), int(f)];
                self.device.launch(Kernel::SumColumns, Grid::of(blocks, THREADS), &args)?;
                self.add_partials(blocks, f, bias)
            }
            _ => Err(not_here(op)),
        }
    }

    /// `out (+)= a · b` as `shape` says.
    fn product(&self, shape: Shape, a: u64, b: u64, out: u64, accumulate: bool) -> Result<()> {
        let beta = if accumulate { 1.0 } else { 0.0 };
        self.device.product(&Product { shape, a, b, c: out, out, alpha: 1.0, beta })
    }

    fn attention(&self, op: &Op) -> Result<()> {
        let ModelConfig { n_heads: h, n_kv_heads: g, d_head: k, .. } = *self.config;
        let StepData { b, l, .. } = *self.data;
        let (start, low) = self
            .sections
            .starts
            .map_or((Arg::At(0), Arg::At(0)), |(start, low)| (self.section(start), self.section(low)));
        let sizes = [int(l), int(h), int(g)];
        // Tiles of rows of heads, padded; see `attention_tile.cuh`.
        let (rows, row_bytes) = (64, 2 * (k + 8));
        let grid = |heads: usize, shared_bytes: usize| Grid {
            blocks: (l.div_ceil(rows), heads, b),
            threads: WARP_THREADS,
            shared_bytes,
        };
        match *op {
            Op::Attention { q, k, v, out, log_sum } => {
                let [q, k, v, out] = [self.half(q)?, self.half(k)?, self.half(v)?, self.half(out)?].map(Arg::At);
                let log_sum = Arg::At(self.float(log_sum)?);
                let args = [[q, k, v, start, low, out, log_sum].as_slice(), &sizes].concat();
                self.device.launch(Kernel::Attention, grid(h, 3 * rows * row_bytes), &args)
            }
            Op::AttentionGrad { qkv, out, log_sum, dout, dqkv } => {
                let [q, keys, v] = [self.half(qkv[0])?, self.half(qkv[1])?, self.half(qkv[2])?].map(Arg::At);
                let [dq, dk, dv] = [self.half(dqkv[0])?, self.half(dqkv[1])?, self.half(dqkv[2])?].map(Arg::At);
                let [out, dout] = [self.half(out)?, self.half(dout)?].map(Arg::At);
                let (log_sum, along, n_rows) =
                    (Arg::At(self.float(log_sum)?), Arg::At(self.scratch.along.at), b * l * h);
                self.by_row(Kernel::AttentionAlong, n_rows, &[out, dout, along, int(n_rows)])?;
                let read = [q, keys, v, dout, log_sum, along, start, low];
                let args = [read.as_slice(), &[dq], &sizes].concat();
                self.device.launch(Kernel::AttentionGradQ, grid(h, 4 * rows * row_bytes), &args)?;
                let queries = if k == 128 { 32 } else { 64 };
                let shared_bytes = 2 * (rows + queries) * row_bytes + 12 * queries;
                let args = [read.as_slice(), &[dk, dv], &sizes].concat();
                self.device.launch(Kernel::AttentionGradKv, grid(g, shared_bytes), &args)
            }
            _ => Err(not_here(op)),
        }
    }

    fn activations(&self, op: &Op) -> Result<()> {
        let (kernel, ids) = match *op {
            Op::Relu2 { x, out } => (Kernel::Relu2, vec![x, out]),
            Op::Relu2Grad { x, dout } => (Kernel::Relu2Grad, vec![x, dout]),
            Op::Swiglu { gate, up, out } => (Kernel::Swiglu, vec![gate, up, out]),
            Op::SwigluGrad { gate, up, dout, dgate } => (Kernel::SwigluGrad, vec![gate, up, dout, dgate]),
            _ => return Err(not_here(op)),
        };
        let eights = self.tape.buffers[ids[0].0].len() / 8;
        let mut args = ids.into_iter().map(|id| self.half(id).map(Arg::At)).collect::<Result<Vec<_>>>()?;
        args.push(Arg::Long(eights as u64));
        self.device.launch(kernel, Grid::of(eights.div_ceil(THREADS), THREADS), &args)
    }
}

/// Sizes are those of buffers on the device: far below the limit.
fn int(value: usize) -> Arg {
    Arg::Int(value as i32)
}

fn not_here(op: &Op) -> Error {
    Error::Device(format!("no kernel for {op:?}"))
}
