//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with a step count for each parameter.
//!
//! A parameter without a gradient (an expert that saw no token) is left alone altogether: its moments do not decay and its bias
//! correction counts only its own steps, so that a rare language's expert is not pulled by the steps of the others.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};
use multicoder_model::ops::{AdamWStep, adamw_step};

use crate::config::OptimizerConfig;

/// One parameter and what the optimizer knows of it.
struct Slot {
    name: String,
    parameter: Var,
    first_moment: Var,
    second_moment: Var,
    n_steps: u64,
    /// Matrices decay; norms, biases and other 1-D parameters do not.
    decays: bool,
}

/// AdamW over all parameters of a model, in the model's order.
pub struct AdamW {
    config: OptimizerConfig,
    slots: Vec<Slot>,
}

/// Moments and step counts as named tensors and numbers, for a checkpoint.
pub struct OptimizerState {
    /// `NAME.first_moment` and `NAME.second_moment`.
    pub tensors: HashMap<String, Tensor>,
    /// Steps of each parameter, in the model's order.
    pub n_steps: Vec<u64>,
}

impl AdamW {
    /// Starts with zero moments.
    pub fn new(config: &OptimizerConfig, parameters: &[(String, Var)]) -> Result<AdamW> {
        let slot = |(name, parameter): &(String, Var)| {
            let (name, parameter) = (name.clone(), parameter.clone());
            let first_moment = Var::from_tensor(&parameter.zeros_like()?)?;
            let second_moment = Var::from_tensor(&parameter.zeros_like()?)?;
            let decays = parameter.rank() >= 2;
            Ok(Slot { name, parameter, first_moment, second_moment, n_steps: 0, decays })
        };
        let slots = parameters.iter().map(slot).collect::<Result<Vec<Slot>>>()?;
        Ok(AdamW { config: config.clone(), slots })
    }

    /// The parameters, in the order in which [`AdamW::step`] expects their gradients.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = &Var> {
        self.slots.iter().map(|slot| &slot.parameter)
    }

    /// Updates every parameter that has a gradient. Gradients are multiplied by `scale` first.
    pub fn step(&mut self, gradients: &[Option<Tensor>], scale: f64, lr: f64) -> Result<()> {
        ensure!(gradients.len() == self.slots.len(), "{} gradients, {} parameters", gradients.len(), self.slots.len());
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            slot.n_steps += 1;
            let step = AdamWStep {
                lr,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay: if slot.decays { self.config.weight_decay } else { 0.0 },
                step: slot.n_steps,
            };
            let gradient = if scale == 1.0 { gradient.clone() } else { (gradient * scale)? };
            adamw_step(&slot.parameter, &gradient, &slot.first_moment, &slot.second_moment, &step)
                .with_context(|| format!("update of {}", slot.name))?;
        }
        Ok(())
    }

    /// What a checkpoint must hold of the optimizer.
    pub fn state(&self) -> OptimizerState {
        let mut tensors = HashMap::new();
        for slot in &self.slots {
            tensors.insert(format!("{}.first_moment", slot.name), slot.first_moment.as_tensor().clone());
            tensors.insert(format!("{}.second_moment", slot.name), slot.second_moment.as_tensor().clone());
        }
        OptimizerState { tensors, n_steps: self.slots.iter().map(|slot| slot.n_steps).collect() }
    }

    /// Continues from a state that [`AdamW::state`] gave.
    ///
    /// # Errors
    /// A moment that is missing or has another shape, named.
    pub fn restore(&mut self, state: &OptimizerState) -> Result<()> {
        let (got, expected) = (state.n_steps.len(), self.slots.len());
        ensure!(got == expected, "optimizer state of {got} parameters, expected {expected}");
        for (slot, n_steps) in self.slots.iter_mut().zip(&state.n_steps) {
            for (var, kind) in [(&slot.first_moment, "first_moment"), (&slot.second_moment, "second_moment")] {
                let name = format!("{}.{kind}", slot.name);
                let tensor = state.tensors.get(&name).with_context(|| format!("optimizer state lacks {name}"))?;
                var.set(tensor).with_context(|| name.clone())?;
            }
            slot.n_steps = *n_steps;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn var(values: &[f32], shape: &[usize]) -> Var {
        Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn values(var: &Var) -> Vec<f32> {
        var.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn config() -> OptimizerConfig {
        OptimizerConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip_norm: 0.0 }
    }

    fn two_parameters() -> Vec<(String, Var)> {
        vec![("matrix".to_owned(), var(&[1.0, -2.0], &[1, 2])), ("norm".to_owned(), var(&[1.0, 1.0], &[2]))]
    }

    #[test]
    fn matrices_decay_and_vectors_do_not() {
        let parameters = two_parameters();
        let mut optimizer = AdamW::new(&config(), &parameters).unwrap();
        let zeros = parameters.iter().map(|(_, var)| Some(var.zeros_like().unwrap())).collect::<Vec<_>>();
        optimizer.step(&zeros, 1.0, 0.5).unwrap();
        assert_eq!(values(&parameters[0].1), [0.95, -1.9]);
        assert_eq!(values(&parameters[1].1), [1.0, 1.0]);
    }

    #[test]
    fn a_parameter_without_a_gradient_is_left_alone_and_starts_its_own_count_later() {
        let parameters = two_parameters();
        let mut optimizer = AdamW::new(&config(), &parameters).unwrap();
        let ones = Some(Tensor::ones(2, candle_core::DType::F32, &Device::Cpu).unwrap());
        for _ in 0..5 {
            optimizer.step(&[None, ones.clone()], 1.0, 0.1).unwrap();
        }
        assert_eq!(values(&parameters[0].1), [1.0, -2.0]);
        assert_eq!(optimizer.state().n_steps, [0, 5]);
        // The first step of Adam moves by the learning rate, whatever the gradient's size: its bias correction is its own.
        let gradient = Tensor::from_slice(&[3f32, -3.0], (1, 2), &Device::Cpu).unwrap();
        optimizer.step(&[Some(gradient), None], 1.0, 0.1).unwrap();
        let moved = values(&parameters[0].1);
        assert!((moved[0] - (0.99 - 0.1)).abs() < 1e-6 && (moved[1] - (-1.98 + 0.1)).abs() < 1e-6, "{moved:?}");
    }

    #[test]
    fn a_restored_state_continues_exactly() {
        let (first, second) = (two_parameters(), two_parameters());
        let gradients = |k: f32| -> Vec<Option<Tensor>> {
            first.iter().map(|(_, var)| Some((var.ones_like().unwrap() * f64::from(k)).unwrap())).collect()
        };
        let mut a = AdamW::new(&config(), &first).unwrap();
        (1..4).for_each(|k| a.step(&gradients(k as f32), 0.5, 0.01).unwrap());
        let mut b = AdamW::new(&config(), &second).unwrap();
        for ((_, to), (_, from)) in second.iter().zip(&first) {
            to.set(from.as_tensor()).unwrap();
        }
        b.restore(&a.state()).unwrap();
        a.step(&gradients(9.0), 1.0, 0.01).unwrap();
        b.step(&gradients(9.0), 1.0, 0.01).unwrap();
        first.iter().zip(&second).for_each(|((_, x), (_, y))| assert_eq!(values(x), values(y)));
        let mut short = a.state();
        short.tensors.remove("norm.second_moment");
        assert!(b.restore(&short).unwrap_err().to_string().contains("lacks norm.second_moment"));
    }
}
