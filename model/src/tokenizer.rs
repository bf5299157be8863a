//! Text to ids and back: byte-level BPE whose merges may cross single spaces but never a line end.
//!
//! A piece that BPE may merge inside is a stretch of one line: line ends, indentation and other runs of blanks, and single digits
//! stand alone. Frequent phrases (`for i in range(`) thus become one token, and a token never holds a line end and text.
//! [`TokenizerOptions`] has the usual ways too: words apart, blanks as any text. A `tokenizer.json` says by itself how it was made.

use std::collections::HashMap;
use std::path::Path;

use thread_local::ThreadLocal;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{AddedToken, SplitDelimiterBehavior};
use tokenizers::{DecoderWrapper, PreTokenizerWrapper};

use crate::error::{Error, Result, caught};

/// What always stands alone: a line end, a digit. All between two pieces is one piece.
const ALONE: &str = r"\r?\n|\p{Nd}";
/// What stands alone where runs of blanks are tokens: such a run, a tab.
const BLANK_RUN: &str = r"\r?\n|[ \t]{2,}|\t|\p{Nd}";
/// Words apart, as GPT-4 and Qwen2 have them: letters with the one character before them, marks with the one space before them, blanks
/// without the last one, which is the next word's.
const WORD: &str = r"[^\r\n\p{L}\p{Nd}]?\p{L}+| ?[^\s\p{L}\p{Nd}]+|[ \t]+(?!\S)|[ \t]+";
const END_OF_TEXT: &str = "<|endoftext|>";
const FIM: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
const FILE_SEP: &str = "<|file_sep|>";
const REPO_NAME: &str = "<|repo_name|>";
/// As many as a model may have.
const MAX_VOCAB: usize = 1 << 24;

/// Options of [`Tokenizer::train`].
#[derive(Clone, Debug)]
pub struct TokenizerOptions {
    /// Entries in all, special tokens included.
    pub vocab_size: usize,
    /// One `<|lang:NAME|>` token each, in this order.
    pub languages: Vec<String>,
    /// Pairs seen less often are not merged.
    pub min_frequency: u64,
    /// Where merges end, besides at line ends and digits.
    pub merges: Merges,
    /// Whether every run of 2 to 32 spaces and of 1 to 8 tabs is one token, whatever the text to learn from; otherwise blanks are text.
    pub blank_runs: bool,
}

impl Default for TokenizerOptions {
    fn default() -> Self {
        let merges = Merges::WithinWords;
        TokenizerOptions { vocab_size: 8192, languages: Vec::new(), min_frequency: 4, merges, blank_runs: true }
    }
}

/// Where merges of BPE end, besides at line ends and digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merges {
    /// They cross single spaces: a phrase may be one token.
    AcrossSpaces,
    /// A word takes at most the one space before it.
    WithinWords,
}

/// Ids of the tokens that structure a sequence. Another family's tokenizer may lack all but the first.
#[derive(Clone, Debug)]
pub struct SpecialIds {
    pub end_of_text: u32,
    pub fim: Option<FimIds>,
    pub file_sep: Option<u32>,
    pub repo_name: Option<u32>,
}

/// Ids of the three fill-in-the-middle tokens.
#[derive(Clone, Copy, Debug)]
pub struct FimIds {
    pub prefix: u32,
    pub suffix: u32,
    pub middle: u32,
}

/// A trained tokenizer with the bytes of every token at hand.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// A copy for each thread that encodes: threads that share one wait for its cache of words and for its pattern's scratch space, so that
    /// two take longer than one.
    copies: ThreadLocal<tokenizers::Tokenizer>,
    bytes: Vec<Box<[u8]>>,
    special: SpecialIds,
}

impl Tokenizer {
    /// Learns merges from `texts`. Deterministic for the same texts in the same order.
    pub fn train<S: AsRef<str> + Send>(
        texts: impl Iterator<Item = S> + Send,
        options: &TokenizerOptions,
    ) -> Result<Tokenizer> {
        let special: Vec<AddedToken> = special_names(&options.languages)
            .into_iter()
            .map(|name| AddedToken::from(name, true).normalized(false))
            .collect();
        if options.vocab_size < 256 + special.len() {
            let need = 256 + special.len();
            let got = options.vocab_size;
            return Err(Error::Tokenizer(format!(
                "vocab_size {got}: expected at least {need} (bytes and special tokens)"
            )));
        }
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(pre_tokenizer(options)?));
        inner.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(false, false, false))));
        let trainer = BpeTrainer::builder()
            .vocab_size(options.vocab_size)
            .min_frequency(options.min_frequency)
            .special_tokens(special)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .max_token_length(Some(48))
            .show_progress(false)
            .build();
        let texts = texts.map(|text| text.as_ref().to_string());
        let texts = texts.chain(options.blank_runs.then(blank_runs).into_iter().flatten());
        inner.train(&mut tokenizers::models::TrainerWrapper::BpeTrainer(trainer), texts).map_err(to_error)?;
        Tokenizer::from_inner(inner)
    }

    /// Reads a `tokenizer.json` text.
    pub fn from_json(json: &str) -> Result<Tokenizer> {
        // The library panics at JSON that is broken inside some of its parts.
        serde_json::from_str::<serde::de::IgnoredAny>(json).map_err(|e| Error::Tokenizer(format!("not JSON: {e}")))?;
        let inner = caught(|| tokenizers::Tokenizer::from_bytes(json.as_bytes()).map_err(to_error));
        Tokenizer::from_inner(inner.map_err(Error::Tokenizer)??)
    }

    /// Reads a `tokenizer.json` file.
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        let json = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        Tokenizer::from_json(&json).map_err(|e| Error::file(path, e))
    }

    /// The content of `tokenizer.json`.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(to_error)
    }

    /// Writes `tokenizer.json`.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_json()?).map_err(|e| Error::file(path, e))
    }

    /// Ids of `text`; never a special id, whatever the text says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let own = self.copies.get_or(|| self.inner.clone());
        Ok(own.encode_fast(text, false).map_err(to_error)?.get_ids().to_vec())
    }

    /// The bytes that a token stands for; none for a special or unknown id.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// The text of `ids`, with U+FFFD where bytes are no UTF-8.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes_of(id).iter().copied()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Entries, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Ids of the structuring tokens.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Id of `<|lang:NAME|>`.
    pub fn language_token(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(&format!("<|lang:{name}|>"))
    }

    fn from_inner(mut inner: tokenizers::Tokenizer) -> Result<Tokenizer> {
        inner.set_encode_special_tokens(true);
        // Another family's file may say so; what is cut or filled up here is the prompt's matter.
        inner.with_truncation(None).map_err(to_error)?.with_padding(None);
        let vocab = inner.get_vocab(true);
        let n = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if n > MAX_VOCAB {
            return Err(Error::Tokenizer(format!("id {}: expected ids below {MAX_VOCAB}", n - 1)));
        }
        let added = inner.get_added_tokens_decoder();
        let from_char = byte_of_char();
        let mut bytes: Vec<Box<[u8]>> = vec![Box::default(); n];
        let mut entries: Vec<(&String, &u32)> = vocab.iter().collect();
        entries.sort();
        for (token, &id) in entries {
            if !added.get(&id).is_some_and(|token| token.special) {
                bytes[id as usize] = token_bytes(token, &from_char);
            }
        }
        let id = |name: &str| inner.token_to_id(name);
        let end_of_text = [END_OF_TEXT, "</s>", "<|end_of_text|>", "<|im_end|>"].iter().find_map(|name| id(name));
        let fim = match FIM.map(id) {
            [Some(prefix), Some(suffix), Some(middle)] => Some(FimIds { prefix, suffix, middle }),
            _ => None,
        };
        let special = SpecialIds {
            end_of_text: end_of_text
                .ok_or_else(|| Error::Tokenizer(format!("no end-of-text token: expected {END_OF_TEXT} or </s>")))?,
            fim,
            file_sep: id(FILE_SEP),
            repo_name: id(REPO_NAME),
        };
        Ok(Tokenizer { inner, copies: ThreadLocal::new(), bytes, special })
    }
}

fn special_names(languages: &[String]) -> Vec<String> {
    let fixed = [END_OF_TEXT, FIM[0], FIM[1], FIM[2], FILE_SEP, REPO_NAME].into_iter().map(str::to_string);
    fixed.chain(languages.iter().map(|name| format!("<|lang:{name}|>"))).collect()
}

fn pre_tokenizer(options: &TokenizerOptions) -> Result<PreTokenizerWrapper> {
    let alone = if options.blank_runs { BLANK_RUN } else { ALONE };
    let pattern = match options.merges {
        Merges::AcrossSpaces => alone.to_string(),
        Merges::WithinWords => format!("{alone}|{WORD}"),
    };
    let pattern = SplitPattern::Regex(pattern);
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(to_error)?;
    let bytes = ByteLevel::new(false, false, false);
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])))
}

/// Text that makes every run of up to 32 spaces and 8 tabs a token of its own.
fn blank_runs() -> impl Iterator<Item = String> {
    let repeat = |blank: &'static str, n: usize| format!("{}\n", blank.repeat(n)).repeat(4_000);
    (2..=32).map(move |n| repeat(" ", n)).chain((2..=8).map(move |n| repeat("\t", n)))
}

/// The byte that each character of the byte-level alphabet stands for (GPT-2's table).
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shifted = (0..=255u8).filter(|&byte| !printable(byte)).enumerate();
    let mut map: HashMap<char, u8> = (0..=255u8).filter(|&byte| printable(byte)).map(|b| (b as char, b)).collect();
    map.extend(shifted.filter_map(|(n, byte)| Some((char::from_u32(256 + n as u32)?, byte))));
    map
}

/// Bytes of a vocabulary entry, written in the byte-level alphabet or in SentencePiece's.
fn token_bytes(token: &str, from_char: &HashMap<char, u8>) -> Box<[u8]> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        return Box::new([byte]);
    }
    if token.contains('\u{2581}') {
        return token.replace('\u{2581}', " ").into_bytes().into();
    }
    let bytes: Option<Vec<u8>> = token.chars().map(|c| from_char.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec()).into()
}

fn to_error(error: impl std::fmt::Display) -> Error {
    Error::Tokenizer(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small tokenizer, trained once.
    pub(crate) fn toy() -> Tokenizer {
        static JSON: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        Tokenizer::from_json(JSON.get_or_init(|| train().to_json().unwrap())).unwrap()
    }

    fn train() -> Tokenizer {
        train_with(Merges::AcrossSpaces, true)
    }

    fn train_with(merges: Merges, blank_runs: bool) -> Tokenizer {
        let text = "def add(a, b):\n    return a + b\n\nfor i in range(10):\n        print(add(i, 1))\n";
        let languages = vec!["python".into(), "lua".into()];
        let options = TokenizerOptions { vocab_size: 400, languages, min_frequency: 2, merges, blank_runs };
        Tokenizer::train(std::iter::repeat_n(text, 8), &options).unwrap()
    }

    /// Every combination of the options.
    fn variants() -> impl Iterator<Item = (Tokenizer, Merges, bool)> {
        let all = [Merges::AcrossSpaces, Merges::WithinWords].into_iter().flat_map(|m| [(m, true), (m, false)]);
        all.map(|(merges, blank_runs)| (train_with(merges, blank_runs), merges, blank_runs))
    }

    fn tokens(tokenizer: &Tokenizer) -> impl Iterator<Item = &[u8]> {
        (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.bytes_of(id))
    }

    #[test]
    fn a_tokenizer_file_that_is_broken_is_an_error() {
        let json = toy().to_json().unwrap();
        for broken in
            [json.replacen("\"decoder\":{", "\"decoder\":{1:2,", 1), json[..json.len() - 1].to_owned(), String::new()]
        {
            assert_ne!(broken, json);
            let error = Tokenizer::from_json(&broken).err().unwrap().to_string();
            assert!(error.contains("not JSON"), "{error}");
        }
    }

    #[test]
    fn entries_that_no_vocabulary_has_and_merges_longer_than_all_are_errors() {
        let mut json: serde_json::Value = serde_json::from_str(&toy().to_json().unwrap()).unwrap();
        let error = |json: &serde_json::Value| Tokenizer::from_json(&json.to_string()).err().unwrap().to_string();
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        let long = "x".repeat(500);
        merges.push(serde_json::json!([long, long]));
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.len() + 100;
        vocab.insert(long, id.into());
        assert!(error(&json).starts_with("tokenizer: "), "{}", error(&json));
        let mut json: serde_json::Value = serde_json::from_str(&toy().to_json().unwrap()).unwrap();
        json["model"]["vocab"]["far"] = u32::MAX.into();
        assert!(error(&json).contains("id 4294967295: expected ids below 16777216"), "{}", error(&json));
    }

    #[test]
    fn what_another_file_says_of_cutting_and_filling_up_is_not_done() {
        let text = "def f(x):\n    return x\n".repeat(20);
        let expected = toy().encode(&text).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&toy().to_json().unwrap()).unwrap();
        json["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0
        });
        json["padding"] = serde_json::json!({
            "strategy": {"Fixed": 4096}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 3, "pad_type_id": 0,
            "pad_token": "x"
        });
        assert_eq!(Tokenizer::from_json(&json.to_string()).unwrap().encode(&text).unwrap(), expected);
    }

    #[test]
    fn text_survives_the_round_trip_in_every_variant() {
        for (tokenizer, merges, blank_runs) in variants() {
            let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
            for text in [
                "def add(x):\r\n\treturn 42  # ünï😀\n",
                "",
                " ",
                "\n\n",
                "<|endoftext|> <|lang:lua|>",
                "\t\t  if a_b  ==\u{a0} ²\r x\u{b} 1 \t 2 \u{301}\u{a0} 3  ",
            ] {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(tokenizer.decode(&ids), text, "{merges:?}, blank_runs {blank_runs}");
                assert_eq!(again.encode(text).unwrap(), ids, "{merges:?}, blank_runs {blank_runs}");
            }
        }
    }

    #[test]
    fn text_never_yields_special_ids() {
        for (tokenizer, ..) in variants() {
            let special = tokenizer.special().clone();
            let ids = tokenizer.encode("<|endoftext|><|fim_middle|> <|lang:python|>").unwrap();
            assert!(!ids.contains(&special.end_of_text) && !ids.contains(&special.fim.unwrap().middle));
            assert!(!ids.contains(&tokenizer.language_token("python").unwrap()));
        }
    }

    #[test]
    fn merges_end_where_the_options_say() {
        for (tokenizer, merges, blank_runs) in variants() {
            let inner_space =
                |token: &[u8]| token.iter().skip(1).any(|byte| *byte == b' ') && token.iter().any(|byte| *byte > b' ');
            let phrases = tokens(&tokenizer).filter(|token| inner_space(token)).count();
            assert_eq!(phrases > 0, merges == Merges::AcrossSpaces, "{merges:?}, blank_runs {blank_runs}: {phrases}");
            let n_runs = (2..=32).filter(|n| tokenizer.encode(&" ".repeat(*n)).unwrap().len() == 1).count();
            assert_eq!(n_runs == 31, blank_runs, "{merges:?}, blank_runs {blank_runs}: {n_runs} runs are tokens");
            let mixed =
                tokens(&tokenizer).find(|token| token.contains(&b'\n') && ![&b"\n"[..], b"\r\n"].contains(token));
            assert_eq!(mixed, None, "{merges:?}, blank_runs {blank_runs}: a line end and text");
        }
    }

    #[test]
    fn a_word_takes_the_space_before_it_and_indentation_leaves_it() {
        let pieces = |tokenizer: &Tokenizer, text: &str| {
            let ids = tokenizer.encode(text).unwrap();
            ids.iter().map(|&id| tokenizer.decode(&[id])).collect::<Vec<_>>()
        };
        let text = "    return a + b";
        assert_eq!(pieces(&train_with(Merges::WithinWords, false), text), ["   ", " return", " a", " +", " b"]);
        assert_eq!(pieces(&train_with(Merges::WithinWords, true), text), ["    ", "return", " a", " +", " b"]);
        assert_eq!(pieces(&train_with(Merges::AcrossSpaces, true), text), ["    ", "return a + b"]);
        assert_eq!(pieces(&train_with(Merges::AcrossSpaces, false), text), ["    return a + b"]);
    }

    #[test]
    fn blank_runs_are_single_tokens_and_no_token_holds_a_line_end_and_text() {
        let tokenizer = toy();
        for n in 2..=32 {
            assert_eq!(tokenizer.encode(&" ".repeat(n)).unwrap().len(), 1, "{n} spaces");
        }
        for id in 0..tokenizer.vocab_size() as u32 {
            let bytes = tokenizer.bytes_of(id);
            assert!(!bytes.contains(&b'\n') || bytes == b"\n" || bytes == b"\r\n", "{bytes:?}");
        }
    }

    #[test]
    fn lines_are_encoded_each_for_itself() {
        let tokenizer = toy();
        let lines = [
            "def add(a, b):\n",
            "\n",
            "    return a + b\r\n",
            "\t\t x  \n",
            "  \n",
            "\r\n",
            "größe = 10\n",
            "\r",
            "print(1)",
        ];
        for n in 0..lines.len().pow(3) {
            let text =
                [lines[n % lines.len()], lines[n / lines.len() % lines.len()], lines[n / lines.len().pow(2)]].concat();
            let each: Vec<u32> = text.split_inclusive('\n').flat_map(|line| tokenizer.encode(line).unwrap()).collect();
            assert_eq!(tokenizer.encode(&text).unwrap(), each, "{text:?}");
        }
    }

    #[test]
    fn json_round_trip_keeps_ids() {
        let tokenizer = toy();
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        let text = "for i in range(3):\n    add(i)";
        assert_eq!(tokenizer.encode(text).unwrap(), again.encode(text).unwrap());
        assert_eq!(again.language_token("lua"), tokenizer.language_token("lua"));
        assert!(again.language_token("cobol").is_none());
    }
}
