//! A model whose weights are all plain: what is made anew in each pass is made once, and stored.

use std::collections::HashMap;

use candle_core::Tensor;

use crate::adapters::plain::{Plain, scope};
use crate::adapters::{AdapterConfig, Adapters};
use crate::draw::Draw;
use crate::error::Result;
use crate::experts::ExpertParam;
use crate::lm::{Batch, CodeLm};
use crate::params::Params;

impl CodeLm {
    /// This model with plain adapters in place of those that a network makes, and with experts that have matrices of their own: logits are
    /// the same up to rounding, and serving pays for nothing but the products.
    ///
    /// # Errors
    /// A failing device.
    pub fn materialized(&self) -> Result<CodeLm> {
        let lm = self.with_plain_experts(&self.experts_of(None)?)?;
        let (mut config, mut tensors) = (lm.config().clone(), lm.tensors());
        if let Some((adapter, adapters)) = config.adapter.as_mut().zip(self.adapters()) {
            let plain = Plain { bottleneck: adapter.bottleneck() };
            *adapter = AdapterConfig::Plain(plain);
            tensors.retain(|name, _| !name.starts_with("model.adapters."));
            let languages = config.languages.iter().map(|name| Some(name.as_str())).chain([None]);
            for (index, language) in languages.enumerate() {
                for layer in 0..config.n_layers {
                    let prefix = format!("model.adapters.{}", scope(layer, language));
                    store(&mut tensors, &prefix, adapters, layer, language.map(|_| index))?;
                }
            }
        }
        CodeLm::new(&config, Params::from_tensors(tensors, "the trained model", true, self.device()), self.device())
    }

    /// The matrices of all experts by name, differentiable, for a step of training.
    pub(crate) fn made_experts(&self, batch: &Batch) -> Result<HashMap<String, Tensor>> {
        let id_N = batch.x_BL.flatten_all()?.to_vec1::<u32>()?;
        self.experts_of(batch.draw(&id_N, batch.x_BL.dim(1)?).as_ref())
    }

    fn experts_of(&self, draw: Option<&Draw>) -> Result<HashMap<String, Tensor>> {
        let mut made = HashMap::new();
        for (moe, (layer, experts)) in self.experts_by_layer().enumerate() {
            for (e, network) in experts.networks(draw.map(|draw| draw.layer(moe)))?.iter().enumerate() {
                let prefix = format!("model.layers.{layer}.mlp.experts.{e}");
                made.extend(network.weights().map(|(name, w)| (format!("{prefix}.{name}.weight"), w.clone())));
            }
        }
        Ok(made)
    }

    /// This model, whose weights it shares, with experts that have the matrices `made`.
    pub(crate) fn with_plain_experts(&self, made: &HashMap<String, Tensor>) -> Result<CodeLm> {
        let (mut config, mut tensors) = (self.config().clone(), self.tensors());
        if let Some(moe) = &mut config.moe {
            moe.expert_param = ExpertParam::default();
            tensors.retain(|name, _| !name.contains(".mlp.experts."));
            tensors.extend(made.iter().map(|(name, w)| (name.clone(), w.detach())));
        }
        let params = Params::from_tensors(tensors, "the trained model", true, self.device());
        let mut lm = CodeLm::new(&config, params, self.device())?;
        lm.set_exchange(self.exchange().cloned());
        Ok(lm)
    }

    fn tensors(&self) -> HashMap<String, Tensor> {
        self.weights().iter().cloned().collect()
    }
}

fn store(
    tensors: &mut HashMap<String, Tensor>,
    prefix: &str,
    adapters: &dyn Adapters,
    layer: usize,
    language: Option<usize>,
) -> Result<()> {
    let adapter = adapters.adapter(layer, language)?;
    let weights = [
        ("norm.weight", adapter.scale_D),
        ("norm.bias", adapter.shift_D),
        ("down.weight", adapter.down_FD),
        ("up.weight", adapter.up_DF),
    ];
    tensors.extend(weights.into_iter().map(|(name, weight)| (format!("{prefix}.{name}"), weight.detach())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::ops::tests::values;
    use crate::router::RouterConfig;
    use candle_core::Device;

    #[test]
    fn what_is_stored_says_what_was_made() {
        let mut config = tiny(Some(RouterConfig::all().remove(0)));
        config.adapter = Some(serde_json::from_str(r#"{"kind": "hyper", "bottleneck": 8, "d_h": 16}"#).unwrap());
        config.moe.as_mut().unwrap().expert_param =
            serde_json::from_str(r#"{"kind": "mpo", "width": [2, 4, 2], "model": [4, 2, 4]}"#).unwrap();
        let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
        for (name, var) in lm.parameters().iter().filter(|(name, _)| name.contains("adapters")) {
            var.set(&(var.as_tensor() + (values(var.dims(), 7) * 0.2).unwrap()).unwrap())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let plain = lm.materialized().unwrap();
        assert!(plain.config().adapter.as_ref().is_some_and(|adapter| adapter.name() == "plain"));
        assert!(plain.config().moe.as_ref().unwrap().expert_param.is_full());
        for language in [0, 2, crate::UNKNOWN_LANGUAGE] {
            let logits = |lm: &CodeLm| lm.forward_logits(&[1, 5, 9, 5], language).unwrap();
            let difference = (logits(&lm) - logits(&plain)).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "language {language}: {difference}");
        }
        let built: usize = plain.parameters().iter().map(|(_, var)| var.elem_count()).sum();
        assert_eq!(built, plain.config().n_parameters());
    }

    #[test]
    fn what_a_network_makes_of_adapters_is_what_is_stored() {
        let mut config = tiny(None);
        config.adapter = Some(serde_json::from_str(r#"{"kind": "hyper", "bottleneck": 8, "d_h": 16}"#).unwrap());
        let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
        for (name, var) in lm.parameters().iter().filter(|(name, _)| name.contains("adapters")) {
            let noise = (values(var.dims(), 7) * 0.2).unwrap();
            var.set(&(var.as_tensor() + noise).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let plain = lm.materialized().unwrap();
        for language in [0, 2, crate::UNKNOWN_LANGUAGE] {
            let logits = |lm: &CodeLm| lm.forward_logits(&[1, 5, 9, 5], language).unwrap();
            let difference = (logits(&lm) - logits(&plain)).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-6, "language {language}: {difference}");
        }
    }
}
