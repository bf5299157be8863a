//! Attention over the cache. A few queries share the loads of keys and values; each has sums of its own, so that it does not matter which
//! others come with it.

use super::cache::LayerCache;
use super::crew::{Crew, Pieces};
use super::kernel::{Simd, scores, weighted};
use super::packed::ROWS;
use crate::ops::softmax_row;

/// Heads, heads of keys, numbers of a head, and the position of the first row.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) d: usize,
    pub(super) start: usize,
}

/// Queries that see the same keys and values, computed together: as many as the widest kernels take at once.
const TOGETHER: usize = 4;

/// Memory of the stage.
#[derive(Default)]
pub(super) struct AttentionMemory {
    units: Vec<Unit>,
    /// For each part and query a row of scores and one of the output.
    rows: Vec<f32>,
}

/// Rows and heads whose queries are computed together.
#[derive(Clone, Copy)]
struct Unit {
    rows: (usize, usize),
    heads: (usize, usize),
    kv_head: usize,
}

impl Heads {
    /// What the queries of `n` rows see of the cache, which holds them too. Shapes of `q` and `out`: `[row][head][K]`.
    pub(super) fn attend(
        self,
        crew: &mut Crew,
        q: &[f32],
        cache: &LayerCache,
        memory: &mut AttentionMemory,
        out: &mut [f32],
        simd: Simd,
    ) {
        let Heads { n_heads, d, start, .. } = self;
        let n_rows = q.len() / (n_heads * d);
        self.put_units(n_rows, &mut memory.units);
        let units = &memory.units;
        let n_parts = units.len().min(4 * crew.n_threads());
        let (most, stride) = ((start + n_rows).next_multiple_of(ROWS), d.next_multiple_of(ROWS));
        let per_part = TOGETHER * (most + stride);
        memory.rows.resize(n_parts * per_part, 0.0);
        let (rows, outputs) = (Pieces::new(&mut memory.rows), Pieces::new(out));
        crew.run(n_parts, &|part| {
            // SAFETY: each part has rows of its own.
            let (scores, sums) =
                unsafe { rows.take(part * per_part..(part + 1) * per_part) }.split_at_mut(TOGETHER * most);
            // Later rows see more: a part has every `n_parts`-th unit.
            for unit in units.iter().skip(part).step_by(n_parts) {
                let places = unit.places();
                self.attend_unit(unit, q, cache, (scores, sums), simd);
                for ((row, head), sum) in places.zip(sums.chunks_exact(stride)) {
                    let at = (row * n_heads + head) * d;
                    // SAFETY: each unit has heads of its own.
                    unsafe { outputs.take(at..at + d) }.copy_from_slice(&sum[..d]);
                }
            }
        });
    }

    /// All rows and heads: heads of the same keys first, then rows one after the other, as many as there is room for.
    fn put_units(self, n_rows: usize, units: &mut Vec<Unit>) {
        let per_kv_head = self.n_heads / self.n_kv_heads;
        let n_heads = per_kv_head.min(TOGETHER);
        units.clear();
        for row in (0..n_rows).step_by(TOGETHER / n_heads) {
            for kv_head in 0..self.n_kv_heads {
                for head in (0..per_kv_head).step_by(n_heads) {
                    let (first, end) = (kv_head * per_kv_head + head, (head + n_heads).min(per_kv_head));
                    let heads = (first, kv_head * per_kv_head + end);
                    units.push(Unit { rows: (row, (row + TOGETHER / n_heads).min(n_rows)), heads, kv_head });
                }
            }
        }
    }

    /// A row of `sums` for each query of the unit.
    fn attend_unit(
        self,
        unit: &Unit,
        q: &[f32],
        cache: &LayerCache,
        (scores_of, sums): (&mut [f32], &mut [f32]),
        simd: Simd,
    ) {
        let (d, n_queries) = (self.d, unit.places().count());
        let mut queries = [&q[..0]; TOGETHER];
        for (query, (row, head)) in queries.iter_mut().zip(unit.places()) {
            *query = &q[(row * self.n_heads + head) * d..][..d];
        }
        let n = self.start + unit.rows.1;
        let padded = n.next_multiple_of(ROWS);
        scores(&queries[..n_queries], cache.keys(unit.kv_head, n), &mut scores_of[..n_queries * padded], simd);
        let mut probs = [&q[..0]; TOGETHER];
        let scale = 1.0 / (d as f32).sqrt();
        for ((probs, (row, _)), scores) in probs.iter_mut().zip(unit.places()).zip(scores_of.chunks_exact_mut(padded)) {
            let seen = &mut scores[..self.start + row + 1];
            seen.iter_mut().for_each(|score| *score *= scale);
            softmax_row(seen);
            *probs = seen;
        }
        let stride = d.next_multiple_of(ROWS);
        weighted(&probs[..n_queries], cache.values(unit.kv_head, n), &mut sums[..n_queries * stride], simd);
    }
}

impl Unit {
    /// Row and head of each query.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (rows, heads) = (self.rows.0..self.rows.1, self.heads.0..self.heads.1);
        rows.flat_map(move |row| heads.clone().map(move |head| (row, head)))
    }
}
