//! The memory of a tape before there is a model.

use candle_core::{Device, Tensor};

use super::shards::n_shards;
use super::step::step_data;
use super::{TapeOptions, record};
use crate::config::{ModelConfig, MoeConfig, UNKNOWN_LANGUAGE};
use crate::draw::StepKey;
use crate::error::Result;
use crate::experts::ExpertParam;
use crate::lm::{Batch, CodeLm};
use crate::ops::CrossEntropyMemory;
use crate::params::Params;

/// Elements of float32 that [`TrainTape`] holds once it has run a batch of `b` rows of `l` tokens, each row of one language, on as many
/// threads as there are now: activations, their gradients, blocks of logits, the losses of the tokens, and the gradients of the parts
/// that the batch is divided into. No weight is allocated. Matrices that are made of other weights, and what autograd keeps of routers and
/// adapters, are not counted.
///
/// # Errors
/// A configuration or a length that makes no model.
pub fn planned_elements(config: &ModelConfig, b: usize, l: usize, options: TapeOptions) -> Result<usize> {
    // Matrices that are made of other weights are there before the tape runs.
    let mut config = config.clone();
    config.moe.iter_mut().for_each(|moe| moe.expert_param = ExpertParam::default());
    let lm = CodeLm::new(&config, Params::shapes_only(), &Device::Cpu)?;
    let is_local = config.moe.as_ref().is_none_or(MoeConfig::is_local);
    let n_shards = n_shards((b, is_local), rayon::current_num_threads(), config.n_parameters());
    let part = part_elements(&lm, b / n_shards, l, options)?;
    Ok(n_shards * part + (n_shards - 1) * config.n_parameters())
}

/// The elements of the tape of `b` rows.
fn part_elements(lm: &CodeLm, b: usize, l: usize, options: TapeOptions) -> Result<usize> {
    let config = lm.config();
    // Ids that differ, as those of text do: a router may go by them.
    let ids = (0..(b * l) as u32).map(|i| i.wrapping_mul(2_654_435_761) % config.vocab_size as u32);
    let ids_BL = Tensor::from_vec(ids.collect::<Vec<u32>>(), (b, l), &Device::Cpu)?;
    let language = |n: usize| match config.languages.len() {
        0 => UNKNOWN_LANGUAGE,
        n_languages => (n / l % n_languages) as u32,
    };
    let language_BL = (0..b * l).map(language).collect();
    let batch = Batch {
        x_BL: ids_BL.clone(),
        y_BL: ids_BL,
        language_BL,
        start_BL: None,
        training: Some(StepKey { seed: 0, step: 0 }),
    };
    lm.check_batch(b, l, b * l)?;
    let data = step_data(lm, &batch, None)?;
    let names: Vec<&str> = lm.parameters().iter().map(|(name, _)| name.as_str()).collect();
    let tape = record(config, &names, &data, options)?;
    Ok(tape.n_elements() + CrossEntropyMemory::planned_elements(b * l, config.vocab_size))
}
