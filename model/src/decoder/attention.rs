//! Attention over the cache: each query by itself, so that it does not matter which others come with it.

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

/// Memory of the stage.
#[derive(Default)]
pub(super) struct AttentionMemory {
    /// A row of scores and one of the output for each part.
    rows: Vec<f32>,
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
        let Heads { n_heads, n_kv_heads, d, start } = self;
        let n_units = q.len() / d;
        let n_parts = n_units.min(4 * crew.n_threads());
        let (most, stride) = ((start + n_units / n_heads).next_multiple_of(ROWS), d.next_multiple_of(ROWS));
        memory.rows.resize(n_parts * (most + stride), 0.0);
        let (rows, outputs) = (Pieces::new(&mut memory.rows), Pieces::new(out));
        crew.run(n_parts, &|part| {
            let per_part = most + stride;
            // SAFETY: each part has a row of its own, and heads of its own.
            let row = unsafe { rows.take(part * per_part..(part + 1) * per_part) };
            let (row, sum) = row.split_at_mut(most);
            // Later rows see more: a part has every `n_parts`-th of them.
            for unit in (part..n_units).step_by(n_parts) {
                let (n, head) = (start + unit / n_heads + 1, unit % n_heads);
                let kv_head = head / (n_heads / n_kv_heads);
                let row = &mut row[..n.next_multiple_of(ROWS)];
                scores(&q[unit * d..(unit + 1) * d], cache.keys(kv_head, n), row, simd);
                let row = &mut row[..n];
                let scale = 1.0 / (d as f32).sqrt();
                row.iter_mut().for_each(|score| *score *= scale);
                softmax_row(row);
                weighted(row, cache.values(kv_head, n), sum, simd);
                // SAFETY: as above.
                unsafe { outputs.take(unit * d..(unit + 1) * d) }.copy_from_slice(&sum[..d]);
            }
        });
    }
}
