//! Several sequences that were computed, so that who goes back to one computes nothing: places of a file, files, languages.
//!
//! The one whose beginning is most like the next text goes on, unless it would lose much by that: then the one that was used longest ago
//! takes its place, with a copy of what both begin with.

use super::cache::DecoderCache;
use crate::config::ModelConfig;

/// What all of them may hold, if they are more than [`LEAST_STATES`].
const BUDGET_BYTES: usize = 48 << 20;
const MAX_STATES: usize = 6;
/// Two files in turn, whatever they take.
const LEAST_STATES: usize = 2;
/// Tokens of a prompt that are given up without a thought: a word that was changed. What was written after it is no loss at all.
const CHEAP_TOKENS: usize = 64;

/// Caches of one model. One of them is current.
pub struct DecoderStates {
    /// The current one is the last, and the one used longest ago the first. Beside each the tokens that were asked for: the others were
    /// written after them.
    caches: Vec<(DecoderCache, usize)>,
    config: ModelConfig,
}

impl DecoderStates {
    /// An empty one, current; more are made when they are needed: two, and as many more as 48 MiB hold.
    pub fn new(config: &ModelConfig) -> DecoderStates {
        let first = DecoderCache::new(config, config.context_tokens);
        DecoderStates { caches: vec![(first, 0)], config: config.clone() }
    }

    /// What is computed now.
    pub fn current(&self) -> &DecoderCache {
        &self.caches[self.caches.len() - 1].0
    }

    /// What is computed now, to be added to.
    pub fn current_mut(&mut self) -> &mut DecoderCache {
        let last = self.caches.len() - 1;
        &mut self.caches[last].0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.caches.len()
    }

    /// Whether nothing is computed.
    pub fn is_empty(&self) -> bool {
        self.caches.iter().all(|(cache, _)| cache.ids().is_empty())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.caches.truncate(1);
        self.caches[0].0.truncate(0);
    }

    /// Makes current what begins as `ids` do, under the same language; returns how many tokens of them it holds.
    pub fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        let common = |at: &usize| self.caches[*at].0.common_prefix(ids, language);
        // Of several that are alike the one used last.
        let best = (0..self.caches.len()).max_by_key(common).unwrap_or(0);
        let n_common = common(&best);
        let (cache, n_asked) = &self.caches[best];
        let n_lost = cache.ids().len().min(*n_asked).saturating_sub(n_common);
        let current = match n_lost > CHEAP_TOKENS {
            true => self.spare(best, n_common),
            false => self.caches.remove(best).0,
        };
        self.caches.push((current, ids.len()));
        self.evict(ids.len());
        self.current_mut().keep_common_prefix(ids, language)
    }

    /// A new cache with the first `n_common` tokens of that at `best`.
    fn spare(&mut self, best: usize, n_common: usize) -> DecoderCache {
        // What is copied from was used now.
        let best = self.caches.remove(best);
        let mut spare = DecoderCache::new(&self.config, self.config.context_tokens);
        spare.copy_from(&best.0, n_common);
        self.caches.push(best);
        spare
    }

    /// Drops what was used longest ago, so that the current one has room for `n_asked` tokens.
    fn evict(&mut self, n_asked: usize) {
        loop {
            let more = self.current().n_bytes_of(n_asked).saturating_sub(self.current().n_bytes());
            let held = self.caches.iter().map(|(cache, _)| cache.n_bytes()).sum::<usize>();
            let n = self.caches.len();
            if n <= LEAST_STATES || n <= MAX_STATES && held + more <= BUDGET_BYTES {
                return;
            }
            self.caches.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    fn states() -> DecoderStates {
        DecoderStates::new(&ModelConfig { context_tokens: 512, ..tiny(None) })
    }

    fn text(from: u32, n: u32) -> Vec<u32> {
        (from..from + n).collect()
    }

    /// Computes `ids` as far as they are not there; returns how many were.
    fn compute(states: &mut DecoderStates, ids: &[u32], language: u32) -> usize {
        let kept = states.keep_common_prefix(ids, language);
        let cache = states.current_mut();
        cache.follow(language).unwrap();
        for (position, id) in ids.iter().enumerate().skip(kept) {
            let numbers = vec![(*id % 2048) as f32; 16];
            cache.layers.iter_mut().for_each(|layer| layer.put(position, &numbers, &numbers));
        }
        cache.commit(&ids[kept..]);
        for (position, id) in ids.iter().enumerate() {
            let v = states.current().layers[0].values(1, position + 1);
            assert_eq!(half::f16::from_bits(v[v.len() - 16]).to_f32(), (*id % 2048) as f32, "position {position}");
        }
        kept
    }

    #[test]
    fn going_back_to_a_text_computes_nothing() {
        let mut states = states();
        let texts = [text(0, 200), text(300, 200), text(600, 200)];
        assert!(texts.iter().all(|ids| compute(&mut states, ids, 0) == 0));
        assert!(texts.iter().all(|ids| compute(&mut states, ids, 0) == 200));
        assert_eq!(states.len(), 3);
        assert_eq!(compute(&mut states, &texts[0], 1), 0, "another language has other experts");
        states.clear();
        assert!(states.is_empty() && states.len() == 1);
    }

    #[test]
    fn typing_stays_where_it_is_and_a_jump_takes_the_common_beginning_along() {
        let mut states = states();
        compute(&mut states, &text(0, 200), 0);
        let typed = [text(0, 190), text(900, 4)].concat();
        assert_eq!((compute(&mut states, &typed, 0), states.len()), (190, 1));
        let elsewhere = [text(0, 100), text(700, 90)].concat();
        assert_eq!((compute(&mut states, &elsewhere, 0), states.len()), (100, 2));
        assert_eq!(compute(&mut states, &typed, 0), 194);
    }

    #[test]
    fn a_long_answer_that_is_not_taken_is_no_loss() {
        let mut states = states();
        compute(&mut states, &text(0, 200), 0);
        states.current_mut().commit(&text(5000, 100));
        let typed = [text(0, 200), text(900, 1)].concat();
        assert_eq!((states.keep_common_prefix(&typed, 0), states.len()), (200, 1));
    }

    /// Room was counted by full caches: a long context left a single state, and two files in turn computed everything again.
    #[test]
    fn a_long_context_leaves_room_for_as_many_states_as_are_used() {
        let mut long = DecoderStates::new(&ModelConfig { context_tokens: 1 << 20, ..tiny(None) });
        assert!(long.current().n_bytes_of(1 << 20) > 2 * BUDGET_BYTES);
        for n in 0..MAX_STATES as u32 {
            compute(&mut long, &text(1000 * n, 100), 0);
        }
        assert_eq!(long.len(), MAX_STATES);
        let large = BUDGET_BYTES / long.current().n_bytes_of(1);
        // Two stay whatever they take.
        for (from, kept) in [(90_000_000, 0), (50_000_000, 0), (90_000_000, large), (50_000_000, large)] {
            let ids = text(from, large as u32);
            assert_eq!(long.keep_common_prefix(&ids, 0), kept, "from {from}");
            long.current_mut().layers[0].put(large - 1, &[0.0; 16], &[0.0; 16]);
            long.current_mut().commit(&ids[kept..]);
        }
        assert_eq!(long.len(), 2);
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let mut states = states();
        let texts: Vec<Vec<u32>> = (0..MAX_STATES as u32 + 1).map(|n| text(1000 * n, 100)).collect();
        texts.iter().for_each(|ids| assert_eq!(compute(&mut states, ids, 0), 0));
        assert_eq!(states.len(), MAX_STATES);
        assert_eq!(compute(&mut states, &texts[1], 0), 100);
        assert_eq!(compute(&mut states, &texts[0], 0), 0, "the first text went when the last came");
        assert_eq!(compute(&mut states, &texts[1], 0), 100, "used again, it stayed");
        // What is copied from is that which was used longest ago.
        let mut states = super::tests::states();
        texts[..MAX_STATES].iter().for_each(|ids| assert_eq!(compute(&mut states, ids, 0), 0));
        let begun = [&texts[0][..30], &text(90_000, 60)].concat();
        assert_eq!((compute(&mut states, &begun, 0), compute(&mut states, &texts[0], 0)), (30, 100));
    }
    /// What grew was never counted: eight short files that became long ones took eight times the room of one.
    #[test]
    fn states_that_grow_make_room_too() {
        let mut states = DecoderStates::new(&ModelConfig { context_tokens: 1 << 20, ..tiny(None) });
        let half = BUDGET_BYTES / states.current().n_bytes_of(1) / 2;
        for n in 0..MAX_STATES as u32 {
            compute(&mut states, &text(1000 * n, 100), 0);
        }
        for n in 0..MAX_STATES as u32 {
            let grown = [text(1000 * n, 100), text(90_000_000, half as u32)].concat();
            states.keep_common_prefix(&grown, 0);
            states.current_mut().layers[0].put(half, &[0.0; 16], &[0.0; 16]);
        }
        let held = states.caches.iter().map(|(cache, _)| cache.n_bytes()).sum::<usize>();
        assert!(states.len() == LEAST_STATES || held <= BUDGET_BYTES, "{} states, {held} bytes", states.len());
    }
}
