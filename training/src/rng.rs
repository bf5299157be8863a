//! A small seeded random generator whose whole state is one integer, so that it can be written into a checkpoint.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// SplitMix64 (Steele, Lea and Flood 2014): statistically sound for sampling data, not for cryptography.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator for one purpose: different `parts` of the same `seed` give independent streams.
    pub fn keyed(seed: u64, purpose: &str, parts: &[u64]) -> Rng {
        let mut key = purpose.as_bytes().to_vec();
        for part in parts {
            key.extend_from_slice(&part.to_le_bytes());
        }
        Rng { state: xxh3_64_with_seed(&key, seed) }
    }

    /// The next 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0.0..1.0`.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias of the multiply-shift reduction is below n / 2^64.
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// True with probability `frac`.
    pub fn chance(&mut self, frac: f64) -> bool {
        self.uniform() < frac
    }

    /// A random order of `0..n` (Fisher-Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for last in (1..n).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_streams_repeat_and_differ() {
        let draw = |purpose: &str, part: u64| Rng::keyed(7, purpose, &[part]).next_u64();
        assert_eq!(draw("a", 1), draw("a", 1));
        assert_ne!(draw("a", 1), draw("a", 2));
        assert_ne!(draw("a", 1), draw("b", 1));
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let mut order = Rng::keyed(1, "order", &[]).permutation(1000);
        assert_ne!(order[..4], [0, 1, 2, 3]);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(idx, value)| idx as u32 == *value));
    }
}
