//! Causal grouped-query attention, in blocks of query rows: no score matrix is ever whole, and the backward pass recomputes.
//!
//! The same operation trains (as many keys as queries) and decodes (a cache of earlier keys before the new ones).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::{is_fused, less_row_max, product, slice, with_values};

mod kernel;

/// Query rows that are handled together.
const BLOCK: usize = 64;
/// Scores below which one thread does it all.
const SERIAL: usize = 32 * 1024;

/// `softmax(q·k / sqrt(K))·v`, where the query `l` of `L` sees the keys up to position `M - L + l`.
///
/// Shapes: `q_BLHK`, `k_BMGK`, `v_BMGK` -> `BLHK`; G divides H, and query head h reads key head `h / (H / G)`. With `start_BL`, a query
/// sees no key before that of its document's first position.
pub fn causal_attention(q_BLHK: &Tensor, k_BMGK: &Tensor, v_BMGK: &Tensor, start_BL: Option<&[u32]>) -> Result<Tensor> {
    let shape = AttentionShape::of(q_BLHK, k_BMGK)?;
    if let Some(start_BL) = start_BL {
        shape.check_starts(start_BL)?;
    }
    if !is_fused(q_BLHK) {
        return composed(q_BLHK, k_BMGK, v_BMGK, &shape, start_BL);
    }
    let start_BL = start_BL.map(Arc::from);
    q_BLHK.contiguous()?.apply_op3(&k_BMGK.contiguous()?, &v_BMGK.contiguous()?, Attention { shape, start_BL })
}

/// Sizes of an attention: `b` sequences, `l` queries each, `m` keys each, heads of queries and of keys, and their width.
#[derive(Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) b: usize,
    pub(crate) l: usize,
    pub(crate) m: usize,
    pub(crate) h: usize,
    pub(crate) g: usize,
    pub(crate) k: usize,
}

/// Queries, keys and values, and the first key that each query sees; none for the first of all.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// Shape: `BL`.
    pub(crate) start: Option<&'a [u32]>,
}

/// Query rows that are handled together, and the keys that they see.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    rows: usize,
    /// A key at or before the first that any of them sees, and one beyond the last.
    low: usize,
    high: usize,
}

impl AttentionShape {
    fn of(q_BLHK: &Tensor, k_BMGK: &Tensor) -> Result<AttentionShape> {
        let ((b, l, h, k), (b2, m, g, k2)) = (q_BLHK.dims4()?, k_BMGK.dims4()?);
        if b != b2 || k != k2 || m < l || h % g != 0 {
            bail!("attention: queries {:?} do not fit keys {:?}", q_BLHK.dims(), k_BMGK.dims());
        }
        Ok(AttentionShape { b, l, m, h, g, k })
    }

    /// A query sees its own key at least.
    pub(crate) fn check_starts(&self, start_BL: &[u32]) -> Result<()> {
        let last = |n: usize| self.m - self.l + n % self.l;
        if start_BL.len() != self.b * self.l || (0..start_BL.len()).any(|n| start_BL[n] as usize > last(n)) {
            bail!("attention: document starts: expected {} positions, none after its own", self.b * self.l);
        }
        Ok(())
    }

    fn scale(&self) -> f32 {
        1.0 / (self.k as f32).sqrt()
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

    fn block_rows(&self) -> usize {
        BLOCK.min(self.l)
    }

    /// The blocks of sequence `b`.
    fn blocks<'a>(&self, b: usize, start: Option<&'a [u32]>) -> impl Iterator<Item = Block> + use<'a> {
        let AttentionShape { l, m, .. } = *self;
        (0..l).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(l - first);
            let starts = start.map(|start| &start[b * l + first..][..rows]);
            // Packed factors begin at blocks; keys before a row's document are masked.
            let low = starts.and_then(|starts| starts.iter().min()).map_or(0, |&low| low as usize / BLOCK * BLOCK);
            Block { first, rows, low, high: m - l + first + rows }
        })
    }
}

struct Attention {
    shape: AttentionShape,
    start_BL: Option<Arc<[u32]>>,
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
        let (mut out, mut log_sum) = (vec![0f32; q.len()], vec![0f32; q.len() / self.shape.k]);
        self.shape.forward(Inputs { q, k, v, start: self.start_BL.as_deref() }, &mut out, &mut log_sum);
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
                        with_values(dout, "attention", |dout| {
                            let (mut again, mut log_sum) = (vec![0f32; q.len()], vec![0f32; q.len() / self.shape.k]);
                            let inputs = Inputs { q, k, v, start: self.start_BL.as_deref() };
                            self.shape.forward(inputs, &mut again, &mut log_sum);
                            let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|len| vec![0f32; len]);
                            self.shape.backward(inputs, out, &log_sum, dout, [&mut dq, &mut dk, &mut dv]);
                            Ok((dq, dk, dv))
                        })
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

/// The query heads of a key head are more rows of its product; no key is repeated.
fn composed(
    q_BLHK: &Tensor,
    k_BMGK: &Tensor,
    v_BMGK: &Tensor,
    s: &AttentionShape,
    start_BL: Option<&[u32]>,
) -> Result<Tensor> {
    let by_head = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let (k_BGMK, v_BGMK) = (by_head(k_BMGK)?, by_head(v_BMGK)?);
    let rows = s.group() * s.l;
    let q = (by_head(q_BLHK)?.reshape((s.b, s.g, rows, s.k))? * f64::from(s.scale()))?;
    let scores_BHLM = product(&q, &k_BGMK.transpose(2, 3)?)?.reshape((s.b, s.h, s.l, s.m))?;
    let scores_BHLM = scores_BHLM.broadcast_add(&s.mask(start_BL, q_BLHK.device())?)?;
    let weights_BHLM = less_row_max(&scores_BHLM)?.exp()?;
    let probs_BHLM = weights_BHLM.broadcast_div(&weights_BHLM.sum_keepdim(D::Minus1)?)?;
    let out = product(&probs_BHLM.reshape((s.b, s.g, rows, s.m))?, &v_BGMK)?;
    out.reshape((s.b, s.h, s.l, s.k))?.transpose(1, 2)?.contiguous()
}

impl AttentionShape {
    /// What is added to the scores: 0 where a query sees the key, and so little elsewhere that nothing is left of it. Made on the
    /// device: a mask from the host is L·M values for every layer. Shape: `11LM`, or `B1LM` with document starts.
    fn mask(&self, start_BL: Option<&[u32]>, device: &Device) -> Result<Tensor> {
        let last_seen_L1 = Tensor::arange((self.m - self.l) as u32, self.m as u32, device)?.unsqueeze(1)?;
        let key_1M = Tensor::arange(0, self.m as u32, device)?.unsqueeze(0)?;
        let mut hidden = key_1M.broadcast_gt(&last_seen_L1)?.unsqueeze(0)?.to_dtype(DType::F32)?;
        if let Some(start_BL) = start_BL {
            let start_BL1 = Tensor::from_slice(start_BL, (self.b, self.l, 1), device)?;
            let before = key_1M.unsqueeze(0)?.broadcast_lt(&start_BL1)?.to_dtype(DType::F32)?;
            hidden = hidden.broadcast_add(&before)?;
        }
        hidden.affine(-1e30, 0.0)?.unsqueeze(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, assert_same_gradients, values};

    #[test]
    fn attention_equals_composed() {
        // Sizes beyond a block, grouped heads, and keys of a cache before the queries.
        for (b, l, m, h, g) in [(2, 5, 5, 4, 2), (1, 70, 70, 2, 2), (1, 3, 9, 4, 1), (2, 130, 140, 2, 1)] {
            check(AttentionShape { b, l, m, h, g, k: 8 }, None);
        }
    }

    #[test]
    fn attention_stays_within_documents() {
        let shape = AttentionShape { b: 2, l: 150, m: 150, h: 4, g: 2, k: 8 };
        // Documents of 40 and of 70 tokens, so that some begin inside a block and some span two.
        let start = |n: usize| (n % 150 / [40, 70][n / 150] * [40, 70][n / 150]) as u32;
        check(shape, Some(&(0..300).map(start).collect::<Vec<u32>>()));
        let x = values(&[1, 2, 1, 8], 1);
        let error = causal_attention(&x, &x, &x, Some(&[1, 0])).unwrap_err().to_string();
        assert!(error.contains("none after its own"), "{error}");
    }

    fn check(shape: AttentionShape, start_BL: Option<&[u32]>) {
        let AttentionShape { b, l, m, h, g, k } = shape;
        let scaled = |x: Tensor| (x * 2.0).unwrap();
        let inputs = [scaled(values(&[b, l, h, k], 1)), scaled(values(&[b, m, g, k], 2)), values(&[b, m, g, k], 3)];
        assert_same_gradients(
            &inputs,
            |x| causal_attention(&x[0], &x[1], &x[2], start_BL),
            |x| composed(&x[0], &x[1], &x[2], &shape, start_BL),
        );
    }

    #[test]
    fn decoding_one_by_one_equals_all_at_once() {
        let (q, k, v) = (values(&[1, 6, 4, 8], 1), values(&[1, 6, 2, 8], 2), values(&[1, 6, 2, 8], 3));
        let all = causal_attention(&q, &k, &v, None).unwrap();
        for l in 0..6 {
            let upto = |x: &Tensor| x.narrow(1, 0, l + 1).unwrap();
            let one = causal_attention(&q.narrow(1, l, 1).unwrap(), &upto(&k), &upto(&v), None).unwrap();
            assert_close(&one, &all.narrow(1, l, 1).unwrap(), "position");
        }
    }
}
