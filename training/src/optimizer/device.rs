//! The optimizer of a device: the same rules and the same state, which travel there and back.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use multicoder_model::tape::{DeviceOptimizer, DeviceRule, DeviceState};

use super::{Optimizer, Rule, Slot};

impl Optimizer {
    /// The rules of all parameters, for a device that updates them itself.
    pub fn device_options(&self) -> DeviceOptimizer {
        let weight_decay = self.config.weight_decay;
        let rule = |slot: &Slot| match slot.rule {
            Rule::Muon(_) => DeviceRule::Muon { weight_decay },
            // As on the host: matrices decay; norms, biases and other 1-D parameters do not.
            Rule::AdamW(_) if slot.parameter.rank() >= 2 => DeviceRule::AdamW { weight_decay },
            Rule::AdamW(_) => DeviceRule::AdamW { weight_decay: 0.0 },
        };
        DeviceOptimizer {
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: self.config.eps,
            momentum: self.config.momentum,
            rules: self.slots.iter().map(rule).collect(),
        }
    }

    /// Moments and counts of steps as a device takes them.
    ///
    /// # Errors
    /// Those of tensors.
    pub fn device_state(&self) -> Result<DeviceState> {
        let mut state = DeviceState::default();
        for slot in &self.slots {
            let moments = slot.rule.state();
            for (i, flat) in [&mut state.first, &mut state.second].into_iter().enumerate() {
                match moments.get(i) {
                    Some((_, moment)) => flat.extend(moment.flatten_all()?.to_vec1::<f32>()?),
                    None => flat.resize(flat.len() + slot.parameter.elem_count(), 0.0),
                }
            }
            state.n_steps.push(slot.n_steps);
        }
        Ok(state)
    }

    /// Continues from what a device says.
    ///
    /// # Errors
    /// A state of other parameters; those of tensors.
    pub fn set_device_state(&mut self, state: &DeviceState) -> Result<()> {
        let n: usize = self.slots.iter().map(|slot| slot.parameter.elem_count()).sum();
        let got = (state.first.len(), state.second.len(), state.n_steps.len());
        ensure!(
            got == (n, n, self.slots.len()),
            "optimizer state of {got:?} values, expected {n} and {}",
            self.slots.len()
        );
        let mut start = 0;
        for (slot, &n_steps) in self.slots.iter_mut().zip(&state.n_steps) {
            let end = start + slot.parameter.elem_count();
            for ((_, moment), flat) in slot.rule.state().into_iter().zip([&state.first, &state.second]) {
                moment.set(&Tensor::from_slice(&flat[start..end], moment.shape(), moment.device())?)?;
            }
            (slot.n_steps, start) = (n_steps, end);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OptimizerConfig, OptimizerKind};
    use candle_core::{Device, Var};
    use multicoder_model::Gradients;

    #[test]
    fn a_state_travels_to_a_device_and_back() {
        let config = OptimizerConfig { kind: OptimizerKind::Muon, ..OptimizerConfig::for_tests() };
        let parameters = || {
            let var = |shape: &[usize]| Var::from_tensor(&Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu)?);
            anyhow::Ok(vec![("up_proj.weight".to_owned(), var(&[2, 3])?), ("norm".to_owned(), var(&[2])?)])
        };
        let mut first = Optimizer::new(&config, &parameters().unwrap()).unwrap();
        let mut gradients = Gradients::new([6, 2]);
        (0..2).for_each(|idx| gradients.slice_mut(idx).iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 - 0.5));
        first.step(&gradients, 1.0, 0.1).unwrap();
        let state = first.device_state().unwrap();
        assert_eq!((state.first.len(), &state.second[..6], &state.n_steps[..]), (8, &[0.0; 6][..], &[1, 1][..]));
        let mut second = Optimizer::new(&config, &parameters().unwrap()).unwrap();
        second.set_device_state(&state).unwrap();
        assert_eq!(second.device_state().unwrap(), state);
        let short = DeviceState { n_steps: vec![1], ..state };
        assert!(second.set_device_state(&short).unwrap_err().to_string().contains("expected 8 and 2"));
        let decay = config.weight_decay;
        let expected = [DeviceRule::Muon { weight_decay: decay }, DeviceRule::AdamW { weight_decay: 0.0 }];
        assert_eq!(first.device_options().rules, expected);
    }
}
