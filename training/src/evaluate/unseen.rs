//! How well the experts of other languages serve a text: of a language that the model was never trained on, or, as a probe, of one that it
//! was, whose own expert should be the best by far.
//!
//! A file is read as each language of the model in turn, and as none. All are scored on its second half: the first is what an editor would
//! choose an expert by.
#![allow(non_snake_case)]

use anyhow::Result;
use multicoder_grammars::LanguageId;
use multicoder_model::copy::next_token_probs;
use multicoder_model::{CodeLm, Tokenizer};
use serde::{Deserialize, Serialize};

use super::metric::TextScore;
use super::neural::each_token;
use super::progress_bar;
use super::sample::LanguageSample;

/// The name under which a file is read as of no language.
const NONE: &str = "";

/// One language's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// Language of the text.
    pub language: String,
    /// Text that is scored, in bytes.
    pub n_bytes: u64,
    /// Bits per byte with the language's own expert; absent where the model was not trained on it.
    pub own: Option<f64>,
    /// Bits per byte as of no language: all experts alike, or the shared one alone, as the router has it.
    pub none: f64,
    /// The nearest other language of the model, as the server has it, and bits per byte as of that.
    pub nearest: Option<(String, f64)>,
    /// Bits per byte when of each file the first half chooses the other language that it is likeliest of.
    pub likeliest: f64,
    /// The language that was chosen for most files.
    pub chosen: String,
    /// Bits per byte as of each language of the model, in its order.
    pub as_language: Vec<f64>,
}

impl Served {
    /// The other language that serves the text worst, as an index into the model's languages, and bits per byte as of it.
    pub fn worst(&self, languages: &[String]) -> (usize, f64) {
        let others = self.as_language.iter().enumerate().filter(|(idx, _)| languages[*idx] != self.language);
        let worst = others.max_by(|a, b| a.1.total_cmp(b.1));
        worst.map_or((0, f64::NAN), |(idx, bits)| (idx, *bits))
    }
}

/// Reads every sample as each language of the model; `tag` tells the network so by that language's token too.
///
/// # Errors
/// A model of fewer than two languages; errors of the tokenizer and the model.
pub fn evaluate(lm: &CodeLm, tokenizer: &Tokenizer, samples: &[LanguageSample], tag: bool) -> Result<Vec<Served>> {
    let languages = &lm.config().languages;
    anyhow::ensure!(languages.len() > 1, "--model: expected a model of several languages");
    let n_files = samples.iter().map(|sample| sample.texts.len()).sum::<usize>();
    let bar = progress_bar((n_files * (languages.len() + 1)) as u64, "model");
    let mut served = Vec::new();
    for sample in samples {
        bar.set_message(sample.language.clone());
        let mut files = Vec::new();
        for text in &sample.texts {
            let ids = tokenizer.encode(text)?;
            // One token on each side at least.
            if ids.len() < 2 {
                continue;
            }
            let read = |language: &str| {
                bar.inc(1);
                halves(lm, tokenizer, (language, tag), &ids)
            };
            let as_language = languages.iter().map(|language| read(language)).collect::<Result<Vec<_>>>()?;
            files.push(File { as_language, none: read(NONE)?[1] });
        }
        anyhow::ensure!(!files.is_empty(), "{}: expected text", sample.language);
        served.push(serve(&sample.language, languages, &files));
    }
    bar.finish_and_clear();
    Ok(served)
}

/// The scores of one file.
struct File {
    /// Of both halves, by language of the model.
    as_language: Vec<[TextScore; 2]>,
    none: TextScore,
}

fn halves(lm: &CodeLm, tokenizer: &Tokenizer, served_as: (&str, bool), ids: &[u32]) -> Result<[TextScore; 2]> {
    let mut scores = [TextScore::default(); 2];
    each_token(lm, tokenizer, served_as, ids, &mut |at, logits_V| {
        let probs_V = next_token_probs(logits_V, &ids[..at], lm.config().copy.as_ref());
        let p = probs_V[ids[at] as usize];
        let score = &mut scores[usize::from(at >= ids.len() / 2)];
        *score = score.plus(TextScore {
            n_bytes: tokenizer.bytes_of(ids[at]).len() as u64,
            n_tokens: 1,
            bits: -f64::from(p.max(f32::MIN_POSITIVE)).log2(),
            n_correct: u64::from(probs_V.iter().all(|&other| other <= p)),
        });
    })?;
    Ok(scores)
}

fn serve(language: &str, languages: &[String], files: &[File]) -> Served {
    let sum = |score: &dyn Fn(&File) -> TextScore| {
        files.iter().map(score).fold(TextScore::default(), TextScore::plus).bits_per_byte()
    };
    let as_language: Vec<f64> = (0..languages.len()).map(|idx| sum(&|file| file.as_language[idx][1])).collect();
    let others: Vec<usize> = (0..languages.len()).filter(|&idx| languages[idx] != language).collect();
    let likeliest = |file: &File| {
        let bits = |idx: usize| file.as_language[idx][0].bits;
        others.iter().copied().min_by(|&a, &b| bits(a).total_cmp(&bits(b))).unwrap_or(0)
    };
    let mut n_chosen = vec![0usize; languages.len()];
    files.iter().for_each(|file| n_chosen[likeliest(file)] += 1);
    let chosen = (0..languages.len()).rev().max_by_key(|&idx| n_chosen[idx]).unwrap_or(0);
    let names: Vec<&str> = others.iter().map(|&idx| languages[idx].as_str()).collect();
    let nearest = LanguageId::by_name(language).and_then(|id| id.served_as(&names));
    let idx_of = |name: &str| languages.iter().position(|language| language == name);
    Served {
        language: language.to_owned(),
        n_bytes: files.iter().map(|file| file.none.n_bytes).sum(),
        own: idx_of(language).map(|idx| as_language[idx]),
        none: sum(&|file| file.none),
        nearest: nearest.and_then(|name| Some((name.to_owned(), as_language[idx_of(name)?]))),
        likeliest: sum(&|file| file.as_language[likeliest(file)][1]),
        chosen: languages[chosen].clone(),
        as_language,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(bits: f64) -> TextScore {
        TextScore { n_bytes: 10, n_tokens: 4, bits, n_correct: 0 }
    }

    #[test]
    fn a_file_is_served_as_what_its_first_half_is_likeliest_of() {
        let languages = ["java", "javascript", "lua"].map(str::to_owned);
        let file =
            |bits: [[f64; 2]; 3]| File { as_language: bits.map(|halves| halves.map(score)).into(), none: score(7.0) };
        let files = [
            // The first half says lua, the second would have said java.
            file([[9.0, 1.0], [8.0, 5.0], [3.0, 4.0]]),
            file([[2.0, 3.0], [8.0, 5.0], [3.0, 4.0]]),
            file([[9.0, 3.0], [8.0, 5.0], [3.0, 4.0]]),
        ];
        let served = serve("typescript", &languages, &files);
        assert_eq!((served.own, served.n_bytes, served.none), (None, 30, 0.7));
        assert_eq!((served.chosen.as_str(), served.likeliest), ("lua", 11.0 / 30.0));
        assert_eq!(served.nearest, Some(("javascript".to_owned(), 0.5)));
        assert_eq!(served.worst(&languages), (1, 0.5));
        // Of a language that the model has, its own expert is no answer.
        let own = serve("lua", &languages, &files);
        assert_eq!((own.own, own.chosen.as_str(), own.nearest), (Some(0.4), "javascript", None));
        assert_eq!(own.likeliest, (5.0 + 3.0 + 5.0) / 30.0);
    }
}
