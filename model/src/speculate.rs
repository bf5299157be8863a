//! Guesses at the tokens to come, without a model: what followed the longest end of the text where it stood before.
//!
//! A suffix automaton (Blumer et al. 1985) over the ids of the prompt and of what was written finds it, as in Hu et al. 2024 (SAM Decoding,
//! arXiv 2411.10666). Guesses are computed in one pass with the token before them and kept as far as greedy decoding agrees, so they change
//! no answer (Leviathan et al. 2022, arXiv 2211.17192, with probabilities of 0 and 1).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::generate::Sequence;

const NONE: u32 = u32::MAX;
/// Tokens that must have stood there before, for what followed them to be guessed.
const MIN_MATCH: u32 = 2;
/// How fast what was measured changes what is believed.
const RATE: f32 = 0.05;

/// All substrings of a sequence of ids, in states of those that end at the same places.
struct SuffixAutomaton {
    ids: Vec<u32>,
    states: Vec<State>,
    /// That of the whole sequence.
    last: u32,
    /// The longest end of the sequence that stands in it twice: its length, and where its newest other place ends.
    repeat: (u32, u32),
}

#[derive(Clone)]
struct State {
    /// Of the longest string.
    length: u32,
    /// The state of the longest end that stands in more places.
    link: u32,
    /// Where its string ends that was met last.
    end: u32,
    /// By id, sorted.
    next: Vec<(u32, u32)>,
}

impl SuffixAutomaton {
    fn of(ids: &[u32]) -> SuffixAutomaton {
        let root = State { length: 0, link: NONE, end: 0, next: Vec::new() };
        let mut automaton = SuffixAutomaton { ids: Vec::new(), states: vec![root], last: 0, repeat: (0, 0) };
        ids.iter().for_each(|&id| automaton.push(id));
        automaton
    }

    fn push(&mut self, id: u32) {
        self.ids.push(id);
        let n = self.ids.len() as u32;
        let new = self.states.len() as u32;
        self.states.push(State { length: n, link: 0, end: n, next: Vec::new() });
        let mut at = self.last;
        while at != NONE && self.set_absent(at, id, new) {
            at = self.states[at as usize].link;
        }
        if at != NONE {
            let link = self.split(at, id);
            self.states[new as usize].link = link;
        }
        self.last = new;
        let mut link = self.states[new as usize].link;
        self.repeat = (self.states[link as usize].length, self.states[link as usize].end);
        // All that the sequence ends with was met here last.
        while link != NONE {
            self.states[link as usize].end = n;
            link = self.states[link as usize].link;
        }
    }

    /// Adds a transition where there is none; says whether.
    fn set_absent(&mut self, at: u32, id: u32, to: u32) -> bool {
        let next = &mut self.states[at as usize].next;
        match next.binary_search_by_key(&id, |(known, _)| *known) {
            Ok(_) => false,
            Err(place) => {
                next.insert(place, (id, to));
                true
            }
        }
    }

    fn transition(&mut self, at: u32, id: u32) -> Option<&mut u32> {
        let next = &mut self.states[at as usize].next;
        let place = next.binary_search_by_key(&id, |(known, _)| *known).ok()?;
        Some(&mut next[place].1)
    }

    /// The state of exactly the strings of `at` followed by `id`, which may have to be parted from longer ones.
    fn split(&mut self, at: u32, id: u32) -> u32 {
        let length = self.states[at as usize].length + 1;
        let Some(&mut target) = self.transition(at, id) else { return 0 };
        if self.states[target as usize].length == length {
            return target;
        }
        let copy = self.states.len() as u32;
        self.states.push(State { length, ..self.states[target as usize].clone() });
        self.states[target as usize].link = copy;
        let mut at = at;
        while at != NONE {
            match self.transition(at, id) {
                Some(to) if *to == target => *to = copy,
                _ => break,
            }
            at = self.states[at as usize].link;
        }
        copy
    }

    /// What followed the longest end of the sequence where it stood before, at most `n` ids.
    fn guess(&self, n: usize) -> &[u32] {
        let (length, end) = self.repeat;
        let end = if length < MIN_MATCH { self.ids.len() } else { end as usize };
        &self.ids[end..(end + n).min(self.ids.len())]
    }
}

/// What guesses cost and how often they are right, as measured so far.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Seconds of a pass over one token; 0 before there was one.
    single_s: f32,
    /// Seconds that one more token adds to a pass.
    extra_s: f32,
    /// Share of the guesses that were right, of those before which all were.
    right: f32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { single_s: 0.0, extra_s: 0.0, right: 0.5 }
    }
}

impl Pace {
    /// For tests: guesses seem to cost nothing.
    #[cfg(test)]
    pub(crate) fn eager() -> Pace {
        Pace { single_s: 1e3, extra_s: 1.0, right: 0.9 }
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

    fn found(&mut self, is_right: bool) {
        self.right += RATE * (f32::from(u8::from(is_right)) - self.right);
    }

    /// Guesses that pay, at most `max`: the last of n is right with probability right^n and then saves a pass. Where none pays, what is
    /// believed of them is forgotten little by little, so that they are tried again.
    fn worth(&mut self, max: usize) -> usize {
        let cost = (self.extra_s / self.single_s.max(f32::MIN_POSITIVE)).clamp(0.01, 1.0);
        let right = self.right.clamp(0.01, 0.99);
        let n = (cost.ln() / right.ln()) as usize;
        if n == 0 {
            self.right += 0.1 * RATE * (0.5 - self.right);
            self.extra_s *= 1.0 - 0.1 * RATE;
        }
        n.min(max)
    }
}

/// The logits of tokens to come, computed before it was known which they are.
pub(crate) struct Lookahead {
    automaton: SuffixAutomaton,
    /// Guesses that are computed, each with the logits after it.
    ahead: VecDeque<(u32, Vec<f32>)>,
    /// Positions of the sequence that are of the text.
    n_known: usize,
    max_guesses: usize,
    /// Guesses that were computed, and those that were right.
    pub(crate) guessed: usize,
    pub(crate) accepted: usize,
}

impl Lookahead {
    /// After a prompt that is computed; at most `max_guesses` at once.
    pub(crate) fn new(prompt: &[u32], max_guesses: usize) -> Lookahead {
        let automaton = SuffixAutomaton::of(if max_guesses > 0 { prompt } else { &[] });
        Lookahead { automaton, ahead: VecDeque::new(), n_known: prompt.len(), max_guesses, guessed: 0, accepted: 0 }
    }

    /// Positions of the sequence that are of the text: guesses may follow.
    pub(crate) fn n_known(&self) -> usize {
        self.n_known
    }

    /// The logits after `id`, which follows all that is known; at most `n_left` tokens are wanted after it.
    ///
    /// # Errors
    /// Those of the model.
    pub(crate) fn after(
        &mut self,
        id: u32,
        sequence: &mut dyn Sequence,
        (language, n_left): (u32, usize),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>> {
        if self.max_guesses > 0 {
            self.automaton.push(id);
        }
        if let Some((guess, logits)) = self.ahead.pop_front() {
            sequence.pace().found(guess == id);
            if guess == id {
                (self.n_known, self.accepted) = (self.n_known + 1, self.accepted + 1);
                return Ok(logits);
            }
            self.drop_guesses(sequence);
        }
        let room = (sequence.capacity() - self.n_known - 1).min(n_left.saturating_sub(1)).min(self.max_guesses);
        let n = if room > 0 { sequence.pace().worth(room) } else { 0 };
        let guesses = self.automaton.guess(n);
        let ids = [&[id], guesses].concat();
        let start = Instant::now();
        let mut rows = VecDeque::from(sequence.next_each(&ids, language, cancelled)?);
        sequence.pace().took(ids.len(), start.elapsed());
        let logits = rows.pop_front().unwrap_or_default();
        self.guessed += guesses.len();
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
    use crate::draw::mix;

    /// The longest end of `ids` that stands in it before, by trying all.
    fn longest_repeat(ids: &[u32]) -> usize {
        (1..ids.len())
            .rev()
            .find(|&n| ids[..ids.len() - 1].windows(n).any(|window| window == &ids[ids.len() - n..]))
            .unwrap_or(0)
    }

    #[test]
    fn the_longest_repeated_end_is_found_at_its_newest_place() {
        for seed in 0..40 {
            let ids: Vec<u32> = (0..120).map(|n| (mix(seed, n) % (2 + seed % 5)) as u32).collect();
            let mut automaton = SuffixAutomaton::of(&[]);
            for n in 1..=ids.len() {
                automaton.push(ids[n - 1]);
                let (length, end) = (automaton.repeat.0 as usize, automaton.repeat.1 as usize);
                assert_eq!(length, longest_repeat(&ids[..n]), "{:?}", &ids[..n]);
                let newest = (length..n).rev().find(|&end| ids[end - length..end] == ids[n - length..n]);
                assert_eq!(Some(end), newest, "{length} of {:?}", &ids[..n]);
            }
        }
    }

    #[test]
    fn what_followed_is_guessed() {
        assert_eq!(SuffixAutomaton::of(&[1, 2, 3, 4, 9, 1, 2]).guess(2), [3, 4]);
        assert_eq!(SuffixAutomaton::of(&[1, 2, 3, 9, 1, 2, 5, 8, 1, 2]).guess(1), [5]);
        assert_eq!(SuffixAutomaton::of(&[1, 2, 3, 9, 2]).guess(4), [0u32; 0], "one token is no context");
        assert_eq!(SuffixAutomaton::of(&[]).guess(4), [0u32; 0]);
        assert_eq!(SuffixAutomaton::of(&[7, 7, 7]).guess(4), [7], "no further than the text goes");
    }

    #[test]
    fn guesses_are_made_where_they_pay_and_tried_again_where_they_did_not() {
        let ms = |ms: u64| Duration::from_millis(ms);
        let mut pace = Pace::default();
        pace.took(1, ms(100));
        pace.took(5, ms(140));
        assert_eq!(pace.worth(8), 3, "0.5^3 > 0.1 > 0.5^4");
        (0..200).for_each(|_| pace.found(true));
        assert_eq!(pace.worth(8), 8);
        (0..200).for_each(|_| pace.found(false));
        assert_eq!(pace.worth(8), 0);
        assert!((0..1000).any(|_| pace.worth(8) > 0));
        let mut dear = Pace::default();
        dear.took(1, ms(100));
        dear.took(2, ms(190));
        assert_eq!(dear.worth(8), 0, "a guess costs 0.9 of what it may save");
    }
}
