//! Weights from elsewhere into a model that is about to train.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor, Var};
use multicoder_model::{CodeLm, ModelConfig, RouterConfig, Tokenizer};
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint;
use crate::rng::Rng;

/// Sets every parameter from the tensor of its name.
///
/// # Errors
/// A parameter whose tensor is missing or has another shape, named; tensors beyond the model's.
pub fn set_all(lm: &CodeLm, tensors: &HashMap<String, Tensor>) -> Result<()> {
    for (name, parameter) in lm.parameters() {
        let tensor = tensors.get(name).with_context(|| format!("weight {name} is missing"))?;
        ensure!(
            tensor.dims() == parameter.dims(),
            "weight {name}: shape {:?}, the configuration says {:?}",
            tensor.dims(),
            parameter.dims()
        );
        parameter.set(tensor).with_context(|| name.clone())?;
    }
    let (got, expected) = (tensors.len(), lm.parameters().len());
    ensure!(got == expected, "{got} weights, the configured model has {expected}");
    Ok(())
}

/// A hash of every weight, in the order of the model's parameters.
///
/// # Errors
/// A weight that cannot be read from its device.
pub fn fingerprint(lm: &CodeLm) -> Result<u64> {
    let mut hash = Xxh3::new();
    for (name, parameter) in lm.parameters() {
        let values = parameter.flatten_all()?.to_vec1::<f32>().with_context(|| name.clone())?;
        values.iter().for_each(|value| hash.update(&value.to_le_bytes()));
    }
    Ok(hash.digest())
}

/// A model whose weights another one starts from.
pub struct Source {
    /// The GGUF file or folder.
    pub path: PathBuf,
    /// The model.
    pub lm: CodeLm,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl Source {
    /// Reads a GGUF file or a folder: a checkpoint, or a run with some, of which it takes the newest.
    ///
    /// # Errors
    /// Whatever is missing or is no model, named.
    pub fn open(path: &Path) -> Result<Source> {
        let mut warn = |message: &str| eprintln!("{message}");
        let newest = if path.is_dir() { checkpoint::newest_intact(path, &mut warn)? } else { None };
        let path = newest.as_deref().unwrap_or(path);
        let named = || path.display().to_string();
        let (lm, tokenizer) = if path.is_dir() {
            let lm = multicoder_model::checkpoint::load_lm(path, true, &Device::Cpu)?;
            (lm, Tokenizer::from_file(&path.join("tokenizer.json"))?)
        } else {
            let bytes = std::fs::read(path).with_context(named)?;
            let bundle = multicoder_model::gguf::read_as(&bytes, &named(), true, &Device::Cpu)?;
            (bundle.lm, bundle.tokenizer)
        };
        Ok(Source { path: path.to_owned(), lm, tokenizer })
    }

    /// Checks that `tokenizer`, read from `origin`, is the source's: rows of the embedding mean nothing under another one.
    ///
    /// # Errors
    /// Another tokenizer.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer, origin: &str) -> Result<()> {
        let same = tokenizer.to_json()? == self.tokenizer.to_json()?;
        let path = self.path.display();
        ensure!(
            same,
            "data.tokenizer = {origin}: another one than that of --init-from {path}; expected the same, or none"
        );
        Ok(())
    }
}

/// Sets the parameters for which `source` has a tensor of the same name and shape, and says which were left at their initial values.
/// Where languages choose the experts, an expert starts from the one that its first language had in `source`. Experts of a layer that is
/// dense in `source` start as copies of its network (Komatsuzaki et al. 2023, arXiv 2212.05055), of whose values the share `spawn_mask` is
/// zero, other ones for each (Nie et al. 2021, EvoMoE, arXiv 2112.14397, expert-diversify).
///
/// # Errors
/// A model with nothing in common.
pub fn warm_start(lm: &CodeLm, source: &Source, (spawn_mask, seed): (f64, u64)) -> Result<String> {
    let theirs: HashMap<&str, &Var> = source.lm.parameters().iter().map(|(name, var)| (name.as_str(), var)).collect();
    let experts = source_experts(lm.config(), source.lm.config());
    let spawned = copies_of_dense(lm.config(), &theirs)?;
    let (mut n_taken, mut n_spawned, mut left) = (0, 0, Vec::new());
    for (name, parameter) in lm.parameters() {
        if let Some(table) = theirs.get(name.as_str()).filter(|_| BY_LANGUAGE.contains(&name.as_str())) {
            parameter.set(&by_name(parameter, table, lm.config(), source.lm.config())?)?;
            n_taken += 1;
            continue;
        }
        let tensor = source_name(name, experts.as_deref()).and_then(|name| theirs.get(name.as_str()));
        match tensor.filter(|tensor| tensor.dims() == parameter.dims()) {
            Some(tensor) => {
                parameter.set(&tensor.to_device(parameter.device())?)?;
                n_taken += 1;
            }
            None => match spawned.get(name) {
                Some(copy) if copy.dims() == parameter.dims() => {
                    parameter.set(&masked(copy, name, (spawn_mask, seed))?.to_device(parameter.device())?)?;
                    n_spawned += 1;
                }
                _ => left.push(name.as_str()),
            },
        }
    }
    if n_taken == 0 {
        bail!("{}: no weight has the name and shape of one of this model's", source.path.display());
    }
    let spawned = match n_spawned {
        0 => String::new(),
        n => format!("; {n} of experts copied from dense networks, {:.0} % of their values zero", 100.0 * spawn_mask),
    };
    let rest = if left.is_empty() { String::new() } else { format!("; initial values: {}", left.join(", ")) };
    let moved = experts.is_some_and(|experts| experts.iter().enumerate().any(|(e, &from)| from != Some(e)));
    let by_name = if moved { "; experts matched by the names of their languages" } else { "" };
    Ok(format!("{n_taken} weights taken from {}{by_name}{spawned}{rest}", source.path.display()))
}

/// The tables with a row for each language and, after them, one for unknown ones.
const BY_LANGUAGE: [&str; 2] = ["model.embed_languages.weight", "model.adapters.languages.weight"];

/// `table` with the rows that `theirs` has for languages of the same name.
fn by_name(table: &Var, theirs: &Var, ours: &ModelConfig, source: &ModelConfig) -> Result<Tensor> {
    let (mut rows, theirs) = (table.to_vec2::<f32>()?, theirs.to_vec2::<f32>()?);
    let names = |config: &ModelConfig| config.languages.iter().cloned().map(Some).chain([None]).collect::<Vec<_>>();
    let their_names = names(source);
    for (row, name) in rows.iter_mut().zip(names(ours)) {
        let place = their_names.iter().position(|theirs| *theirs == name);
        let found = place.and_then(|place| theirs.get(place)).filter(|found| found.len() == row.len());
        found.into_iter().for_each(|found| row.clone_from(found));
    }
    Ok(Tensor::new(rows, table.device())?)
}

/// The weights of experts that are each the dense network that a layer has in the source, by name.
fn copies_of_dense(config: &ModelConfig, theirs: &HashMap<&str, &Var>) -> Result<HashMap<String, Tensor>> {
    let mut copies = HashMap::new();
    for layer in 0..config.n_layers {
        let (Some(moe), scope) = (config.moe_of_layer(layer), format!("model.layers.{layer}.mlp")) else { continue };
        for projection in ["gate_proj", "up_proj", "down_proj"] {
            let Some(dense) = theirs.get(format!("{scope}.{projection}.weight").as_str()) else { continue };
            let of_layer = moe.expert_param.copies(&moe, projection, dense.as_tensor())?;
            copies.extend(of_layer.into_iter().map(|(name, copy)| (format!("{scope}.{name}"), copy)));
        }
    }
    Ok(copies)
}

/// The values of `tensor`, a share of them zero: which ones depends on `name` and `seed`.
fn masked(tensor: &Tensor, name: &str, (share, seed): (f64, u64)) -> Result<Tensor> {
    let mut rng = Rng::keyed(seed, name, &[]);
    let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
    values.iter_mut().filter(|_| rng.chance(share)).for_each(|value| *value = 0.0);
    Ok(Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?)
}

/// For each expert of `target`, the expert of `source` that its first language known to both had; `None` in all for models in which
/// languages do not choose.
fn source_experts(target: &ModelConfig, source: &ModelConfig) -> Option<Vec<Option<usize>>> {
    let chosen_by_language = |config: &ModelConfig| {
        let router = config.moe.as_ref().map(|moe| &moe.router);
        router.is_some_and(RouterConfig::is_by_language) && !config.languages.is_empty()
    };
    let n_experts = target.moe.as_ref()?.n_experts;
    if !chosen_by_language(target) || !chosen_by_language(source) {
        return None;
    }
    let theirs = source.expert_of_language();
    let mut experts = vec![None; n_experts];
    for (name, expert) in target.languages.iter().zip(target.expert_of_language()) {
        let known = source.languages.iter().position(|language| language == name);
        experts[expert] = experts[expert].or(known.map(|idx| theirs[idx]));
    }
    Some(experts)
}

/// The name in the source of the parameter `name`; `None` for one of an expert that has no counterpart.
fn source_name(name: &str, experts: Option<&[Option<usize>]>) -> Option<String> {
    let split = name.split_once(".experts.").and_then(|(layer, rest)| Some((layer, rest.split_once('.')?)));
    let (Some(experts), Some((layer, (expert, rest)))) = (experts, split) else { return Some(name.to_owned()) };
    let from = experts.get(expert.parse::<usize>().ok()?).copied().flatten()?;
    Some(format!("{layer}.experts.{from}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use multicoder_model::tokenizer::TokenizerOptions;
    use serde_json::json;

    fn tokenizer(text: &str) -> Tokenizer {
        let options = TokenizerOptions {
            vocab_size: 400,
            languages: Vec::new(),
            min_frequency: 2,
            ..TokenizerOptions::default()
        };
        Tokenizer::train(std::iter::repeat_n(text, 8), &options).unwrap()
    }

    fn lm(languages: &[&str], n_experts: usize, seed: u64) -> CodeLm {
        let config: ModelConfig = serde_json::from_value(json!({
            "vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_head": 16, "d_ff": 16,
            "context_tokens": 32, "languages": languages,
            "moe": {"layers": {"every_n": 1}, "n_experts": n_experts, "d_ff_expert": 8, "router": {"kind": "pl_hard"}},
        }))
        .unwrap();
        CodeLm::init(&config, seed, &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_of_languages_go_by_their_names() {
        let with_table = |languages: &[&str]| {
            let mut config = lm(languages, 1, 1).config().clone();
            config.language_embedding = true;
            let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
            let table =
                |lm: &CodeLm| lm.parameters().iter().find(|(name, _)| name.contains("embed_lang")).unwrap().1.clone();
            let rows: Vec<Vec<f32>> = (0..=languages.len()).map(|row| vec![row as f32 + 1.0; 16]).collect();
            table(&lm).set(&Tensor::new(rows, &Device::Cpu).unwrap()).unwrap();
            (table(&lm), lm)
        };
        let (_, theirs) = with_table(&["c", "lua", "python"]);
        let (table, ours) = with_table(&["lua", "rust", "python"]);
        warm_start(&ours, &source(theirs), (0.0, 1)).unwrap();
        let first: Vec<f32> = table.to_vec2::<f32>().unwrap().iter().map(|row| row[0]).collect();
        assert_eq!(first, [2.0, 2.0, 3.0, 4.0], "lua's, its own, python's, that of unknown ones");
    }

    fn source(lm: CodeLm) -> Source {
        Source { path: "m".into(), lm, tokenizer: tokenizer("int main\n") }
    }

    #[test]
    fn experts_begin_as_the_dense_network_each_without_other_values() {
        let mut config = lm(&["c", "lua"], 2, 1).config().clone();
        config.moe = None;
        config.d_ff = 8;
        let dense = CodeLm::init(&config, 5, &Device::Cpu).unwrap();
        let (_, dense_up) = dense.parameters().iter().find(|(name, _)| name.ends_with("mlp.up_proj.weight")).unwrap();
        let theirs = dense_up.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let source = source(dense);
        let target = lm(&["c", "lua"], 2, 2);
        let said = warm_start(&target, &source, (0.25, 1)).unwrap();
        assert!(said.contains("6 of experts copied from dense networks, 25 % of their values zero"), "{said}");
        let (first, second) = (up(&target, 0), up(&target, 1));
        assert_ne!(first, second);
        for values in [first, second] {
            let zeros = values.iter().filter(|value| **value == 0.0).count();
            assert!((16..50).contains(&zeros), "{zeros} of {}", values.len());
            assert!(values.iter().zip(&theirs).all(|(ours, theirs)| *ours == 0.0 || ours == theirs));
        }
    }

    #[test]
    fn experts_that_share_tensors_begin_as_the_dense_network_too() {
        let mut config = lm(&["c", "lua"], 2, 1).config().clone();
        let moe = config.moe.take();
        config.d_ff = 8;
        let dense = CodeLm::init(&config, 5, &Device::Cpu).unwrap();
        config.moe = moe.map(|mut moe| {
            moe.expert_param =
                serde_json::from_value(json!({"kind": "mpo", "width": [2, 2, 2], "model": [2, 4, 2]})).unwrap();
            moe
        });
        let target = CodeLm::init(&config, 2, &Device::Cpu).unwrap();
        let ids = [3, 1, 4, 1, 5];
        let logits = |lm: &CodeLm| lm.forward_logits(&ids, 1).unwrap().to_vec2::<f32>().unwrap().concat();
        let expected = logits(&dense);
        let said = warm_start(&target, &source(dense), (0.0, 1)).unwrap();
        // Of three matrices the shared tensor and two small ones of each expert.
        assert!(said.contains("15 of experts copied from dense networks"), "{said}");
        let error = logits(&target).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(error < 1e-5, "{error}");
    }

    fn up(lm: &CodeLm, expert: usize) -> Vec<f32> {
        let part = format!(".experts.{expert}.up_proj.weight");
        let (_, var) = lm.parameters().iter().find(|(name, _)| name.ends_with(&part)).unwrap();
        var.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn experts_are_matched_by_the_names_of_their_languages() {
        let source = source(lm(&["c", "lua", "python"], 3, 1));
        let target = lm(&["go", "lua", "python"], 3, 2);
        let go = up(&target, 0);
        let said = warm_start(&target, &source, (0.0, 1)).unwrap();
        assert!(said.contains("experts.0"), "{said}");
        assert!(up(&target, 0) == go && up(&target, 1) == up(&source.lm, 1));

        // Without `c`, every other language moves one place down.
        let target = lm(&["lua", "python"], 2, 2);
        let said = warm_start(&target, &source, (0.0, 1)).unwrap();
        assert!(said.contains("matched by the names"), "{said}");
        assert!(up(&target, 0) == up(&source.lm, 1) && up(&target, 1) == up(&source.lm, 2));
    }

    #[test]
    fn another_tokenizer_is_refused() {
        let source = source(lm(&["c"], 1, 1));
        source.check_tokenizer(&tokenizer("int main\n"), "a.json").unwrap();
        let error = source.check_tokenizer(&tokenizer("local x\n"), "b.json").unwrap_err().to_string();
        assert!(error.contains("data.tokenizer = b.json") && error.contains("--init-from m"), "{error}");
    }
}
