//! The tape against autograd over the composed operations, and against differences of the loss.

use candle_core::{Device, Tensor};

use super::step::step_data;
use super::{Op, StepLoss, TapeOptions, TrainTape, planned_elements, record};
use crate::StepKey;
use crate::config::tests::tiny;
use crate::config::{Activation, ModelConfig, UNKNOWN_LANGUAGE};
use crate::gradients::Gradients;
use crate::lm::{Batch, CodeLm, IGNORE_ID};
use crate::modifier::ModifierConfig;
use crate::ops::tests::values;
use crate::router::RouterConfig;
use crate::router::pl_shared::{Combine, PlShared};

/// Every option that changes a tape, each with a name.
pub(crate) fn configs() -> Vec<(String, ModelConfig)> {
    let shared = |combine| RouterConfig::PlShared(PlShared { combine, ..PlShared::default() });
    let mut configs = vec![("dense".to_owned(), tiny(None))];
    let mut routers = RouterConfig::all();
    routers.extend([shared(Combine::Half), shared(Combine::Sigmoid)]);
    configs.extend(routers.into_iter().map(|router| (format!("{router:?}"), tiny(Some(router)))));
    configs.extend(modified());
    type Edit = (&'static str, fn(&mut ModelConfig));
    let edits: [Edit; 12] = [
        ("dropout", |config| {
            let moe = config.moe.get_or_insert_with(|| tiny(Some(RouterConfig::all().remove(4))).moe.unwrap());
            moe.dropout = 0.4;
        }),
        ("plain adapters", |config| config.adapter = named(r#"{"kind": "plain", "bottleneck": 8}"#)),
        ("hyper-adapters", |config| {
            config.adapter = named(r#"{"kind": "hyper", "bottleneck": 8, "d_h": 16, "d_embedding": 6}"#);
        }),
        ("mpo", |config| {
            let moe = config.moe.get_or_insert_with(|| tiny(Some(RouterConfig::all().remove(4))).moe.unwrap());
            moe.expert_param = named(r#"{"kind": "mpo", "width": [2, 2, 1, 2, 2], "model": [2, 2, 2, 2, 2]}"#);
        }),
        ("embedding of languages", |config| config.language_embedding = true),
        ("pyramid", |config| {
            let moe = config.moe.get_or_insert_with(|| tiny(Some(RouterConfig::all().remove(4))).moe.unwrap());
            (moe.layers, moe.experts_by_layer) = (crate::config::MoeLayers::EveryN(1), vec![2, 6]);
        }),
        ("relu2", |config| config.activation = Activation::Relu2),
        ("heads", |config| config.qk_norm = true),
        ("softcap", |config| config.logit_softcap = 2.0),
        ("biases, untied", |config| (config.qkv_bias, config.tie_embeddings) = (true, false)),
        ("tables", |config| (config.bigram_buckets, config.value_embedding_layers) = (64, vec![1])),
        ("every layer, no shared expert", |config| {
            let moe = config.moe.get_or_insert_with(|| tiny(Some(RouterConfig::all().remove(0))).moe.unwrap());
            (moe.layers, moe.d_ff_shared) = (crate::config::MoeLayers::EveryN(1), 0);
        }),
    ];
    for (name, edit) in edits {
        let mut config = tiny((name == "relu2").then(|| shared(Combine::Sum)));
        edit(&mut config);
        configs.push((name.to_owned(), config));
    }
    configs
}

fn named<T: serde::de::DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

/// Every modifier, behind a router that it fits.
fn modified() -> Vec<(String, ModelConfig)> {
    let with = |modifier: ModifierConfig| {
        let routers = RouterConfig::all().into_iter().filter(|router| router.is_causal());
        let config = |router| {
            let mut config = tiny(Some(router));
            config.moe.as_mut().unwrap().modifiers = vec![modifier.clone()];
            config
        };
        let fits = routers.map(config).filter(|config| config.validate().is_ok());
        fits.map(|config| (format!("{:?}", config.moe.as_ref().unwrap()), config)).take(4).collect::<Vec<_>>()
    };
    ModifierConfig::all().into_iter().flat_map(with).collect()
}

/// A model none of whose parameters is zero or one throughout.
pub(crate) fn model(config: &ModelConfig) -> CodeLm {
    let lm = CodeLm::init(config, 3, &Device::Cpu).unwrap();
    for (i, (name, var)) in lm.parameters().iter().enumerate() {
        let noise = (values(var.dims(), i as u32) * if name.contains("norm") { 0.3 } else { 0.05 }).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    lm
}

/// Two sequences: languages by sequence, or from token to token with some unknown; ignored targets; documents.
pub(super) fn batch(b: usize, l: usize, mixed: bool) -> Batch {
    let n = b * l;
    let ids = |seed: usize| {
        Tensor::from_vec((0..n).map(|i| ((i * i * 7 + seed) % 90) as u32).collect(), (b, l), &Device::Cpu)
    };
    let mut target_N = ids(5).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
    target_N.iter_mut().step_by(7).for_each(|id| *id = IGNORE_ID);
    let by_token = |i: usize| if i.is_multiple_of(5) { UNKNOWN_LANGUAGE } else { (i / 3 % 3) as u32 };
    let language = |i: usize| if mixed { by_token(i) } else { (i / l % 3) as u32 };
    Batch {
        x_BL: ids(1).unwrap(),
        y_BL: Tensor::from_vec(target_N, (b, l), &Device::Cpu).unwrap(),
        language_BL: (0..n).map(language).collect(),
        start_BL: mixed.then(|| (0..n).map(|i| (i % l / 9 * 9) as u32).collect()),
        training: None,
    }
}

/// Sequences whose language changes after each `stretch` tokens, also inside of them, with documents; `unknown`: some tokens have none.
pub(super) fn batch_of_stretches(b: usize, l: usize, stretch: usize, unknown: bool) -> Batch {
    let language = |i: usize| match (i / stretch) % 4 {
        3 if unknown => UNKNOWN_LANGUAGE,
        n => (n % 3) as u32,
    };
    Batch { language_BL: (0..b * l).map(language).collect(), ..batch(b, l, true) }
}

/// Every model with experts, of every router of the table.
pub(super) fn configs_with_experts() -> impl Iterator<Item = (String, ModelConfig)> {
    configs().into_iter().filter(|(_, config)| config.moe.is_some())
}

fn names(lm: &CodeLm) -> Vec<&str> {
    lm.parameters().iter().map(|(name, _)| name.as_str()).collect()
}

fn gradients(lm: &CodeLm, batch: &Batch, options: TapeOptions) -> (StepLoss, Gradients) {
    let mut gradients = Gradients::of(lm);
    let mut complete = vec![None; gradients.n_parameters()];
    let mut ready = |gradients: &mut Gradients, parameters: std::ops::Range<usize>| {
        parameters.for_each(|idx| complete[idx] = Some(gradients.get(idx).map(<[f32]>::to_vec)));
        Ok(())
    };
    let loss = TrainTape::new(options).step(lm, batch, (40.0, 1.0), &mut gradients, Some(&mut ready)).unwrap();
    for (idx, complete) in complete.into_iter().enumerate() {
        let complete = complete.expect("some gradients are never said to be complete");
        assert_eq!(complete.as_deref(), gradients.get(idx), "parameter {idx} was said to be complete and was not");
    }
    (loss, gradients)
}

fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    let scale = expected.iter().fold(1e-3f32, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= 1e-4 * scale, "{what}: differs by {worst} at scale {scale}");
}

/// Asserts that each row's loss is the expected one, and that they add up to the loss.
fn assert_same_rows(loss: &StepLoss, expected_B: &[f64], name: &str) {
    assert_eq!(loss.nll_B.len(), expected_B.len(), "{name}: rows");
    let is_close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-3;
    assert!(loss.nll_B.iter().zip(expected_B).all(is_close), "{name}: {:?}, not {expected_B:?}", loss.nll_B);
    assert!((loss.nll_B.iter().sum::<f64>() - loss.nll_sum).abs() < 1e-3, "{name}: {loss:?}");
}

#[test]
fn the_tape_equals_autograd_for_every_option() {
    for (name, config) in configs() {
        let lm = model(&config);
        for batch in [batch(2, 20, false), batch(2, 20, true), batch(3, 64, false)] {
            // As measured, early in training and late.
            for step in [None, Some(0), Some(9000)] {
                let training = step.map(|step| StepKey { seed: 3, step });
                assert_equals_autograd(&name, &lm, &Batch { training, ..batch.clone() });
            }
        }
    }
}

fn assert_equals_autograd(name: &str, lm: &CodeLm, batch: &Batch) {
    let expected = lm.loss(batch, 40.0).unwrap();
    let grads = expected.loss.backward().unwrap();
    for checkpoint_activations in [false, true] {
        let (loss, gradients) = gradients(lm, batch, TapeOptions { checkpoint_activations });
        let nll_sum = loss.nll_sum;
        assert_same_rows(&loss, &expected.nll_B, name);
        let aux_loss = (loss.aux_loss, expected.aux_loss);
        assert!((aux_loss.0 - aux_loss.1).abs() < 1e-5, "{name}: losses of routers {aux_loss:?}");
        assert!((nll_sum - expected.nll_sum).abs() < 1e-3, "{name}: loss {nll_sum}, not {}", expected.nll_sum);
        for (idx, (parameter, var)) in lm.parameters().iter().enumerate() {
            let what = format!("{name}, checkpointing {checkpoint_activations}, {parameter}");
            let expected = grads.get(var).map(|grad| grad.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            match (gradients.get(idx), expected) {
                (Some(got), Some(expected)) => assert_close(got, &expected, &what),
                (got, expected) => assert_eq!(got.is_some(), expected.is_some(), "{what}: is there one?"),
            }
        }
    }
}

#[test]
fn rows_that_mix_languages_have_the_gradients_of_autograd_on_one_thread_and_on_more() {
    for (name, config) in configs_with_experts() {
        let lm = model(&config);
        // Stretches that experts compute in place, that they are sorted for, and of one token; across the ends of rows.
        for (stretch, unknown) in [(40, false), (40, true), (7, false), (1, true)] {
            let batch = batch_of_stretches(4, 60, stretch, unknown);
            for n_threads in [1, 2] {
                let what = format!("{name}, stretches of {stretch}, unknown {unknown}, {n_threads} threads");
                in_pool(n_threads, || assert_equals_autograd(&what, &lm, &batch));
            }
        }
    }
}

/// Where only the last layer has experts, nothing of a token passes to another after them: in a row of several languages it is what it
/// would be in a row of its own language alone.
#[test]
fn a_token_of_a_mixed_row_meets_the_experts_of_its_own_language() {
    for router in RouterConfig::all().into_iter().filter(RouterConfig::is_causal) {
        let name = router.name();
        let lm = model(&tiny(Some(router)));
        let mixed = batch_of_stretches(2, 60, 7, true);
        let of_language = |language| {
            let batch = Batch { language_BL: vec![language; 120], ..batch_of_stretches(2, 60, 7, true) };
            lm.scores(&batch).unwrap().nll_N
        };
        let alone = [0, 1, 2, UNKNOWN_LANGUAGE].map(|language| (language, of_language(language)));
        let got = lm.scores(&mixed).unwrap().nll_N;
        for (i, language) in mixed.language_BL.iter().enumerate() {
            let expected = alone.iter().find(|(known, _)| known == language).unwrap().1[i];
            assert!((got[i] - expected).abs() < 1e-4, "{name}, token {i}: {} and not {expected}", got[i]);
        }
        let differ = (0..120).any(|i| (alone[0].1[i] - alone[1].1[i]).abs() > 1e-3);
        assert_eq!(differ, name.starts_with("pl_"), "{name}: do languages matter?");
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let mut config = tiny(Some(RouterConfig::all().remove(1)));
    (config.qk_norm, config.bigram_buckets) = (true, 64);
    let (lm, batch) = (model(&config), batch(2, 20, false));
    let (_, gradients) = gradients(&lm, &batch, TapeOptions::default());
    let loss = || lm.loss(&batch, 40.0).unwrap().nll_sum / 40.0;
    for (idx, (name, var)) in lm.parameters().iter().enumerate() {
        let Some(gradient) = gradients.get(idx) else { continue };
        // Along the gradient itself the loss rises by its norm for each unit.
        let norm = gradient.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let direction = Tensor::from_slice(gradient, var.dims(), &Device::Cpu).unwrap();
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&start + (&direction * (step / norm)).unwrap()).unwrap()).unwrap();
            loss()
        };
        let step = 2e-2;
        let slope = (at(step) - at(-step)) / (2.0 * step);
        var.set(&start).unwrap();
        assert!((slope - norm).abs() <= 0.02 * norm + 2e-4, "{name}: slope {slope}, gradient's norm {norm}");
    }
}

#[test]
fn a_second_step_allocates_nothing_and_adds_to_the_first() {
    let lm = model(&tiny(Some(RouterConfig::all().remove(1))));
    let mut tape = TrainTape::default();
    let mut sum = Gradients::of(&lm);
    tape.step(&lm, &batch(2, 20, false), (40.0, 1.0), &mut sum, None).unwrap();
    let (held, once) = (tape.n_bytes(), sum.clone());
    tape.step(&lm, &batch(2, 20, false), (40.0, 1.0), &mut sum, None).unwrap();
    assert_eq!(tape.n_bytes(), held);
    for (twice, once) in sum.values().iter().zip(once.values()) {
        assert!((twice - 2.0 * once).abs() <= 1e-5 * once.abs().max(1e-2), "{twice}, not twice {once}");
    }
}

fn in_pool<T: Send>(n_threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(f)
}

#[test]
fn a_batch_divided_among_threads_has_the_same_gradients() {
    RouterConfig::all().into_iter().filter(RouterConfig::is_local).for_each(assert_divided_is_whole);
}

fn assert_divided_is_whole(router: RouterConfig) {
    let lm = model(&tiny(Some(router)));
    let run = |n_threads| in_pool(n_threads, || gradients(&lm, &batch(4, 20, true), TapeOptions::default()));
    let (whole, undivided) = run(1);
    for n_threads in [2, 4, 6] {
        let (loss, divided) = run(n_threads);
        assert!((loss.nll_sum - whole.nll_sum).abs() < 1e-4, "{n_threads} threads");
        assert!((loss.aux_loss - whole.aux_loss).abs() < 1e-6, "{n_threads} threads");
        let rows = loss.nll_B.iter().zip(&whole.nll_B);
        assert!(loss.nll_B.len() == 4 && rows.clone().all(|(a, b)| (a - b).abs() < 1e-4), "{rows:?}");
        for idx in 0..divided.n_parameters() {
            assert_eq!(divided.is_present(idx), undivided.is_present(idx));
            assert_close(&divided.values()[divided.span(idx)], &undivided.values()[divided.span(idx)], "gradients");
        }
        assert_eq!(run(n_threads).1, divided, "the same number of threads gives the same bits");
        let unheard = in_pool(n_threads, || {
            let mut gradients = Gradients::of(&lm);
            TrainTape::default().step(&lm, &batch(4, 20, true), (40.0, 1.0), &mut gradients, None).unwrap();
            gradients
        });
        assert_eq!(unheard, divided, "whether anybody listens changes no bit");
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    for (name, config) in configs() {
        let lm = model(&config);
        let run = |checkpoint_activations| gradients(&lm, &batch(3, 64, true), TapeOptions { checkpoint_activations });
        let ((kept, gradients), (again, gradients_again)) = (run(false), run(true));
        assert_eq!((kept.nll_sum, kept.load_E), (again.nll_sum, again.load_E), "{name}");
        assert_eq!(gradients, gradients_again, "{name}");
    }
}

#[test]
fn checkpointing_keeps_less() {
    let mut config = tiny(None);
    config.n_layers = 8;
    let lm = model(&config);
    let held = |checkpoint_activations| {
        let mut tape = TrainTape::new(TapeOptions { checkpoint_activations });
        tape.step(&lm, &batch(2, 64, false), (40.0, 1.0), &mut Gradients::of(&lm), None).unwrap();
        tape.n_bytes()
    };
    let (all, little) = (held(false), held(true));
    assert!(little * 2 < all, "{little} bytes with checkpointing, {all} without");
}

#[test]
fn what_is_computed_again_is_only_what_the_gradients_need() {
    let lm = model(&tiny(None));
    let (names, data) = (names(&lm), step_data(&lm, &batch(2, 20, false), None).unwrap());
    let count = |checkpoint_activations| {
        let tape = record(lm.config(), &names, &data, TapeOptions { checkpoint_activations }).unwrap();
        let count = |is: fn(&Op) -> bool| tape.ops.iter().filter(|op| is(op)).count();
        (count(|op| matches!(op, Op::Attention { .. })), count(|op| matches!(op, Op::Linear { .. })))
    };
    // Two layers of seven products; the last one of a layer is not needed again.
    assert_eq!((count(false), count(true)), ((2, 14), (4, 26)));
}

#[test]
fn memory_is_known_before_there_is_a_model() {
    for (name, config) in configs() {
        let lm = model(&config);
        for (checkpoint_activations, (b, l)) in [(false, (3, 64)), (true, (3, 64)), (false, (2, 20)), (true, (2, 20))] {
            let options = TapeOptions { checkpoint_activations };
            let planned = planned_elements(&config, b, l, options).unwrap();
            let mut tape = TrainTape::new(options);
            let batch = Batch { training: Some(StepKey { seed: 0, step: 0 }), ..batch(b, l, false) };
            tape.step(&lm, &batch, (40.0, 1.0), &mut Gradients::of(&lm), None).unwrap();
            let (planned, held) = (4 * planned, tape.n_bytes());
            // How many outputs are masked is a matter of chance.
            let is_close =
                planned.abs_diff(held) * 20 < held && config.moe.as_ref().is_some_and(|moe| !moe.modifiers.is_empty());
            assert!(
                planned == held || is_close,
                "{name}, {b} rows of {l}, {options:?}: {planned} planned, {held} held"
            );
        }
    }
    assert!(planned_elements(&tiny(None), 1, 65, TapeOptions::default()).is_err(), "longer than the context");
}

#[test]
fn wrong_batches_are_errors() {
    let lm = model(&tiny(None));
    let step = |batch: &Batch| {
        let mut gradients = Gradients::of(&lm);
        TrainTape::default().step(&lm, batch, (1.0, 1.0), &mut gradients, None).unwrap_err().to_string()
    };
    let mut wrong = batch(2, 20, true);
    wrong.start_BL = Some(vec![7; 40]);
    assert!(step(&wrong).contains("none after its own"), "{}", step(&wrong));
    wrong = batch(2, 20, false);
    wrong.language_BL.pop();
    assert!(step(&wrong).contains("expected 40 positions"), "{}", step(&wrong));
    wrong = batch(2, 20, false);
    wrong.x_BL = Tensor::full(96u32, (2, 20), &Device::Cpu).unwrap();
    assert!(step(&wrong).contains("token id 96"), "{}", step(&wrong));
}
