//! Experts and the rows that come to them and go.

use super::super::super::op::{BufId, Op, ParamId};
use super::super::super::step_data::{HostPlan, StepData};
use super::super::device::{Arg, Grid};
use super::super::gemm::Shape;
use super::super::kernels::Kernel;
use super::super::upload::{PlanSections, Section};
use super::{Run, int, not_here};
use crate::error::{Error, Result};

/// Width of the tiles of the grouped products, and the bytes of their two stages of two operands.
const TILE: usize = 128;
const SHARED_BYTES: usize = 2 * 2 * TILE * 40 * 2;
const THREADS: usize = 256;
/// Stretches of at least this many rows on average are products of the library: each fills the device by itself. Tests see both.
const LIBRARY_ROWS: usize = if cfg!(test) { 64 } else { 2048 };

/// Whether a plan's stretches are long enough for products of their own; else one launch makes all of them. Of `b` sequences that come
/// sorted by language there are no more stretches than experts or sequences; the answer is that of the shapes, and no batch changes it.
/// Sequences that mix languages have more stretches, and shorter ones.
pub(in super::super) fn uses_library(plan: &HostPlan, b: usize) -> bool {
    let n_experts = plan.load_E.len();
    let n_stretches = if plan.in_place { plan.runs.len().max(n_experts.min(b)) } else { n_experts };
    plan.token_A.len() >= LIBRARY_ROWS * n_stretches.max(1)
}

/// Whether an operation's launches follow the stretches of its plan one by one, so that no graph can hold them for another batch.
pub(in super::super) fn follows_stretches(op: &Op, data: &StepData) -> bool {
    match op {
        Op::ExpertLinear { moe, .. }
        | Op::ExpertLinearGradInput { moe, .. }
        | Op::ExpertLinearGradWeight { moe, .. } => uses_library(&data.plans[*moe], data.b),
        _ => false,
    }
}

impl Run<'_> {
    pub(super) fn experts(&self, op: &Op) -> Result<()> {
        let moe = match op {
            Op::ExpertLinear { moe, .. }
            | Op::ExpertLinearGradInput { moe, .. }
            | Op::ExpertLinearGradWeight { moe, .. } => *moe,
            _ => return Err(not_here(op)),
        };
        match uses_library(&self.data.plans[moe], self.data.b) {
            true => self.experts_by_library(op, &self.data.plans[moe]),
            false => self.experts_grouped(op, &self.sections.plans[moe]),
        }
    }

    fn experts_by_library(&self, op: &Op, plan: &HostPlan) -> Result<()> {
        for (expert, rows) in plan.stretches() {
            let (at, n) = (rows.start as u64, rows.len());
            match op {
                Op::ExpertLinear { x, weights, out, accumulate, .. } => {
                    let (d, f) = (self.shape(*x).1, self.shape(*out).1);
                    let (x, out) = (self.half(*x)? + 2 * at * d as u64, self.half(*out)? + 2 * at * f as u64);
                    let shape = Shape::of((n, f, d), (false, true), false);
                    self.product(shape, x, self.half_weight(weights[expert]), out, *accumulate)?;
                }
                Op::ExpertLinearGradInput { dout, weights, dx, accumulate, .. } => {
                    let (f, d) = (self.shape(*dout).1, self.shape(*dx).1);
                    let (dout, dx) = (self.half(*dout)? + 2 * at * f as u64, self.half(*dx)? + 2 * at * d as u64);
                    let shape = Shape::of((n, d, f), (false, false), false);
                    self.product(shape, dout, self.half_weight(weights[expert]), dx, *accumulate)?;
                }
                Op::ExpertLinearGradWeight { x, dout, weights, .. } => {
                    let (d, f) = (self.shape(*x).1, self.shape(*dout).1);
                    let (x, dout) = (self.half(*x)? + 2 * at * d as u64, self.half(*dout)? + 2 * at * f as u64);
                    let shape = Shape::of((f, d, n), (true, false), true);
                    self.product(shape, dout, x, self.gradient(weights[expert]), true)?;
                }
                _ => return Err(not_here(op)),
            }
        }
        Ok(())
    }

    fn experts_grouped(&self, op: &Op, plan: &PlanSections) -> Result<()> {
        let (halves, tiles, n_tiles) = (Arg::At(self.halves), self.section(plan.tiles), self.section(plan.n_tiles));
        let grid = |blocks: (usize, usize, usize)| Grid { blocks, threads: THREADS, shared_bytes: SHARED_BYTES };
        match op {
            Op::ExpertLinear { x, weights, out, accumulate, .. } => {
                let (d, f) = (self.shape(*x).1, self.shape(*out).1);
                let (x, starts, out) = (Arg::At(self.half(*x)?), self.starts(weights)?, Arg::At(self.half(*out)?));
                let adds = int(usize::from(*accumulate));
                let args = [x, halves, starts, tiles, n_tiles, out, int(d), int(f), adds];
                self.device.launch(Kernel::GroupedForward, grid((f.div_ceil(TILE), plan.most_tiles, 1)), &args)
            }
            Op::ExpertLinearGradInput { dout, weights, dx, accumulate, .. } => {
                let (f, d) = (self.shape(*dout).1, self.shape(*dx).1);
                let (dout, starts, dx) = (Arg::At(self.half(*dout)?), self.starts(weights)?, Arg::At(self.half(*dx)?));
                let adds = int(usize::from(*accumulate));
                let args = [dout, halves, starts, tiles, n_tiles, dx, int(d), int(f), adds];
                self.device.launch(Kernel::GroupedGradInput, grid((d.div_ceil(TILE), plan.most_tiles, 1)), &args)
            }
            Op::ExpertLinearGradWeight { x, dout, weights, .. } => {
                let (d, f) = (self.shape(*x).1, self.shape(*dout).1);
                let (x, dout) = (Arg::At(self.half(*x)?), Arg::At(self.half(*dout)?));
                let (starts, first) = (self.starts(weights)?, self.section(plan.expert_first));
                let (stretches, gradients) = (self.section(plan.stretches), Arg::At(self.gradients));
                let args = [x, dout, starts, first, stretches, gradients, int(d), int(f)];
                let blocks = (d.div_ceil(TILE), f.div_ceil(TILE), plan.n_experts);
                self.device.launch(Kernel::GroupedGradWeight, grid(blocks), &args)
            }
            _ => Err(not_here(op)),
        }
    }

    /// Where the weights of experts begin.
    fn starts(&self, weights: &[ParamId]) -> Result<Arg> {
        let ids: Vec<usize> = weights.iter().map(|id| id.0).collect();
        let section = self.sections.experts.get(&ids);
        section
            .map(|&section| self.section(section))
            .ok_or_else(|| Error::Device("experts that no batch has".to_owned()))
    }

    pub(super) fn dispatch(&self, op: &Op) -> Result<()> {
        let none = Arg::At(0);
        let plan = |moe: usize| &self.sections.plans[moe];
        let weight = |plan: &PlanSections| plan.weight.map_or(none, |weight| self.section(weight));
        match *op {
            Op::Gather { x, moe, out } => self.take(x, self.section(plan(moe).token), none, out),
            Op::CombineGrad { dout, moe, dx } => self.take(dout, self.section(plan(moe).token), weight(plan(moe)), dx),
            Op::WeighShared { x, moe, out } => {
                let weight = plan(moe).shared_weight.map_or(none, |weight| self.section(weight));
                self.take(x, none, weight, out)
            }
            Op::GatherGrad { dout, moe, dx, accumulate } => self.collect(dout, plan(moe), none, (dx, accumulate)),
            Op::Combine { x, moe, out, accumulate } => self.collect(x, plan(moe), weight(plan(moe)), (out, accumulate)),
            _ => Err(not_here(op)),
        }
    }

    fn take(&self, x: BufId, token: Arg, weight: Arg, out: BufId) -> Result<()> {
        let (rows, d) = self.shape(out);
        let (x, out) = (Arg::At(self.half(x)?), Arg::At(self.half(out)?));
        self.by_row(Kernel::TakeRows, rows, &[x, token, weight, out, int(rows), int(d)])
    }

    /// Copies the rows of `x` that a section numbers, of width `d`, to `out`.
    pub(in super::super) fn take_rows(
        &self,
        x: u64,
        numbers: Section,
        out: u64,
        (rows, d): (usize, usize),
    ) -> Result<()> {
        let args = [Arg::At(x), self.section(numbers), Arg::At(0), Arg::At(out), int(rows), int(d)];
        self.by_row(Kernel::TakeRows, rows, &args)
    }

    fn collect(&self, x: BufId, plan: &PlanSections, weight: Arg, (out, adds): (BufId, bool)) -> Result<()> {
        let (rows, d) = self.shape(out);
        // Without assignments nothing is read.
        let x = Arg::At(if self.shape(x).0 == 0 { 0 } else { self.half(x)? });
        let (first, assignment) = (self.section(plan.first), self.section(plan.assignment));
        let (out, adds) = (Arg::At(self.half(out)?), int(usize::from(adds)));
        self.by_row(Kernel::CollectRows, rows, &[x, first, assignment, weight, out, int(rows), int(d), adds])
    }
}
