//! All substrings of a sequence of ids, to find where the end of a text stands in it (Blumer et al. 1985).

use smallvec::{SmallVec, smallvec};

const NONE: u32 = u32::MAX;

/// All substrings of a sequence of ids, in states of those that end at the same places.
pub(super) struct SuffixAutomaton {
    ids: Vec<u32>,
    states: Vec<State>,
    /// That of the whole sequence.
    last: u32,
    /// The longest end of the sequence that stands in it twice: its length, and where its newest other place ends.
    repeat: (u32, u32),
}

/// The longest end of some other sequence that stands in an automaton's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    state: u32,
    length: u32,
}

impl Default for SuffixAutomaton {
    fn default() -> SuffixAutomaton {
        let root = State { length: 0, link: NONE, end: 0, next: smallvec![] };
        SuffixAutomaton { ids: Vec::new(), states: vec![root], last: 0, repeat: (0, 0) }
    }
}

#[derive(Clone)]
struct State {
    /// Of the longest string.
    length: u32,
    /// The state of the longest end that stands in more places.
    link: u32,
    /// Where its string ends that was met last.
    end: u32,
    /// By id, sorted; most states have one or two.
    next: SmallVec<[(u32, u32); 2]>,
}

impl SuffixAutomaton {
    pub(super) fn of(ids: &[u32]) -> SuffixAutomaton {
        let mut automaton = SuffixAutomaton::default();
        ids.iter().for_each(|&id| automaton.push(id));
        automaton
    }

    pub(super) fn n_ids(&self) -> usize {
        self.ids.len()
    }

    /// Adds an id and knows at once where the end of the sequence stood last.
    pub(super) fn push(&mut self, id: u32) {
        self.append(id);
        let n = self.ids.len() as u32;
        let mut link = self.states[self.last as usize].link;
        self.repeat = (self.states[link as usize].length, self.states[link as usize].end);
        // All that the sequence ends with was met here last.
        while link != NONE {
            self.states[link as usize].end = n;
            link = self.states[link as usize].link;
        }
    }

    /// Says of all substrings of a sequence that was appended where they stand last.
    pub(super) fn finish(&mut self) {
        self.states.shrink_to_fit();
        let mut longest_first: Vec<u32> = (1..self.states.len() as u32).collect();
        longest_first.sort_unstable_by_key(|&at| std::cmp::Reverse(self.states[at as usize].length));
        for at in longest_first {
            let State { link, end, .. } = self.states[at as usize];
            let shorter = &mut self.states[link as usize].end;
            *shorter = end.max(*shorter);
        }
    }

    /// Adds an id, and where it stands only to the strings that end with it nowhere else.
    pub(super) fn append(&mut self, id: u32) {
        self.ids.push(id);
        let n = self.ids.len() as u32;
        let new = self.states.len() as u32;
        self.states.push(State { length: n, link: 0, end: n, next: smallvec![] });
        let mut at = self.last;
        while at != NONE && self.set_absent(at, id, new) {
            at = self.states[at as usize].link;
        }
        if at != NONE {
            let link = self.split(at, id);
            self.states[new as usize].link = link;
        }
        self.last = new;
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

    /// What followed the longest end of the sequence where it stood before, at most `n` ids; nothing where that is shorter than `min_match`.
    pub(super) fn guess(&self, n: usize, min_match: u32) -> &[u32] {
        let (length, end) = self.repeat;
        if length < min_match { &[] } else { self.from(end, n) }
    }

    /// Where the longest end of the other sequence stands with `id` behind it.
    pub(super) fn follow(&self, mut place: Place, id: u32) -> Place {
        loop {
            let state = &self.states[place.state as usize];
            if let Ok(found) = state.next.binary_search_by_key(&id, |(known, _)| *known) {
                return Place { state: state.next[found].1, length: place.length + 1 };
            }
            if state.link == NONE {
                return Place::default();
            }
            place = Place { state: state.link, length: self.states[state.link as usize].length };
        }
    }

    /// What followed `place` where it was met last, at most `n` ids; nothing where it is shorter than `min_match`.
    pub(super) fn after(&self, place: Place, n: usize, min_match: u32) -> &[u32] {
        if place.length < min_match { &[] } else { self.from(self.states[place.state as usize].end, n) }
    }

    fn from(&self, end: u32, n: usize) -> &[u32] {
        let end = end as usize;
        &self.ids[end..(end + n).min(self.ids.len())]
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
        assert_eq!(SuffixAutomaton::of(&[1, 2, 3, 4, 9, 1, 2]).guess(2, 2), [3, 4]);
        assert_eq!(SuffixAutomaton::of(&[1, 2, 3, 9, 1, 2, 5, 8, 1, 2]).guess(1, 2), [5]);
        assert_eq!(SuffixAutomaton::of(&[1, 2, 3, 9, 2]).guess(4, 2), [0u32; 0], "one token is no context");
        assert_eq!(SuffixAutomaton::of(&[]).guess(4, 2), [0u32; 0]);
        assert_eq!(SuffixAutomaton::of(&[7, 7, 7]).guess(4, 2), [7], "no further than the text goes");
    }

    #[test]
    fn the_longest_end_of_another_text_is_found() {
        for seed in 0..40 {
            let draw = |from: u64, n: u64| (from..from + n).map(|n| (mix(seed, n) % (2 + seed % 5)) as u32);
            let (there, text): (Vec<u32>, Vec<u32>) = (draw(0, 60).collect(), draw(1000, 60).collect());
            let mut automaton = SuffixAutomaton::default();
            there.iter().for_each(|&id| automaton.append(id));
            automaton.finish();
            let mut place = Place::default();
            for n in 1..=text.len() {
                place = automaton.follow(place, text[n - 1]);
                let is_there = |len: &usize| there.windows((*len).max(1)).any(|w| w[..*len] == text[n - len..n]);
                let longest = (0..=n).rev().find(is_there).unwrap();
                assert_eq!(place.length as usize, longest, "{:?} in {there:?}", &text[..n]);
                let newest =
                    (longest..=there.len()).rev().find(|&end| there[end - longest..end] == text[n - longest..n]);
                if longest > 0 {
                    assert_eq!(Some(automaton.states[place.state as usize].end as usize), newest);
                    assert_eq!(
                        automaton.after(place, 3, 1),
                        &there[newest.unwrap()..][..3.min(there.len() - newest.unwrap())]
                    );
                }
                assert_eq!(automaton.after(place, 3, longest as u32 + 1), [0u32; 0]);
            }
        }
    }
}
