//! What happens to parameters once their gradients are known.
//!
//! A parameter without a gradient (an expert that saw no token) is left alone altogether: its moments do not decay and its bias
//! correction counts only its own steps, so that a rare language's expert is not pulled by the steps of the others.

mod adamw;
mod muon;

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};

use crate::config::{OptimizerConfig, OptimizerKind};

/// One parameter and what the optimizer knows of it.
struct Slot {
    name: String,
    parameter: Var,
    rule: Rule,
    n_steps: u64,
}

enum Rule {
    AdamW(adamw::Moments),
    Muon(muon::Momentum),
}

impl Rule {
    fn new(kind: OptimizerKind, name: &str, parameter: &Var) -> Result<Rule> {
        let is_hidden_matrix = parameter.rank() == 2 && name.ends_with("_proj.weight");
        Ok(match kind {
            OptimizerKind::Muon if is_hidden_matrix => Rule::Muon(muon::Momentum::zeros_like(parameter)?),
            OptimizerKind::Muon | OptimizerKind::Adamw => Rule::AdamW(adamw::Moments::zeros_like(parameter)?),
        })
    }

    /// What a checkpoint must hold, by the end of its name.
    fn state(&self) -> Vec<(&'static str, &Var)> {
        match self {
            Rule::AdamW(moments) => vec![("first_moment", &moments.first), ("second_moment", &moments.second)],
            Rule::Muon(momentum) => vec![("momentum", &momentum.0)],
        }
    }
}

/// Updates all parameters of a model, in the model's order.
pub struct Optimizer {
    config: OptimizerConfig,
    slots: Vec<Slot>,
}

/// Moments and step counts as named tensors and numbers, for a checkpoint.
pub struct OptimizerState {
    /// `NAME.first_moment` and `NAME.second_moment`, or `NAME.momentum`.
    pub tensors: HashMap<String, Tensor>,
    /// Steps of each parameter, in the model's order.
    pub n_steps: Vec<u64>,
}

impl Optimizer {
    /// Starts with zero moments.
    pub fn new(config: &OptimizerConfig, parameters: &[(String, Var)]) -> Result<Optimizer> {
        let slot = |(name, parameter): &(String, Var)| {
            let rule = Rule::new(config.kind, name, parameter)?;
            Ok(Slot { name: name.clone(), parameter: parameter.clone(), rule, n_steps: 0 })
        };
        let slots = parameters.iter().map(slot).collect::<Result<Vec<Slot>>>()?;
        Ok(Optimizer { config: config.clone(), slots })
    }

    /// The parameters, in the order in which [`Optimizer::step`] expects their gradients.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = &Var> {
        self.slots.iter().map(|slot| &slot.parameter)
    }

    /// Updates every parameter that has a gradient. Gradients are multiplied by `scale` first.
    pub fn step(&mut self, gradients: &[Option<Tensor>], scale: f64, lr: f64) -> Result<()> {
        ensure!(gradients.len() == self.slots.len(), "{} gradients, {} parameters", gradients.len(), self.slots.len());
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            slot.n_steps += 1;
            let gradient = if scale == 1.0 { gradient.clone() } else { (gradient * scale)? };
            let updated = match &slot.rule {
                Rule::AdamW(moments) => moments.update(&self.config, &slot.parameter, &gradient, slot.n_steps, lr),
                Rule::Muon(momentum) => momentum.update(&self.config, &slot.parameter, &gradient, lr),
            };
            updated.with_context(|| format!("update of {}", slot.name))?;
        }
        Ok(())
    }

    /// What a checkpoint must hold of the optimizer.
    pub fn state(&self) -> OptimizerState {
        let mut tensors = HashMap::new();
        for slot in &self.slots {
            for (kind, var) in slot.rule.state() {
                tensors.insert(format!("{}.{kind}", slot.name), var.as_tensor().clone());
            }
        }
        OptimizerState { tensors, n_steps: self.slots.iter().map(|slot| slot.n_steps).collect() }
    }

    /// Continues from a state that [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// A moment that is missing or has another shape, named.
    pub fn restore(&mut self, state: &OptimizerState) -> Result<()> {
        let (got, expected) = (state.n_steps.len(), self.slots.len());
        ensure!(got == expected, "optimizer state of {got} parameters, expected {expected}");
        for (slot, n_steps) in self.slots.iter_mut().zip(&state.n_steps) {
            for (kind, var) in slot.rule.state() {
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
        OptimizerConfig::for_tests()
    }

    fn two_parameters() -> Vec<(String, Var)> {
        vec![("matrix".to_owned(), var(&[1.0, -2.0], &[1, 2])), ("norm".to_owned(), var(&[1.0, 1.0], &[2]))]
    }

    #[test]
    fn matrices_decay_and_vectors_do_not() {
        let parameters = two_parameters();
        let mut optimizer = Optimizer::new(&config(), &parameters).unwrap();
        let zeros = parameters.iter().map(|(_, var)| Some(var.zeros_like().unwrap())).collect::<Vec<_>>();
        optimizer.step(&zeros, 1.0, 0.5).unwrap();
        assert_eq!(values(&parameters[0].1), [0.95, -1.9]);
        assert_eq!(values(&parameters[1].1), [1.0, 1.0]);
    }

    #[test]
    fn a_parameter_without_a_gradient_is_left_alone_and_starts_its_own_count_later() {
        let parameters = two_parameters();
        let mut optimizer = Optimizer::new(&config(), &parameters).unwrap();
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
        let mut a = Optimizer::new(&config(), &first).unwrap();
        (1..4).for_each(|k| a.step(&gradients(k as f32), 0.5, 0.01).unwrap());
        let mut b = Optimizer::new(&config(), &second).unwrap();
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
