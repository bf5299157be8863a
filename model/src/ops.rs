//! Differentiable operations of the training step and of decoding, each with a backward pass of its own on the CPU.
//!
//! candle's fused operations give no gradient and say nothing, and its composed ones write every intermediate to memory. On a device
//! other than the CPU the composed forms run; they are also the reference that the fused ones are checked against. Composed forms have
//! no data on the host but indices, and their products are in bfloat16 where a run asked for it.

mod activation;
mod adamw;
mod attention;
mod cross_entropy;
mod head_norm_rope;
mod linear;
mod matmul;
mod muon;
mod rms_norm;
mod rope;
mod rows;
pub(crate) mod simd;
mod tables;

pub use activation::{relu2, swiglu};
pub use adamw::{AdamWStep, adamw_step};
pub use attention::causal_attention;
pub use cross_entropy::{LinearCrossEntropy, linear_cross_entropy, linear_scores, softcap};
pub use linear::linear;
pub use matmul::set_bf16_products;
pub use muon::{MuonStep, muon_step};
pub use rms_norm::rms_norm;
pub use rope::{Rope, apply_rope};
pub use rows::{add_rows, gather_rows};

pub(crate) use activation::{relu2_backward, relu2_forward, swiglu_backward, swiglu_forward};
pub(crate) use attention::{AttentionShape, Inputs};
pub(crate) use cross_entropy::{CrossEntropyMemory, cross_entropy};
pub(crate) use head_norm_rope::HeadNormRope;
pub(crate) use linear::{linear_forward, linear_grad_input, linear_grad_weight};
pub(crate) use rms_norm::{norm, norm_grad, norm_row};
pub(crate) use tables::{add_bias, add_table_rows, bias_grad, copy_table_rows, scatter_rows};

use std::cell::RefCell;

use candle_core::{CpuStorage, D, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous float32 CPU tensor.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("{op}: expected a contiguous tensor") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Runs `f` on the values of a contiguous float32 CPU tensor.
pub(crate) fn with_values<T>(tensor: &Tensor, op: &'static str, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => f(slice(cpu, layout, op)?),
        _ => bail!("{op}: expected a tensor on the CPU"),
    }
}

/// Runs `f` on the values of a contiguous float32 CPU tensor, to be changed in place.
fn with_values_mut<T>(tensor: &Tensor, op: &'static str, f: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<T> {
    let visit = Visit { op, f: RefCell::new(Some(f)), result: RefCell::new(None) };
    tensor.inplace_op1(&visit)?;
    visit.result.into_inner().map_or_else(|| bail!("{op}: expected a tensor on the CPU"), Ok)
}

/// A function on a tensor's values as candle's in-place operation: its only door to them.
struct Visit<F, T> {
    op: &'static str,
    f: RefCell<Option<F>>,
    result: RefCell<Option<T>>,
}

impl<T, F: FnOnce(&mut [f32]) -> Result<T>> InplaceOp1 for Visit<F, T> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{}: expected a contiguous tensor", self.op)
        };
        let CpuStorage::F32(values) = storage else { bail!("{}: expected float32", self.op) };
        let Some(f) = self.f.take() else { bail!("{}: it runs once", self.op) };
        self.result.replace(Some(f(&mut values[start..end])?));
        Ok(())
    }
}

/// Whether `x` is where the fused forms run.
fn is_fused(x: &Tensor) -> bool {
    #[cfg(test)]
    if tests::COMPOSED.get() {
        return false;
    }
    x.device().is_cpu()
}

/// `a·b` of the composed forms, float32: the factors are rounded to bfloat16 where a run asked for it, the gradient's too.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let in_bf16 = matmul::is_bf16_off_cpu();
    #[cfg(test)]
    let in_bf16 = in_bf16 || tests::BF16.get();
    if !in_bf16 {
        return a.matmul(b);
    }
    a.to_dtype(DType::BF16)?.matmul(&b.to_dtype(DType::BF16)?)?.to_dtype(DType::F32)
}

/// `x` less the largest of its row, which is a constant to the gradient: a softmax does not depend on it.
fn less_row_max(x: &Tensor) -> Result<Tensor> {
    x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())
}

/// Replaces a row of logits by its softmax.
pub(crate) fn softmax_row(row: &mut [f32]) {
    simd::softmax_row(row);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use candle_core::{Device, Result, Tensor, Var};

    thread_local! {
        /// On this thread the composed forms run on the CPU too.
        pub(crate) static COMPOSED: Cell<bool> = const { Cell::new(false) };
        /// On this thread the composed forms' products are in bfloat16.
        pub(crate) static BF16: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs `f` as on a device that has no fused forms.
    pub(crate) fn composed<T>(f: impl FnOnce() -> T) -> T {
        COMPOSED.set(true);
        let result = f();
        COMPOSED.set(false);
        result
    }

    /// Repeatable values in about -1..1.
    pub(crate) fn values(shape: &[usize], seed: u32) -> Tensor {
        let n: usize = shape.iter().product();
        let value =
            |i: u32| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) % 2001) as f32 / 1000.0 - 1.0;
        Tensor::from_vec((0..n as u32).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    /// Asserts that two functions have the same value and the same gradients at `inputs`.
    pub(crate) fn assert_same_gradients(
        inputs: &[Tensor],
        fused: impl Fn(&[Tensor]) -> Result<Tensor>,
        composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
            let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
            let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
            let y = f(&tensors).unwrap();
            let weights = values(y.dims(), 7);
            let grads = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
            let grads: Vec<Tensor> = vars.iter().map(|v| grads.get(v).expect("a gradient").clone()).collect();
            (y, grads)
        };
        let ((y, grads), (y_ref, grads_ref)) = (run(&fused), run(&composed));
        assert_close(&y, &y_ref, "value");
        for (i, (grad, reference)) in grads.iter().zip(&grads_ref).enumerate() {
            assert_close(grad, reference, &format!("gradient of input {i}"));
        }
    }

    pub(crate) fn assert_close(a: &Tensor, b: &Tensor, what: &str) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let max = |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let scale = max(b.clone()).max(1e-3);
        let difference = max((a - b).unwrap());
        assert!(difference <= 2e-5 * scale.max(1.0), "{what}: differs by {difference} at scale {scale}");
    }
}
