//! Who chooses the experts: the seam (`Router` -> `Plan`) and the one table of routers.
//!
//! A router is one file in `router/` and one row of the table below. It never touches an expert; `moe.rs` knows no router.

use std::fmt::Debug;

use candle_core::{Device, Tensor};

use crate::config::{ModelConfig, MoeConfig};
use crate::draw::LayerDraw;
use crate::error::Result;
use crate::exchange::ExpertExchange;
use crate::methods::methods;
use crate::params::Params;

/// What a router may look at besides the tokens' values; tokens are row-major B·L.
#[derive(Clone, Copy, Default)]
pub struct RouterContext<'a> {
    /// Id of each token.
    pub id_N: &'a [u32],
    /// Language index of each token, [`crate::UNKNOWN_LANGUAGE`] for none.
    pub language_N: &'a [u32],
    /// Random numbers of a step of training; none where a model is measured or served.
    pub draw: Option<LayerDraw<'a>>,
    /// Experts that may be chosen; none for all.
    pub allowed_E: Option<&'a [bool]>,
    /// Those that route the rest of the batch at the same time; none where this is all of it.
    pub exchange: Option<&'a dyn ExpertExchange>,
}

impl RouterContext<'_> {
    /// Share of the assignments that each of `n_experts` has in the whole batch: a product of means is not the mean of products.
    ///
    /// # Errors
    /// A rank that does not answer.
    pub fn shares(&self, expert_A: &[u32], n_experts: usize) -> Result<Vec<f32>> {
        let mut counts_E = vec![0f64; n_experts];
        let is_idle = self.exchange.is_some_and(|exchange| exchange.is_idle());
        let counted_A = if is_idle { &[] } else { expert_A };
        counted_A.iter().for_each(|&expert| counts_E[expert as usize] += 1.0);
        if let Some(exchange) = self.exchange {
            exchange.sum(&mut counts_E)?;
        }
        let n = counts_E.iter().sum::<f64>().max(1.0);
        Ok(counts_E.iter().map(|count| (count / n) as f32).collect())
    }
}

/// What a router decides, as plain data: which token goes to which expert, with what weight.
pub struct Plan {
    pub token_A: Vec<u32>,
    pub expert_A: Vec<u32>,
    /// Combine weight of each assignment, on the device and differentiable; `None` means 1.
    pub weight_A: Option<Tensor>,
    /// Weight of the shared expert's output for each token; `None` means 1.
    pub shared_weight_N: Option<Tensor>,
}

impl Plan {
    /// Multiplies the weight of each assignment. Shape of `factor_A`: `A`.
    pub(crate) fn weigh(&mut self, factor_A: &Tensor) -> Result<()> {
        self.weight_A = Some(match &self.weight_A {
            Some(weight_A) => weight_A.mul(factor_A)?,
            None => factor_A.clone(),
        });
        Ok(())
    }

    /// Multiplies the weight of every assignment.
    pub(crate) fn scale(&mut self, factor: f64) -> Result<()> {
        let device = self.weight_A.as_ref().map_or(&Device::Cpu, |weight_A| weight_A.device());
        self.weigh(&Tensor::full(factor as f32, self.token_A.len(), device)?)
    }

    /// Gives the experts of a token `gate` of its output, and the shared expert the rest. Shape: `N`.
    pub(crate) fn share_out(&mut self, gate_N: &Tensor) -> Result<()> {
        if !self.token_A.is_empty() {
            let token_A = Tensor::new(self.token_A.as_slice(), gate_N.device())?;
            self.weigh(&gate_N.index_select(&token_A, 0)?)?;
        }
        let rest_N = gate_N.affine(-1.0, 1.0)?;
        self.shared_weight_N = Some(match &self.shared_weight_N {
            Some(weight_N) => weight_N.mul(&rest_N)?,
            None => rest_N,
        });
        Ok(())
    }

    /// Every token meets each of `e` experts, all with the same weight.
    pub(crate) fn mean_of_all(n: usize, e: usize, device: &Device) -> Result<Plan> {
        let (token_A, expert_A) = (0..(n * e) as u32).map(|a| (a / e as u32, a % e as u32)).unzip();
        let weight_A = Some(Tensor::full(1.0 / e as f32, n * e, device)?);
        Ok(Plan { token_A, expert_A, weight_A, shared_weight_N: None })
    }

    /// Keeps the assignments for which `keeps` says so.
    pub(crate) fn retain(&mut self, keeps: &[bool]) -> Result<()> {
        let kept: Vec<u32> = (0..keeps.len() as u32).filter(|&a| keeps[a as usize]).collect();
        if kept.len() == keeps.len() {
            return Ok(());
        }
        if kept.is_empty() {
            self.drop_assignments();
            return Ok(());
        }
        let take = |values: &[u32]| kept.iter().map(|&a| values[a as usize]).collect();
        (self.token_A, self.expert_A) = (take(&self.token_A), take(&self.expert_A));
        if let Some(weight_A) = &self.weight_A {
            let kept = Tensor::new(kept.as_slice(), weight_A.device())?;
            self.weight_A = Some(weight_A.index_select(&kept, 0)?);
        }
        Ok(())
    }

    /// Leaves no token any expert: padding must not give one a gradient, not even of zeros.
    pub(crate) fn drop_assignments(&mut self) {
        (self.token_A, self.expert_A, self.weight_A) = (Vec::new(), Vec::new(), None);
    }

    /// Share of the assignments that each expert has; sums to 1 unless there are none.
    pub fn load(&self, n_experts: usize) -> Vec<f32> {
        let mut load_E = vec![0f32; n_experts];
        for &expert in &self.expert_A {
            load_E[expert as usize] += 1.0 / self.expert_A.len() as f32;
        }
        load_E
    }
}

/// What a router has to say besides its plan.
#[derive(Default)]
pub struct Aux {
    /// Added to the loss as it is (already multiplied by its coefficient), a scalar.
    pub loss: Option<Tensor>,
    /// What the choice was made by; none where it was made by language, by hash or by lot.
    pub scores: Option<Scores>,
    /// Share of the router's assignments that no expert had room for.
    pub overflow: f32,
}

impl Aux {
    /// Share of the router's assignments that each expert has; sums to 1 unless some had no room, or there are none.
    pub(crate) fn load(&self, plan: &Plan, n_experts: usize) -> Vec<f32> {
        plan.load(n_experts).into_iter().map(|load| load * (1.0 - self.overflow)).collect()
    }

    /// Adds a scalar, already multiplied by its coefficient, to the loss.
    pub(crate) fn add(&mut self, loss: Tensor) -> Result<()> {
        self.loss = Some(match &self.loss {
            Some(sum) => (sum + loss)?,
            None => loss,
        });
        Ok(())
    }
}

/// Chooses experts for tokens.
pub trait Router: Send + Sync + Debug {
    /// `x_ND` are the tokens that enter the layer, float32.
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)>;
}

/// A router's options: what its row in the table must offer.
pub trait RouterSpec: Default {
    const NAME: &'static str;
    /// The source of the method.
    const PAPER: &'static str;
    /// Whether a token's experts depend on no later token. Serving refuses a router that is not causal.
    const CAUSAL: bool;
    /// [`RouterSpec::n_parameters`] as a formula.
    const PARAMETERS: &'static str;

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>>;
    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()>;
    /// Whether the plan depends on the tokens' values or on parameters; else it is made once a step, before the first layer.
    fn reads_tokens(&self) -> bool {
        true
    }
    /// Whether a language's tokens meet the experts of that language and no others.
    fn is_by_language(&self) -> bool {
        false
    }
    /// Whether a language's tokens never meet the experts of others: a token must not be given another one.
    fn is_confined(&self) -> bool {
        self.is_by_language()
    }
    /// Whether a token of unknown language meets experts; else the shared one alone.
    fn meets_unknown(&self) -> bool {
        true
    }
    /// Whether it scores every expert for every token: losses and dropout of experts need that.
    fn has_scores(&self) -> bool {
        self.reads_tokens() && !self.is_by_language()
    }
    /// Whether it chooses among those experts that may be chosen, whichever they are.
    fn may_be_restricted(&self) -> bool {
        self.has_scores() && self.is_local()
    }
    /// Experts that one token meets, the shared one not counted.
    fn n_selected(&self) -> usize;
    /// The most assignments that tokens of these languages have while it trains.
    fn max_assignments(&self, language_N: &[u32], _moe: &MoeConfig) -> usize {
        language_N.len() * self.n_selected()
    }
    /// Whether a token's experts depend on no other token while it trains; else a batch is not divided among threads.
    fn is_local(&self) -> bool {
        Self::CAUSAL
    }
    /// Whether a plan that depends on the tokens weighs the shared expert's output.
    fn weighs_shared(&self) -> bool {
        false
    }
    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize;

    fn is_causal(&self) -> bool {
        Self::CAUSAL
    }

    fn parameters(&self) -> &'static str {
        Self::PARAMETERS
    }
}

pub(crate) mod losses;
pub(crate) mod scores;

pub use scores::Scores;

methods! {
    /// The options of one router, tagged by its name (`kind = "pl_hard"`).
    pub enum RouterConfig: RouterSpec {
        pl_hard::PlHard,
        pl_shared::PlShared,
        pl_group::PlGroup,
        pl_gate::PlGate,
        token::Token,
        switch::Switch,
        cosine::Cosine,
        expert_choice::ExpertChoice,
        hash::Hash,
        random::Random,
        base::Base,
        dts::Dts,
        bilevel::Bilevel,
    }

    pub fn is_causal() -> bool;
    pub fn parameters() -> &'static str;
    pub fn build(model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>>;
    pub fn validate(model: &ModelConfig, moe: &MoeConfig) -> Result<()>;
    /// Whether the plan depends on the tokens' values or on parameters.
    pub fn reads_tokens() -> bool;
    /// Whether a language's tokens meet the experts of that language and no others.
    pub fn is_by_language() -> bool;
    /// Whether a language's tokens never meet the experts of others.
    pub fn is_confined() -> bool;
    /// Whether a token of unknown language meets experts.
    pub fn meets_unknown() -> bool;
    /// Whether it scores every expert for every token.
    pub fn has_scores() -> bool;
    /// Whether it chooses among those experts that may be chosen, whichever they are.
    pub fn may_be_restricted() -> bool;
    /// The most assignments that tokens of these languages have while it trains.
    pub fn max_assignments(language_N: &[u32], moe: &MoeConfig) -> usize;
    /// Whether a token's experts depend on no other token while it trains.
    pub fn is_local() -> bool;
    /// Whether a plan that depends on the tokens weighs the shared expert's output.
    pub fn weighs_shared() -> bool;
    pub fn n_selected() -> usize;
    pub fn n_parameters(model: &ModelConfig, moe: &MoeConfig) -> usize;
}
