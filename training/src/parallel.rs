//! The ranks of a run. Only this module and those below know how they talk.
//!
//! | file | what it holds |
//! |---|---|
//! | `mesh.rs` | [`Mesh`]: what the training loop says to the other ranks; alone, it says nothing |
//! | `layout.rs` | who trains which sequence and who owns which expert |
//! | `sums.rs` | buckets of gradients that are summed while the backward pass goes on |
//! | `wire.rs` | the trait of a way to other ranks, and how values are summed over one |
//! | `link.rs` | the communication thread, deadlines |
//! | `threads.rs`, `mpi.rs`, `nccl.rs` | ways: threads of one process, MPI, NCCL |
//! | `exchange.rs` | experts on other ranks, as the model sees them |
//! | `whole.rs` | every rank's model and moments made whole: before validation and checkpoints |
//!
//! Every mode takes the same optimizer steps as `single`, up to rounding: a micro-step is the same set of sequences in all of them,
//! and the ranks divide it.

mod exchange;
mod layout;
mod link;
mod mesh;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod sums;
mod threads;
mod whole;
mod wire;

use anyhow::{Result, bail, ensure};
use multicoder_model::RouterConfig;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;

pub use layout::Layout;
pub use mesh::{Launch, Mesh};
pub use whole::make_whole;
pub use wire::Traffic;

/// How the ranks divide a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One process: the reference that every other mode equals.
    Single,
    /// Every rank has the whole model and a part of each micro-step; all gradients are summed.
    Data,
    /// As `data`, but a rank trains the sequences of the languages whose experts it owns, and only it has these experts' gradients.
    LanguageOwned,
    /// As `data`, but a rank owns experts, and tokens travel to them.
    Expert,
}

/// The way to the other ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Processes that `mpirun` or `srun` started; needs a build with the feature `mpi`.
    Mpi,
    /// GPUs, one a process; needs a build with the feature `nccl`.
    Nccl,
}

/// The ranks of a run and what they divide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParallelConfig {
    /// What the ranks divide.
    pub mode: Mode,
    /// How they talk.
    pub backend: Backend,
    /// Ranks that the run expects; 0 for as many as the launcher starts.
    pub world_size: usize,
    /// Gradients that travel together, in MiB.
    pub bucket_mib: f64,
    /// Seconds that all ranks have to meet at the start.
    pub join_timeout_s: f64,
    /// Seconds after which a rank that does not answer in the middle of a run is given up.
    pub timeout_s: f64,
}

impl Default for ParallelConfig {
    fn default() -> ParallelConfig {
        ParallelConfig {
            mode: Mode::Single,
            backend: Backend::Mpi,
            world_size: 0,
            bucket_mib: 4.0,
            join_timeout_s: 8.0,
            timeout_s: 300.0,
        }
    }
}

impl ParallelConfig {
    /// Checks the values, and that the model can be divided so.
    ///
    /// # Errors
    /// A value that makes no run, named.
    pub fn validate(&self, config: &RunConfig) -> Result<()> {
        for (name, value) in
            [("bucket_mib", self.bucket_mib), ("join_timeout_s", self.join_timeout_s), ("timeout_s", self.timeout_s)]
        {
            ensure!(value > 0.0 && value <= 1e6, "parallel.{name} = {value}: expected a number above 0, up to 1e6");
        }
        let router = config.model.moe.as_ref().map(|moe| &moe.router);
        let divides_experts = matches!(self.mode, Mode::Expert | Mode::LanguageOwned);
        if let Some(moe) = config.model.moe.as_ref().filter(|_| divides_experts) {
            let by_layer = &moe.experts_by_layer;
            ensure!(
                by_layer.is_empty(),
                "parallel.mode: model.moe.experts_by_layer = {by_layer:?}: expected none where ranks own experts"
            );
            ensure!(
                moe.dropout == 0.0,
                "parallel.mode: model.moe.dropout = {}: expected 0 where ranks own experts, for they do not know whose rows they get",
                moe.dropout
            );
        }
        match self.mode {
            Mode::Single | Mode::Data => {}
            Mode::Expert => ensure!(router.is_some(), "parallel.mode = \"expert\": expected a model with model.moe"),
            Mode::LanguageOwned => {
                let by_language = router.is_some_and(RouterConfig::is_by_language);
                let name = router.map_or("none", RouterConfig::name);
                ensure!(
                    by_language,
                    "parallel.mode = \"language_owned\": expected model.moe.router.kind \"pl_hard\" or \"pl_shared\", not {name}"
                );
                let share = config.data.expert_dropout_frac;
                ensure!(
                    share == 0.0 || !router.is_some_and(RouterConfig::meets_unknown),
                    "parallel.mode = \"language_owned\": data.expert_dropout_frac = {share}: expected 0 with the router {name}, where a \
                     piece of no language meets experts; or pl_shared with unknown = \"shared\""
                );
                // Empty until it follows from the shards.
                let known = &config.model.languages;
                let unknown = config.data.languages.iter().find(|name| !known.is_empty() && !known.contains(name));
                if let Some(name) = unknown {
                    bail!("parallel.mode = \"language_owned\": data.languages has {name}, model.languages has not");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config;

    /// Its owner is not known: every rank would have to compute it.
    #[test]
    fn pieces_of_no_language_that_meet_experts_are_refused_where_languages_are_owned() {
        let error = |router: &str| {
            let mut table = config::parse(config::preset("smoke").unwrap(), "smoke").unwrap();
            let router = format!("model.moe.router={router}");
            for assignment in ["parallel.mode=language_owned", "data.expert_dropout_frac=0.1", &router] {
                config::set(&mut table, assignment).unwrap();
            }
            config::resolve(&table, "smoke").err().map_or_else(String::new, |error| format!("{error:#}"))
        };
        let refused = "data.expert_dropout_frac = 0.1: expected 0 with the router";
        assert_eq!(error(r#"{ kind = "pl_shared" }"#), "");
        assert!(error(r#"{ kind = "pl_shared", unknown = "mean" }"#).contains(refused));
        assert!(error(r#"{ kind = "pl_hard" }"#).contains(refused));
        assert!(error(r#"{ kind = "token" }"#).contains("expected model.moe.router.kind"));
    }
}
