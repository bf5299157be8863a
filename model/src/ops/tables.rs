//! Rows of tables: copied, added, and their gradients scattered back.

use rayon::prelude::*;

use super::simd;

/// Rows that one task handles.
const ROWS: usize = 128;

/// `out[n] = table[ids[n]]`.
pub(crate) fn copy_table_rows(table: &[f32], ids: &[u32], out: &mut [f32]) {
    by_rows(table, ids, out, |out, row| out.copy_from_slice(row));
}

/// `out[n] += table[ids[n]]`.
pub(crate) fn add_table_rows(table: &[f32], ids: &[u32], out: &mut [f32]) {
    by_rows(table, ids, out, |out, row| out.iter_mut().zip(row).for_each(|(out, row)| *out += row));
}

fn by_rows(table: &[f32], ids: &[u32], out: &mut [f32], f: impl Fn(&mut [f32], &[f32]) + Sync) {
    if ids.is_empty() {
        return;
    }
    let d = out.len() / ids.len();
    out.par_chunks_mut(d * ROWS).zip(ids.par_chunks(ROWS)).for_each(|(out, ids)| {
        out.chunks_exact_mut(d).zip(ids).for_each(|(out, &id)| f(out, &table[id as usize * d..][..d]));
    });
}

/// `dtable[ids[n]] += dy[n]`, in order: ids repeat.
pub(crate) fn scatter_rows(dy: &[f32], ids: &[u32], d: usize, dtable: &mut [f32]) {
    for (dy, &id) in dy.chunks_exact(d).zip(ids) {
        simd::add(&mut dtable[id as usize * d..][..d], dy);
    }
}

/// Adds `bias` to each row of `y`.
pub(crate) fn add_bias(bias: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(bias.len() * ROWS).for_each(|y| {
        y.chunks_exact_mut(bias.len()).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
    });
}

/// Adds the sum of the rows of `dy` to `dbias`.
pub(crate) fn bias_grad(dy: &[f32], dbias: &mut [f32]) {
    dy.chunks_exact(dbias.len()).for_each(|dy| dbias.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy));
}
