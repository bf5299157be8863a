//! The second half of a layer: one network, or those that a router chooses.

#![allow(non_snake_case)]

use std::sync::{Arc, PoisonError};

use super::{Decoder, Pass, Worker, norm_row};
use crate::decoder::layer::{Ffn, LastPlan, Layer, Moe};
use crate::decoder::network::{add_row, run_networks};
use crate::error::Result;
use crate::router::RouterContext;
use crate::tape::HostPlan;

impl Decoder {
    pub(super) fn feed_forward(&self, layer: &Layer, pass: &Pass, worker: &mut Worker) -> Result<()> {
        let moe = match &layer.ffn {
            Ffn::Dense(network) => {
                self.norm(&layer.ffn_norm, network.first(), worker);
                let Worker { crew, quantized, hidden: [hidden, _], y, .. } = worker;
                run_networks([network], crew, quantized, [hidden], [y], self.simd);
                self.add_all(worker);
                return Ok(());
            }
            Ffn::Moe(moe) => moe,
        };
        let plan = self.plan(moe, layer, pass, worker)?;
        let n = pass.ids.len();
        let own = plan.only_expert(n).map(|expert| moe.expert(expert, self)).transpose()?;
        let Some(shared) = &moe.shared else {
            let first = own.map_or_else(|| moe.expert(plan.runs.first().map_or(0, |run| run.0), self), Ok)?;
            self.norm(&layer.ffn_norm, first.first(), worker);
            return self.experts(moe, &plan, worker);
        };
        self.norm(&layer.ffn_norm, shared.first(), worker);
        let Worker { crew, quantized, hidden: [hidden, hidden_own], y, y_own, .. } = worker;
        match &own {
            Some(own) => {
                let memory = [hidden, hidden_own];
                run_networks([shared, own], crew, quantized, memory, [y, y_own], self.simd);
            }
            None => run_networks([shared], crew, quantized, [hidden], [y], self.simd),
        }
        // What experts read is normalized already: the residual stream may change.
        for (row, x) in worker.x.chunks_exact_mut(self.config.d_model).enumerate() {
            add_row(&worker.y, (row, n), plan.shared_weight_N.as_ref().map_or(1.0, |weight_N| weight_N[row]), x);
            if own.is_some() {
                add_row(&worker.y_own, (row, n), plan.weight(row), x);
            }
        }
        if own.is_some() { Ok(()) } else { self.experts(moe, &plan, worker) }
    }

    /// The plan of a layer: where the language alone decides, that of the last pass of as many tokens in this language.
    fn plan(&self, moe: &Moe, layer: &Layer, pass: &Pass, worker: &Worker) -> Result<Arc<HostPlan>> {
        if !moe.config.router.is_by_language() || moe.config.reads_tokens() {
            return Ok(Arc::new(self.new_plan(moe, layer, pass, worker)?));
        }
        let key = pass.language_N.first().map(|language| (*language, pass.ids.len()));
        let mut last = moe.last_plan.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = last.as_ref().filter(|last| Some(last.of) == key) {
            return Ok(known.plan.clone());
        }
        let plan = Arc::new(self.new_plan(moe, layer, pass, worker)?);
        *last = key.map(|of| LastPlan { of, plan: plan.clone() });
        Ok(plan)
    }

    fn new_plan(&self, moe: &Moe, layer: &Layer, pass: &Pass, worker: &Worker) -> Result<HostPlan> {
        let (n, d) = (pass.ids.len(), self.config.d_model);
        let cpu = candle_core::Device::Cpu;
        let x_ND = match moe.config.reads_tokens() {
            false => candle_core::Tensor::zeros((n, 0), candle_core::DType::F32, &cpu)?,
            true => {
                let mut normed = vec![0f32; n * d];
                let eps = self.config.norm_eps as f32;
                for (y, x) in normed.chunks_exact_mut(d).zip(worker.x.chunks_exact(d)) {
                    norm_row(y, x, &layer.ffn_norm, eps);
                }
                candle_core::Tensor::from_vec(normed, (n, d), &cpu)?
            }
        };
        let context = RouterContext { id_N: pass.ids, language_N: &pass.language_N, ..RouterContext::default() };
        let (plan, aux) = moe.router.plan(&x_ND, &context)?;
        HostPlan::new(&plan, &aux, n, moe.config.n_experts)
    }

    /// Adds what each expert says of its rows.
    fn experts(&self, moe: &Moe, plan: &HostPlan, worker: &mut Worker) -> Result<()> {
        let n = worker.x.len() / self.config.d_model;
        let mut from = 0;
        for &(expert, n_own) in &plan.runs {
            let own = from..from + n_own;
            from = own.end;
            let network = moe.expert(expert, self)?;
            let Worker { crew, quantized, hidden: [hidden, _], y, .. } = worker;
            let is_all = plan.only_expert(n).is_some();
            let picked = (!is_all).then(|| quantized.pick(&plan.token_A[own.clone()]));
            let rows = picked.as_ref().unwrap_or(quantized);
            run_networks([&network], crew, rows, [hidden], [y], self.simd);
            for (row, assignment) in own.enumerate() {
                let token = plan.token_A[assignment] as usize;
                let x = &mut worker.x[token * self.config.d_model..(token + 1) * self.config.d_model];
                add_row(&worker.y, (row, n_own), plan.weight(assignment), x);
            }
        }
        Ok(())
    }
}
