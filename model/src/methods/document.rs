//! `docs/methods.md`, generated from the tables and from what they refuse.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::adapters::AdapterConfig;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::experts::ExpertParam;
use crate::modifier::ModifierConfig;
use crate::router::RouterConfig;

/// A model that every method fits, by its options alone.
const SAMPLE: &str = r#"{
    "vocab_size": 8, "d_model": 8, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_head": 8, "d_ff": 8, "context_tokens": 8,
    "languages": ["python", "rust"],
    "moe": {"layers": {"every_n": 1}, "n_experts": 4, "d_ff_expert": 8, "d_ff_shared": 8, "router": {"kind": "token"}}
}"#;

/// The page.
///
/// # Errors
/// Options that have no JSON.
pub fn table_markdown() -> Result<String> {
    let mut text = "# Methods\n\nGenerated from the tables in `model/src` (`router.rs`, `modifier.rs`, `experts.rs`, `adapters.rs`); do not edit.\n\n\
        ## Routers\n\n\
        `[model.moe.router]`. Parameters are those of the router in one layer, for width D, E experts and L languages; its FLOPs a token \
        are twice as many where it reads tokens, and none where it does not. All score in float32.\n\n\
        | `kind` | causal | experts a token | parameters | source | options (default) |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for router in RouterConfig::all() {
        let causal = if router.is_causal() { "yes" } else { "no: training studies only" };
        let (selected, options) = (router.n_selected(), options(&router)?);
        let (name, formula, paper) = (router.name(), router.parameters(), router.paper());
        let _ = writeln!(text, "| `{name}` | {causal} | {selected} | {formula} | {paper} | `{options}` |");
    }
    text += "\n## Modifiers\n\n`[[model.moe.modifiers]]`, after any router that they fit, in the order of the configuration. FLOPs a token are twice \
             the parameters.\n\n\
             | `kind` | causal | parameters | source | options (default) |\n|---|---|---|---|---|\n";
    for modifier in ModifierConfig::all() {
        let causal = if modifier.name() == "capacity" { "with `eval = 0`" } else { "yes" };
        debug_assert!(modifier.is_causal(), "by its default options");
        let (name, formula, paper, options) =
            (modifier.name(), modifier.parameters(), modifier.paper(), options(&modifier)?);
        let _ = writeln!(text, "| `{name}` | {causal} | {formula} | {paper} | `{options}` |");
    }
    text += "\n## Experts' weights\n\n`[model.moe.expert_param]`. Parameters of one matrix of D x F of all E experts; a token's FLOPs are those of the \
             matrix in full, 2·D·F, and once a pass it is put together. Both lists of factors of `mpo` are to be given.\n\n\
             | `kind` | parameters | source | options |\n|---|---|---|---|\n";
    for param in ExpertParam::all() {
        let (name, formula, paper, options) = (param.name(), param.parameters(), param.paper(), options(&param)?);
        let _ = writeln!(text, "| `{name}` | {formula} | {paper} | `{options}` |");
    }
    text += "\n## Adapters\n\n`[model.adapter]`, after each layer. Parameters of all N layers and L languages, for the width F of the bottleneck, \
             and h = `d_h` and e = `d_embedding`; FLOPs a token and layer are 4·D·F.\n\n\
             | `kind` | parameters | source | options (default) |\n|---|---|---|---|\n";
    for adapter in AdapterConfig::all() {
        let (name, formula, paper, options) =
            (adapter.name(), adapter.parameters(), adapter.paper(), options(&adapter)?);
        let _ = writeln!(text, "| `{name}` | {formula} | {paper} | `{options}` |");
    }
    clashes(&mut text)?;
    Ok(text)
}

/// All but the name.
fn options(row: &impl Serialize) -> Result<String> {
    let mut value = serde_json::to_value(row).map_err(|e| Error::Input(e.to_string()))?;
    if let Some(options) = value.as_object_mut() {
        options.remove("kind");
    }
    Ok(value.to_string())
}

/// What does not go together: found by asking the configuration, so that the page says what a user would be told.
fn clashes(text: &mut String) -> Result<()> {
    text.push_str(
        "\n## What does not go together\n\nA configuration with such a pair is refused, with these words; all other pairs run with their default options. Options can clash, too, \
         and say so.\n\n\
         | method | refused with | expected |\n|---|---|---|\n",
    );
    let sample: ModelConfig = serde_json::from_str(SAMPLE).map_err(|e| Error::Input(e.to_string()))?;
    let refused = |router: &RouterConfig, modifiers: &[ModifierConfig]| {
        let mut config = sample.clone();
        if let Some(moe) = &mut config.moe {
            (moe.router, moe.modifiers) = (router.clone(), modifiers.to_vec());
        }
        match config.validate() {
            Err(Error::Config { expected, .. }) => Some(expected),
            _ => None,
        }
    };
    for modifier in ModifierConfig::all() {
        let mut refusals: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for router in RouterConfig::all() {
            if let Some(expected) = refused(&router, std::slice::from_ref(&modifier)) {
                refusals.entry(expected).or_default().push(router.name());
            }
        }
        for other in ModifierConfig::all().into_iter().take_while(|other| other.name() != modifier.name()) {
            let pair = [other.clone(), modifier.clone()];
            let fits =
                |router: &&RouterConfig| pair.iter().all(|one| refused(router, std::slice::from_ref(one)).is_none());
            if let Some(expected) = RouterConfig::all().iter().find(fits).and_then(|router| refused(router, &pair)) {
                refusals.entry(expected).or_default().push(other.name());
            }
        }
        for (expected, names) in refusals {
            let _ = writeln!(text, "| `{}` | `{}` | {expected} |", modifier.name(), names.join("`, `"));
        }
    }
    text.push_str(
        "\nDefined, though not new: `eom` behind a router of one expert a token is `fom` (a token's one output is all of its output). \
         `gate_drop` with `mode = \"local\"` changes nothing on one rank. `mpo` may begin as a dense network (`train --init-from`): its experts are \
         copies then, which own tensors set apart; `spawn_mask` is refused, for it would mask what they share. A curriculum of one language is refused. \
         A language's vocabulary filter leaves out entries that its files do not use; those of the text at hand are asked all the same, so \
         that files of several languages can be gone on with. Routers that are not causal, and `capacity` with `eval` above 0, \
         are refused where a model is packed or served.\n",
    );
    Ok(())
}
