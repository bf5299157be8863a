//! Every rank's model and moments made whole, so that any rank can validate and a checkpoint is the same folder as that of one process.

use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};
use multicoder_model::CodeLm;

use super::Mesh;
use crate::optimizer::Optimizer;

/// Gives every rank the weights, moments and step counts of the parameters that another rank owns. Does nothing where all have all.
///
/// # Errors
/// A rank that does not answer.
pub fn make_whole(mesh: &Mesh, lm: &CodeLm, optimizer: &mut Optimizer) -> Result<()> {
    let Some(layout) = mesh.layout().filter(|layout| layout.has_owners()) else { return Ok(()) };
    let mut n_steps = optimizer.state().n_steps;
    let mine: Vec<f64> =
        n_steps.iter().enumerate().map(|(idx, &n)| if layout.is_mine(idx) { n as f64 } else { 0.0 }).collect();
    for (idx, sum) in mesh.sum(&mine)?.into_iter().enumerate().filter(|(idx, _)| !layout.is_shared(*idx)) {
        n_steps[idx] = sum as u64;
    }
    // Weights first, then what the optimizer keeps of each parameter.
    let vars = |idx: usize, optimizer: &Optimizer| -> Vec<Var> {
        let weight = std::iter::once(lm.parameters()[idx].1.clone());
        weight.chain(optimizer.state_of(idx).into_iter().cloned()).collect()
    };
    let mut owned = Vec::new();
    for var in (0..n_steps.len()).filter(|idx| layout.is_mine(*idx)).flat_map(|idx| vars(idx, optimizer)) {
        owned.extend(var.flatten_all()?.to_vec1::<f32>()?);
    }
    let all = mesh.all_to_all_v(vec![owned; mesh.world()])?;
    let mut rest: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
    for (idx, owner) in (0..n_steps.len()).filter_map(|idx| Some((idx, layout.owner(idx)?))) {
        for var in vars(idx, optimizer) {
            let n = var.elem_count();
            let (values, tail) =
                rest[owner].split_at_checked(n).with_context(|| format!("rank {owner} sent too little"))?;
            rest[owner] = tail;
            if owner != mesh.rank() {
                var.set(&Tensor::from_slice(values, var.shape(), var.device())?)?;
            }
        }
    }
    ensure!(rest.iter().all(|rest| rest.is_empty()), "a rank sent more than it owns");
    optimizer.set_n_steps(&n_steps);
    Ok(())
}
