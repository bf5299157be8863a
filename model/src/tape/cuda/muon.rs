//! Muon on the device (Jordan et al. 2024): the matrices of one shape are made orthogonal together, by batched products.

use std::collections::BTreeMap;

use super::super::DeviceRule;
use super::device::{Arg, Device, DeviceBuffer, Grid};
use super::gemm::{Product, Shape};
use super::kernels::Kernel;
use super::layout::Layout;
use super::optimizer::{Flat, THREADS};
use crate::error::{Error, Result};

/// Coefficients of the quintic whose iteration drives singular values to about 1 (Jordan et al. 2024).
const QUINTIC: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;
/// Elements of the matrices that are handled together at most.
const BATCH_ELEMENTS: usize = 64 << 20;
/// Blocks for each matrix of the elementwise kernels, at most.
const BLOCKS: usize = 64;

/// Matrices of one shape that are handled together.
pub(super) struct MuonGroup {
    rows: usize,
    cols: usize,
    n_matrices: usize,
    /// Where each begins, and which parameter it is.
    starts: DeviceBuffer,
    parameters: DeviceBuffer,
    scratch: std::rc::Rc<Scratch>,
}

/// Memory that all groups share: two sets of matrices, two of their Gram matrices, and sums.
struct Scratch {
    matrices: [DeviceBuffer; 2],
    grams: [DeviceBuffer; 2],
    sums: DeviceBuffer,
}

impl MuonGroup {
    /// All matrices that go by Muon, in groups.
    pub(super) fn all(
        device: &Device,
        layout: &Layout,
        shapes: &[Vec<usize>],
        rules: &[DeviceRule],
    ) -> Result<Vec<MuonGroup>> {
        let mut by_shape: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (idx, rule) in rules.iter().enumerate().filter(|(_, rule)| matches!(rule, DeviceRule::Muon { .. })) {
            let &[rows, cols] = shapes[idx].as_slice() else {
                return Err(Error::Input(format!(
                    "parameter {idx} of shape {:?} by {rule:?}: expected a matrix",
                    shapes[idx]
                )));
            };
            by_shape.entry((rows, cols)).or_default().push(idx);
        }
        let batches = |((rows, cols), indices): ((usize, usize), Vec<usize>)| {
            let most = (BATCH_ELEMENTS / (rows * cols).max(1)).max(1);
            indices.chunks(most).map(|part| ((rows, cols), part.to_vec())).collect::<Vec<_>>()
        };
        let groups: Vec<_> = by_shape.into_iter().flat_map(batches).collect();
        let most = |f: fn(usize, usize, usize) -> usize| {
            groups.iter().map(|((rows, cols), part)| f(*rows, *cols, part.len())).max().unwrap_or(0)
        };
        let (matrices, grams) =
            (most(|rows, cols, n| n * rows * cols), most(|rows, cols, n| n * rows.min(cols).pow(2)));
        let [first, second] = [device.zeros(2 * matrices)?, device.zeros(2 * matrices)?];
        let scratch = std::rc::Rc::new(Scratch {
            matrices: [first, second],
            grams: [device.zeros(2 * grams)?, device.zeros(2 * grams)?],
            sums: device.zeros(8 * BLOCKS * most(|_, _, n| n))?,
        });
        let group = |((rows, cols), part): ((usize, usize), Vec<usize>)| {
            let words = |f: &dyn Fn(usize) -> u32| -> Result<DeviceBuffer> {
                let words: Vec<u32> = part.iter().map(|&idx| f(idx)).collect();
                let buffer = device.zeros(4 * words.len())?;
                device.write(&words, buffer.at)?;
                Ok(buffer)
            };
            let (starts, parameters) = (words(&|idx| layout.unit(idx))?, words(&|idx| idx as u32)?);
            Ok(MuonGroup { rows, cols, n_matrices: part.len(), starts, parameters, scratch: scratch.clone() })
        };
        groups.into_iter().map(group).collect()
    }

    /// Queues the update of the group's matrices that have a gradient.
    pub(super) fn update(&self, device: &Device, flat: &Flat, rates: u64, momentum: f64, lr: f64) -> Result<()> {
        let n = self.rows * self.cols;
        let blocks = n.div_ceil(4 * THREADS).clamp(1, BLOCKS);
        let grid = Grid { blocks: (blocks, self.n_matrices, 1), threads: THREADS, shared_bytes: 0 };
        let (sums, length) = (Arg::At(self.scratch.sums.at), Arg::Long(n as u64));
        let tables = [self.starts.at, self.parameters.at, rates, flat.report].map(Arg::At);
        let directions = Arg::At(self.scratch.matrices[0].at);
        let read = [Arg::At(flat.gradients), Arg::At(flat.first), directions, sums];
        let args = [read.as_slice(), &tables, &[Arg::Float(momentum as f32), length]].concat();
        device.launch(Kernel::MuonDirection, grid, &args)?;
        device.launch(Kernel::MuonNormalize, grid, &[directions, sums, length])?;
        let orthogonal = Arg::At(self.orthogonalize(device)?);
        let size = lr * 0.2 * (self.rows.max(self.cols) as f64).sqrt();
        let written = [Arg::At(flat.weights), Arg::At(flat.halves), orthogonal];
        let args = [written.as_slice(), &tables, &[Arg::Float(size as f32), length]].concat();
        device.launch(Kernel::MuonApply, grid, &args)
    }

    /// Newton-Schulz on the first set of matrices; returns where the result is. The shorter side is that of the Gram matrices.
    fn orthogonalize(&self, device: &Device) -> Result<u64> {
        let (rows, cols, batch) = (self.rows, self.cols, self.n_matrices);
        let (side, is_tall) = (rows.min(cols), rows > cols);
        let (a, b, c) = QUINTIC;
        let [mut x, mut next] = [0, 1].map(|i| self.scratch.matrices[i].at);
        let [gram, polynomial] = [0, 1].map(|i| self.scratch.grams[i].at);
        let of = |sizes, transposes| Shape { batch, ..Shape::of(sizes, transposes, false) };
        let to_gram = of((side, side, rows.max(cols)), (is_tall, !is_tall));
        for _ in 0..ITERATIONS {
            device.product(&Product { shape: to_gram, a: x, b: x, c: gram, out: gram, alpha: 1.0, beta: 0.0 })?;
            let square = of((side, side, side), (false, false));
            device.product(&Product {
                shape: square,
                a: gram,
                b: gram,
                c: gram,
                out: polynomial,
                alpha: c,
                beta: b,
            })?;
            let (left, right) = if is_tall { (x, polynomial) } else { (polynomial, x) };
            let step = of((rows, cols, side), (false, false));
            device.product(&Product { shape: step, a: left, b: right, c: x, out: next, alpha: 1.0, beta: a })?;
            (x, next) = (next, x);
        }
        Ok(x)
    }
}
