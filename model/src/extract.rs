//! A model of fewer languages: the experts of the others are dropped, everything else stays, and so does every bit of the answers.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;

use crate::adapters::AdapterConfig;
use crate::config::check;
use crate::error::{Error, Result};
use crate::lm::CodeLm;
use crate::params::Params;

/// Stands in a weight's name before the number of its expert.
const EXPERTS: &str = ".experts.";

impl CodeLm {
    /// This model with the experts of `languages` alone. Logits of these languages are the same to the last bit; a text of unknown
    /// language may be answered otherwise, where the router asks all experts.
    ///
    /// # Errors
    /// [`Error::Config`] for no language, and for a router whose experts belong to no languages; [`Error::Input`] for a language that the
    /// model does not have.
    pub fn extract(&self, languages: &[String]) -> Result<CodeLm> {
        let mut config = self.config().clone();
        check(!languages.is_empty(), "languages", 0, "at least one")?;
        if let Some(unknown) = languages.iter().find(|name| !config.languages.contains(name)) {
            return Err(Error::Input(format!("language {unknown}: expected one of {}", config.languages.join(", "))));
        }
        let made = config.adapter.as_ref().filter(|adapter| !adapter.is_plain()).map_or("", AdapterConfig::name);
        check(made.is_empty(), "adapter", made, "plain adapters: see CodeLm::materialized")?;
        let expert_of_language = config.expert_of_language();
        let is_kept = |name: &String| languages.contains(name);
        // From an expert's number to its new one, in order.
        let mut kept = BTreeMap::new();
        if let Some(moe) = &mut config.moe {
            let expected = "a router that chooses experts by language";
            check(moe.router.is_by_language(), "moe.router", moe.router.name(), expected)?;
            let of_kept = config.languages.iter().zip(&expert_of_language).filter(|(name, _)| is_kept(name));
            kept.extend(of_kept.clone().map(|(_, &expert)| (expert, 0)));
            kept.values_mut().enumerate().for_each(|(new, slot)| *slot = new);
            moe.n_experts = kept.len();
            moe.expert_of_language = of_kept.map(|(name, expert)| (name.clone(), kept[expert])).collect();
        }
        config.languages.retain(is_kept);
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (name, weight) in self.weights() {
            let adapts_dropped = name.strip_prefix("model.adapters.").and_then(|rest| rest.split('.').nth(1));
            if adapts_dropped
                .is_some_and(|language| language != "unknown" && !languages.iter().any(|kept| kept == language))
            {
                continue;
            }
            if let Some(name) = renamed(name, &kept) {
                tensors.insert(name, weight.clone());
            }
        }
        if let Some(table_LD) = tensors.get_mut("model.embed_languages.weight") {
            // The last row is that of unknown languages.
            let is_row = |row: &u32| self.config().languages.get(*row as usize).is_none_or(is_kept);
            let rows: Vec<u32> = (0..table_LD.dim(0)? as u32).filter(is_row).collect();
            *table_LD = table_LD.index_select(&Tensor::new(rows, self.device())?, 0)?;
        }
        CodeLm::new(&config, Params::from_tensors(tensors, "the whole model", true, self.device()), self.device())
    }
}

/// The name of a weight in the smaller model; none for one of an expert that is dropped.
fn renamed(name: &str, kept: &BTreeMap<usize, usize>) -> Option<String> {
    let Some((layer, rest)) = name.split_once(EXPERTS) else { return Some(name.to_owned()) };
    let (expert, rest) = rest.split_once('.')?;
    let new = kept.get(&expert.parse().ok()?)?;
    Some(format!("{layer}{EXPERTS}{new}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use candle_core::Device;
    use serde_json::json;

    fn model(moe: serde_json::Value) -> CodeLm {
        let config: ModelConfig = serde_json::from_value(json!({
            "vocab_size": 64, "d_model": 32, "n_layers": 4, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 48,
            "context_tokens": 32, "languages": ["go", "lua", "python", "rust"],
            "language_embedding": true, "moe": moe,
        }))
        .unwrap();
        let lm = CodeLm::init(&config, 7, &Device::Cpu).unwrap();
        let (_, table) = lm.parameters().iter().find(|(name, _)| name.contains("embed_languages")).unwrap();
        table.set(&crate::ops::tests::values(table.dims(), 3)).unwrap();
        lm
    }

    fn logits(lm: &CodeLm, language: &str) -> Vec<Vec<f32>> {
        let ids: Vec<u32> = (0..20).map(|n| n * 7 % 64).collect();
        lm.forward_logits(&ids, lm.config().language_index(Some(language))).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn dropping_the_experts_of_other_languages_changes_no_bit_of_the_logits() {
        for moe in [
            json!({"layers": {"every_n": 2}, "n_experts": 4, "d_ff_expert": 48, "d_ff_shared": 0, "router": {"kind": "pl_hard"}}),
            json!({"layers": {"every_n": 2}, "n_experts": 4, "d_ff_expert": 24, "d_ff_shared": 24, "router": {"kind": "pl_shared"}}),
            json!({"layers": {"every_n": 2}, "n_experts": 4, "d_ff_expert": 24, "d_ff_shared": 24, "router": {"kind": "pl_shared", "combine": "sigmoid"}}),
            json!({"layers": {"every_n": 2}, "n_experts": 2, "d_ff_expert": 48, "d_ff_shared": 0, "router": {"kind": "pl_hard"},
                   "expert_of_language": {"go": 1, "lua": 0, "python": 1, "rust": 0}}),
        ] {
            let whole = model(moe.clone());
            let languages = ["lua".to_owned(), "rust".to_owned()];
            let part = whole.extract(&languages).unwrap();
            assert_eq!(part.config().languages, languages);
            let n = |lm: &CodeLm| lm.parameters().iter().map(|(_, var)| var.elem_count()).sum::<usize>();
            assert!(n(&part) < n(&whole), "{moe}");
            for language in &languages {
                assert_eq!(logits(&part, language), logits(&whole, language), "{moe} {language}");
            }
            // Experts do say different things: it is not that nothing was chosen.
            assert_ne!(logits(&whole, "lua"), logits(&whole, "python"), "{moe}");
        }
    }

    #[test]
    fn what_cannot_be_extracted_is_an_error() {
        let by_language = json!({"layers": {"every_n": 2}, "n_experts": 4, "d_ff_expert": 48, "d_ff_shared": 0, "router": {"kind": "pl_hard"}});
        let by_token = json!({"layers": {"every_n": 2}, "n_experts": 4, "d_ff_expert": 48, "d_ff_shared": 0, "router": {"kind": "token"}});
        let error = |lm: CodeLm, languages: &[&str]| {
            let languages: Vec<String> = languages.iter().map(|&name| name.to_owned()).collect();
            lm.extract(&languages).err().unwrap().to_string()
        };
        assert!(error(model(by_language.clone()), &["cobol"]).contains("cobol"));
        assert!(error(model(by_language), &[]).contains("at least one"));
        assert!(error(model(by_token), &["lua"]).contains("by language"));
    }
}
