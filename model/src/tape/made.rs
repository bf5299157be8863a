//! A step of a model whose experts' matrices are made of other weights: they are made once, the tape runs over them as over any others, and
//! their gradients go on to what they were made of.

use std::collections::HashMap;

use super::cpu::add_found;
use super::step::{Ready, StepLoss, TrainTape};
use crate::error::Result;
use crate::gradients::Gradients;
use crate::lm::{Batch, CodeLm};

pub(super) fn step(
    tape: &mut TrainTape,
    lm: &CodeLm,
    batch: &Batch,
    how: (f64, f64),
    gradients: &mut Gradients,
    ready: Option<&mut Ready>,
) -> Result<StepLoss> {
    let made = lm.made_experts(batch)?;
    let plain = lm.with_plain_experts(&made)?;
    let mut of_plain = Gradients::of(&plain);
    let loss = tape.step(&plain, batch, how, &mut of_plain, None)?;
    let index: HashMap<&str, usize> =
        lm.parameters().iter().enumerate().map(|(idx, (name, _))| (name.as_str(), idx)).collect();
    let mut terms = Vec::new();
    for (at, (name, parameter)) in plain.parameters().iter().enumerate() {
        let Some(values) = of_plain.get(at) else { continue };
        match made.get(name) {
            Some(w) => {
                let dw = candle_core::Tensor::from_slice(values, parameter.shape(), lm.device())?;
                terms.push(w.mul(&dw)?.sum_all()?);
            }
            None => gradients.add_values(index[name.as_str()], values),
        }
    }
    if let Some(first) = terms.pop() {
        let found = terms.iter().try_fold(first, |sum, term| sum + term)?.backward()?;
        add_found(found, lm.parameters(), gradients)?;
    }
    let all = 0..lm.parameters().len();
    ready.map_or(Ok(()), |ready| ready(gradients, all))?;
    Ok(loss)
}
