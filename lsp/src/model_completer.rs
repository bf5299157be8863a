//! The completer that is a model: the prompt, the generator and its cache.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use multicoder_model::{
    Batching, Bundle, Client, Computed, Error, Finish as ModelFinish, GenerateOptions, Generated, ModelConfig, Prompt,
    PromptBudget, Sequence, Served, fim, generate, served,
};

use crate::completer::{Ask, Completer, CompleterError, Finish, Loader, ModelInfo, Written};
use crate::documents::Snapshot;
use crate::elsewhere::Reader;
use crate::read_speed::ReadSpeed;

/// The model that is inside this program.
#[cfg(embedded_model)]
static STARTER: Option<&[u8]> = Some(include_bytes!("../model/starter.gguf"));
#[cfg(not(embedded_model))]
static STARTER: Option<&[u8]> = None;

const NO_MODEL: &str = "this build carries no model; use --model PATH";

/// What the embedded model's origin is called.
pub const EMBEDDED: &str = "embedded";

/// Prompts are no longer than this, whatever the model could read: the processor has to read it first.
const MAX_PROMPT_TOKENS: usize = 2048;

/// Which model computes, and where.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Choice {
    /// Use this model instead of the embedded one: a .gguf file made by `multicoder pack`, or a checkpoint folder.
    #[arg(long, value_name = "PATH", global = true)]
    pub model: Option<PathBuf>,
    /// Where it computes.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub device: DeviceKind,
}

/// Where a model may compute.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// The first CUDA GPU, in a build with the feature `cuda`.
    Cuda,
}

/// What was computed, where it was.
enum Place {
    Cpu(Box<Computed>),
    Gpu(Client),
}

impl Place {
    fn on_processor(model: &Served) -> Place {
        Place::Cpu(Box::new(Computed::new(model.config(), served::n_threads())))
    }

    /// The model at `path`, loaded once more: that with this checksum.
    fn on_gpu(path: Option<&Path>, checksum: &str) -> Result<Place, String> {
        let of_gpu = |error: Error| format!("--device cuda: {error}");
        let bundle = load_bundle(path)?;
        if bundle.info.checksum != checksum {
            return Err(format!("{}: another file than before", bundle.info.origin));
        }
        let batching = Batching::on_gpu(0, &bundle.lm, 1).map_err(of_gpu)?;
        batching.client().map(Place::Gpu).map_err(of_gpu)
    }

    fn sequence<'a>(&'a mut self, model: &'a Served) -> Box<dyn Sequence + 'a> {
        match self {
            Place::Cpu(computed) => Box::new(model.sequence(computed)),
            Place::Gpu(client) => Box::new(client.sequence()),
        }
    }

    /// Forgets all that was computed.
    fn clear(&mut self) {
        match self {
            Place::Cpu(computed) => computed.clear(),
            Place::Gpu(client) => client.clear(),
        }
    }
}

/// A model and what it remembers of the last prompt.
pub struct ModelCompleter {
    model: Served,
    computed: Place,
    reader: Reader,
    speed: ReadSpeed,
    guesses: bool,
    info: ModelInfo,
    /// Where the model was loaded from; none for the embedded one.
    path: Option<PathBuf>,
}

/// Loads the model at `path`: a `.gguf` file of ours or a checkpoint folder; the embedded one for `None`.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub fn load_model(path: Option<&Path>) -> Result<Served, String> {
    let loaded = match (path, STARTER) {
        (Some(path), _) => Served::load(path),
        (None, Some(bytes)) => Served::from_gguf(Arc::new(bytes), EMBEDDED),
        (None, None) => return Err(NO_MODEL.to_string()),
    };
    loaded.map_err(|error| error.to_string())
}

/// The same as tensors, which other formats are made of.
///
/// # Errors
/// As of [`load_model`].
pub fn load_bundle(path: Option<&Path>) -> Result<Bundle, String> {
    let loaded = match (path, STARTER) {
        (Some(path), _) => Bundle::load(path, &Device::Cpu),
        (None, Some(bytes)) => Bundle::from_gguf_bytes(bytes, EMBEDDED, &Device::Cpu),
        (None, None) => return Err(NO_MODEL.to_string()),
    };
    loaded.map_err(|error| error.to_string())
}

/// A loader for [`crate::server::serve`].
pub fn loader(choice: Choice) -> Loader {
    Box::new(move || Ok(Box::new(ModelCompleter::load(&choice)?) as Box<dyn Completer>))
}

impl ModelCompleter {
    /// Loads the model that was chosen to where it is to compute.
    ///
    /// # Errors
    /// As of [`load_model`]; a GPU, its driver or its libraries that are not there, or a model that does not run on one.
    pub fn load(choice: &Choice) -> Result<ModelCompleter, String> {
        let path = choice.model.as_deref();
        let mut completer = ModelCompleter { path: choice.model.clone(), ..ModelCompleter::new(load_model(path)?) };
        if choice.device == DeviceKind::Cuda {
            completer.computed = Place::on_gpu(path, &completer.info.checksum)?;
            completer.info.device = "cuda".to_string();
        }
        Ok(completer)
    }

    /// A completer over a loaded model, on the processor.
    pub fn new(model: Served) -> ModelCompleter {
        let (computed, info) = (Place::on_processor(&model), describe(&model));
        let (reader, speed) = (Reader::default(), ReadSpeed::default());
        ModelCompleter { model, computed, reader, speed, guesses: true, info, path: None }
    }

    /// Computes one token after the other, to see what guesses at the next ones are worth: the answers are the same.
    pub fn without_guesses(self) -> ModelCompleter {
        ModelCompleter { guesses: false, ..self }
    }

    /// The loaded model.
    pub fn model(&self) -> &Served {
        &self.model
    }

    /// Computes `prompt` from nothing and continues it by `max_new_tokens`, whatever they are. Returns the figures and the time that
    /// the prompt and its first token took, in seconds.
    ///
    /// # Errors
    /// What the model says.
    pub fn measure(&mut self, prompt: &Prompt, max_new_tokens: usize) -> Result<(Generated, f64), Error> {
        self.computed.clear();
        let start = Instant::now();
        let mut first_token_s = None;
        let mut stop = |_: &[u8]| {
            first_token_s.get_or_insert_with(|| start.elapsed().as_secs_f64());
            false
        };
        let options = GenerateOptions { max_new_tokens, guesses: false };
        let mut sequence = self.computed.sequence(&self.model);
        let out = generate(&mut *sequence, &self.model.tokenizer, prompt, None, &options, &mut stop, &|| false)?;
        let whole_s = start.elapsed().as_secs_f64();
        Ok((out, first_token_s.unwrap_or(whole_s)))
    }
}

impl Completer for ModelCompleter {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn write(
        &mut self,
        ask: &Ask<'_>,
        enough: &mut dyn FnMut(&[u8]) -> bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Written, CompleterError> {
        let (config, tokenizer) = (self.model.config(), &self.model.tokenizer);
        let context_tokens = config.context_tokens;
        let max_new_tokens = ask.max_new_tokens.min(context_tokens / 4);
        let most = MAX_PROMPT_TOKENS.min(context_tokens - max_new_tokens);
        let budget = PromptBudget::of(self.speed.most_tokens(most, ask.timeout));
        let prompt = fim::prompt(tokenizer, ask.language, &[], ask.prefix, ask.suffix, &budget).map_err(failed)?;
        let n_healed = prompt.heal.len();
        let (start, mut read_in) = (Instant::now(), None);
        let mut stop = |bytes: &[u8]| {
            read_in.get_or_insert_with(|| start.elapsed());
            bytes.get(n_healed..).is_some_and(|new| !new.is_empty() && enough(new))
        };
        let options = GenerateOptions { max_new_tokens, guesses: self.guesses };
        let mut sequence = self.computed.sequence(&self.model);
        let was_empty = sequence.ids().is_empty();
        let out = generate(&mut *sequence, tokenizer, &prompt, ask.language, &options, &mut stop, cancelled);
        match &out {
            Ok(out) => self.speed.saw(out.prefilled_tokens, read_in.unwrap_or_else(|| start.elapsed())),
            // Of another prompt it is not known what of it was there.
            Err(Error::Cancelled) if was_empty => {
                self.speed.gave_up(sequence.ids().len(), start.elapsed(), ask.timeout)
            }
            Err(_) => {}
        }
        drop(sequence);
        if matches!((&out, &self.computed), (Err(Error::Device(_)), Place::Gpu(_))) {
            self.reset();
        }
        let (config, out) = (self.model.config(), out.map_err(failed)?);
        Ok(Written {
            expert: expert_of(config, ask.language),
            prompt_tokens: prompt.ids.len(),
            prefilled_tokens: out.prefilled_tokens,
            guessed_tokens: out.guessed_tokens,
            accepted_tokens: out.accepted_tokens,
            bytes: out.bytes,
            logprobs: out.logprobs,
            finish: match out.finish {
                ModelFinish::Stop => Finish::Stopped,
                ModelFinish::EndOfText => Finish::EndOfText,
                ModelFinish::MaxTokens | ModelFinish::ContextFull => Finish::Exhausted,
            },
        })
    }

    fn read_elsewhere(&mut self, others: &[Snapshot], cancelled: &dyn Fn() -> bool) -> bool {
        if !self.guesses || self.computed.sequence(&self.model).max_guesses() == 0 {
            return true;
        }
        let Place::Cpu(computed) = &mut self.computed else { return true };
        match self.reader.read(others, &self.model.tokenizer, cancelled) {
            Ok(Some(elsewhere)) => computed.elsewhere = elsewhere,
            Ok(None) => {}
            Err(Error::Cancelled) => return false,
            Err(error) => tracing::warn!(%error, "other documents are not read"),
        }
        true
    }

    fn reset(&mut self) {
        self.reader = Reader::default();
        let was_on_gpu = matches!(self.computed, Place::Gpu(_));
        self.speed = ReadSpeed::default();
        // What was on the GPU goes first: there may be no room for it twice.
        self.computed = Place::on_processor(&self.model);
        if was_on_gpu {
            match Place::on_gpu(self.path.as_deref(), &self.info.checksum) {
                Ok(place) => self.computed = place,
                Err(error) => {
                    tracing::error!(error, "the GPU is lost, the processor goes on");
                    self.info.device = "cpu".to_string();
                }
            }
        }
    }
}

fn failed(error: Error) -> CompleterError {
    match error {
        Error::Cancelled => CompleterError::Cancelled,
        other => CompleterError::Failed(other.to_string()),
    }
}

/// The expert that a language chooses; `None` where no expert is chosen by language.
fn expert_of(config: &ModelConfig, language: Option<&str>) -> Option<String> {
    let moe = config.moe.as_ref()?;
    if !moe.router.is_by_language() {
        return None;
    }
    let experts = config.expert_of_language();
    let expert = experts.get(config.language_index(language) as usize);
    Some(expert.map_or("of an unknown language".to_string(), usize::to_string))
}

fn describe(model: &Served) -> ModelInfo {
    let info = &model.info;
    let name = if info.name.is_empty() || info.name == EMBEDDED { "starter".to_string() } else { info.name.clone() };
    ModelInfo {
        name,
        origin: info.origin.clone(),
        device: "cpu".to_string(),
        parameters: info.n_parameters,
        active_parameters: info.n_active_parameters,
        quantization: info.quantization.clone(),
        checksum: info.checksum.clone(),
        context_tokens: model.config().context_tokens,
        languages: info.languages.clone(),
        load_time: std::time::Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multicoder_model::batching::{Logits, Row, RowDecoder};
    use multicoder_model::gguf::{Contents, Quantization, to_bytes};
    use multicoder_model::tokenizer::TokenizerOptions;
    use multicoder_model::{CodeLm, MoeConfig, RouterConfig, Tokenizer, config};
    use std::collections::BTreeMap;
    use std::time::Duration;

    /// A tiny model with seeded random weights.
    fn tiny() -> ModelCompleter {
        let languages = vec!["lua".to_string(), "python".to_string()];
        let options = TokenizerOptions {
            vocab_size: 300,
            languages: languages.clone(),
            min_frequency: 2,
            ..TokenizerOptions::default()
        };
        let tokenizer = Tokenizer::train(["def f(x):\n    return x\n"].into_iter().cycle().take(20), &options).unwrap();
        let moe = MoeConfig {
            layers: config::MoeLayers::EveryN(2),
            n_experts: 2,
            experts_by_layer: Vec::new(),
            d_ff_expert: 16,
            dropout: 0.0,
            expert_param: Default::default(),
            d_ff_shared: 0,
            router: RouterConfig::all().remove(0),
            modifiers: Vec::new(),
            expert_of_language: BTreeMap::new(),
        };
        let model = json_config(tokenizer.vocab_size(), &languages, &moe);
        let lm = CodeLm::init(&model, 7, &candle_core::Device::Cpu).unwrap();
        let (name, quantization) = ("tiny", Quantization::F32);
        let contents = Contents { name, lm: &lm, tokenizer: &tokenizer, quantization, goldens: &[], vocabulary: None };
        ModelCompleter::new(Served::from_gguf(Arc::new(to_bytes(&contents).unwrap()), "tiny.gguf").unwrap())
    }

    fn json_config(vocab_size: usize, languages: &[String], moe: &MoeConfig) -> ModelConfig {
        let value = serde_json::json!({
            "vocab_size": vocab_size, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_ff": 48,
            "context_tokens": 128, "languages": languages, "moe": moe,
        });
        serde_json::from_value(value).unwrap()
    }

    fn write(completer: &mut ModelCompleter, prefix: &str) -> Written {
        let ask =
            Ask { language: Some("python"), prefix, suffix: "\n", max_new_tokens: 8, timeout: Duration::from_secs(60) };
        completer.write(&ask, &mut |_| false, &|| false).unwrap()
    }

    #[test]
    fn a_keystroke_prefills_only_what_changed() {
        let mut completer = tiny();
        let text = "def f(x):\n    return x\n\n\ndef g(y):\n    return ";
        let first = write(&mut completer, text);
        assert_eq!((first.prefilled_tokens, first.expert.as_deref()), (first.prompt_tokens, Some("1")));
        for typed in ["y", "y,", "y, x"] {
            let next = write(&mut completer, &format!("{text}{typed}"));
            assert!(next.prefilled_tokens <= 4, "{} of {}", next.prefilled_tokens, next.prompt_tokens);
        }
        assert_eq!(write(&mut completer, text).bytes, first.bytes);
        completer.reset();
        let again = write(&mut completer, text);
        assert_eq!((again.prefilled_tokens, again.bytes), (first.prompt_tokens, first.bytes));
    }

    #[test]
    fn cancelling_leaves_it_usable() {
        let mut completer = tiny();
        let ask =
            Ask { language: None, prefix: "def f(", suffix: "", max_new_tokens: 8, timeout: Duration::from_secs(60) };
        let cancelled = completer.write(&ask, &mut |_| false, &|| true);
        assert!(matches!(cancelled, Err(CompleterError::Cancelled)));
        let after = write(&mut completer, "def f(");
        assert_eq!(after.bytes, write(&mut tiny(), "def f(").bytes);
        assert!(after.logprobs.iter().all(|logprob| *logprob <= 0.0));
    }

    /// A decoder on a device that is lost.
    struct Lost(ModelConfig);

    impl RowDecoder for Lost {
        fn config(&self) -> &ModelConfig {
            &self.0
        }

        fn n_sequences(&self) -> usize {
            1
        }

        fn max_rows(&self) -> usize {
            64
        }

        fn decode(&mut self, _: &[Row]) -> Result<Logits, Error> {
            Err(Error::Device("an illegal address".to_string()))
        }
    }

    #[test]
    fn a_gpu_that_is_lost_costs_one_answer() {
        let mut completer = tiny();
        let config = completer.model.config().clone();
        let batching = Batching::new(|| Ok(Lost(config))).unwrap();
        completer.computed = Place::Gpu(batching.client().unwrap());
        drop(batching);
        let ask =
            Ask { language: None, prefix: "def f(", suffix: "", max_new_tokens: 8, timeout: Duration::from_secs(60) };
        let error = completer.write(&ask, &mut |_| false, &|| false).err().unwrap();
        assert!(matches!(&error, CompleterError::Failed(why) if why.contains("an illegal address")), "{error:?}");
        // In a build or on a machine without a GPU there is no other one.
        assert_eq!(completer.info.device, "cpu");
        assert_eq!(write(&mut completer, "def f(").bytes, write(&mut tiny(), "def f(").bytes);
    }

    #[test]
    fn long_texts_fit_the_context() {
        let mut completer = tiny();
        let written = write(&mut completer, &"    value = call(1, 2)\n".repeat(500));
        assert!(written.prompt_tokens <= 120, "{}", written.prompt_tokens);
    }

    #[test]
    fn a_model_that_is_not_there_is_named() {
        let error = load_model(Some(Path::new("none/such.gguf"))).err().unwrap();
        assert!(error.contains("none/such.gguf"), "{error}");
    }
}
