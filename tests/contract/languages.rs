//! Every language of the table, through the seams between packages: a real file of it is recognised, becomes tokens and back,
//! is cut at its syntax nodes, and has a language token of its own. (`grammars/` tests its own table.)

use multicoder_grammars::{LANGUAGES, LanguageId, SyntaxTree, detect};
use multicoder_model::Tokenizer;
use multicoder_model::fim::{self, PromptBudget};
use multicoder_model::tokenizer::TokenizerOptions;
use multicoder_tests::repository_root;
use std::collections::HashSet;
use std::path::PathBuf;

struct Sample {
    language: LanguageId,
    path: PathBuf,
    text: String,
}

fn samples() -> Vec<Sample> {
    let folder = repository_root().join("grammars/samples");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let language = LanguageId::by_name(&name).unwrap_or_else(|| panic!("{}: no such language", path.display()));
        Sample { language, text: std::fs::read_to_string(&path).unwrap(), path }
    };
    paths.into_iter().map(read).collect()
}

/// A tokenizer of all languages, learnt from the samples.
fn tokenizer(samples: &[Sample]) -> Tokenizer {
    let languages = LANGUAGES.iter().map(|row| row.name.to_owned()).collect();
    let options = TokenizerOptions { vocab_size: 1200, languages, min_frequency: 2, ..TokenizerOptions::default() };
    Tokenizer::train(samples.iter().map(|sample| sample.text.as_str()), &options).unwrap()
}

#[test]
fn every_language_with_a_tree_has_a_sample() {
    let sampled: HashSet<&str> = samples().iter().map(|sample| sample.language.name()).collect();
    let without = LANGUAGES.iter().filter(|row| row.grammar.is_some() && !sampled.contains(row.name));
    let without: Vec<&str> = without.map(|row| row.name).collect();
    assert!(without.is_empty(), "grammars/samples/ has no file of {without:?}");
}

#[test]
fn samples_are_recognised_by_name_and_by_editor_id() {
    for sample in samples() {
        assert_eq!(detect(None, &sample.path, &sample.text), Some(sample.language), "{}", sample.path.display());
        for id in sample.language.row().lsp_ids {
            let found = detect(Some(id), &PathBuf::from("untitled"), "");
            assert_eq!(found, Some(sample.language), "editor id {id}");
        }
    }
}

#[test]
fn every_language_has_a_token_that_text_cannot_spell() {
    let tokenizer = tokenizer(&samples());
    let mut seen = HashSet::new();
    for row in LANGUAGES {
        let id = tokenizer.language_token(row.name).unwrap_or_else(|| panic!("no token of {}", row.name));
        assert!(seen.insert(id), "{} shares its token", row.name);
        assert!(tokenizer.bytes_of(id).is_empty(), "{}: a special token stands for no text", row.name);
        let spelled = format!("x <|lang:{}|> <|endoftext|><|fim_middle|> y", row.name);
        let ids = tokenizer.encode(&spelled).unwrap();
        assert!(ids.iter().all(|&id| !tokenizer.bytes_of(id).is_empty()), "{spelled:?} in a file gives special tokens");
        assert_eq!(tokenizer.decode(&ids), spelled);
    }
}

#[test]
fn samples_survive_the_tokenizer() {
    let samples = samples();
    let tokenizer = tokenizer(&samples);
    let awkward = ["", "\r\n\t\u{feff}", "👩‍💻é\u{0301}\u{0}", "    \n        x = 1  # done\n"];
    for text in samples.iter().map(|sample| sample.text.as_str()).chain(awkward) {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn sequences_cut_at_syntax_nodes_hold_the_whole_text() {
    let samples = samples();
    let tokenizer = tokenizer(&samples);
    let fim = tokenizer.special().fim.unwrap();
    for sample in samples.iter().filter(|sample| sample.language.has_grammar()) {
        let tree = SyntaxTree::parse(sample.language, &sample.text).unwrap();
        let cuts: Vec<_> = tree.node_spans(8).collect();
        assert!(!cuts.is_empty(), "{}: no node of 8 bytes", sample.path.display());
        // A node at the end of the file has no suffix, and so no layout of its own.
        let with_suffix = cuts.into_iter().filter(|cut| fim::has_suffix(&sample.text[cut.end..]));
        for cut in with_suffix.step_by(17) {
            let ids =
                fim::sequence(&tokenizer, Some(sample.language.name()), &[], &sample.text, Some(cut.clone())).unwrap();
            assert_eq!(ids.first().copied(), tokenizer.language_token(sample.language.name()));
            let middle = ids.iter().position(|&id| id == fim.middle).unwrap();
            let (suffix, rest) = (tokenizer.decode(&ids[..middle]), tokenizer.decode(&ids[middle..]));
            assert_eq!(rest + &suffix, sample.text, "{} cut at {cut:?}", sample.path.display());
        }
    }
}

#[test]
fn a_prompt_and_its_healing_spell_the_prefix() {
    let samples = samples();
    let tokenizer = tokenizer(&samples);
    let budget = PromptBudget { max_tokens: 160, suffix_tokens: 40, snippet_tokens: 0 };
    for sample in &samples {
        let carets = sample.text.char_indices().map(|(offset, _)| offset).step_by(61);
        for caret in carets {
            let (prefix, suffix) = sample.text.split_at(caret);
            let prompt = fim::prompt(&tokenizer, Some(sample.language.name()), &[], prefix, suffix, &budget).unwrap();
            assert!(prompt.ids.len() <= budget.max_tokens, "{} at {caret}", sample.path.display());
            let middle = prompt.ids.iter().position(|id| tokenizer.special().fim.is_some_and(|fim| *id == fim.middle));
            let after = &prompt.ids[middle.map_or(0, |at| at + 1)..];
            let mut spelled: Vec<u8> = after.iter().flat_map(|&id| tokenizer.bytes_of(id).to_vec()).collect();
            spelled.extend(&prompt.heal);
            assert!(
                prefix.as_bytes().ends_with(&spelled),
                "{} at {caret}: {:?}",
                sample.path.display(),
                String::from_utf8_lossy(&spelled)
            );
        }
    }
}
