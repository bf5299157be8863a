//! The gradients of a model in one buffer: what a backward pass adds to, ranks sum and an optimizer reads.
//!
//! Values lie in the order of [`CodeLm::parameters`], so that neighbours in the network are neighbours in memory and any range of
//! parameters is one slice. A parameter that the loss does not depend on (an expert that saw no token) is *absent*: an optimizer leaves
//! it alone. What it held before stays until [`Gradients::settle`], so that a step need not write zeros where it will write gradients.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::lm::CodeLm;
use crate::ops;

/// Values that one task adds or clears.
const CHUNK: usize = 64 * 1024;

/// One float32 buffer for the gradients of all parameters; made once, reused at every step.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    values: Vec<f32>,
    /// Where each parameter's values begin, and at the end how many there are.
    starts: Vec<usize>,
    present: Vec<bool>,
}

impl Gradients {
    /// Zeros for parameters of these sizes, all absent.
    pub fn new(sizes: impl IntoIterator<Item = usize>) -> Gradients {
        let mut starts = vec![0];
        starts.extend(sizes.into_iter().scan(0, |end, size| {
            *end += size;
            Some(*end)
        }));
        let n_values = starts[starts.len() - 1];
        Gradients { values: vec![0.0; n_values], present: vec![false; starts.len() - 1], starts }
    }

    /// Zeros for the parameters of `lm`, in its order.
    pub fn of(lm: &CodeLm) -> Gradients {
        Gradients::new(lm.parameters().iter().map(|(_, parameter)| parameter.elem_count()))
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> usize {
        self.present.len()
    }

    /// Where parameter `idx` lies in [`Gradients::values`].
    pub fn span(&self, idx: usize) -> Range<usize> {
        self.starts[idx]..self.starts[idx + 1]
    }

    /// The values of all parameters; after [`Gradients::settle`] zero where a parameter is absent.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values of all parameters, to be changed without changing which are present.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Whether parameter `idx` has a gradient.
    pub fn is_present(&self, idx: usize) -> bool {
        self.present[idx]
    }

    /// Replaces the gradient of parameter `idx`, which is absent without one.
    pub fn set(&mut self, idx: usize, gradient: Option<&[f32]>) {
        let span = self.span(idx);
        match gradient {
            Some(gradient) => self.values[span].copy_from_slice(gradient),
            None => self.values[span].fill(0.0),
        }
        self.present[idx] = gradient.is_some();
    }

    /// The gradient of parameter `idx`; `None` for an absent one.
    pub fn get(&self, idx: usize) -> Option<&[f32]> {
        self.present[idx].then(|| &self.values[self.span(idx)])
    }

    /// The gradient of parameter `idx`, to be added to; the parameter is present from now on. Zero at first.
    pub fn slice_mut(&mut self, idx: usize) -> &mut [f32] {
        let (values, keep) = self.slot(idx);
        if !keep {
            values.fill(0.0);
        }
        values
    }

    /// As [`Gradients::slice_mut`], without zeros: to be added to if the flag says so, else to be written.
    pub(crate) fn slot(&mut self, idx: usize) -> (&mut [f32], bool) {
        let keep = std::mem::replace(&mut self.present[idx], true);
        let span = self.span(idx);
        (&mut self.values[span], keep)
    }

    /// Makes all parameters absent, and touches no value.
    pub fn clear(&mut self) {
        self.present.fill(false);
    }

    /// Ends what a backward pass does: zeros for parameters that are still absent.
    pub fn settle(&mut self) {
        for idx in 0..self.n_parameters() {
            if !self.present[idx] {
                let span = self.span(idx);
                self.values[span].par_chunks_mut(CHUNK).for_each(|values| values.fill(0.0));
            }
        }
    }

    /// Zeros for the same parameters, all absent.
    pub(crate) fn zeros_like(&self) -> Gradients {
        let (values, present) = (vec![0.0; self.values.len()], vec![false; self.present.len()]);
        Gradients { values, present, starts: self.starts.clone() }
    }

    /// Adds another part of the same gradients.
    pub(crate) fn add_all(&mut self, other: &Gradients) {
        for idx in (0..self.n_parameters()).filter(|&idx| other.present[idx]) {
            self.add_values(idx, &other.values[other.span(idx)]);
        }
    }

    /// Adds as many values as parameter `idx` has.
    pub(crate) fn add_values(&mut self, idx: usize, values: &[f32]) {
        match self.slot(idx) {
            (sum, true) => add(sum, values),
            (sum, false) => sum.copy_from_slice(values),
        }
    }

    /// Adds `gradient`, which may live on any device, to that of parameter `idx`.
    ///
    /// # Errors
    /// [`Error::Input`] for another number of values than the parameter has; those of a device.
    pub fn add(&mut self, idx: usize, gradient: &Tensor) -> Result<()> {
        let (got, expected) = (gradient.elem_count(), self.span(idx).len());
        if got != expected {
            return Err(Error::Input(format!("gradient of parameter {idx}: {got} values, expected {expected}")));
        }
        let sum = self.slice_mut(idx);
        if gradient.device().is_cpu() {
            return Ok(ops::with_values(gradient, "gradient", |values| {
                add(sum, values);
                Ok(())
            })?);
        }
        add(sum, &gradient.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    /// Sum of the squares over `range` of the values, in float64 and in an order that does not depend on the number of threads.
    pub fn sum_of_squares(&self, range: Range<usize>) -> f64 {
        let square = |values: &[f32]| values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let sums: Vec<f64> = self.values[range].par_chunks(CHUNK).map(square).collect();
        sums.iter().sum()
    }

    /// Euclidean norm over all parameters.
    pub fn norm(&self) -> f64 {
        self.sum_of_squares(0..self.values.len()).sqrt()
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    let add = |(sum, values): (&mut [f32], &[f32])| sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    sum.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(add);
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_parameter_is_absent_until_something_is_added() {
        let mut gradients = Gradients::new([2, 3]);
        assert_eq!((gradients.span(0), gradients.span(1), gradients.n_parameters()), (0..2, 2..5, 2));
        gradients.add(1, &tensor(&[1.0, 2.0, 3.0])).unwrap();
        gradients.add(1, &tensor(&[1.0, 0.0, 0.5])).unwrap();
        assert_eq!((gradients.get(0), gradients.get(1)), (None, Some(&[2.0, 2.0, 3.5][..])));
        gradients.slice_mut(0)[1] = 4.0;
        assert_eq!(gradients.values(), [0.0, 4.0, 2.0, 2.0, 3.5]);
        assert_eq!(gradients.norm(), (16.0f64 + 4.0 + 4.0 + 12.25).sqrt());
    }

    #[test]
    fn cleared_gradients_are_those_of_a_new_buffer() {
        let mut gradients = Gradients::new([2, 3]);
        let address = gradients.values().as_ptr();
        gradients.add(0, &tensor(&[1.0, 2.0])).unwrap();
        gradients.add(1, &tensor(&[1.0, f32::NAN, 3.0])).unwrap();
        gradients.set(0, None);
        assert_eq!((gradients.get(0), &gradients.values()[..2]), (None, &[0.0, 0.0][..]));
        gradients.set(0, Some(&[5.0, 6.0]));
        assert_eq!(gradients.get(0), Some(&[5.0, 6.0][..]));
        gradients.clear();
        assert_eq!((gradients.get(0), gradients.get(1)), (None, None));
        gradients.slice_mut(0)[1] += 1.0;
        gradients.settle();
        assert_eq!(gradients.values(), [0.0, 1.0, 0.0, 0.0, 0.0], "nothing of the step before is left");
        gradients.clear();
        gradients.settle();
        assert_eq!(gradients, Gradients::new([2, 3]));
        assert_eq!(gradients.values().as_ptr(), address);
    }

    #[test]
    fn a_transposed_gradient_is_added_in_its_own_order_and_a_wrong_size_is_refused() {
        let mut gradients = Gradients::new([4]);
        let transposed = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap().t().unwrap();
        gradients.add(0, &transposed).unwrap();
        assert_eq!(gradients.values(), [1.0, 3.0, 2.0, 4.0]);
        let message = gradients.add(0, &tensor(&[1.0])).unwrap_err().to_string();
        assert!(message.contains("1 values, expected 4"), "{message}");
    }

    #[test]
    fn the_norm_of_a_large_buffer_is_that_of_one_sum() {
        let mut gradients = Gradients::new([3 * CHUNK + 17]);
        let values = gradients.slice_mut(0);
        values.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 7) as f32 - 3.0);
        let expected = values.iter().map(|&x| f64::from(x * x)).sum::<f64>().sqrt();
        assert!((gradients.norm() - expected).abs() < 1e-9);
    }
}
