//! Greedy completion of a line by the n-gram mixture, with the caret's last token healed as the model's is.

use std::ops::Range;

use multicoder_model::Tokenizer;

use super::mixture::Predictor;

/// All token ids that stand for bytes, sorted by those bytes.
pub fn vocabulary_by_bytes(tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let mut ids: Vec<u32> = ids.filter(|&id| !tokenizer.bytes_of(id).is_empty()).collect();
    ids.sort_by(|&a, &b| tokenizer.bytes_of(a).cmp(tokenizer.bytes_of(b)));
    ids
}

/// The bytes after the caret, up to the end of the line (without it) or `max_new_tokens`; moves the predictor past them.
///
/// `heal` are the bytes that the continuation must begin with; they are not returned.
pub fn complete_line(
    predictor: &mut Predictor<'_>,
    tokenizer: &Tokenizer,
    vocabulary: &[u32],
    heal: &[u8],
    max_new_tokens: usize,
) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for _ in 0..max_new_tokens {
        let open = heal.get(bytes.len()..).unwrap_or_default();
        let token = if open.is_empty() {
            predictor.best()
        } else {
            predictor.best_among(&spelling(tokenizer, vocabulary, open))
        };
        let piece = tokenizer.bytes_of(token);
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(piece);
        if bytes.get(heal.len()..).is_some_and(|new| new.contains(&b'\n')) {
            break;
        }
        predictor.step(token);
    }
    let mut new = bytes.split_off(heal.len().min(bytes.len()));
    if let Some(end) = new.iter().position(|&byte| byte == b'\n') {
        new.truncate(end);
    }
    new
}

/// Tokens that begin with `open`, and those that `open` begins with.
fn spelling(tokenizer: &Tokenizer, vocabulary: &[u32], open: &[u8]) -> Vec<u32> {
    let mut ids = vocabulary[beginning_with(tokenizer, vocabulary, open)].to_vec();
    for n in 1..open.len() {
        let exact = beginning_with(tokenizer, vocabulary, &open[..n]);
        ids.extend(vocabulary[exact].iter().take_while(|&&id| tokenizer.bytes_of(id) == &open[..n]));
    }
    ids
}

fn beginning_with(tokenizer: &Tokenizer, vocabulary: &[u32], start: &[u8]) -> Range<usize> {
    let from = vocabulary.partition_point(|&id| tokenizer.bytes_of(id) < start);
    let n = vocabulary[from..].partition_point(|&id| tokenizer.bytes_of(id).starts_with(start));
    from..from + n
}

#[cfg(test)]
mod tests {
    use super::super::kneser_ney::KneserNey;
    use super::super::mixture::{Mixture, Weights};
    use super::super::trie::Documents;
    use super::*;
    use multicoder_model::tokenizer::TokenizerOptions;

    #[test]
    fn line_is_completed_and_healed() {
        let text = "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 1))\n";
        let options = TokenizerOptions {
            vocab_size: 400,
            languages: vec!["python".into()],
            min_frequency: 2,
            ..TokenizerOptions::default()
        };
        let tokenizer = Tokenizer::train(std::iter::repeat_n(text, 8), &options).unwrap();
        let mut documents = Documents::default();
        (0..4).for_each(|_| documents.push(&tokenizer.encode(text).unwrap()));
        let start = tokenizer.special().end_of_text;
        let model = KneserNey::train(&documents, 5, tokenizer.vocab_size(), start).unwrap();
        let weights = Weights::constant(5, 0.5, 0.3);
        let vocabulary = vocabulary_by_bytes(&tokenizer);
        let mut predictor = Mixture { language: &model, all: &model, weights: &weights }.start();
        for id in tokenizer.encode("def add(a, b):\n    ").unwrap() {
            predictor.step(id);
        }
        let line = complete_line(&mut predictor, &tokenizer, &vocabulary, b"ret", 20);
        assert_eq!(String::from_utf8_lossy(&line), "urn a + b");
    }

    #[test]
    fn spelling_goes_both_ways() {
        let options =
            TokenizerOptions { vocab_size: 300, languages: vec![], min_frequency: 2, ..TokenizerOptions::default() };
        let tokenizer = Tokenizer::train(std::iter::repeat_n("return ret re\n", 8), &options).unwrap();
        let vocabulary = vocabulary_by_bytes(&tokenizer);
        let spelled = spelling(&tokenizer, &vocabulary, b"ret");
        for id in &vocabulary {
            let bytes = tokenizer.bytes_of(*id);
            assert_eq!(spelled.contains(id), bytes.starts_with(b"ret") || b"ret".starts_with(bytes), "{bytes:?}");
        }
    }
}
