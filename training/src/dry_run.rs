//! What a run would be: its sizes, its arithmetic and its memory, without starting it.

use anyhow::Result;
use multicoder_model::tape::{TapeOptions, planned_elements};

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
    let (activations, together) = match activation_bytes(config) {
        Ok(bytes) => (format!("{} (one micro-step on the CPU)", mib(bytes)), mib(states + bytes)),
        Err(error) => (format!("unknown: {error:#}"), format!("more than {}", mib(states))),
    };
    [
        format!("parameters              {}", model.n_parameters()),
        format!("active parameters       {}", model.n_active_parameters()),
        format!("FLOPs a token, forward  {:.3e}", forward as f64),
        format!("FLOPs a step            {per_step:.3e}"),
        format!("tokens a step           {}", config.data.batch_tokens),
        format!("tokens of the run       {:.3e}", config.data.batch_tokens as f64 * config.n_steps as f64),
        format!("micro-steps a step      {}", config.batch_sequences().div_ceil(config.micro_batch_sequences())),
        format!("memory, model states    {} (weights, gradients, two moments; float32)", mib(states)),
        format!("memory, activations     {activations}"),
        format!("memory, together        {together} in a step; the training text, validation and saving add to it"),
    ]
    .join("\n")
}

/// Weights, gradients, and what the optimizer keeps: two moments, or one of a hidden matrix under Muon, which is not told apart here.
fn states_bytes(config: &RunConfig) -> usize {
    4 * F32_BYTES * config.model.n_parameters()
}

/// Bytes of the tape of a micro-step, planned as the run will plan it.
fn activation_bytes(config: &RunConfig) -> Result<usize> {
    let options = TapeOptions { checkpoint_activations: config.checkpoint_activations };
    let (b, l) = (config.micro_batch_sequences(), config.data.sequence_tokens);
    Ok(F32_BYTES * planned_elements(&config.model, b, l, options)?)
}
