//! Which buffers may share memory: those that do not live at the same time.

use super::op::{BufId, Buffer, Op};

/// Gives each buffer a slot and returns the elements of each slot.
pub(super) fn assign(ops: &[Op], buffers: &mut [Buffer]) -> Vec<usize> {
    let last_use = last_uses(ops, buffers.len());
    let mut slot_len: Vec<usize> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut is_placed = vec![false; buffers.len()];
    for (i, op) in ops.iter().enumerate() {
        let (reads, writes) = op.buffers();
        for &BufId(id) in &writes {
            if !is_placed[id] {
                is_placed[id] = true;
                buffers[id].slot = take(buffers[id].len(), &mut free, &mut slot_len);
            }
        }
        for &BufId(id) in reads.iter().chain(&writes) {
            debug_assert!(is_placed[id], "operation {i} reads buffer {id} before it is written");
            if last_use[id] == i && !free.contains(&buffers[id].slot) {
                free.push(buffers[id].slot);
            }
        }
    }
    slot_len
}

/// Leaves out operations that only write buffers which nothing reads afterwards: a layer that is computed again needs not all of itself.
pub(super) fn without_dead(ops: Vec<Op>, n_buffers: usize) -> Vec<Op> {
    let mut is_read_later = vec![false; n_buffers];
    let mut kept: Vec<Op> = Vec::with_capacity(ops.len());
    for op in ops.into_iter().rev() {
        let (reads, writes) = op.buffers();
        if op.only_writes_buffers() && writes.iter().all(|id| !is_read_later[id.0]) {
            continue;
        }
        reads.iter().chain(&writes).for_each(|id| is_read_later[id.0] = true);
        kept.push(op);
    }
    kept.reverse();
    kept
}

/// The index of the last operation that touches each buffer.
fn last_uses(ops: &[Op], n_buffers: usize) -> Vec<usize> {
    let mut last_use = vec![0; n_buffers];
    for (i, op) in ops.iter().enumerate() {
        let (reads, writes) = op.buffers();
        reads.iter().chain(&writes).for_each(|id| last_use[id.0] = i);
    }
    last_use
}

/// The free slot that fits best: the smallest that is large enough, else the largest, which grows; else a new one.
fn take(len: usize, free: &mut Vec<usize>, slot_len: &mut Vec<usize>) -> usize {
    let large_enough = (0..free.len()).filter(|&i| slot_len[free[i]] >= len).min_by_key(|&i| slot_len[free[i]]);
    // A slot of a few numbers by row is not worth growing into an activation: small ones find each other again.
    let close = (0..free.len()).filter(|&i| slot_len[free[i]] * 4 >= len).max_by_key(|&i| slot_len[free[i]]);
    match large_enough.or(close) {
        Some(i) => {
            let slot = free.swap_remove(i);
            slot_len[slot] = slot_len[slot].max(len);
            slot
        }
        None => {
            slot_len.push(len);
            slot_len.len() - 1
        }
    }
}
