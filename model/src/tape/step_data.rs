//! What a step works on: ids, targets and plans, on the host. An executor takes them to its device.

use std::ops::Range;

use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::lm::{Batch, bigram_bucket, check_ids, language_rows};
use crate::router::{Aux, Plan};

/// One batch as a tape reads it; everything is row-major B·L.
#[derive(Clone, Debug, Default)]
pub struct StepData {
    pub b: usize,
    pub l: usize,
    pub id_N: Vec<u32>,
    /// Rows of the bigram table; empty without one.
    pub bucket_N: Vec<u32>,
    /// Rows of the table of languages; empty without one.
    pub language_N: Vec<u32>,
    pub target_N: Vec<u32>,
    /// The first position of its sequence that each token sees; none for the first of all.
    pub start_N: Option<Vec<u32>>,
    /// The plan of each layer with experts.
    pub plans: Vec<HostPlan>,
}

/// A router's plan on the host, with its assignments in the order in which experts compute them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostPlan {
    pub token_A: Vec<u32>,
    /// Runs of assignments to one expert: the expert and their number.
    pub runs: Vec<(usize, usize)>,
    /// Where each assignment stands in the router's plan.
    pub order_A: Vec<u32>,
    pub weight_A: Option<Vec<f32>>,
    pub shared_weight_N: Option<Vec<f32>>,
    /// Whether assignment `a` is that of token `a` for every token.
    pub in_place: bool,
    /// Share of the assignments that each expert had.
    pub load_E: Vec<f32>,
}

/// Runs of fewer rows than this on average are not worth a product of their own: assignments are then sorted by expert.
const MIN_RUN: usize = 32;

impl HostPlan {
    /// # Errors
    /// A failing device.
    pub fn new(plan: &Plan, aux: &Aux, n_tokens: usize, n_experts: usize) -> Result<HostPlan> {
        let a = plan.token_A.len();
        let is_identity = a == n_tokens && plan.token_A.iter().enumerate().all(|(a, &token)| a == token as usize);
        let mut order_A: Vec<u32> = (0..a as u32).collect();
        let in_place = is_identity && runs(&plan.expert_A).len() * MIN_RUN <= a;
        if !in_place {
            order_A.sort_by_key(|&a| plan.expert_A[a as usize]);
        }
        let ordered = |values: &[u32]| -> Vec<u32> { order_A.iter().map(|&a| values[a as usize]).collect() };
        let weight_A = match &plan.weight_A {
            Some(weight_A) => {
                let weight_A = weight_A.to_vec1::<f32>()?;
                Some(order_A.iter().map(|&a| weight_A[a as usize]).collect())
            }
            None => None,
        };
        let shared_weight_N = plan.shared_weight_N.as_ref().map(|weight_N| weight_N.to_vec1::<f32>()).transpose()?;
        let runs = runs(&ordered(&plan.expert_A));
        let load_E = aux.load(plan, n_experts);
        let token_A = ordered(&plan.token_A);
        Ok(HostPlan { token_A, runs, order_A, weight_A, shared_weight_N, in_place, load_E })
    }

    /// The largest plan of a router that reads the tokens: what a tape is recorded for before there is a plan.
    pub(super) fn largest(moe: &MoeConfig, language_N: &[u32]) -> HostPlan {
        let shared_weight_N = moe.weighs_shared().then(Vec::new);
        let n_assignments = moe.router.max_assignments(language_N, moe);
        HostPlan { token_A: vec![0; n_assignments], shared_weight_N, ..HostPlan::default() }
    }

    /// Whether experts read and write the tokens' own rows, with no weights.
    pub fn is_plain(&self) -> bool {
        self.in_place && self.weight_A.is_none()
    }

    /// The expert of all tokens, if they have one and no other, and assignments are in their order.
    pub(crate) fn only_expert(&self, n_tokens: usize) -> Option<usize> {
        let [(expert, n)] = self.runs[..] else { return None };
        let in_order = || self.token_A.iter().zip(0u32..).all(|(token, n)| *token == n);
        (n == n_tokens && in_order()).then_some(expert)
    }

    /// The weight of an assignment's output.
    pub(crate) fn weight(&self, a: usize) -> f32 {
        self.weight_A.as_ref().map_or(1.0, |weight_A| weight_A[a])
    }

    /// The rows of each run, with its expert.
    pub(super) fn stretches(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        self.runs.iter().scan(0, |start, &(expert, n_rows)| {
            let rows = *start..*start + n_rows;
            *start = rows.end;
            Some((expert, rows))
        })
    }
}

/// Runs of equal experts: expert and length.
fn runs(expert_A: &[u32]) -> Vec<(usize, usize)> {
    expert_A.chunk_by(|a, b| a == b).map(|run| (run[0] as usize, run.len())).collect()
}

impl StepData {
    /// Everything but the plans, which the routers make.
    ///
    /// # Errors
    /// Ids beyond the vocabulary.
    pub(crate) fn new(config: &ModelConfig, batch: &Batch) -> Result<StepData> {
        let (b, l) = batch.x_BL.dims2()?;
        let id_N = batch.x_BL.flatten_all()?.to_vec1::<u32>()?;
        let target_N = batch.y_BL.flatten_all()?.to_vec1::<u32>()?;
        check_ids(&id_N, config.vocab_size)?;
        let counted: Vec<u32> = target_N.iter().copied().filter(|&id| id != crate::IGNORE_ID).collect();
        check_ids(&counted, config.vocab_size)?;
        let before = |n: usize| if n.is_multiple_of(l) { 0 } else { id_N[n - 1] };
        let bucket_N = match config.bigram_buckets as u32 {
            0 => Vec::new(),
            buckets => (0..id_N.len()).map(|n| bigram_bucket(before(n), id_N[n], buckets)).collect(),
        };
        let language_N = match config.language_embedding {
            true => language_rows(&batch.language_BL, config.languages.len())?,
            false => Vec::new(),
        };
        Ok(StepData { b, l, id_N, bucket_N, language_N, target_N, start_N: batch.start_BL.clone(), plans: Vec::new() })
    }
}
