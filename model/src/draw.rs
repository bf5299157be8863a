//! Random numbers of a training step, by counter: a function of seed, step, layer, token and purpose alone.
//!
//! (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".) So every rank and thread draws the same ones however the batch is
//! divided, and a layer that is computed a second time draws what it drew before.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The purpose of numbers that make hidden values of experts zero.
pub(crate) const DROPOUT: &str = "expert dropout of hidden values";

/// Which step of which run is computed; a batch that has none is only measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepKey {
    pub seed: u64,
    pub step: u64,
}

/// The numbers of one step for the tokens of one batch.
#[derive(Clone, Debug)]
pub struct Draw {
    key: StepKey,
    /// By token: a hash of its row's ids and its place there.
    token_N: Vec<u64>,
}

/// The numbers of one layer with experts.
#[derive(Clone, Copy, Debug)]
pub struct LayerDraw<'a> {
    key: StepKey,
    layer: u64,
    token_N: &'a [u64],
}

impl Draw {
    /// For rows of `l` ids.
    pub fn new(key: StepKey, id_N: &[u32], l: usize) -> Draw {
        let row = |ids: &[u32]| {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            xxh3_64(&bytes)
        };
        let tokens = id_N.chunks(l.max(1)).flat_map(|ids| {
            let row = row(ids);
            (0..ids.len() as u64).map(move |place| mix(row, place))
        });
        Draw { key, token_N: tokens.collect() }
    }

    /// Of the layer that is the `moe`-th with experts.
    pub fn layer(&self, moe: usize) -> LayerDraw<'_> {
        LayerDraw { key: self.key, layer: moe as u64, token_N: &self.token_N }
    }
}

/// The numbers that one layer draws for one purpose; all uniform in [0, 1).
#[derive(Clone, Copy, Debug)]
pub struct Stream<'a> {
    purpose: u64,
    draw: LayerDraw<'a>,
}

impl<'a> LayerDraw<'a> {
    /// The step that is computed, from 0.
    pub fn step(&self) -> u64 {
        self.key.step
    }

    /// The numbers for a purpose, which tells them from those for others.
    pub fn stream(&self, purpose: &str) -> Stream<'a> {
        Stream { purpose: xxh3_64_with_seed(purpose.as_bytes(), self.key.seed), draw: *self }
    }
}

impl Stream<'_> {
    /// The same for all layers and tokens of a step.
    pub fn step(&self) -> f32 {
        self.number(self.draw.key.step, u64::MAX, 0)
    }

    /// The same for all tokens of a layer.
    pub fn layer(&self) -> f32 {
        self.number(self.draw.key.step, self.draw.layer, 0)
    }

    /// The same for all tokens of a layer in a stretch of `period` steps; `index` tells several apart.
    pub fn period(&self, period: u64, index: u64) -> f32 {
        self.number(self.draw.key.step / period.max(1), self.draw.layer, index)
    }

    /// Of token `n`; `index` tells several apart.
    pub fn token(&self, n: usize, index: usize) -> f32 {
        self.number(self.draw.key.step, self.draw.layer, mix(self.draw.token_N[n], index as u64))
    }

    /// What hidden value `f` of expert `expert`, of width `width`, is multiplied by for token `n`: 0 with the chance `p`, else `1 / (1 - p)`.
    pub(crate) fn keep(&self, n: usize, (expert, f): (usize, usize), width: usize, p: f64) -> f32 {
        if self.token(n, expert * width + f) < p as f32 { 0.0 } else { (1.0 / (1.0 - p)) as f32 }
    }

    fn number(&self, step: u64, layer: u64, index: u64) -> f32 {
        let bits = mix(mix(mix(self.purpose, step), layer), index);
        // 24 bits are all that a float32 below 1 holds.
        (bits >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// One round of splitmix64 (Steele et al. 2014) over two numbers.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_and_depend_on_nothing_but_their_names() {
        let ids: Vec<u32> = (0..4000).collect();
        let draw = |step| Draw::new(StepKey { seed: 1, step }, &ids, 100);
        let first = draw(7);
        let numbers: Vec<f32> = (0..4000).map(|n| first.layer(0).stream("test").token(n, 0)).collect();
        assert!(numbers.iter().all(|x| (0.0..1.0).contains(x)));
        for (low, high) in [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)] {
            let share = numbers.iter().filter(|x| (low..high).contains(*x)).count();
            assert!((900..1100).contains(&share), "{share} of 4000 from {low} to {high}");
        }
        // Rows of the second half alone, as another thread has them.
        let half = Draw::new(StepKey { seed: 1, step: 7 }, &ids[2000..], 100);
        assert_eq!(half.layer(0).stream("test").token(5, 0), numbers[2005]);
        let other = [
            draw(8).layer(0).stream("test").token(0, 0),
            first.layer(1).stream("test").token(0, 0),
            first.layer(0).stream("else").token(0, 0),
            first.layer(0).stream("test").token(0, 1),
        ];
        assert!(other.iter().all(|x| *x != numbers[0]));
        assert_eq!(first.layer(0).stream("coin").step(), half.layer(3).stream("coin").step());
    }
}
