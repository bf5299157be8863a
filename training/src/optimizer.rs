//! What happens to parameters once their gradients are known.
//!
//! A parameter without a gradient (an expert that saw no token) is left alone altogether: its moments do not decay and its bias
//! correction counts only its own steps, so that a rare language's expert is not pulled by the steps of the others.

mod adamw;
mod device;
mod muon;

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};
use multicoder_model::Gradients;
use rayon::prelude::*;

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

impl Slot {
    fn update(&mut self, config: &OptimizerConfig, gradient: (&[f32], f64), lr: f64) -> Result<()> {
        self.n_steps += 1;
        let updated = match &self.rule {
            Rule::AdamW(moments) => moments.update(config, &self.parameter, gradient, self.n_steps, lr),
            Rule::Muon(momentum) => momentum.update(config, &self.parameter, gradient, lr),
        };
        updated.with_context(|| format!("update of {}", self.name))
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

    /// Updates every parameter that has a gradient; `gradients` are in the model's order and multiplied by `scale` first.
    ///
    /// # Errors
    /// Gradients of other parameters; those of tensors, with the name of the parameter.
    pub fn step(&mut self, gradients: &Gradients, scale: f64, lr: f64) -> Result<()> {
        let (got, expected) = (gradients.n_parameters(), self.slots.len());
        ensure!(got == expected, "{got} gradients, {expected} parameters");
        let config = &self.config;
        // All at once: many small parameters keep the cores as busy as one large one.
        self.slots.par_iter_mut().enumerate().try_for_each(|(idx, slot)| {
            gradients.get(idx).map_or(Ok(()), |gradient| slot.update(config, (gradient, scale), lr))
        })
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

    /// What the optimizer keeps of parameter `idx`, in the order of its names.
    pub fn state_of(&self, idx: usize) -> Vec<&Var> {
        self.slots[idx].rule.state().into_iter().map(|(_, var)| var).collect()
    }

    /// Sets the steps of each parameter, in the model's order.
    pub fn set_n_steps(&mut self, n_steps: &[u64]) {
        self.slots.iter_mut().zip(n_steps).for_each(|(slot, n_steps)| slot.n_steps = *n_steps);
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

    /// Gradients of [`two_parameters`], of two values each.
    fn gradients(values: [Option<[f32; 2]>; 2]) -> Gradients {
        let mut gradients = Gradients::new([2, 2]);
        for (idx, values) in values.iter().enumerate().filter_map(|(idx, values)| Some((idx, (*values)?))) {
            gradients.slice_mut(idx).copy_from_slice(&values);
        }
        gradients
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
        optimizer.step(&gradients([Some([0.0; 2]); 2]), 1.0, 0.5).unwrap();
        assert_eq!(values(&parameters[0].1), [0.95, -1.9]);
        assert_eq!(values(&parameters[1].1), [1.0, 1.0]);
    }

    #[test]
    fn a_parameter_without_a_gradient_is_left_alone_and_starts_its_own_count_later() {
        let parameters = two_parameters();
        let mut optimizer = Optimizer::new(&config(), &parameters).unwrap();
        for _ in 0..5 {
            optimizer.step(&gradients([None, Some([1.0; 2])]), 1.0, 0.1).unwrap();
        }
        assert_eq!(values(&parameters[0].1), [1.0, -2.0]);
        assert_eq!(optimizer.state().n_steps, [0, 5]);
        // The first step of Adam moves by the learning rate, whatever the gradient's size: its bias correction is its own.
        optimizer.step(&gradients([Some([3.0, -3.0]), None]), 1.0, 0.1).unwrap();
        let moved = values(&parameters[0].1);
        assert!((moved[0] - (0.99 - 0.1)).abs() < 1e-6 && (moved[1] - (-1.98 + 0.1)).abs() < 1e-6, "{moved:?}");
    }

    #[test]
    fn a_restored_state_continues_exactly() {
        let (first, second) = (two_parameters(), two_parameters());
        let gradients = |k: f32| gradients([Some([k; 2]); 2]);
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
