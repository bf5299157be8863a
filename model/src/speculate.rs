//! Guesses at the tokens to come, without a model: what followed the longest end of the text where it stood before.
//!
//! A suffix automaton over the ids of the prompt and of what was written finds it, and another one over other texts where the text itself has
//! nothing to say, as in Hu et al. 2024 (SAM Decoding, arXiv 2411.10666). Guesses are computed in one pass with the token before them and
//! kept as far as greedy decoding agrees, so they change no answer (Leviathan et al. 2022, arXiv 2211.17192, with probabilities of 0 and 1).

#![allow(non_snake_case)]

mod automaton;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use automaton::{Place, SuffixAutomaton};

use crate::error::Result;
use crate::generate::Sequence;

/// Where guesses are from.
#[derive(Clone, Copy, Debug, Default)]
enum Source {
    /// The text itself.
    #[default]
    Own,
    /// Other texts, which are less like it.
    Other,
}

/// Tokens that must have stood in a [`Source`] before, for what followed them to be guessed.
const MIN_MATCH: [u32; 2] = [2, 4];
/// Tokens of other texts that are taken in before it is asked whether to go on.
const ASKED_EVERY: usize = 1024;
/// How fast what was measured changes what is believed.
const RATE: f32 = 0.05;

/// Other texts, such as the other open files, in which the end of this one may stand.
#[derive(Default)]
pub struct Elsewhere {
    automaton: SuffixAutomaton,
    /// Stands between two texts.
    separator: u32,
}

impl Elsewhere {
    /// Of the ids of each text, the most likely to help last; `separator` stands in none. None where `cancelled`, which is asked now and then.
    pub fn of<'a>(
        texts: impl IntoIterator<Item = &'a [u32]>,
        separator: u32,
        cancelled: &dyn Fn() -> bool,
    ) -> Option<Elsewhere> {
        let mut automaton = SuffixAutomaton::default();
        for text in texts {
            for some in text.chunks(ASKED_EVERY) {
                if cancelled() {
                    return None;
                }
                some.iter().for_each(|&id| automaton.append(id));
            }
            automaton.append(separator);
        }
        automaton.finish();
        Some(Elsewhere { automaton, separator })
    }

    /// What followed `place`, within its text.
    fn after(&self, place: Place, n: usize) -> &[u32] {
        let ids = self.automaton.after(place, n, MIN_MATCH[Source::Other as usize]);
        &ids[..ids.iter().position(|&id| id == self.separator).unwrap_or(ids.len())]
    }

    /// Tokens of all texts.
    pub fn n_tokens(&self) -> usize {
        self.automaton.n_ids()
    }
}

/// What guesses cost and how often they are right, as measured so far.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Seconds of a pass over one token; 0 before there was one.
    single_s: f32,
    /// Seconds that one more token adds to a pass.
    extra_s: f32,
    /// Share of the guesses from each [`Source`] that were right, of those before which all were.
    right: [f32; 2],
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { single_s: 0.0, extra_s: 0.0, right: [0.5; 2] }
    }
}

impl Pace {
    /// For tests: guesses seem to cost nothing.
    #[cfg(test)]
    pub(crate) fn eager() -> Pace {
        Pace { single_s: 1e3, extra_s: 1.0, right: [0.9; 2] }
    }

    /// Takes down what a pass over `n_tokens` took.
    pub fn took(&mut self, n_tokens: usize, elapsed: Duration) {
        let elapsed_s = elapsed.as_secs_f32();
        let (believed, measured) = match n_tokens {
            0 => return,
            1 => (&mut self.single_s, elapsed_s),
            n => (&mut self.extra_s, (elapsed_s - self.single_s).max(0.0) / (n - 1) as f32),
        };
        let rate = if *believed == 0.0 { 1.0 } else { RATE };
        *believed += rate * (measured - *believed);
    }

    fn found(&mut self, source: Source, is_right: bool) {
        let right = &mut self.right[source as usize];
        *right += RATE * (f32::from(u8::from(is_right)) - *right);
    }

    /// Guesses that pay, at most `max`: the last of n is right with probability right^n and then saves a pass. Where none pays, what is
    /// believed of them is forgotten little by little, so that they are tried again.
    fn worth(&mut self, source: Source, max: usize) -> usize {
        if max == 0 {
            return 0;
        }
        let cost = (self.extra_s / self.single_s.max(f32::MIN_POSITIVE)).clamp(0.01, 1.0);
        let right = &mut self.right[source as usize];
        let n = (cost.ln() / right.clamp(0.01, 0.99).ln()) as usize;
        if n == 0 {
            *right += 0.1 * RATE * (0.5 - *right);
            self.extra_s *= 1.0 - 0.1 * RATE;
        }
        n.min(max)
    }
}

/// The logits of tokens to come, computed before it was known which they are.
pub(crate) struct Lookahead {
    automaton: SuffixAutomaton,
    /// Of the text's end in other texts.
    place: Place,
    /// Guesses that are computed, each with the logits after it.
    ahead: VecDeque<(u32, Vec<f32>)>,
    /// Of these.
    source: Source,
    /// Positions of the sequence that are of the text.
    n_known: usize,
    max_guesses: usize,
    /// Guesses that were computed, and those that were right.
    pub(crate) guessed: usize,
    pub(crate) accepted: usize,
}

impl Lookahead {
    /// After a prompt that is computed; at most `max_guesses` at once.
    pub(crate) fn new(prompt: &[u32], max_guesses: usize, elsewhere: Option<&Elsewhere>) -> Lookahead {
        let text = if max_guesses > 0 { prompt } else { &[] };
        let mut ahead = Lookahead {
            automaton: SuffixAutomaton::of(text),
            place: Place::default(),
            ahead: VecDeque::new(),
            source: Source::default(),
            n_known: prompt.len(),
            max_guesses,
            guessed: 0,
            accepted: 0,
        };
        text.iter().for_each(|&id| ahead.follow(id, elsewhere));
        ahead
    }

    fn follow(&mut self, id: u32, elsewhere: Option<&Elsewhere>) {
        self.place = elsewhere.map_or(Place::default(), |of| of.automaton.follow(self.place, id));
    }

    /// At most `n` guesses after the text, and none from one on that `logits` rule out: those are not computed for ids that neither the
    /// language uses nor the text has.
    fn guesses<'a>(&'a self, n: usize, logits_V: &[f32], elsewhere: Option<&'a Elsewhere>) -> (Source, &'a [u32]) {
        let own = self.automaton.guess(n, MIN_MATCH[Source::Own as usize]);
        let (source, guesses) = match elsewhere {
            Some(elsewhere) if own.is_empty() => (Source::Other, elsewhere.after(self.place, n)),
            _ => (Source::Own, own),
        };
        let is_possible = |&id: &u32| logits_V.get(id as usize).is_some_and(|&logit| logit > f32::NEG_INFINITY);
        (source, &guesses[..guesses.iter().position(|id| !is_possible(id)).unwrap_or(guesses.len())])
    }

    /// Positions of the sequence that are of the text: guesses may follow.
    pub(crate) fn n_known(&self) -> usize {
        self.n_known
    }

    /// The logits after `id`, which follows all that is known and was chosen by `logits`; at most `n_left` tokens are wanted after it.
    ///
    /// # Errors
    /// Those of the model.
    pub(crate) fn after(
        &mut self,
        (id, logits_V): (u32, &[f32]),
        sequence: &mut dyn Sequence,
        (language, n_left): (u32, usize),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>> {
        if self.max_guesses > 0 {
            self.automaton.push(id);
            self.follow(id, sequence.elsewhere());
        }
        if let Some((guess, logits)) = self.ahead.pop_front() {
            sequence.pace().found(self.source, guess == id);
            if guess == id {
                (self.n_known, self.accepted) = (self.n_known + 1, self.accepted + 1);
                return Ok(logits);
            }
            self.drop_guesses(sequence);
        }
        let room = (sequence.capacity() - self.n_known - 1).min(n_left.saturating_sub(1)).min(self.max_guesses);
        let (source, guesses) = self.guesses(room, logits_V, sequence.elsewhere());
        let mut ids = [&[id], guesses].concat();
        ids.truncate(1 + sequence.pace().worth(source, ids.len() - 1));
        self.source = source;
        let start = Instant::now();
        let mut rows = VecDeque::from(sequence.next_each(&ids, language, cancelled)?);
        sequence.pace().took(ids.len(), start.elapsed());
        let logits = rows.pop_front().unwrap_or_default();
        self.guessed += ids.len() - 1;
        self.ahead = ids[1..].iter().copied().zip(rows).collect();
        self.n_known += 1;
        Ok(logits)
    }

    /// Takes back what was computed and is not of the text.
    pub(crate) fn drop_guesses(&mut self, sequence: &mut dyn Sequence) {
        self.ahead.clear();
        sequence.truncate(self.n_known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_itself_is_asked_first_and_what_is_ruled_out_ends_the_guesses() {
        let logits_V = |ruled_out: &[u32]| {
            let mut logits_V = [0f32; 20];
            ruled_out.iter().for_each(|&id| logits_V[id as usize] = f32::NEG_INFINITY);
            logits_V
        };
        let other = Elsewhere::of([&[1, 2, 3, 4, 15, 16, 17][..], &[5, 1, 2, 3, 4]], 0, &|| false).unwrap();
        let guesses = |text: &[u32], ruled_out: &[u32], elsewhere| {
            Lookahead::new(text, 8, elsewhere).guesses(3, &logits_V(ruled_out), elsewhere).1.to_vec()
        };
        assert_eq!(guesses(&[9, 1, 2, 3, 4], &[], None), [0u32; 0]);
        assert_eq!(guesses(&[9, 1, 2, 3, 4], &[], Some(&other)), [0u32; 0], "the newest place is a text's end");
        assert_eq!(guesses(&[1, 2, 3, 4, 15], &[], Some(&other)), [16, 17]);
        assert_eq!(guesses(&[3, 4, 15], &[], Some(&other)), [0u32; 0], "three tokens are no match in another text");
        assert_eq!(guesses(&[1, 2, 3, 4, 15], &[17], Some(&other)), [16]);
        assert_eq!(guesses(&[1, 2, 3, 4, 15], &[16], Some(&other)), [0u32; 0]);
        let both = [4, 15, 7, 8, 1, 2, 3, 4, 15];
        assert_eq!(guesses(&both, &[], Some(&other)), [7, 8, 1], "two tokens are a match in the text itself");
        assert!(Elsewhere::of([&[1][..]], 0, &|| true).is_none());
    }

    #[test]
    fn guesses_are_made_where_they_pay_and_tried_again_where_they_did_not() {
        use Source::{Other, Own};
        let ms = |ms: u64| Duration::from_millis(ms);
        let mut pace = Pace::default();
        pace.took(1, ms(100));
        pace.took(5, ms(140));
        assert_eq!(pace.worth(Own, 8), 3, "0.5^3 > 0.1 > 0.5^4");
        (0..200).for_each(|_| pace.found(Own, true));
        assert_eq!(pace.worth(Own, 8), 8);
        (0..200).for_each(|_| pace.found(Own, false));
        assert_eq!((pace.worth(Own, 8), pace.worth(Other, 8)), (0, 3), "each source by its own measure");
        assert!((0..1000).any(|_| pace.worth(Own, 8) > 0));
        let mut dear = Pace::default();
        dear.took(1, ms(100));
        dear.took(2, ms(190));
        assert_eq!(dear.worth(Own, 8), 0, "a guess costs 0.9 of what it may save");
    }
}
