//! Every router: causal, conserving, trainable, deterministic, and the same served as trained.

use candle_core::{D, Device, Tensor};
use multicoder_model::config::{Activation, MoeLayers};

use multicoder_model::draw::{Draw, StepKey};
use multicoder_model::router::{Plan, RouterContext};
use multicoder_model::tokenizer::TokenizerOptions;
use multicoder_model::{
    Batch, Bundle, BundleInfo, CodeLm, KvCache, ModelConfig, MoeConfig, Params, RouterConfig, Tokenizer,
    UNKNOWN_LANGUAGE,
};
use std::collections::BTreeMap;

const N_EXPERTS: usize = 4;
const LANGUAGES: [&str; 6] = ["c", "go", "lua", "perl", "python", "rust"];
/// Languages that tests walk through: two that share an expert, one unknown.
const TRIED_LANGUAGES: [u32; 4] = [0, 4, 3, UNKNOWN_LANGUAGE];

/// The defaults of every row, and options that bring more of a router to work than its defaults do.
fn routers() -> Vec<RouterConfig> {
    let with_options = [
        r#"{"kind": "pl_shared", "combine": "sigmoid"}"#,
        r#"{"kind": "pl_shared", "combine": "half"}"#,
        r#"{"kind": "pl_shared", "combine": "sigmoid", "unknown": "mean"}"#,
        r#"{"kind": "pl_hard", "unknown": {"language": "lua"}}"#,
        r#"{"kind": "token", "top_k": 2, "normalize": true}"#,
        r#"{"kind": "pl_group", "experts_per_language": 4, "top_k": 2}"#,
        r#"{"kind": "expert_choice", "capacity_factor": 2.0}"#,
    ];
    let parsed = with_options.iter().map(|text| serde_json::from_str(text).unwrap());
    RouterConfig::all().into_iter().chain(parsed).collect()
}

fn causal() -> impl Iterator<Item = RouterConfig> {
    routers().into_iter().filter(RouterConfig::is_causal)
}

pub(crate) fn config(router: RouterConfig) -> ModelConfig {
    ModelConfig {
        vocab_size: 64,
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 8,
        d_ff: 48,
        activation: Activation::Swiglu,
        context_tokens: 48,
        rope_theta: 10_000.0,
        norm_eps: 1e-6,
        qk_norm: false,
        qkv_bias: false,
        tie_embeddings: true,
        logit_softcap: 0.0,
        bigram_buckets: 0,
        language_embedding: false,
        value_embedding_layers: Vec::new(),
        languages: LANGUAGES.map(str::to_owned).to_vec(),
        moe: Some(MoeConfig {
            layers: MoeLayers::EveryN(1),
            n_experts: N_EXPERTS,
            experts_by_layer: Vec::new(),
            d_ff_expert: 24,
            dropout: 0.0,
            expert_param: Default::default(),
            d_ff_shared: 16,
            router,
            modifiers: Vec::new(),
            expert_of_language: BTreeMap::new(),
        }),
        adapter: None,
        copy: None,
    }
}

fn model(router: &RouterConfig) -> CodeLm {
    CodeLm::init(&config(router.clone()), 11, &Device::Cpu).unwrap()
}

/// Ids that look random and are the same everywhere.
pub(crate) fn ids(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + seed * 101 + i * i * 7) % 64).collect()
}

pub(crate) fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
}

pub(crate) fn batch(n_rows: usize, l: usize) -> Batch {
    let rows: Vec<Vec<u32>> = (0..n_rows).map(|row| ids(l + 1, row as u32)).collect();
    let flat = |from: usize| rows.iter().flat_map(|row| row[from..from + l].to_vec()).collect::<Vec<_>>();
    let tensor = |values: Vec<u32>| Tensor::from_vec(values, (n_rows, l), &Device::Cpu).unwrap();
    let language = |row: usize| TRIED_LANGUAGES[row % TRIED_LANGUAGES.len()];
    let language_BL = (0..n_rows).flat_map(|row| vec![language(row); l]).collect();
    Batch { x_BL: tensor(flat(0)), y_BL: tensor(flat(1)), language_BL, start_BL: None, training: None }
}

#[test]
fn later_tokens_change_nothing_before_them() {
    for router in routers() {
        let lm = model(&router);
        if !router.is_causal() {
            looks_ahead_and_is_refused(&router, lm);
            continue;
        }
        for language in TRIED_LANGUAGES {
            let first = ids(24, 1);
            let before = lm.forward_logits(&first, language).unwrap();
            for kept in [1, 7, 23] {
                let mut second = first.clone();
                second[kept..].iter_mut().for_each(|id| *id = (*id + 13) % 64);
                let after = lm.forward_logits(&second, language).unwrap();
                let difference =
                    max_difference(&before.narrow(0, 0, kept).unwrap(), &after.narrow(0, 0, kept).unwrap());
                assert!(
                    difference < 1e-5,
                    "{router:?}, language {language}: outputs before position {kept} moved by {difference}"
                );
                let moved = max_difference(&before.narrow(0, kept, 1).unwrap(), &after.narrow(0, kept, 1).unwrap());
                assert!(moved > 1e-3, "{router:?}: the changed token itself changes nothing ({moved})");
            }
        }
    }
}

/// What the test above would find, and that nobody is served by it.
fn looks_ahead_and_is_refused(router: &RouterConfig, lm: CodeLm) {
    let first = ids(24, 1);
    let before = lm.forward_logits(&first, 0).unwrap();
    let moves = |kept: usize| {
        let second: Vec<u32> = (0..).zip(&first).map(|(n, id)| if n < kept { *id } else { (id + 13) % 64 }).collect();
        let after = lm.forward_logits(&second, 0).unwrap();
        max_difference(&before.narrow(0, 0, kept).unwrap(), &after.narrow(0, 0, kept).unwrap()) > 1e-5
    };
    assert!([1, 7, 23].into_iter().any(moves), "{router:?}: said not to be causal, and no later token matters");
    let tokenizer = Tokenizer::train(["x\n"; 4].into_iter(), &TokenizerOptions::default());
    let (name, origin, quantization, checksum) = Default::default();
    let (languages, goldens) = Default::default();
    let info = BundleInfo {
        name,
        origin,
        n_parameters: 0,
        n_active_parameters: 0,
        languages,
        quantization,
        checksum,
        goldens,
    };
    let error = tokenizer.and_then(|tokenizer| Bundle::new(lm, tokenizer, info)).err().map(|error| error.to_string());
    assert!(error.as_ref().is_some_and(|error| error.contains("looks at later tokens")), "{router:?}: {error:?}");
}

#[test]
fn rows_of_a_batch_do_not_touch_each_other() {
    for router in causal() {
        let lm = model(&router);
        let alone = |row: usize| {
            let whole = batch(4, 12);
            let x_BL = whole.x_BL.narrow(0, row, 1).unwrap();
            let y_BL = whole.y_BL.narrow(0, row, 1).unwrap();
            let language_BL = whole.language_BL[row * 12..(row + 1) * 12].to_vec();
            lm.scores(&Batch { x_BL, y_BL, language_BL, start_BL: None, training: None }).unwrap().nll_N
        };
        let together = lm.scores(&batch(4, 12)).unwrap().nll_N;
        for (row, expected) in together.chunks(12).enumerate() {
            for (got, expected) in alone(row).iter().zip(expected) {
                assert!((got - expected).abs() < 1e-4, "{router:?}, row {row}: {got} alone, {expected} in a batch");
            }
        }
    }
}

fn plan(router: &RouterConfig, language_N: &[u32]) -> Plan {
    let config = config(router.clone());
    let router = router.build(&config, config.moe.as_ref().unwrap(), &mut Params::random(5, &Device::Cpu)).unwrap();
    let n = language_N.len();
    let values: Vec<f32> = (0..n * config.d_model).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let x_ND = Tensor::from_vec(values, (n, config.d_model), &Device::Cpu).unwrap();
    // Late in training, where every schedule has ended.
    let id_N = ids(n, 2);
    let draw = Draw::new(StepKey { seed: 1, step: 9000 }, &id_N, n);
    let context = RouterContext { id_N: &id_N, language_N, draw: Some(draw.layer(0)), ..RouterContext::default() };
    router.plan(&x_ND, &context).unwrap().0
}

#[test]
fn plans_are_well_formed_and_conserve_tokens() {
    let language_N: Vec<u32> = (0..20).map(|n| TRIED_LANGUAGES[n % 4]).collect();
    for router in routers() {
        let plan = plan(&router, &language_N);
        let a = plan.token_A.len();
        assert_eq!(plan.expert_A.len(), a, "{router:?}: one expert an assignment");
        assert!(plan.token_A.iter().all(|&token| (token as usize) < language_N.len()), "{router:?}: tokens in range");
        assert!(plan.expert_A.iter().all(|&expert| (expert as usize) < N_EXPERTS), "{router:?}: experts in range");
        let mut pairs: Vec<_> = plan.token_A.iter().zip(&plan.expert_A).collect();
        pairs.sort();
        pairs.dedup();
        assert_eq!(pairs.len(), a, "{router:?}: no token meets an expert twice");
        let is_promised = router.is_causal();
        let promised = language_N.iter().enumerate().filter(|_| is_promised);
        for (token, &language) in promised.filter(|(_, language)| **language != UNKNOWN_LANGUAGE) {
            let met = plan.token_A.iter().filter(|&&t| t as usize == token).count();
            assert_eq!(
                met,
                router.n_selected(),
                "{router:?}: token {token} of language {language} is dropped or doubled"
            );
        }
        let weights = [&plan.weight_A, &plan.shared_weight_N].into_iter().flatten();
        for weight in weights.flat_map(|weight| weight.to_vec1::<f32>().unwrap()) {
            assert!(weight.is_finite() && weight >= 0.0, "{router:?}: weight {weight}");
        }
        if let Some(weight_A) = &plan.weight_A {
            assert_eq!(weight_A.dims(), [a], "{router:?}: one weight an assignment");
        }
    }
}

#[test]
fn reported_load_adds_up() {
    for router in routers() {
        let output = model(&router).loss(&batch(4, 12), 48.0).unwrap();
        assert_eq!(output.n_tokens, 48);
        assert_eq!(output.load_E.len(), 2, "{router:?}: one load a layer with experts");
        for load_E in &output.load_E {
            let sum: f32 = load_E.iter().sum();
            assert!(load_E.len() == N_EXPERTS && (sum - 1.0).abs() < 1e-5, "{router:?}: load {load_E:?}");
        }
        let total = f64::from(output.loss.to_scalar::<f32>().unwrap());
        assert!(
            (total - output.nll_sum / 48.0 - output.aux_loss).abs() < 1e-4,
            "{router:?}: loss = nll / tokens + aux"
        );
    }
}

#[test]
fn gradient_reaches_every_parameter_of_the_router() {
    for router in routers() {
        let lm = model(&router);
        let moe = config(router.clone());
        let expected = router.n_parameters(&moe, moe.moe.as_ref().unwrap()) * moe.n_moe_layers();
        let of_router: Vec<_> = lm.parameters().iter().filter(|(name, _)| name.contains("router")).collect();
        let n_parameters: usize = of_router.iter().map(|(_, var)| var.elem_count()).sum();
        assert_eq!(n_parameters, expected, "{router:?}: n_parameters() against what was built");
        let gradients = lm.loss(&batch(4, 12), 48.0).unwrap().loss.backward().unwrap();
        for (name, var) in of_router {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{router:?}: no gradient reaches {name}"));
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(norm.is_finite() && norm > 1e-7, "{router:?}: the gradient of {name} has norm {norm}");
        }
    }
}

#[test]
fn one_step_of_gradient_descent_lowers_the_loss() {
    for router in routers() {
        let lm = model(&router);
        let loss = || lm.loss(&batch(4, 12), 48.0).unwrap();
        let before = loss();
        let gradients = before.loss.backward().unwrap();
        for (_, var) in lm.parameters() {
            if let Some(gradient) = gradients.get(var) {
                var.set(&(var.as_tensor() - (gradient * 0.02).unwrap()).unwrap()).unwrap();
            }
        }
        let (before, after) = (before.nll_sum, loss().nll_sum);
        assert!(after < before, "{router:?}: {before} nats before, {after} after the step");
    }
}

#[test]
fn parameters_are_counted_as_built() {
    for router in routers() {
        let lm = model(&router);
        let built: usize = lm.parameters().iter().map(|(_, var)| var.elem_count()).sum();
        assert_eq!(built, lm.config().n_parameters(), "{router:?}");
        assert!(lm.config().n_active_parameters() < built, "{router:?}: fewer are active");
    }
}

#[test]
fn the_same_seed_gives_the_same_plan_and_the_same_numbers() {
    for router in routers() {
        let language_N = [0, 1, UNKNOWN_LANGUAGE, 3, 4, 5];
        let (first, second) = (plan(&router, &language_N), plan(&router, &language_N));
        assert_eq!((first.token_A, first.expert_A), (second.token_A, second.expert_A), "{router:?}");
        let logits =
            || model(&router).forward_logits(&ids(20, 3), 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (first, second): (Vec<f32>, Vec<f32>) = (logits(), logits());
        assert!(first.iter().zip(&second).all(|(a, b)| a.to_bits() == b.to_bits()), "{router:?}: bit for bit");
    }
}

#[test]
fn a_router_is_served_as_it_was_trained() {
    for router in causal() {
        let lm = model(&router);
        for language in TRIED_LANGUAGES {
            let all = ids(20, 9);
            let expected_LV = lm.forward_logits(&all, language).unwrap();
            let mut cache = KvCache::new(lm.config(), &Device::Cpu).unwrap();
            for (from, to) in [(0, 9), (9, 10), (10, 16), (16, 20)] {
                let got_V = lm.decode(&all[from..to], language, &mut cache, &|| false).unwrap();
                let expected_V = expected_LV.get(to - 1).unwrap();
                let difference = max_difference(&Tensor::new(got_V, &Device::Cpu).unwrap(), &expected_V);
                assert!(
                    difference < 1e-4,
                    "{router:?}, language {language}, after {to} tokens: differs by {difference}"
                );
            }
        }
    }
}

#[test]
fn options_survive_toml_and_json() {
    for router in routers() {
        let config = config(router.clone());
        let from_toml: ModelConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(from_toml, config);
        let from_json: ModelConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(from_json, config);
        let named: RouterConfig = toml::from_str(&format!("kind = \"{}\"", router.name())).unwrap();
        assert_eq!(named.name(), router.name(), "a name alone gives the defaults");
    }
}

#[test]
fn wrong_names_and_options_are_refused_with_the_valid_ones() {
    let error = toml::from_str::<RouterConfig>("kind = \"nearest\"").unwrap_err().to_string();
    for router in RouterConfig::all() {
        assert!(error.contains(router.name()), "the message lists {}: {error}", router.name());
        let text = format!("kind = \"{}\"\nno_such_option = 1", router.name());
        let error = toml::from_str::<RouterConfig>(&text).unwrap_err().to_string();
        assert!(error.contains("no_such_option"), "{}: {error}", router.name());
        assert!(!router.paper().is_empty(), "{} says where it comes from", router.name());
    }
}

#[test]
fn logits_are_finite_for_every_language() {
    for router in routers() {
        let lm = model(&router);
        for language in (0..LANGUAGES.len() as u32).chain([UNKNOWN_LANGUAGE]) {
            let logits_LV = lm.forward_logits(&ids(16, 4), language).unwrap();
            let worst = logits_LV.abs().unwrap().max(D::Minus1).unwrap().to_vec1::<f32>().unwrap();
            assert!(worst.iter().all(|value| value.is_finite()), "{router:?}, language {language}: {worst:?}");
        }
    }
}
