//! The output projection and its cross-entropy in one: logits exist only in blocks of rows and are never whole in memory.
//!
//! The gradients are computed with the loss, as the block's probabilities are at hand then (Wijmans et al. 2024, arXiv 2411.09009, give
//! the memory argument).

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::matmul::{self, Right};
use super::simd::{self, Mat};
use super::{is_fused, less_row_max, product, slice};

/// Rows of logits that exist at one time, without a gradient.
const ROWS: usize = 256;
/// Logits that exist at one time, 6 MiB of them: few enough to stay in a cache from the product that makes them to those that read them.
const LOGITS: usize = 3 << 19;
/// The same for scores on a GPU, which wants more at a time.
const DEVICE_ROWS: usize = 4096;
/// The target id that is not counted.
pub(crate) const IGNORE: u32 = u32::MAX;

/// What [`linear_cross_entropy`] returns.
pub struct LinearCrossEntropy {
    /// Sum over the counted tokens of -ln p(target), a differentiable scalar.
    pub nll_sum: Tensor,
    /// -ln p(target) of each token, 0 where it is not counted; no gradient.
    pub nll_N: Tensor,
    /// Tokens whose target was counted.
    pub n_tokens: usize,
}

/// Memory that [`cross_entropy`] keeps from call to call.
#[derive(Default)]
pub(crate) struct CrossEntropyMemory {
    /// A block of rows of logits.
    logits: Vec<f32>,
    /// Of the last call: -ln p(target) of each token, 0 where it is not counted.
    pub(crate) nll_N: Vec<f32>,
}

impl CrossEntropyMemory {
    /// Elements that it holds.
    pub(crate) fn n_elements(&self) -> usize {
        self.logits.len() + self.nll_N.len()
    }

    /// Elements that it holds after a call for `n` tokens and a vocabulary of `v`.
    pub(crate) fn planned_elements(n: usize, v: usize) -> usize {
        block_rows(n, v).min(n) * v + n
    }
}

/// Cross-entropy in nats of `softmax(x·wᵀ)` against `target_N`, summed; targets of `u32::MAX` are not counted. `cap` bounds the logits
/// ([`softcap`]).
///
/// Shapes: `x_ND`, `w_VD` -> scalar.
pub fn linear_cross_entropy(x_ND: &Tensor, w_VD: &Tensor, target_N: &[u32], cap: f32) -> Result<LinearCrossEntropy> {
    let v = w_VD.dim(0)?;
    let n_tokens = check_targets(target_N, x_ND.dim(0)?, v)?;
    if !is_fused(x_ND) {
        let nll_N1 = composed_nll(x_ND, w_VD, target_N, cap)?.nll_N1;
        let nll_N = nll_N1.detach().flatten_all()?;
        return Ok(LinearCrossEntropy { nll_sum: nll_N1.sum_all()?, nll_N, n_tokens });
    }
    let target_N: Arc<[u32]> = target_N.into();
    let nll_N = Arc::new(Mutex::new(Vec::new()));
    let op = Op { target_N, cap, nll_N: nll_N.clone(), gradients: Mutex::new(None) };
    let nll_sum = x_ND.contiguous()?.apply_op2(&w_VD.contiguous()?, op)?;
    let nll_N = nll_N.lock().map(|mut nll_N| std::mem::take(&mut *nll_N)).unwrap_or_default();
    let nll_N = Tensor::from_vec(nll_N, x_ND.dim(0)?, x_ND.device())?;
    Ok(LinearCrossEntropy { nll_sum, nll_N, n_tokens })
}

/// For each token -ln p(target) in nats and whether the target is the likeliest id; 0 and false where the target is not counted.
pub fn linear_scores(x_ND: &Tensor, w_VD: &Tensor, target_N: &[u32], cap: f32) -> Result<(Vec<f32>, Vec<bool>)> {
    let (n, v) = (x_ND.dim(0)?, w_VD.dim(0)?);
    check_targets(target_N, n, v)?;
    if !is_fused(x_ND) {
        return composed_scores(x_ND, w_VD, target_N, cap);
    }
    let (mut nll_N, mut correct_N) = (vec![0f32; n], vec![false; n]);
    for first in (0..n).step_by(ROWS) {
        let rows = ROWS.min(n - first);
        let logits_NV = x_ND.detach().narrow(0, first, rows)?.matmul(&w_VD.detach().t()?)?;
        let logits = softcap(&logits_NV, cap)?.flatten_all()?.to_vec1::<f32>()?;
        let outputs = nll_N[first..].par_iter_mut().zip(&mut correct_N[first..]).zip(&target_N[first..]);
        outputs.zip(logits.par_chunks_exact(v)).for_each(|(((nll, correct), &target), logits)| {
            if target != IGNORE {
                let at_target = logits[target as usize];
                let mut row = logits.to_vec();
                *nll = simd::softmax_row(&mut row) - at_target;
                *correct = logits.iter().all(|&x| x <= at_target);
            }
        });
    }
    Ok((nll_N, correct_N))
}

fn check_targets(target_N: &[u32], n: usize, v: usize) -> Result<usize> {
    if target_N.len() != n {
        candle_core::bail!("cross entropy: {} targets for {n} tokens", target_N.len());
    }
    match target_N.iter().find(|&&target| target != IGNORE && target as usize >= v) {
        Some(target) => candle_core::bail!("cross entropy: target {target}: expected an id below {v}"),
        None => Ok(target_N.iter().filter(|&&target| target != IGNORE).count()),
    }
}

struct Op {
    target_N: Arc<[u32]>,
    cap: f32,
    /// Where the forward pass leaves the loss of each token.
    nll_N: Arc<Mutex<Vec<f32>>>,
    /// Gradients with respect to x and w at a result gradient of 1.
    gradients: Mutex<Option<(Vec<f32>, Vec<f32>)>>,
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(s1, l1, "cross entropy")?, slice(s2, l2, "cross entropy")?);
        let (mut dx, mut dw) = (vec![0f32; x.len()], vec![0f32; w.len()]);
        let mut memory = CrossEntropyMemory::default();
        let total = cross_entropy(x, w, &self.target_N, (1.0, self.cap), &mut dx, (&mut dw, false), &mut memory);
        if let Ok(mut nll_N) = self.nll_N.lock() {
            *nll_N = memory.nll_N;
        }
        if let Ok(mut gradients) = self.gradients.lock() {
            *gradients = Some((dx, dw));
        }
        Ok((CpuStorage::F32(vec![total as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let taken = self.gradients.lock().ok().and_then(|mut gradients| gradients.take());
        let Some((mut dx, mut dw)) = taken else { candle_core::bail!("cross entropy: a second backward pass") };
        let scale = grad.to_scalar::<f32>()?;
        for values in [&mut dx, &mut dw] {
            values.par_chunks_mut(1 << 16).for_each(|chunk| chunk.iter_mut().for_each(|x| *x *= scale));
        }
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, w.shape(), w.device())?)))
    }
}

/// The summed loss in nats of `softmax(x·wᵀ)`, logits bounded by `cap`; writes `scale` times its gradient with respect to `x` to `dx`, and that of `w` to
/// `dw`, added to what `dw` holds if its flag says so. The loss of each token stays in `memory`.
pub(crate) fn cross_entropy(
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    (scale, cap): (f32, f32),
    dx: &mut [f32],
    (dw, keep): (&mut [f32], bool),
    memory: &mut CrossEntropyMemory,
) -> f64 {
    if targets.is_empty() {
        if !keep {
            dw.fill(0.0);
        }
        return 0.0;
    }
    let d = x.len() / targets.len();
    let v = w.len() / d;
    let block = block_rows(targets.len(), v);
    let CrossEntropyMemory { logits, nll_N } = memory;
    logits.resize(logits.len().max(block.min(targets.len()) * v), 0.0);
    nll_N.resize(targets.len(), 0.0);
    let whole = Mat::rows(w, d);
    let (turned, straight) = (Right::new(whole.t(), (block, v, d)), Right::new(whole, (block, d, v)));
    let blocks = targets.chunks(block).zip(nll_N.chunks_mut(block));
    for (i, ((targets, nll_N), (x, dx))) in blocks.zip(x.chunks(block * d).zip(dx.chunks_mut(block * d))).enumerate() {
        let rows = targets.len();
        let x = Mat::rows(x, d);
        turned.multiply(logits, (rows, v, d), x);
        block_loss(&mut logits[..rows * v], v, targets, (scale, cap), nll_N);
        let dlogits = Mat::rows(logits, v);
        straight.multiply(dx, (rows, d, v), dlogits);
        matmul::matmul(dw, d, (v, d, rows), keep || i > 0, dlogits.t(), x);
    }
    // Added in order, so that the sum does not depend on the threads.
    nll_N.iter().map(|&nll| f64::from(nll)).sum()
}

/// Rows of logits that exist at one time, of `n` tokens in all.
fn block_rows(n: usize, v: usize) -> usize {
    (LOGITS / v).clamp(64, n.max(64))
}

/// Replaces logits by `scale` times the gradient of the loss with respect to them; writes the loss of each token in nats.
fn block_loss(logits: &mut [f32], v: usize, targets: &[u32], (scale, cap): (f32, f32), nll_N: &mut [f32]) {
    let row = |slopes: &mut Vec<f32>, ((logits, &target), nll): ((&mut [f32], &u32), &mut f32)| {
        if target == IGNORE {
            logits.fill(0.0);
            *nll = 0.0;
            return;
        }
        if cap > 0.0 {
            slopes.resize(v, 0.0);
            simd::softcap_row(logits, slopes, cap);
        }
        let at_target = logits[target as usize];
        *nll = simd::scaled_softmax_row(logits, scale) - at_target;
        logits[target as usize] -= scale;
        if cap > 0.0 {
            logits.iter_mut().zip(slopes).for_each(|(gradient, slope)| *gradient *= *slope);
        }
    };
    logits.par_chunks_exact_mut(v).zip(targets).zip(nll_N).for_each_init(Vec::new, row);
}

/// Logits `z` as `cap · tanh(z / cap)`; as they are where the cap is 0.
pub fn softcap(logits: &Tensor, cap: f32) -> Result<Tensor> {
    if cap > 0.0 { (logits / f64::from(cap))?.tanh()? * f64::from(cap) } else { Ok(logits.clone()) }
}

/// -ln p of every target, 0 where it is not counted, and what that was computed from.
struct ComposedNll {
    nll_N1: Tensor,
    /// Logits less the largest of their row.
    below_max_NV: Tensor,
    /// Of each target; the first id's where the target is not counted.
    target_below_max_N1: Tensor,
}

fn composed_nll(x_ND: &Tensor, w_VD: &Tensor, target_N: &[u32], cap: f32) -> Result<ComposedNll> {
    let below_max_NV = less_row_max(&softcap(&product(x_ND, &w_VD.t()?)?, cap)?)?;
    let log_sum_N1 = below_max_NV.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let ids: Vec<u32> = target_N.iter().map(|&t| if t == IGNORE { 0 } else { t }).collect();
    let counted: Vec<f32> = target_N.iter().map(|&t| if t == IGNORE { 0.0 } else { 1.0 }).collect();
    let ids_N1 = Tensor::from_vec(ids, (target_N.len(), 1), x_ND.device())?;
    let counted_N1 = Tensor::from_vec(counted, (target_N.len(), 1), x_ND.device())?;
    let target_below_max_N1 = below_max_NV.gather(&ids_N1, 1)?;
    let nll_N1 = (log_sum_N1 - &target_below_max_N1)?.mul(&counted_N1)?;
    Ok(ComposedNll { nll_N1, below_max_NV, target_below_max_N1 })
}

fn composed_scores(x_ND: &Tensor, w_VD: &Tensor, target_N: &[u32], cap: f32) -> Result<(Vec<f32>, Vec<bool>)> {
    let (mut nll_N, mut correct_N) = (Vec::new(), Vec::new());
    for (part, targets) in target_N.chunks(DEVICE_ROWS).enumerate() {
        let x_ND = x_ND.detach().narrow(0, part * DEVICE_ROWS, targets.len())?;
        let nll = composed_nll(&x_ND, &w_VD.detach(), targets, cap)?;
        let best_N1 = nll.below_max_NV.max_keepdim(D::Minus1)?;
        let is_best_N1 = nll.target_below_max_N1.ge(&best_N1)?;
        nll_N.extend(nll.nll_N1.flatten_all()?.to_vec1::<f32>()?);
        let is_best_N = is_best_N1.flatten_all()?.to_vec1::<u8>()?;
        correct_N.extend(is_best_N.iter().zip(targets).map(|(&best, &target)| best == 1 && target != IGNORE));
    }
    Ok((nll_N, correct_N))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same_gradients, values};

    const TARGETS: [u32; 6] = [3, 0, IGNORE, 10, 3, 7];

    #[test]
    fn cross_entropy_equals_composed() {
        let targets = TARGETS.repeat(60);
        let inputs = [values(&[360, 5], 1), values(&[11, 5], 2)];
        for cap in [0.0, 0.5] {
            assert_same_gradients(
                &inputs,
                |x| Ok(linear_cross_entropy(&x[0], &x[1], &targets, cap)?.nll_sum),
                |x| composed_nll(&x[0], &x[1], &targets, cap)?.nll_N1.sum_all(),
            );
        }
    }

    #[test]
    fn scores_add_up_to_the_loss() {
        let (x_ND, w_VD) = (values(&[6, 5], 1), values(&[11, 5], 2));
        let (nll_N, correct_N) = linear_scores(&x_ND, &w_VD, &TARGETS, 0.5).unwrap();
        let (composed_N, composed_correct_N) = composed_scores(&x_ND, &w_VD, &TARGETS, 0.5).unwrap();
        assert!(nll_N.iter().zip(&composed_N).all(|(a, b)| (a - b).abs() < 1e-5) && correct_N == composed_correct_N);
        let loss = linear_cross_entropy(&x_ND, &w_VD, &TARGETS, 0.5).unwrap();
        assert_eq!((loss.n_tokens, nll_N[2], correct_N[2]), (5, 0.0, false));
        let by_token = loss.nll_N.to_vec1::<f32>().unwrap();
        assert!(nll_N.iter().zip(&by_token).all(|(a, b)| (a - b).abs() < 1e-5), "{by_token:?}, not {nll_N:?}");
        let total = loss.nll_sum.to_scalar::<f32>().unwrap();
        assert!((nll_N.iter().sum::<f32>() - total).abs() < 1e-4);
        let best = x_ND.matmul(&w_VD.t().unwrap()).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap();
        for i in [0, 1, 3, 4, 5] {
            assert_eq!(correct_N[i], best[i] == TARGETS[i]);
        }
    }

    #[test]
    fn a_target_beyond_the_vocabulary_is_an_error() {
        let error = linear_cross_entropy(&values(&[1, 5], 1), &values(&[11, 5], 2), &[11], 0.0).err().unwrap();
        assert!(error.to_string().contains("target 11: expected an id below 11"), "{error}");
    }
}
