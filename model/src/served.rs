//! A model in an editor: packed weights, its tokenizer, what it is called, and the sequence that it has computed so far.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use crate::bundle::{self, BundleInfo};
use crate::checkpoint;
use crate::config::{ModelConfig, MoeConfig};
use crate::decoder::{Decoder, DecoderStates, FileBytes, GgufWeights, Simd, Worker};
use crate::error::{Error, Result};
use crate::generate::Sequence;
use crate::gguf::{self, Contents, Quantization};
use crate::speculate::{Elsewhere, Pace};
use crate::tokenizer::Tokenizer;

/// How far a largest logit may be from that of the tensors whose weights these are: activations are rounded to eight bits here.
const GOLDEN_TOLERANCE: f32 = 0.25;

/// Guesses that a pass verifies, at most.
const MAX_GUESSES: usize = 8;

/// More threads do not make a small model faster: each has little to do between two meetings.
const MAX_THREADS: usize = 4;

/// Threads that work when their cores are free.
pub fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// A loaded model.
pub struct Served {
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    pub info: BundleInfo,
}

/// What a model has computed, and the threads and memory that it computes with.
pub struct Computed {
    states: DecoderStates,
    worker: Worker,
    pace: Pace,
    /// Other texts, from which tokens are guessed too.
    pub elsewhere: Elsewhere,
}

impl Served {
    /// Reads a `.gguf` file of ours, which stays mapped, or a checkpoint folder, whose weights are rounded to eight bits. Whoever replaces
    /// the file while it is served must put the new one in its place by renaming it, as `multicoder pack` does: one that is written over
    /// where it stands takes the program down.
    ///
    /// # Errors
    /// Whatever is missing or damaged, named.
    pub fn load(path: &Path) -> Result<Served> {
        if path.is_dir() {
            return Served::of_folder(path);
        }
        let file = std::fs::File::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the file is not changed where it stands: the caller's part, said above.
        let mapped = Arc::new(unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::file(path, e))?);
        let served = Served::from_gguf(mapped.clone(), &path.display().to_string())?;
        // The checksum has read all of it: experts that are not in use need not stay in memory.
        // SAFETY: pages of a file come back as they were. A system that does not know the advice leaves them.
        #[cfg(unix)]
        let _ = unsafe { mapped.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        Ok(served)
    }

    /// A serving file that is in memory. `origin` names it in errors.
    ///
    /// # Errors
    /// Whatever is damaged, named.
    pub fn from_gguf(bytes: FileBytes, origin: &str) -> Result<Served> {
        let (config, tokenizer, info, content) = gguf::read_head((*bytes).as_ref(), origin)?;
        bundle::check_served(&config, &tokenizer, &info)?;
        let mut vocabulary = gguf::read_vocabulary(&content, &config, origin)?;
        // Without these an answer could neither end nor be spelled.
        let always: Vec<u32> = (0..config.vocab_size as u32).filter(|&id| tokenizer.bytes_of(id).len() <= 1).collect();
        config.languages.iter().for_each(|language| vocabulary.add(language, &always));
        let mut decoder = Decoder::new(&config, Arc::new(GgufWeights::of(bytes, content, origin)?), Simd::best())?;
        decoder.set_vocabulary_filter(&vocabulary);
        Ok(Served { decoder, tokenizer, info })
    }

    /// As the file that it would be packed into: nothing of the floats stays in memory.
    fn of_folder(path: &Path) -> Result<Served> {
        let (mut lm, tokenizer, mut info) = checkpoint::load_parts(path, &Device::Cpu)?;
        bundle::check_served(lm.config(), &tokenizer, &info)?;
        if !lm.config().is_plain() {
            lm = lm.materialized()?;
        }
        let (name, quantization) = (info.name.as_str(), Quantization::Q8_0);
        let contents = Contents { name, lm: &lm, tokenizer: &tokenizer, quantization, goldens: &[], vocabulary: None };
        let bytes = gguf::to_bytes(&contents)?;
        drop(lm);
        let served = Served::from_gguf(Arc::new(bytes), &info.origin)?;
        info.quantization = quantization.name().to_owned();
        Ok(Served { info, ..served })
    }

    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// The model with what it has computed so far.
    pub fn sequence<'a>(&'a self, computed: &'a mut Computed) -> PackedSequence<'a> {
        computed.of(&self.decoder)
    }

    /// Whether the model answers its golden inputs as when it was packed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first pair that differs by more than rounding.
    pub fn check_goldens(&self) -> Result<()> {
        let mut computed = Computed::new(self.config(), 1);
        bundle::check_goldens(&mut self.sequence(&mut computed), &self.info, GOLDEN_TOLERANCE)
    }
}

impl Computed {
    /// Nothing yet, and `n_threads` threads to compute with.
    pub fn new(config: &ModelConfig, n_threads: usize) -> Computed {
        Computed {
            states: DecoderStates::new(config),
            worker: Worker::new(n_threads),
            pace: Pace::default(),
            elsewhere: Elsewhere::default(),
        }
    }

    /// The model with what it has computed so far; always the same one.
    pub fn of<'a>(&'a mut self, decoder: &'a Decoder) -> PackedSequence<'a> {
        PackedSequence { decoder, computed: self }
    }

    /// Forgets all that was computed.
    pub fn clear(&mut self) {
        self.states.clear();
    }
}

/// A model of packed weights.
pub struct PackedSequence<'a> {
    decoder: &'a Decoder,
    computed: &'a mut Computed,
}

impl Sequence for PackedSequence<'_> {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn ids(&self) -> &[u32] {
        self.computed.states.current().ids()
    }

    fn capacity(&self) -> usize {
        self.computed.states.current().capacity()
    }

    fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        self.computed.states.keep_common_prefix(ids, language)
    }

    fn truncate(&mut self, n_tokens: usize) {
        self.computed.states.current_mut().truncate(n_tokens);
    }

    fn next(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>> {
        let Computed { states, worker, .. } = &mut *self.computed;
        self.decoder.decode((ids, 1), language, states.current_mut(), worker, cancelled)?;
        Ok(worker.logits.clone())
    }

    fn max_guesses(&self) -> usize {
        let config = self.decoder.config();
        // What these give to a token depends on how many come with it, by rounding.
        let reads_tokens = config.moe.as_ref().is_some_and(MoeConfig::reads_tokens);
        if reads_tokens || config.adapter.is_some() { 0 } else { MAX_GUESSES }
    }

    fn pace(&mut self) -> &mut Pace {
        &mut self.computed.pace
    }

    fn want(&mut self, ids: Vec<u32>) {
        self.computed.worker.wanted = ids;
    }

    fn elsewhere(&self) -> Option<&Elsewhere> {
        Some(&self.computed.elsewhere)
    }

    fn next_each(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<Vec<f32>>> {
        let Computed { states, worker, .. } = &mut *self.computed;
        self.decoder.decode((ids, ids.len()), language, states.current_mut(), worker, cancelled)?;
        Ok(worker.logits.chunks_exact(self.decoder.config().vocab_size).map(<[f32]>::to_vec).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::decoder::{Floats, Format};
    use crate::draw::mix;
    use crate::fim::{PromptBudget, prompt};
    use crate::generate::{GenerateOptions, Generated, generate};
    use crate::lm::CodeLm;
    use crate::router::RouterConfig;
    use crate::tokenizer::tests::toy;
    use crate::vocabulary::VocabularyFilter;
    use std::cell::Cell;

    fn served(router: RouterConfig) -> Served {
        let tokenizer = toy();
        let mut config = tiny(Some(router));
        (config.vocab_size, config.context_tokens) = (tokenizer.vocab_size(), 160);
        let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
        let decoder = Decoder::new(&config, Arc::new(Floats::of(&lm, Format::Q8).unwrap()), Simd::best()).unwrap();
        Served { decoder, tokenizer, info: BundleInfo::new(&config, "test", "q8_0") }
    }

    /// The model, of whose vocabulary Lua uses little.
    fn filtered() -> Served {
        let mut model = served(RouterConfig::all().remove(0));
        let mut filter = VocabularyFilter::default();
        filter.insert("lua", (0..model.config().vocab_size as u32).filter(|id| id % 3 != 0).collect());
        model.decoder.set_vocabulary_filter(&filter);
        model
    }

    #[test]
    fn a_checkpoint_folder_answers_as_the_file_it_is_packed_into() {
        let tokenizer = toy();
        for (name, mut config) in crate::tape::tests::configs() {
            if config.moe.as_ref().is_some_and(|moe| !moe.is_causal()) {
                continue;
            }
            config.vocab_size = tokenizer.vocab_size().next_multiple_of(32);
            let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
            let dir = tempfile::tempdir().unwrap();
            checkpoint::save_folder(&lm, &tokenizer, dir.path()).unwrap();
            let folder = Served::load(dir.path()).unwrap();
            assert_eq!((folder.info.quantization.as_str(), folder.info.checksum.as_str()), ("q8_0", ""));
            let lm = if lm.config().is_plain() { lm } else { lm.materialized().unwrap() };
            let path = dir.path().join("toy.gguf");
            let (tokenizer, quantization) = (&tokenizer, Quantization::Q8_0);
            gguf::write(
                &Contents { name: "toy", lm: &lm, tokenizer, quantization, goldens: &[], vocabulary: None },
                &path,
            )
            .unwrap();
            let logits = |model: &Served| {
                let mut computed = Computed::new(model.config(), 1);
                model.sequence(&mut computed).next(&[1, 5, 9], 1, &|| false).unwrap()
            };
            assert_eq!(logits(&folder), logits(&Served::load(&path).unwrap()), "{name}");
        }
    }

    /// Two files that someone edits, each with a caret.
    struct Editing {
        files: [(Vec<char>, usize); 2],
        at: usize,
        n_draws: u64,
    }

    impl Editing {
        fn below(&mut self, n: usize) -> usize {
            self.n_draws += 1;
            (mix(7, self.n_draws) % n.max(1) as u64) as usize
        }

        fn edit(&mut self) {
            let what = self.below(100);
            let (n, c) = (1 + self.below(4), char::from(b' ' + self.below(64) as u8));
            let anywhere = self.below(400);
            let (text, caret) = &mut self.files[self.at];
            match what {
                0..60 => {
                    text.splice(*caret..*caret, std::iter::repeat_n(c, n));
                    *caret += n;
                }
                60..80 => {
                    let start = caret.saturating_sub(n);
                    text.drain(start..*caret);
                    *caret = start;
                }
                80..90 => *caret = anywhere.min(text.len()),
                _ => self.at = 1 - self.at,
            }
            // It neither grows for ever nor becomes nothing.
            let (text, caret) = &mut self.files[self.at];
            text.truncate(400);
            *caret = (*caret).min(text.len());
        }

        fn answer(
            &self,
            model: &Served,
            (computed, guesses): (&mut Computed, bool),
            cancelled: &dyn Fn() -> bool,
        ) -> Result<Generated> {
            let (text, caret) = &self.files[self.at];
            let (before, after): (String, String) = (text[..*caret].iter().collect(), text[*caret..].iter().collect());
            let budget = PromptBudget { max_tokens: 140, suffix_tokens: 50, snippet_tokens: 0 };
            let language = Some(["lua", "go"][self.at]);
            let prompt = prompt(&model.tokenizer, language, &[], &before, &after, &budget)?;
            computed.pace = Pace::eager();
            let options = GenerateOptions { max_new_tokens: 6, guesses };
            let mut sequence = model.sequence(computed);
            generate(&mut sequence, &model.tokenizer, &prompt, language, &options, &mut |_| false, cancelled)
        }
    }

    #[test]
    fn nothing_is_guessed_where_a_token_depends_on_those_beside_it() {
        let mut n_without = 0;
        for router in RouterConfig::all() {
            let model = served(router);
            let reads_tokens = model.config().moe.as_ref().unwrap().reads_tokens();
            let mut computed = Computed::new(model.config(), 1);
            assert_eq!(model.sequence(&mut computed).max_guesses() == 0, reads_tokens);
            n_without += usize::from(reads_tokens);
        }
        assert!(n_without > 0);
    }

    #[test]
    fn ten_thousand_edits_with_guesses_have_the_answers_of_an_empty_cache_without() {
        let model = filtered();
        let text =
            |word: &str| format!("def {word}(a, b):\n    return a + b\n").repeat(6).chars().collect::<Vec<char>>();
        let mut editing = Editing { files: [(text("add"), 60), (text("sub"), 100)], at: 0, n_draws: 0 };
        let mut computed = Computed::new(model.config(), 2);
        // Words of other files too, in ids that Lua uses and in those that it does not.
        let other = model.tokenizer.encode("def mul(a, b):\n    return a * b\nfor i in range(10):\n").unwrap();
        let separator = model.tokenizer.special().end_of_text;
        computed.elsewhere = Elsewhere::of([other.as_slice()], separator, &|| false).unwrap();
        let (mut n_cached, mut n_given_up, mut n_accepted, mut n_guessed) = (0, 0, 0, 0);
        for step in 0..10_000 {
            editing.edit();
            if editing.below(10) == 0 {
                let left = Cell::new(editing.below(6));
                let cancelled = || left.replace(left.get().saturating_sub(1)) == 0;
                n_given_up += usize::from(editing.answer(&model, (&mut computed, true), &cancelled).is_err());
            }
            let warm = editing.answer(&model, (&mut computed, true), &|| false).unwrap();
            let cold = editing.answer(&model, (&mut Computed::new(model.config(), 1), false), &|| false).unwrap();
            assert_eq!((&warm.ids, &warm.logprobs), (&cold.ids, &cold.logprobs), "step {step}");
            n_cached += warm.cached_tokens;
            (n_guessed, n_accepted) = (n_guessed + warm.guessed_tokens, n_accepted + warm.accepted_tokens);
        }
        assert!(n_cached > 500_000 && n_given_up > 100, "{n_cached} tokens were kept, {n_given_up} answers given up");
        assert!(n_accepted > 1000 && n_guessed > 2 * n_accepted, "{n_accepted} of {n_guessed} guesses were right");
    }
}
