//! What a run would be: its sizes, its arithmetic and an estimate of its memory, without starting it.

use crate::config::RunConfig;

/// Bytes of a float32.
const F32_BYTES: usize = 4;

/// The report of `train --dry-run`, without the configuration itself.
pub fn report(config: &RunConfig) -> String {
    let model = &config.model;
    let context = config.data.sequence_tokens / 2;
    let forward = model.flops_per_token(context);
    // The backward pass costs about twice the forward pass: one product for the input, one for the weights.
    let per_step = 3.0 * forward as f64 * config.data.batch_tokens as f64;
    let mib = |bytes: usize| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let states = states_bytes(config);
    let activations = activation_bytes(config);
    [
        format!("parameters              {}", model.n_parameters()),
        format!("active parameters       {}", model.n_active_parameters()),
        format!("FLOPs a token, forward  {:.3e}", forward as f64),
        format!("FLOPs a step            {per_step:.3e}"),
        format!("tokens a step           {}", config.data.batch_tokens),
        format!("tokens of the run       {:.3e}", config.data.batch_tokens as f64 * config.n_steps as f64),
        format!("micro-steps a step      {}", config.batch_sequences().div_ceil(config.micro_batch_sequences())),
        format!("memory, model states    {} (weights, gradients twice, two moments; float32)", mib(states)),
        format!("memory, activations     {} (estimate, one micro-step)", mib(activations)),
        format!("memory, together        {} and the training text", mib(states + activations)),
    ]
    .join("\n")
}

/// Weights, accumulated gradients, the gradients of the current micro-step, and two moments.
fn states_bytes(config: &RunConfig) -> usize {
    5 * F32_BYTES * config.model.n_parameters()
}

/// Values that the fused operations keep for the backward pass, counted per token: an estimate, since what is freed early and the
/// allocator's slack are not modelled.
fn activation_bytes(config: &RunConfig) -> usize {
    let model = &config.model;
    let n_tokens = config.micro_batch_sequences() * config.data.sequence_tokens;
    let queries = model.n_heads * model.d_head;
    let keys = model.n_kv_heads * model.d_head;
    let hidden = |layer: usize| match model.moe.as_ref().filter(|_| model.is_moe_layer(layer)) {
        Some(moe) => moe.router.n_selected() * moe.d_ff_expert + moe.d_ff_shared,
        None => model.d_ff,
    };
    // Logits are never whole in memory, see `multicoder_model::ops`. Residual stream twice, two norms, queries (before and after rotation), attention output, keys, values; gate, up, product.
    let layer = |layer: usize| 6 * model.d_model + 3 * queries + 4 * keys + 4 * hidden(layer);
    let per_token: usize = (0..model.n_layers).map(layer).sum();
    F32_BYTES * n_tokens * per_token
}
