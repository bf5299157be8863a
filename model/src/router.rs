//! Who chooses the experts: the seam (`Router` -> `Plan`) and the one table of routers.
//!
//! A router is one file in `router/` and one row of the table below. It never touches an expert; `moe.rs` knows no router.

use std::fmt::Debug;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::exchange::ExpertExchange;
use crate::params::Params;

/// What a router may look at besides the tokens.
#[derive(Clone, Copy)]
pub struct RouterContext<'a> {
    /// Language index of each token, [`crate::UNKNOWN_LANGUAGE`] for none; row-major B·L.
    pub language_N: &'a [u32],
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
}

/// Chooses experts for tokens.
pub trait Router: Send + Sync + Debug {
    /// `x_ND` are the tokens that enter the layer, float32.
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)>;

    /// Called after an optimizer step with the share of assignments that each expert had.
    fn after_step(&mut self, _load_E: &[f32]) {}
}

/// A router's options: what its row in the table must offer.
pub trait RouterSpec: Default {
    const NAME: &'static str;
    /// The source of the method.
    const PAPER: &'static str;
    /// Whether a token's experts depend on no later token. Serving refuses a router that is not causal.
    const CAUSAL: bool;

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>>;
    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()>;
    /// Whether the plan depends on the tokens' values, or on their languages alone: then it is made once a step, before the first layer.
    fn reads_tokens(&self) -> bool {
        true
    }
    /// Whether a language's tokens meet the experts of that language and no others.
    fn is_by_language(&self) -> bool {
        false
    }
    /// Experts that one token meets, the shared one not counted.
    fn n_selected(&self) -> usize;
    /// Whether a plan that depends on the tokens weighs the shared expert's output.
    fn weighs_shared(&self) -> bool {
        false
    }
    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize;
}

macro_rules! routers {
    ($($module:ident :: $spec:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// The options of one router, tagged by its name (`kind = "pl_hard"`).
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        pub enum RouterConfig {
            $($spec($module::$spec)),*
        }

        impl RouterConfig {
            /// Every router with its default options, in the order of the table.
            pub fn all() -> Vec<RouterConfig> {
                vec![$(RouterConfig::$spec($module::$spec::default())),*]
            }

            pub fn name(&self) -> &'static str {
                match self { $(RouterConfig::$spec(_) => $module::$spec::NAME),* }
            }

            pub fn paper(&self) -> &'static str {
                match self { $(RouterConfig::$spec(_) => $module::$spec::PAPER),* }
            }

            pub fn is_causal(&self) -> bool {
                match self { $(RouterConfig::$spec(_) => $module::$spec::CAUSAL),* }
            }

            pub fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
                match self { $(RouterConfig::$spec(spec) => spec.build(model, moe, params)),* }
            }

            pub fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
                match self { $(RouterConfig::$spec(spec) => spec.validate(model, moe)),* }
            }

            /// Whether the plan depends on the tokens' values, or on their languages alone.
            pub fn reads_tokens(&self) -> bool {
                match self { $(RouterConfig::$spec(spec) => spec.reads_tokens()),* }
            }

            /// Whether a language's tokens meet the experts of that language and no others.
            pub fn is_by_language(&self) -> bool {
                match self { $(RouterConfig::$spec(spec) => spec.is_by_language()),* }
            }

            /// Whether a plan that depends on the tokens weighs the shared expert's output.
            pub fn weighs_shared(&self) -> bool {
                match self { $(RouterConfig::$spec(spec) => spec.weighs_shared()),* }
            }

            pub fn n_selected(&self) -> usize {
                match self { $(RouterConfig::$spec(spec) => spec.n_selected()),* }
            }

            pub fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
                match self { $(RouterConfig::$spec(spec) => spec.n_parameters(model, moe)),* }
            }
        }
    };
}

routers! {
    pl_hard::PlHard,
    pl_shared::PlShared,
    token::Token,
}

/// `docs/routers.md`, generated from the table.
pub fn table_markdown() -> String {
    let mut text = String::from(
        "# Routers\n\nGenerated from the table in `model/src/router.rs`; do not edit.\n\n| `kind` | causal | source | options (default) |\n|---|---|---|---|\n",
    );
    for router in RouterConfig::all() {
        let mut options = serde_json::to_value(&router).unwrap_or_default();
        if let Some(options) = options.as_object_mut() {
            options.remove("kind");
        }
        let causal = if router.is_causal() { "yes" } else { "no" };
        text += &format!("| `{}` | {causal} | {} | `{options}` |\n", router.name(), router.paper());
    }
    text
}
