//! Causal grouped-query attention, in blocks of query rows: no score matrix is ever whole, and the backward pass recomputes.
//!
//! The same operation trains (as many keys as queries) and decodes (a cache of earlier keys before the new ones).

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use candle_nn::ops::softmax;
use rayon::prelude::*;

use super::simd::{self, How, Mat, Shared, matmul, matmul_rows};
use super::{slice, with_values};

/// Query rows that are handled together.
const BLOCK: usize = 64;
/// Scores below which one thread does it all.
const SERIAL: usize = 32 * 1024;
/// Products here run inside tasks that already fill the processor.
const ALONE: How = How { scale: 1.0, threads: 1 };

/// `softmax(q·k / sqrt(K))·v`, where the query `l` of `L` sees the keys up to position `M - L + l`.
///
/// Shapes: `q_BLHK`, `k_BMGK`, `v_BMGK` -> `BLHK`; G divides H, and query head h reads key head `h / (H / G)`.
pub fn causal_attention(q_BLHK: &Tensor, k_BMGK: &Tensor, v_BMGK: &Tensor) -> Result<Tensor> {
    let shape = AttentionShape::of(q_BLHK, k_BMGK)?;
    if !q_BLHK.device().is_cpu() {
        return composed(q_BLHK, k_BMGK, v_BMGK, &shape);
    }
    q_BLHK.contiguous()?.apply_op3(&k_BMGK.contiguous()?, &v_BMGK.contiguous()?, Attention { shape })
}

#[derive(Clone, Copy)]
struct AttentionShape {
    b: usize,
    l: usize,
    m: usize,
    h: usize,
    g: usize,
    k: usize,
}

impl AttentionShape {
    fn of(q_BLHK: &Tensor, k_BMGK: &Tensor) -> Result<AttentionShape> {
        let ((b, l, h, k), (b2, m, g, k2)) = (q_BLHK.dims4()?, k_BMGK.dims4()?);
        if b != b2 || k != k2 || m < l || h % g != 0 {
            bail!("attention: queries {:?} do not fit keys {:?}", q_BLHK.dims(), k_BMGK.dims());
        }
        Ok(AttentionShape { b, l, m, h, g, k })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.k as f32).sqrt()
    }

    fn scaled(&self) -> How {
        How { scale: self.scale(), threads: 1 }
    }

    /// Query heads for each key head.
    fn group(&self) -> usize {
        self.h / self.g
    }

    /// Where the row (b, l, h) of queries begins, and the row (b, m, g) of keys.
    fn q_at(&self, b: usize, l: usize, h: usize) -> usize {
        ((b * self.l + l) * self.h + h) * self.k
    }

    fn kv_at(&self, b: usize, m: usize, g: usize) -> usize {
        ((b * self.m + m) * self.g + g) * self.k
    }

    /// Blocks of query rows: first row, rows, keys that the last of them sees.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (l, m) = (self.l, self.m);
        (0..l).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(l - first);
            (first, rows, m - l + first + rows)
        })
    }
}

struct Attention {
    shape: AttentionShape,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal_attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = slice(s1, l1, "attention")?;
        let (k, v) = (slice(s2, l2, "attention")?, slice(s3, l3, "attention")?);
        let s = self.shape;
        let mut out = vec![0f32; q.len()];
        let shared = Shared::new(&mut out);
        let head = |task: usize| s.forward_head(task / s.h, task % s.h, q, k, v, shared);
        if s.b * s.h * s.l * s.m <= SERIAL {
            (0..s.b * s.h).for_each(head);
        } else {
            (0..s.b * s.h).into_par_iter().for_each(head);
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dq, dk, dv) = with_values(q, "attention", |q| {
            with_values(k, "attention", |k| {
                with_values(v, "attention", |v| {
                    with_values(out, "attention", |out| {
                        with_values(dout, "attention", |dout| Ok(self.shape.backward(q, k, v, out, dout)))
                    })
                })
            })
        })?;
        let tensor = |values, like: &Tensor| {
            Ok::<_, candle_core::Error>(Some(Tensor::from_vec(values, like.shape(), like.device())?))
        };
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

impl AttentionShape {
    fn forward_head(&self, b: usize, h: usize, q: &[f32], k: &[f32], v: &[f32], out: Shared) {
        let g = h / self.group();
        let mut probs = vec![0f32; BLOCK.min(self.l) * self.m];
        let (keys, values) = (&k[self.kv_at(b, 0, g)..], &v[self.kv_at(b, 0, g)..]);
        for (first, rows, seen) in self.blocks() {
            self.probabilities(&mut probs, &q[self.q_at(b, first, h)..], keys, rows, seen);
            let dst = out.rows(self.q_at(b, first, h), self.h * self.k, (rows, self.k));
            let values = Mat::rows(values, self.g * self.k);
            let probs = Mat::rows(&probs, seen);
            // SAFETY: each (b, h) task writes the rows of its own head only, and `out` outlives the tasks.
            unsafe { matmul_rows(dst, seen, false, probs, values, ALONE) };
        }
    }

    /// Fills `probs` (rows x seen) with the attention probabilities of a block.
    fn probabilities(&self, probs: &mut [f32], q: &[f32], keys: &[f32], rows: usize, seen: usize) {
        let (q, keys) = (Mat::rows(q, self.h * self.k), Mat::rows(keys, self.g * self.k));
        matmul(probs, seen, (rows, seen, self.k), false, q, keys.t(), self.scaled());
        simd::vectorized(|| {
            for (row, probs) in probs.chunks_exact_mut(seen).take(rows).enumerate() {
                let (visible, later) = probs.split_at_mut(seen - rows + row + 1);
                simd::softmax_row(visible);
                later.fill(0.0);
            }
        });
    }

    /// Gradients of queries, keys and values. Key heads are independent tasks; the query heads of one add up in order.
    fn backward(&self, q: &[f32], k: &[f32], v: &[f32], out: &[f32], dout: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (mut dq, mut dk, mut dv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; v.len()]);
        let grads = [&mut dq, &mut dk, &mut dv].map(|grad| Shared::new(grad));
        (0..self.b * self.g).into_par_iter().for_each(|task| {
            let (b, g) = (task / self.g, task % self.g);
            let mut scratch = [vec![0f32; BLOCK.min(self.l) * self.m], vec![0f32; BLOCK.min(self.l) * self.m]];
            for h in g * self.group()..(g + 1) * self.group() {
                for block in self.blocks() {
                    self.backward_block(b, h, block, [q, k, v, out, dout], grads, &mut scratch);
                }
            }
        });
        (dq, dk, dv)
    }

    /// With P = softmax(S): dV += Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP - rowsum(dO∘O)), dQ = dS·K, dK += dSᵀ·Q (scaled).
    fn backward_block(
        &self,
        b: usize,
        h: usize,
        (first, rows, seen): (usize, usize, usize),
        [q, k, v, out, dout]: [&[f32]; 5],
        [dq, dk, dv]: [Shared; 3],
        [probs, dscores]: &mut [Vec<f32>; 2],
    ) {
        let (q_row, kv_row) = (self.h * self.k, self.g * self.k);
        let (at_q, at_kv) = (self.q_at(b, first, h), self.kv_at(b, 0, h / self.group()));
        let (keys, values) = (Mat::rows(&k[at_kv..], kv_row), Mat::rows(&v[at_kv..], kv_row));
        let (queries, douts) = (Mat::rows(&q[at_q..], q_row), Mat::rows(&dout[at_q..], q_row));
        let dq = dq.rows(at_q, q_row, (rows, self.k));
        let [dk, dv] = [dk, dv].map(|grad| grad.rows(at_kv, kv_row, (seen, self.k)));

        self.probabilities(probs, &q[at_q..], &k[at_kv..], rows, seen);
        // SAFETY: a task owns the key head g in dk and dv and its query heads in dq; all three outlive the tasks.
        unsafe { matmul_rows(dv, rows, true, Mat::rows(probs, seen).t(), douts, ALONE) };
        matmul(dscores, seen, (rows, seen, self.k), false, douts, values.t(), ALONE);
        simd::vectorized(|| {
            for row in 0..rows {
                let at = at_q + row * q_row;
                let along = simd::dot(&dout[at..at + self.k], &out[at..at + self.k]);
                let (ds, p) = (&mut dscores[row * seen..][..seen], &probs[row * seen..][..seen]);
                ds.iter_mut().zip(p).for_each(|(ds, &p)| *ds = p * (*ds - along));
            }
        });
        // SAFETY: as above.
        unsafe {
            matmul_rows(dq, seen, false, Mat::rows(dscores, seen), keys, self.scaled());
            matmul_rows(dk, rows, true, Mat::rows(dscores, seen).t(), queries, self.scaled());
        }
    }
}

fn composed(q_BLHK: &Tensor, k_BMGK: &Tensor, v_BMGK: &Tensor, s: &AttentionShape) -> Result<Tensor> {
    let repeat = |x_BMGK: &Tensor| {
        let x = x_BMGK.unsqueeze(3)?.expand((s.b, s.m, s.g, s.group(), s.k))?;
        x.reshape((s.b, s.m, s.h, s.k))?.transpose(1, 2)?.contiguous()
    };
    let (k_BHMK, v_BHMK) = (repeat(k_BMGK)?, repeat(v_BMGK)?);
    let q_BHLK = q_BLHK.transpose(1, 2)?.contiguous()?;
    let scores_BHLM = (q_BHLK.matmul(&k_BHMK.transpose(2, 3)?.contiguous()?)? * f64::from(s.scale()))?;
    let hidden = |i: usize| if i % s.m > s.m - s.l + i / s.m { f32::NEG_INFINITY } else { 0.0 };
    let mask_LM = Tensor::from_vec((0..s.l * s.m).map(hidden).collect::<Vec<_>>(), (s.l, s.m), q_BLHK.device())?;
    let probs_BHLM = softmax(&scores_BHLM.broadcast_add(&mask_LM.to_dtype(DType::F32)?)?, D::Minus1)?;
    probs_BHLM.matmul(&v_BHMK)?.transpose(1, 2)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, assert_same_gradients, values};

    #[test]
    fn attention_equals_composed() {
        // Sizes beyond a block, grouped heads, and keys of a cache before the queries.
        for (b, l, m, h, g) in [(2, 5, 5, 4, 2), (1, 70, 70, 2, 2), (1, 3, 9, 4, 1), (2, 130, 140, 2, 1)] {
            let k = 8;
            let scaled = |x: Tensor| (x * 2.0).unwrap();
            let inputs = [scaled(values(&[b, l, h, k], 1)), scaled(values(&[b, m, g, k], 2)), values(&[b, m, g, k], 3)];
            assert_same_gradients(
                &inputs,
                |x| causal_attention(&x[0], &x[1], &x[2]),
                |x| composed(&x[0], &x[1], &x[2], &AttentionShape { b, l, m, h, g, k }),
            );
        }
    }

    #[test]
    fn decoding_one_by_one_equals_all_at_once() {
        let (q, k, v) = (values(&[1, 6, 4, 8], 1), values(&[1, 6, 2, 8], 2), values(&[1, 6, 2, 8], 3));
        let all = causal_attention(&q, &k, &v).unwrap();
        for l in 0..6 {
            let upto = |x: &Tensor| x.narrow(1, 0, l + 1).unwrap();
            let one = causal_attention(&q.narrow(1, l, 1).unwrap(), &upto(&k), &upto(&v)).unwrap();
            assert_close(&one, &all.narrow(1, l, 1).unwrap(), "position");
        }
    }
}
