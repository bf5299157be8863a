//! Where packed weights come from.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::packed::{Format, Packed};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::lm::CodeLm;
use crate::params::Params;

/// Weights by the names that a checkpoint has.
pub trait WeightSource: Send + Sync {
    /// A matrix of rows of `n_cols`, packed.
    ///
    /// # Errors
    /// A weight that is missing or has another shape.
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<Packed>;

    /// All numbers of a small weight.
    ///
    /// # Errors
    /// A weight that is missing or has another shape.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;

    /// Adds row `row` of a table to `out`.
    ///
    /// # Errors
    /// A table that is missing, or without that row.
    fn add_row(&self, name: &str, row: usize, out: &mut [f32]) -> Result<()>;

    /// Whether there is a weight of that name.
    fn has(&self, name: &str) -> bool;
}

/// Floats in memory, packed in one format.
pub struct Floats {
    weights: HashMap<String, (Vec<usize>, Vec<f32>)>,
    format: Format,
}

impl Floats {
    /// Those of a model.
    ///
    /// # Errors
    /// A device that fails.
    pub fn of(lm: &CodeLm, format: Format) -> Result<Floats> {
        let values = |(name, weight): &(String, candle_core::Tensor)| {
            Ok((name.clone(), (weight.dims().to_vec(), weight.flatten_all()?.to_vec1::<f32>()?)))
        };
        Ok(Floats { weights: lm.weights().iter().map(values).collect::<Result<_>>()?, format })
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<&[f32]> {
        let missing = |found: String| Error::Weight {
            origin: "the model".to_owned(),
            name: name.to_owned(),
            expected: shape.to_vec(),
            found,
        };
        let (dims, values) = self.weights.get(name).ok_or_else(|| missing("none".to_owned()))?;
        if dims != shape {
            return Err(missing(format!("{dims:?}")));
        }
        Ok(values)
    }
}

impl WeightSource for Floats {
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<Packed> {
        Packed::from_floats(self.format, self.get(name, &[shape.0, shape.1])?, shape.1)
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.get(name, shape)?.to_vec())
    }

    fn add_row(&self, name: &str, row: usize, out: &mut [f32]) -> Result<()> {
        let (_, values) = self.weights.get(name).ok_or_else(|| Error::Input(format!("no table {name}")))?;
        let of_row = values.chunks_exact(out.len()).nth(row);
        let of_row = of_row.ok_or_else(|| Error::Input(format!("{name}: no row {row}")))?;
        out.iter_mut().zip(of_row).for_each(|(out, x)| *out += x);
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }
}

/// Builds what a part of the model builds of `params` below `scope`, of the weights of `source`.
pub(super) fn build<T>(
    source: &dyn WeightSource,
    scope: &str,
    mut of: impl FnMut(&mut Params) -> Result<T>,
) -> Result<T> {
    // Once for the names and shapes, and once for the weights.
    let mut shapes = Params::shapes_only();
    shapes.scope(scope, &mut of)?;
    let mut tensors = HashMap::new();
    for (name, shape) in shapes.asked() {
        let values = source.floats(name, shape)?;
        tensors.insert(name.clone(), Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?);
    }
    Params::from_tensors(tensors, "the model", false, &Device::Cpu).scope(scope, of)
}

/// Reads a row of each table, so that one that cannot be read is found now.
pub(super) fn check_tables(config: &ModelConfig, source: &dyn WeightSource) -> Result<()> {
    let (d, width) = (config.d_model, config.n_kv_heads * config.d_head);
    let mut row = vec![0f32; d.max(width)];
    let mut tables = vec![("model.embed_tokens.weight".to_owned(), config.vocab_size, d)];
    if config.bigram_buckets > 0 {
        tables.push(("model.embed_bigrams.weight".to_owned(), config.bigram_buckets, d));
    }
    if config.language_embedding {
        tables.push(("model.embed_languages.weight".to_owned(), config.languages.len() + 1, d));
    }
    let values = config.value_embedding_layers.iter();
    let name = |layer: &usize| format!("model.layers.{layer}.self_attn.value_embedding.weight");
    tables.extend(values.map(|layer| (name(layer), config.vocab_size, width)));
    tables.iter().try_for_each(|(name, n_rows, width)| source.add_row(name, n_rows - 1, &mut row[..*width]))
}
