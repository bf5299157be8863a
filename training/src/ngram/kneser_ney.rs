//! Interpolated modified Kneser-Ney smoothing over a [`Trie`].
//!
//! p(w | h) = (c(hw) - D(c(hw))) / c(h·) + gamma(h) p(w | h'), down to the uniform distribution; three discounts an order.

use super::trie::{Documents, NONE, Trie};

/// Most frequent tokens kept as candidates when no context matches.
const N_TOP_UNIGRAMS: usize = 16;

/// Per context: what its children's counts sum to, and the probability mass that goes to the shorter context.
#[derive(Debug, Default)]
struct Contexts {
    total: Vec<u32>,
    back_off: Vec<f32>,
}

/// A smoothed n-gram model.
#[derive(Debug)]
pub struct KneserNey {
    trie: Trie,
    contexts: Vec<Contexts>,
    discounts: Vec<[f64; 3]>,
    top_unigrams: Vec<u32>,
    start: u32,
}

/// The matched contexts of every length, shortest first; the root (length 0) always matches.
#[derive(Clone, Debug)]
pub struct State {
    nodes: Vec<u32>,
}

impl State {
    /// Tokens of the longest context seen in training.
    pub fn matched(&self) -> usize {
        self.nodes.len() - 1
    }
}

impl KneserNey {
    /// Trains on `documents`; `start` is the token assumed before each (it may not occur in them).
    ///
    /// # Errors
    /// Those of [`Trie::build`].
    pub fn train(documents: &Documents, order: usize, vocab_size: usize, start: u32) -> Result<Self, String> {
        let trie = Trie::build(documents, order, vocab_size, start)?;
        let discounts: Vec<_> = (1..=order).map(|n| discounts_of(&trie.level(n).count)).collect();
        let contexts = (0..order).map(|n| contexts_of(&trie, n, &discounts[n])).collect();
        let mut model = Self { trie, contexts, discounts, top_unigrams: Vec::new(), start };
        model.top_unigrams = model.top_children(0, 0, N_TOP_UNIGRAMS);
        Ok(model)
    }

    /// Longest n-gram, in tokens.
    pub fn order(&self) -> usize {
        self.trie.order()
    }

    /// Number of distinct n-grams of all lengths.
    pub fn n_ngrams(&self) -> usize {
        (1..=self.order()).map(|n| self.trie.level(n).token.len()).sum()
    }

    /// The state at the start of a document.
    pub fn start(&self) -> State {
        let mut state = State { nodes: vec![0] };
        self.step(&mut state, self.start);
        state
    }

    /// p(token | state); over the vocabulary these sum to 1.
    pub fn prob(&self, state: &State, token: u32) -> f64 {
        let mut p = 1.0 / self.trie.vocab_size() as f64;
        for (n, &node) in state.nodes.iter().enumerate() {
            p = self.interpolate(n, node, self.trie.child(n, node, token), p);
        }
        p
    }

    /// p(token | state), and moves the state past the token.
    pub fn step(&self, state: &mut State, token: u32) -> f64 {
        let mut p = 1.0 / self.trie.vocab_size() as f64;
        let mut nodes = Vec::with_capacity(self.order());
        nodes.push(0);
        for (n, &node) in state.nodes.iter().enumerate() {
            let child = self.trie.child(n, node, token);
            p = self.interpolate(n, node, child, p);
            if child != NONE && n + 1 < self.order() && nodes.len() == n + 1 {
                nodes.push(child);
            }
        }
        state.nodes = nodes;
        p
    }

    /// Adds the `n_per_context` likeliest followers of each matched context, longest first; may repeat.
    pub fn candidates(&self, state: &State, n_per_context: usize, out: &mut Vec<u32>) {
        for (n, &node) in state.nodes.iter().enumerate().skip(1).rev() {
            out.extend(self.top_children(n, node, n_per_context));
        }
        out.extend(self.top_unigrams.iter().take(n_per_context));
    }

    fn interpolate(&self, n: usize, node: u32, child: u32, lower: f64) -> f64 {
        let total = self.contexts[n].total[node as usize];
        if total == 0 {
            return lower;
        }
        let back_off = f64::from(self.contexts[n].back_off[node as usize]) * lower;
        if child == NONE {
            return back_off;
        }
        let count = self.trie.level(n + 1).count[child as usize];
        (f64::from(count) - discount(&self.discounts[n], count)) / f64::from(total) + back_off
    }

    fn top_children(&self, n: usize, node: u32, n_top: usize) -> Vec<u32> {
        let range = self.trie.children(n, node);
        let level = self.trie.level(n + 1);
        let mut top: Vec<(u32, u32)> = Vec::with_capacity(n_top + 1);
        for idx in range {
            let count = level.count[idx];
            if top.len() == n_top && top.last().is_some_and(|last| last.0 >= count) {
                continue;
            }
            let at = top.partition_point(|entry| entry.0 >= count);
            top.insert(at, (count, level.token[idx]));
            top.truncate(n_top);
        }
        top.into_iter().map(|entry| entry.1).collect()
    }
}

/// Chen and Goodman's three discounts from the counts of counts; 0.5, 1, 1.5 where the corpus is too small to say.
fn discounts_of(counts: &[u32]) -> [f64; 3] {
    let mut n = [0f64; 5];
    for &count in counts {
        if let Some(slot) = n.get_mut(count as usize) {
            *slot += 1.0;
        }
    }
    if n[1..].contains(&0.0) {
        return [0.5, 1.0, 1.5];
    }
    let y = n[1] / (n[1] + 2.0 * n[2]);
    [1, 2, 3].map(|k| (k as f64 - (k as f64 + 1.0) * y * n[k + 1] / n[k]).clamp(0.0, k as f64))
}

fn discount(discounts: &[f64; 3], count: u32) -> f64 {
    if count == 0 { 0.0 } else { discounts[count.min(3) as usize - 1].min(f64::from(count)) }
}

fn contexts_of(trie: &Trie, n: usize, discounts: &[f64; 3]) -> Contexts {
    let counts = &trie.level(n + 1).count;
    let n_nodes = trie.level(n).token.len();
    let mut contexts = Contexts { total: Vec::with_capacity(n_nodes), back_off: Vec::with_capacity(n_nodes) };
    for node in 0..n_nodes {
        let children = &counts[trie.children(n, node as u32)];
        let total: u64 = children.iter().map(|&count| u64::from(count)).sum();
        let discounted: f64 = children.iter().map(|&count| discount(discounts, count)).sum();
        contexts.total.push(u32::try_from(total).unwrap_or(u32::MAX));
        contexts.back_off.push(if total == 0 { 1.0 } else { (discounted / total as f64) as f32 });
    }
    contexts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Documents {
        let mut documents = Documents::default();
        documents.push(&[1, 2, 1, 2, 3]);
        documents.push(&[2, 1, 2]);
        documents
    }

    #[test]
    fn probabilities_sum_to_one_in_every_context() {
        for order in 2..=5 {
            let model = KneserNey::train(&documents(), order, 7, 6).unwrap();
            let mut state = model.start();
            for next in [1, 2, 1, 2, 3, 5, 1, 0, 2, 3] {
                let sum: f64 = (0..7).map(|token| model.prob(&state, token)).sum();
                assert!((sum - 1.0).abs() < 1e-6, "order {order} before {next}: {sum}");
                let p = model.prob(&state, next);
                assert_eq!(p, model.step(&mut state, next));
            }
        }
    }

    #[test]
    fn bigram_model_equals_the_hand_computed_one() {
        // Corpus <s>121 23 and <s>212, vocabulary 5 (start = 4). Discounts fall back to 0.5, 1, 1.5.
        // Unigram left-neighbour counts: 1 -> {<s>,2} = 2, 2 -> {1,<s>} = 2, 3 -> {2} = 1; total 5.
        // gamma() = (1 + 1 + 0.5) / 5 = 0.5;  p1(1) = 1/5 + 0.5/5 = 0.3, p1(2) = 0.3, p1(3) = 0.5/5 + 0.1 = 0.2.
        // After 2: 2 1 twice, 2 3 once: gamma = (1 + 0.5) / 3 = 0.5; p(1|2) = 1/3 + 0.5 * 0.3 = 0.48333...
        let model = KneserNey::train(&documents(), 2, 5, 4).unwrap();
        let mut state = model.start();
        model.step(&mut state, 2);
        assert!((model.prob(&state, 1) - (1.0 / 3.0 + 0.15)).abs() < 1e-7);
        assert!((model.prob(&state, 3) - (0.5 / 3.0 + 0.10)).abs() < 1e-7);
        assert!((model.prob(&state, 0) - 0.5 * 0.1).abs() < 1e-7);
        let root = State { nodes: vec![0] };
        assert!((model.prob(&root, 1) - 0.3).abs() < 1e-7);
    }

    #[test]
    fn discounts_follow_chen_and_goodman() {
        // n1 = 4, n2 = 2, n3 = 1, n4 = 1: Y = 0.5; D1 = 1 - 2*0.5*2/4 = 0.5, D2 = 2 - 3*0.5*1/2 = 1.25, D3 = 3 - 4*0.5 = 1.
        assert_eq!(discounts_of(&[1, 1, 1, 1, 2, 2, 3, 4, 9]), [0.5, 1.25, 1.0]);
    }

    #[test]
    fn candidates_hold_the_likeliest_token() {
        let model = KneserNey::train(&documents(), 3, 7, 6).unwrap();
        let mut state = model.start();
        model.step(&mut state, 1);
        let mut candidates = Vec::new();
        model.candidates(&state, 2, &mut candidates);
        let best = (0..7).max_by(|&a, &b| model.prob(&state, a).total_cmp(&model.prob(&state, b)));
        assert_eq!(candidates.first().copied(), best);
    }
}
