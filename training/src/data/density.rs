//! How many bytes a token has in each language: how well a vocabulary serves it.

use anyhow::Result;
use multicoder_model::Tokenizer;
use rayon::prelude::*;

use super::lines::floor_char;
use crate::rng::Rng;

/// What was encoded of one language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Density {
    /// Name of the language.
    pub language: String,
    /// Bytes of text.
    pub n_bytes: usize,
    /// Tokens that they make.
    pub n_tokens: usize,
}

impl Density {
    /// Bytes of a token; 0 without text.
    pub fn bytes_per_token(&self) -> f64 {
        self.n_bytes as f64 / self.n_tokens.max(1) as f64
    }
}

/// The density of every language, of at most `max_bytes` of its documents. The same documents give the same sample for any tokenizer.
///
/// # Errors
/// Text that the tokenizer cannot encode.
pub fn densities(tokenizer: &Tokenizer, texts: &[(String, Vec<String>)], max_bytes: usize) -> Result<Vec<Density>> {
    texts.par_iter().map(|(language, documents)| density(tokenizer, language, &take(documents, max_bytes))).collect()
}

fn density(tokenizer: &Tokenizer, language: &str, sample: &[&str]) -> Result<Density> {
    let n_bytes = sample.iter().map(|text| text.len()).sum();
    let n_tokens = sample.iter().map(|text| Ok(tokenizer.encode(text)?.len())).sum::<Result<usize>>()?;
    Ok(Density { language: language.to_owned(), n_bytes, n_tokens })
}

/// Mean bytes of a token, each language that has text counting the same.
pub fn macro_average(densities: &[Density]) -> f64 {
    let with_text: Vec<f64> = densities.iter().filter(|d| d.n_tokens > 0).map(Density::bytes_per_token).collect();
    with_text.iter().sum::<f64>() / with_text.len().max(1) as f64
}

/// Whole documents in a seeded order, the last one cut, up to `max_bytes`.
pub fn take(documents: &[String], max_bytes: usize) -> Vec<&str> {
    let mut left = max_bytes;
    let mut sample = Vec::new();
    for idx in Rng::keyed(0, "tokenizer sample", &[]).permutation(documents.len()) {
        let text = &documents[idx as usize];
        let taken = floor_char(text, left);
        sample.push(&text[..taken]);
        left -= taken;
        if left == 0 {
            break;
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_bytes_asked_for_and_ends_at_a_character() {
        let documents: Vec<String> = (0..10).map(|n| format!("größe = {n}\n")).collect();
        let n_bytes = |max_bytes| take(&documents, max_bytes).iter().map(|text| text.len()).sum::<usize>();
        assert_eq!((n_bytes(10_000), n_bytes(70), n_bytes(0)), (documents.iter().map(String::len).sum(), 70, 0));
        assert!((1..=4).contains(&n_bytes(4)));
    }

    #[test]
    fn languages_count_the_same_and_one_without_text_not_at_all() {
        let density = |n_bytes, n_tokens| Density { language: String::new(), n_bytes, n_tokens };
        let all = [density(400, 100), density(20, 10), density(0, 0)];
        assert_eq!((macro_average(&all), macro_average(&[])), (3.0, 0.0));
    }
}
