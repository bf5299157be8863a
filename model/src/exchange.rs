//! Experts on other ranks: the seam through which a layer of experts reaches them, and the journey of its rows.
//!
//! Rows travel to the rank that has their expert and back by two all-to-all-v's (Lepikhin et al. 2020, arXiv 2006.16668); their
//! gradients take the same way backwards. A rank without rows, to send or to receive, takes part all the same: one row of padding,
//! which never leaves the rank, keeps both transfers in its graph, so that every rank does the same exchanges in the same order.

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, bail};

use crate::error::Result;
use crate::ops;

/// The ranks of a run, as a layer of experts sees them. All ranks call its functions in the same order.
pub trait ExpertExchange: Send + Sync + Debug {
    /// This rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn n_ranks(&self) -> usize;

    /// The rank that has each expert; `None` where every rank has all of them and rows stay at home.
    fn owner_of_expert(&self) -> Option<&[usize]>;

    /// Whether this rank's tokens are padding, there only to take part.
    fn is_idle(&self) -> bool;

    /// Replaces each value by its sum over all ranks.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn sum(&self, values: &mut [f64]) -> candle_core::Result<()>;

    /// Sends `parts[rank]` to each rank; returns what each sent here.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn send(&self, parts: Vec<Vec<f32>>) -> candle_core::Result<Vec<Vec<f32>>>;
}

/// How the rows of one layer travel in one forward pass.
pub(crate) struct Journey {
    transfer: Transfer,
    /// Rows that arrived, sorted by expert; the padding row last.
    sorted_A: Vec<u32>,
    /// Each expert of this rank and the number of its rows, in the order of `sorted_A`.
    pub(crate) stretches: Vec<(usize, usize)>,
}

impl Journey {
    /// Agrees with the other ranks on who sends how much; `counts_E` are this rank's rows for each expert.
    pub(crate) fn plan(exchange: &Arc<dyn ExpertExchange>, owner_E: &[usize], counts_E: &[f32]) -> Result<Journey> {
        let n_ranks = exchange.n_ranks();
        let rows = |counts_E: &[f32], rank: usize| -> usize {
            counts_E.iter().zip(owner_E).filter(|(_, owner)| **owner == rank).map(|(count, _)| *count as usize).sum()
        };
        let counts = exchange.send(vec![counts_E.to_vec(); n_ranks])?;
        let sent = (0..n_ranks).map(|rank| rows(counts_E, rank)).collect();
        let received = counts.iter().map(|counts_E| rows(counts_E, exchange.rank())).collect();
        let mine: Vec<usize> = (0..owner_E.len()).filter(|&e| owner_E[e] == exchange.rank()).collect();
        let (sorted_A, stretches) = by_expert(&mine, &counts);
        Ok(Journey { transfer: Transfer { exchange: exchange.clone(), sent, received }, sorted_A, stretches })
    }

    /// The rows for this rank's experts, sorted by expert, and a row of padding; from rows sorted by owner and then by expert, and
    /// a row of padding. Shape: `AD` -> `AD`, of another A.
    pub(crate) fn go(&self, x_AD: &Tensor) -> Result<Tensor> {
        let arrived_AD = self.transfer.run(x_AD)?;
        Ok(arrived_AD.index_select(&Tensor::new(self.sorted_A.as_slice(), x_AD.device())?, 0)?)
    }

    /// The rows of [`Journey::go`] back where they came from, and a row of padding.
    pub(crate) fn come_back(&self, y_AD: &Tensor) -> Result<Tensor> {
        let mut place_A = vec![0u32; self.sorted_A.len()];
        for (place, &row) in self.sorted_A.iter().enumerate() {
            place_A[row as usize] = place as u32;
        }
        let y_AD = y_AD.index_select(&Tensor::new(place_A, y_AD.device())?, 0)?;
        Ok(self.transfer.reversed().run(&y_AD)?)
    }
}

/// The order that sorts rows which arrive by sender, then expert, into rows by expert, then sender; and each expert's number of rows.
/// `mine` are the experts here, `counts` by sender the rows for every expert. The padding row comes last in both orders.
fn by_expert(mine: &[usize], counts: &[Vec<f32>]) -> (Vec<u32>, Vec<(usize, usize)>) {
    let mut n_rows = 0;
    let mut next = Vec::with_capacity(counts.len());
    for counts_E in counts {
        next.push(n_rows);
        n_rows += mine.iter().map(|&e| counts_E[e] as u32).sum::<u32>();
    }
    let (mut sorted_A, mut stretches) = (Vec::with_capacity(n_rows as usize + 1), Vec::new());
    for &e in mine {
        let before = sorted_A.len();
        for (next, counts_E) in next.iter_mut().zip(counts) {
            let n = counts_E[e] as u32;
            sorted_A.extend(*next..*next + n);
            *next += n;
        }
        stretches.push((e, sorted_A.len() - before));
    }
    sorted_A.push(n_rows);
    (sorted_A, stretches)
}

/// One all-to-all-v of rows as a differentiable operation; its gradient is the reversed one.
#[derive(Clone)]
struct Transfer {
    exchange: Arc<dyn ExpertExchange>,
    /// Rows to each rank.
    sent: Vec<usize>,
    /// Rows from each rank.
    received: Vec<usize>,
}

impl Transfer {
    fn reversed(&self) -> Transfer {
        Transfer { exchange: self.exchange.clone(), sent: self.received.clone(), received: self.sent.clone() }
    }

    /// Rows travel through the host's memory, whatever device they live on.
    fn run(&self, x_AD: &Tensor) -> candle_core::Result<Tensor> {
        let device = x_AD.device();
        x_AD.to_device(&Device::Cpu)?.contiguous()?.apply_op1(self.clone())?.to_device(device)
    }

    /// `values` are rows of `d`, the last one padding; so are the rows that it returns.
    fn exchange(&self, values: &[f32], d: usize) -> candle_core::Result<Vec<f32>> {
        let n_sent: usize = self.sent.iter().sum();
        if values.len() != (n_sent + 1) * d {
            bail!("expert exchange: {} values, expected {} rows of {d} and one of padding", values.len(), n_sent);
        }
        let mut rest = values;
        let mut take = |rows: usize| {
            let (part, tail) = rest.split_at(rows * d);
            rest = tail;
            part.to_vec()
        };
        let parts = self.sent.iter().map(|&rows| take(rows)).collect();
        let mut arrived = Vec::with_capacity((self.received.iter().sum::<usize>() + 1) * d);
        for (rank, (part, &rows)) in self.exchange.send(parts)?.iter().zip(&self.received).enumerate() {
            if part.len() != rows * d {
                bail!("expert exchange: {} values from rank {rank}, expected {rows} rows of {d}", part.len());
            }
            arrived.extend_from_slice(part);
        }
        arrived.resize(arrived.len() + d, 0.0);
        Ok(arrived)
    }
}

impl CustomOp1 for Transfer {
    fn name(&self) -> &'static str {
        "expert_exchange"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, d) = layout.shape().dims2()?;
        let arrived = self.exchange(ops::slice(storage, layout, "expert_exchange")?, d)?;
        let shape = Shape::from((arrived.len() / d, d));
        Ok((CpuStorage::F32(arrived), shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy_AD: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, d) = dy_AD.dims2()?;
        let back = ops::with_values(dy_AD, "expert_exchange", |dy| self.reversed().exchange(dy, d))?;
        let rows = back.len() / d;
        Ok(Some(Tensor::from_vec(back, (rows, d), dy_AD.device())?))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::lm::{Batch, CodeLm};
    use crate::router::RouterConfig;

    /// A rank that hears of no other, and sends everything to itself.
    #[derive(Debug)]
    pub(crate) struct FakeRank {
        pub(crate) rank: usize,
        pub(crate) owner_of_expert: Vec<usize>,
    }

    impl ExpertExchange for FakeRank {
        fn rank(&self) -> usize {
            self.rank
        }

        fn n_ranks(&self) -> usize {
            1 + self.owner_of_expert.iter().max().unwrap_or(&0)
        }

        fn owner_of_expert(&self) -> Option<&[usize]> {
            Some(&self.owner_of_expert)
        }

        fn is_idle(&self) -> bool {
            false
        }

        fn sum(&self, _values: &mut [f64]) -> candle_core::Result<()> {
            Ok(())
        }

        fn send(&self, parts: Vec<Vec<f32>>) -> candle_core::Result<Vec<Vec<f32>>> {
            Ok(parts)
        }
    }

    #[test]
    fn rows_from_two_senders_are_sorted_by_expert() {
        // Experts 1 and 2 are here. Sender 0 has rows 0 (for 1), 1, 2 (for 2); sender 1 has rows 3, 4 (for 1).
        let (sorted_A, stretches) = by_expert(&[1, 2], &[vec![9.0, 1.0, 2.0], vec![4.0, 2.0, 0.0]]);
        assert_eq!(sorted_A, [0, 3, 4, 1, 2, 5]);
        assert_eq!(stretches, [(1, 3), (2, 2)]);
    }

    #[test]
    fn rows_that_travel_give_the_loss_and_the_gradients_of_rows_that_stay() {
        for router in RouterConfig::all() {
            let mut lm = CodeLm::init(&tiny(Some(router.clone())), 1, &Device::Cpu).unwrap();
            let ids = |seed: u32| vec![(0..12).map(|i| i * 7 % 90 + seed).collect::<Vec<u32>>()];
            let batch = Batch {
                x_BL: Tensor::new(ids(1), &Device::Cpu).unwrap(),
                y_BL: Tensor::new(ids(2), &Device::Cpu).unwrap(),
                language_BL: (0..12).map(|i| i % 3).collect(),
                start_BL: None,
                training: None,
            };
            let run = |lm: &CodeLm| {
                let output = lm.loss(&batch, 12.0).unwrap();
                let mut gradients = crate::Gradients::of(lm);
                let grads = output.loss.backward().unwrap();
                for (idx, (_, var)) in lm.parameters().iter().enumerate() {
                    grads.get(var).map_or(Ok(()), |grad| gradients.add(idx, grad)).unwrap();
                }
                (output.nll_sum, gradients)
            };
            let (stayed_nll, stayed) = run(&lm);
            lm.set_exchange(Some(Arc::new(FakeRank { rank: 0, owner_of_expert: vec![0; 4] })));
            let (travelled_nll, travelled) = run(&lm);
            assert!((stayed_nll - travelled_nll).abs() < 1e-4, "{}", router.name());
            for idx in 0..stayed.n_parameters() {
                assert_eq!(stayed.is_present(idx), travelled.is_present(idx), "{} {idx}", router.name());
            }
            let difference = stayed.values().iter().zip(travelled.values()).map(|(a, b)| (a - b).abs());
            assert!(difference.fold(0.0, f32::max) < 1e-5, "{}", router.name());
        }
    }
}
