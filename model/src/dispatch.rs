//! Four ways of computing a layer of experts, forward and backward on slices, to compare: what a tape does is [`Dispatch::Grouped`].
//!
//! Gale et al. 2023 (MegaBlocks, arXiv 2211.15841): tokens are brought into the order of their experts (permute), experts multiply
//! stretches of rows, and rows go back to their tokens (unpermute). The ways differ in which rows a product has; none but the padded one
//! drops a token. A network is `down(relu(up x)^2)`, and a token has one expert, with weight 1.

use std::ops::Range;

use crate::config::check;
use crate::error::{Error, Result};
use crate::ops;

/// Which rows a product has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dispatch {
    /// One token: the definition.
    Naive,
    /// A capacity of `factor` times the mean load, for every expert: filled up with zeros, and tokens beyond it are dropped.
    Padded { factor: f64 },
    /// All of an expert's tokens, none more.
    Grouped,
    /// `block` of an expert's tokens: its rows are filled up to whole blocks, the non-zero ones of a block-sparse matrix.
    BlockSparse { block: usize },
}

/// The experts' weights: `up_EFD` and `down_EDF`.
#[derive(Clone, Copy, Debug)]
pub struct ExpertMatrices<'a> {
    pub n_experts: usize,
    pub d: usize,
    pub f: usize,
    pub up_EFD: &'a [f32],
    pub down_EDF: &'a [f32],
}

/// What a layer says, and its gradients.
#[derive(Clone, Debug, Default)]
pub struct LayerOutput {
    pub y_ND: Vec<f32>,
    pub dx_ND: Vec<f32>,
    pub dup_EFD: Vec<f32>,
    pub ddown_EDF: Vec<f32>,
    /// Rows that were multiplied, those of zeros too.
    pub n_rows: usize,
    pub n_dropped: usize,
}

/// Rows of products: the token of each, none for zeros, and the stretches that one expert multiplies.
struct Rows {
    tokens: Vec<Option<u32>>,
    tiles: Vec<(usize, Range<usize>)>,
    n_dropped: usize,
}

impl Dispatch {
    /// The name in tables.
    pub fn name(&self) -> String {
        match self {
            Dispatch::Naive => "one token at a time".to_owned(),
            Dispatch::Padded { factor } => format!("capacity {factor}"),
            Dispatch::Grouped => "grouped".to_owned(),
            Dispatch::BlockSparse { block } => format!("blocks of {block}"),
        }
    }

    /// The layer on tokens `x_ND` with the experts `expert_N`, and its gradients where `dy_ND` is that of its output.
    ///
    /// # Errors
    /// Lengths that do not fit; an expert that is none.
    pub fn run(&self, x_ND: &[f32], expert_N: &[u32], experts: &ExpertMatrices, dy_ND: &[f32]) -> Result<LayerOutput> {
        let ExpertMatrices { n_experts, d, f, up_EFD, down_EDF } = *experts;
        let (n, w) = (expert_N.len(), n_experts * d * f);
        for (name, got, expected) in [
            ("x_ND", x_ND.len(), n * d),
            ("dy_ND", dy_ND.len(), n * d),
            ("up_EFD", up_EFD.len(), w),
            ("down_EDF", down_EDF.len(), w),
        ] {
            check(got == expected, name, got, &format!("{expected} values"))?;
        }
        if let Some(expert) = expert_N.iter().find(|&&expert| expert as usize >= n_experts) {
            return Err(Error::Input(format!("expert {expert}: expected one below {n_experts}")));
        }
        let rows = self.rows(expert_N, n_experts)?;
        Ok(rows.compute(x_ND, experts, dy_ND))
    }

    fn rows(&self, expert_N: &[u32], n_experts: usize) -> Result<Rows> {
        let n = expert_N.len();
        let mut by_expert = vec![Vec::new(); n_experts];
        (0..).zip(expert_N).for_each(|(token, &expert)| by_expert[expert as usize].push(token));
        // How many rows an expert has, and how many one product of it has at most.
        let (room, tile): (Box<dyn Fn(usize) -> usize>, usize) = match *self {
            Dispatch::Naive => {
                let tiles = expert_N.iter().enumerate().map(|(row, &expert)| (expert as usize, row..row + 1));
                return Ok(Rows { tokens: (0..n as u32).map(Some).collect(), tiles: tiles.collect(), n_dropped: 0 });
            }
            Dispatch::Padded { factor } => {
                check(factor > 0.0 && factor.is_finite(), "factor", factor, "a positive number")?;
                let capacity = (n as f64 / n_experts as f64 * factor).ceil() as usize;
                (Box::new(move |_| capacity), capacity)
            }
            Dispatch::Grouped => (Box::new(|load| load), n),
            Dispatch::BlockSparse { block } => {
                check(block > 0, "block", block, "a positive number")?;
                (Box::new(move |load| load.next_multiple_of(block)), block)
            }
        };
        let (mut tokens, mut tiles, mut n_dropped) = (Vec::new(), Vec::new(), 0);
        for (expert, own) in by_expert.iter().enumerate() {
            let (start, room) = (tokens.len(), room(own.len()));
            n_dropped += own.len().saturating_sub(room);
            tokens.extend(own.iter().take(room).map(|&token| Some(token)));
            tokens.resize(start + room, None);
            let of_tile = |first: usize| (expert, first..(first + tile).min(start + room));
            tiles.extend((start..start + room).step_by(tile.max(1)).map(of_tile));
        }
        Ok(Rows { tokens, tiles, n_dropped })
    }
}

impl Rows {
    fn compute(&self, x_ND: &[f32], experts: &ExpertMatrices, dy_ND: &[f32]) -> LayerOutput {
        let ExpertMatrices { d, f, up_EFD, down_EDF, .. } = *experts;
        let n_rows = self.tokens.len();
        let (x, mut dy) = (self.permute(x_ND, d), self.permute(dy_ND, d));
        let [mut up, mut act, mut dact] = [0; 3].map(|_| vec![0f32; n_rows * f]);
        let mut y = vec![0f32; n_rows * d];
        let [mut dup_EFD, mut ddown_EDF] = [0; 2].map(|_| vec![0f32; up_EFD.len()]);
        for (expert, rows) in &self.tiles {
            let (wide, narrow) = (rows.start * f..rows.end * f, rows.start * d..rows.end * d);
            let w = expert * d * f..(expert + 1) * d * f;
            ops::linear_forward(
                &x[narrow.clone()],
                &up_EFD[w.clone()],
                (rows.len(), d),
                (&mut up[wide.clone()], false),
            );
            ops::relu2_forward(&up[wide.clone()], &mut act[wide.clone()]);
            ops::linear_forward(&act[wide], &down_EDF[w], (rows.len(), f), (&mut y[narrow], false));
        }
        for (expert, rows) in &self.tiles {
            let (wide, narrow) = (rows.start * f..rows.end * f, rows.start * d..rows.end * d);
            let (w, n) = (expert * d * f..(expert + 1) * d * f, rows.len());
            let dact = &mut dact[wide.clone()];
            ops::linear_grad_input(&dy[narrow.clone()], &down_EDF[w.clone()], (n, d), (dact, false));
            ops::linear_grad_weight(&act[wide.clone()], &dy[narrow.clone()], (n, d), (&mut ddown_EDF[w.clone()], true));
            ops::relu2_backward(&up[wide], dact);
            ops::linear_grad_weight(&x[narrow.clone()], dact, (n, f), (&mut dup_EFD[w.clone()], true));
            // The gradient of the output is of no more use: that of the input takes its place.
            ops::linear_grad_input(dact, &up_EFD[w], (n, f), (&mut dy[narrow], false));
        }
        let [y_ND, dx_ND] = [&y, &dy].map(|rows| self.unpermute(rows, x_ND.len(), d));
        LayerOutput { y_ND, dx_ND, dup_EFD, ddown_EDF, n_rows, n_dropped: self.n_dropped }
    }

    /// Shape: `ND` -> rows of `d`.
    fn permute(&self, x_ND: &[f32], d: usize) -> Vec<f32> {
        let mut rows = vec![0f32; self.tokens.len() * d];
        for (row, token) in rows.chunks_exact_mut(d).zip(&self.tokens) {
            if let Some(token) = token {
                row.copy_from_slice(&x_ND[*token as usize * d..][..d]);
            }
        }
        rows
    }

    /// Zeros for tokens without a row.
    fn unpermute(&self, rows: &[f32], n_values: usize, d: usize) -> Vec<f32> {
        let mut x_ND = vec![0f32; n_values];
        for (row, token) in rows.chunks_exact(d).zip(&self.tokens) {
            if let Some(token) = token {
                x_ND[*token as usize * d..][..d].copy_from_slice(row);
            }
        }
        x_ND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::values;

    const D: usize = 24;
    const F: usize = 40;
    const E: usize = 5;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        values(&[n], seed).to_vec1().unwrap()
    }

    fn run(dispatch: Dispatch, expert_N: &[u32]) -> LayerOutput {
        let n = expert_N.len() * D;
        let [up_EFD, down_EDF] = [3, 4].map(|seed| numbers(E * D * F, seed));
        let experts = ExpertMatrices { n_experts: E, d: D, f: F, up_EFD: &up_EFD, down_EDF: &down_EDF };
        dispatch.run(&numbers(n, 1), expert_N, &experts, &numbers(n, 2)).unwrap()
    }

    fn assert_same(got: &LayerOutput, expected: &LayerOutput, what: &str) {
        let parts = |of: &LayerOutput| [of.y_ND.clone(), of.dx_ND.clone(), of.dup_EFD.clone(), of.ddown_EDF.clone()];
        for (got, expected) in parts(got).iter().zip(parts(expected)) {
            let largest = expected.iter().fold(1f32, |largest, x| largest.max(x.abs()));
            let difference = got.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(difference < 1e-4 * largest, "{what}: {difference} of {largest}");
        }
    }

    #[test]
    fn every_way_is_the_loop_over_tokens_whatever_the_loads() {
        let mixed: Vec<u32> = (0..97).map(|i| (i * i + i / 3) % E as u32).collect();
        let empty: Vec<u32> = mixed.iter().map(|expert| if *expert == 2 { 4 } else { *expert }).collect();
        for (loads, expert_N) in
            [("mixed", mixed), ("an empty expert", empty), ("all in one", vec![3; 50]), ("one token", vec![1])]
        {
            let expected = run(Dispatch::Naive, &expert_N);
            assert_eq!((expected.n_rows, expected.n_dropped), (expert_N.len(), 0));
            let blocks = [1, 16, 64].map(|block| Dispatch::BlockSparse { block });
            for dispatch in [Dispatch::Grouped, Dispatch::Padded { factor: E as f64 }].into_iter().chain(blocks) {
                let got = run(dispatch, &expert_N);
                assert_eq!(got.n_dropped, 0, "{loads}, {}", dispatch.name());
                assert_same(&got, &expected, &format!("{loads}, {}", dispatch.name()));
            }
            assert_eq!(run(Dispatch::Grouped, &expert_N).n_rows, expert_N.len(), "{loads}: no row of zeros");
        }
    }

    #[test]
    fn a_capacity_drops_what_comes_last_and_blocks_fill_up() {
        // Ten tokens, five experts: room for two each.
        let expert_N = [0, 0, 0, 0, 1, 1, 1, 2, 3, 3];
        let got = run(Dispatch::Padded { factor: 1.0 }, &expert_N);
        assert_eq!((got.n_rows, got.n_dropped), (10, 3));
        let is_dropped = |token: usize| got.y_ND[token * D..][..D].iter().all(|y| *y == 0.0);
        assert_eq!((0..10).filter(|token| is_dropped(*token)).collect::<Vec<_>>(), [2, 3, 6]);
        assert_eq!(run(Dispatch::BlockSparse { block: 4 }, &expert_N).n_rows, 16);
    }

    #[test]
    fn gradients_are_the_slopes_of_the_output() {
        let expert_N = [0, 1, 0, 4];
        let (x_ND, dy_ND) = (numbers(4 * D, 1), numbers(4 * D, 2));
        let [mut up_EFD, down_EDF] = [3, 4].map(|seed| numbers(E * D * F, seed));
        let loss = |up_EFD: &[f32], x_ND: &[f32]| -> f64 {
            let experts = ExpertMatrices { n_experts: E, d: D, f: F, up_EFD, down_EDF: &down_EDF };
            let y_ND = Dispatch::Grouped.run(x_ND, &expert_N, &experts, &dy_ND).unwrap().y_ND;
            y_ND.iter().zip(&dy_ND).map(|(y, dy)| f64::from(y * dy)).sum()
        };
        let got = run(Dispatch::Grouped, &expert_N);
        let step = 1e-2f32;
        for at in [0, 17, D * F + 5] {
            let before = loss(&up_EFD, &x_ND);
            up_EFD[at] += step;
            let slope = (loss(&up_EFD, &x_ND) - before) / f64::from(step);
            up_EFD[at] -= step;
            assert!(
                (slope - f64::from(got.dup_EFD[at])).abs() < 0.05 * slope.abs().max(1.0),
                "{slope} {}",
                got.dup_EFD[at]
            );
        }
        assert_eq!(
            &got.dup_EFD[2 * D * F..4 * D * F],
            &vec![0f32; 2 * D * F],
            "experts without tokens have no gradient"
        );
    }

    #[test]
    fn wrong_sizes_and_experts_are_named() {
        let experts = ExpertMatrices { n_experts: 1, d: 2, f: 1, up_EFD: &[1.0, 1.0], down_EDF: &[1.0, 1.0] };
        let error = Dispatch::Grouped.run(&[1.0], &[0], &experts, &[1.0, 1.0]).unwrap_err().to_string();
        assert!(error.contains("x_ND = 1: expected 2 values"), "{error}");
        let error = Dispatch::Grouped.run(&[1.0, 1.0], &[1], &experts, &[1.0, 1.0]).unwrap_err().to_string();
        assert!(error.contains("expert 1: expected one below 1"), "{error}");
    }
}
