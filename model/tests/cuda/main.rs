//! On a GPU everything comes out as on the CPU: every operation forward and backward, whole models, golden logits, training.
//!
//! Without a GPU each test says that it was skipped. The executable needs no cargo: it runs in the repository's root.
#![allow(non_snake_case)]

mod models;
mod operations;

use std::sync::{Mutex, MutexGuard};

use candle_core::{Device, Result, Tensor, Var};
use multicoder_model::{device, ops};

/// Largest relative difference in float32: only the order of sums differs.
const FLOAT32: f64 = 2e-5;
/// The same when the factors of products are rounded to bfloat16, which keeps eight bits.
const BFLOAT16: f64 = 2e-2;

static TURN: Mutex<()> = Mutex::new(());

/// The GPU, for one test at a time: whether products are in bfloat16 is the process's choice.
struct Gpu {
    device: Device,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        ops::set_bf16_products(false);
    }
}

fn gpu(test: &str) -> Option<Gpu> {
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match device::cuda() {
        Ok(device) => Some(Gpu { device, _turn: turn }),
        Err(_) => {
            println!("SKIPPED {test}: no CUDA device");
            None
        }
    }
}

/// Repeatable values in -1..1, on the CPU.
fn values(shape: &[usize], seed: u32) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: u32| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) % 2001) as f32 / 1000.0 - 1.0;
    Tensor::from_vec((0..n as u32).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// Asserts that `‖got - expected‖` is at most `tolerance` of `‖expected‖`.
fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let host = |x: &Tensor| x.flatten_all().unwrap().to_device(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    let (got, expected) = (host(got), host(expected));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
    let scale = norm(&mut expected.iter().map(|&x| f64::from(x))).max(1e-6);
    assert!(difference <= tolerance * scale, "{what}: differs by {difference:e} at {scale:e}");
}

/// Asserts that `f` has the value and the gradients on the GPU that it has on the CPU.
fn assert_same(gpu: &Gpu, tolerance: f64, what: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |device: &Device| -> Result<(Tensor, Vec<Tensor>)> {
        let var = |x: &Tensor| Var::from_tensor(&x.to_device(device)?);
        let vars = inputs.iter().map(var).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = f(&tensors)?;
        let grads = y.mul(&values(y.dims(), 7).to_device(device)?)?.sum_all()?.backward()?;
        let grad = |var: &Var| grads.get(var).expect("a gradient").clone();
        Ok((y, vars.iter().map(grad).collect()))
    };
    let (y, grads) = run(&gpu.device).unwrap_or_else(|e| panic!("{what} on the GPU: {e}"));
    let (y_ref, grads_ref) = run(&Device::Cpu).unwrap();
    assert_close(&y, &y_ref, tolerance, what);
    for (i, (grad, grad_ref)) in grads.iter().zip(&grads_ref).enumerate() {
        assert_close(grad, grad_ref, tolerance, &format!("{what}, gradient of input {i}"));
    }
}
