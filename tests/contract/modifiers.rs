//! Every modifier behind every router that it fits, every way of holding an expert's weights, and every kind of adapter.

use candle_core::Device;
use multicoder_model::adapters::AdapterConfig;
use multicoder_model::experts::ExpertParam;
use multicoder_model::tokenizer::TokenizerOptions;
use multicoder_model::{Batch, CodeLm, KvCache, ModelConfig, ModifierConfig, RouterConfig, StepKey, Tokenizer};

use crate::routers::{batch, config, ids, max_difference};

/// All models of one modifier, of `mpo`, and of several things at once.
fn models() -> Vec<(String, ModelConfig)> {
    let with = |router: &RouterConfig, modifiers: &[ModifierConfig]| {
        let mut config = config(router.clone());
        config.moe.as_mut().unwrap().modifiers = modifiers.to_vec();
        config.validate().is_ok().then(|| (format!("{modifiers:?} behind {}", router.name()), config))
    };
    let mut models = Vec::new();
    for modifier in ModifierConfig::all() {
        let fitting: Vec<_> =
            RouterConfig::all().iter().filter_map(|router| with(router, std::slice::from_ref(&modifier))).collect();
        assert!(!fitting.is_empty(), "{modifier:?} fits no router");
        models.extend(fitting);
    }
    let named = |text: &str| serde_json::from_str(text).unwrap();
    let together = [r#"{"kind": "cmr"}"#, r#"{"kind": "eom"}"#, r#"{"kind": "z_loss"}"#, r#"{"kind": "capacity"}"#];
    models.extend(with(&named(r#"{"kind": "switch"}"#), &together.map(|text| serde_json::from_str(text).unwrap())));
    let mut mpo = config(RouterConfig::all().remove(0));
    mpo.moe.as_mut().unwrap().expert_param =
        serde_json::from_str(r#"{"kind": "mpo", "width": [2, 3, 1, 2, 2], "model": [2, 2, 2, 2, 2], "mask_p": 0.5}"#)
            .unwrap();
    models.push(("mpo".to_owned(), mpo));
    for adapter in AdapterConfig::all() {
        let mut adapted = config(RouterConfig::all().remove(0));
        let name = format!("adapter {}", adapter.name());
        adapted.adapter = Some(adapter);
        models.push((name, adapted));
    }
    models
}

fn model(config: &ModelConfig) -> CodeLm {
    CodeLm::init(config, 11, &Device::Cpu).unwrap()
}

fn training(step: u64) -> Batch {
    Batch { training: Some(StepKey { seed: 5, step }), ..batch(4, 12) }
}

#[test]
fn parameters_are_counted_as_built_and_options_survive_toml() {
    for (name, config) in models() {
        let built: usize = model(&config).parameters().iter().map(|(_, var)| var.elem_count()).sum();
        assert_eq!(built, config.n_parameters(), "{name}");
        let again: ModelConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config, "{name}");
    }
}

#[test]
fn a_step_of_training_is_the_same_again_and_lowers_the_loss() {
    for (name, config) in models() {
        let lm = model(&config);
        let loss = || lm.loss(&training(3), 48.0).unwrap();
        let (before, again) = (loss(), loss());
        assert_eq!((before.nll_sum, before.aux_loss), (again.nll_sum, again.aux_loss), "{name}");
        let gradients = before.loss.backward().unwrap();
        for (_, var) in lm.parameters() {
            if let Some(gradient) = gradients.get(var) {
                var.set(&(var.as_tensor() - (gradient * 0.02).unwrap()).unwrap()).unwrap();
            }
        }
        let after = loss().nll_sum;
        assert!(after.is_finite() && after < before.nll_sum, "{name}: {} nats before, {after} after", before.nll_sum);
    }
}

#[test]
fn gradient_reaches_every_parameter_of_a_modifier() {
    for (name, config) in models() {
        let lm = model(&config);
        let gradients = lm.loss(&training(3), 48.0).unwrap().loss.backward().unwrap();
        for (parameter, var) in lm.parameters().iter().filter(|(parameter, _)| parameter.contains("modifiers")) {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name}: no gradient reaches {parameter}"));
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(norm.is_finite() && norm > 1e-7, "{name}: the gradient of {parameter} has norm {norm}");
        }
    }
}

#[test]
fn what_is_served_is_what_is_measured_and_no_later_token_matters() {
    for (name, config) in models() {
        if !config.moe.as_ref().unwrap().is_causal() {
            continue;
        }
        let lm = model(&config);
        let all = ids(20, 9);
        let expected_LV = lm.forward_logits(&all, 2).unwrap();
        let mut cache = KvCache::new(lm.config(), &Device::Cpu).unwrap();
        for (from, to) in [(0, 9), (9, 10), (10, 20)] {
            let got_V = lm.decode(&all[from..to], 2, &mut cache, &|| false).unwrap();
            let got_V = candle_core::Tensor::new(got_V, &Device::Cpu).unwrap();
            let difference = max_difference(&got_V, &expected_LV.get(to - 1).unwrap());
            assert!(difference < 1e-4, "{name}, after {to} tokens: differs by {difference}");
        }
    }
}

#[test]
fn chance_is_for_training_alone() {
    for (name, config) in models() {
        let lm = model(&config);
        let measured = || lm.loss(&batch(4, 12), 48.0).unwrap().nll_sum;
        assert_eq!(measured(), measured(), "{name}");
    }
    // Masks, drops and dropout do something: some of these steps differ.
    for kind in ["eom", "fom", "cmr", "gate_drop", "expert_dropout", "capacity"] {
        let of_kind = |(_, config): &(String, ModelConfig)| {
            let moe = config.moe.as_ref().unwrap();
            // On one rank all experts are local.
            moe.modifiers.len() == 1
                && moe.modifiers[0].name() == kind
                && moe.router.name() == "token"
                && kind != "gate_drop"
        };
        for (name, config) in models().into_iter().filter(of_kind) {
            let lm = model(&config);
            let measured = lm.loss(&batch(4, 12), 48.0).unwrap().nll_sum;
            let differs = |step| (lm.loss(&training(step), 48.0).unwrap().nll_sum - measured).abs() > 1e-4;
            assert!((0..20).any(|period| differs(250 * period)), "{name} changes nothing");
        }
    }
}

#[test]
fn a_folder_keeps_every_bit_of_every_model() {
    let mut tokenizer = None;
    for (name, mut config) in models() {
        let tokenizer = tokenizer.get_or_insert_with(|| {
            let options = TokenizerOptions { vocab_size: 300, ..TokenizerOptions::default() };
            Tokenizer::train(["x = 1\n"; 4].into_iter(), &options).unwrap()
        });
        config.vocab_size = tokenizer.vocab_size();
        let (lm, dir) = (model(&config), tempfile::tempdir().unwrap());
        multicoder_model::checkpoint::save_folder(&lm, tokenizer, dir.path()).unwrap();
        let again = multicoder_model::checkpoint::load_lm(dir.path(), false, &Device::Cpu).unwrap();
        assert_eq!(again.config(), &config, "{name}");
        let loss = |lm: &CodeLm| lm.loss(&batch(4, 12), 48.0).unwrap().nll_sum;
        assert_eq!(loss(&again), loss(&lm), "{name}");
    }
}

#[test]
fn ways_of_holding_weights_say_where_they_come_from() {
    for param in ExpertParam::all() {
        assert!(!param.paper().is_empty(), "{}", param.name());
    }
    let mut wrong = config(RouterConfig::all().remove(0));
    wrong.moe.as_mut().unwrap().expert_param =
        serde_json::from_str(r#"{"kind": "mpo", "width": [2, 3, 4], "model": [4, 2, 5]}"#).unwrap();
    let error = wrong.validate().unwrap_err().to_string();
    assert!(error.contains("moe.expert_param.model = [4, 2, 5]: expected 3 factors of d_model = 32"), "{error}");
}
