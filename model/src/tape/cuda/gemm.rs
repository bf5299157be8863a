//! Matrix products by cuBLASLt: bfloat16 operands, float32 sums; descriptors and algorithms are kept by shape.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as MatmulAttribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayoutAttribute_t as LayoutAttribute,
    cudaDataType as Type,
};
use cudarc::driver::CudaStream;

use super::device::DeviceBuffer;
use super::gpu;
use crate::error::{Error, Result};

/// What the library may use beside the operands; 32 MiB is its maker's advice for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// The library and what it knows of the shapes that it has met.
pub(super) struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceBuffer,
    stream: Arc<CudaStream>,
    plans: RefCell<HashMap<(Shape, Alignments), Plan>>,
}

/// `c = alpha · op(a) · op(b) + beta · c`, all row-major. Without a transpose `a` is m x k and `b` k x n.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) shape: Shape,
    pub(super) a: u64,
    pub(super) b: u64,
    /// What is added, and the result; the same but in place of it another matrix of that shape.
    pub(super) c: u64,
    pub(super) out: u64,
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

/// All that an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) transposes: (bool, bool),
    /// Elements from a row to the next of a, b and c.
    pub(super) strides: (usize, usize, usize),
    /// Whether the result is float32, else bfloat16.
    pub(super) is_float: bool,
    /// Matrices that lie side by side.
    pub(super) batch: usize,
}

/// Bytes, up to [`MOST_ALIGNED`], that divide the addresses of a, b, c and the result, of all matrices of a batch.
type Alignments = [u32; 4];

/// What the library assumes unless it is told; memory of the device begins at such addresses, but what lies inside need not.
const MOST_ALIGNED: u64 = 256;

struct Plan {
    matmul: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn failed(error: CublasError) -> Error {
    Error::Device(format!("cuBLASLt: {error:?}"))
}

impl Shape {
    /// Dense operands of m x k and k x n, once transposed.
    pub(super) fn of((m, n, k): (usize, usize, usize), transposes: (bool, bool), is_float: bool) -> Shape {
        let strides = (if transposes.0 { m } else { k }, if transposes.1 { k } else { n }, n);
        Shape { m, n, k, transposes, strides, is_float, batch: 1 }
    }
}

impl Product {
    fn alignments(&self) -> Alignments {
        let Shape { m, n, k, transposes, strides, is_float, batch } = self.shape;
        let (rows_a, rows_b) = (if transposes.0 { k } else { m }, if transposes.1 { n } else { k });
        let out_bytes = if is_float { 4 } else { 2 };
        let aligned = |address: u64, matrix_bytes: usize| {
            let apart = if batch > 1 { matrix_bytes as u64 } else { 0 };
            1 << (address | apart | MOST_ALIGNED).trailing_zeros()
        };
        let matrix_bytes = out_bytes * m * strides.2;
        [
            aligned(self.a, 2 * rows_a * strides.0),
            aligned(self.b, 2 * rows_b * strides.1),
            aligned(self.c, matrix_bytes),
            aligned(self.out, matrix_bytes),
        ]
    }
}

impl Gemm {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Gemm> {
        let workspace = gpu::zeros(stream, WORKSPACE_BYTES)?;
        let handle = lt::create_handle().map_err(failed)?;
        Ok(Gemm { handle, workspace, stream: stream.clone(), plans: RefCell::default() })
    }

    /// Queues a product.
    pub(super) fn run(&self, product: &Product) -> Result<()> {
        let (shape, alignments) = (product.shape, product.alignments());
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry((shape, alignments)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(Plan::new(self.handle, &shape, alignments)?),
        };
        let at = |address: u64| address as *const c_void;
        // Row-major is column-major of the transposes: cᵀ = op(b)ᵀ · op(a)ᵀ.
        let (first, second) = (at(product.b), at(product.a));
        let [first_layout, second_layout, out_layout] = plan.layouts;
        let (alpha, beta) = ((&raw const product.alpha).cast(), (&raw const product.beta).cast());
        // SAFETY: callers give addresses of matrices of this shape, which outlive the stream's work.
        unsafe {
            lt::matmul(
                self.handle,
                plan.matmul,
                alpha,
                beta,
                first,
                first_layout,
                second,
                second_layout,
                at(product.c),
                out_layout,
                product.out as *mut c_void,
                out_layout,
                &raw const plan.algorithm,
                self.workspace.at as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(|error| Error::Device(format!("cuBLASLt: {error:?} for {shape:?}")))
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.plans.borrow_mut().drain().for_each(|(_, plan)| plan.destroy());
        // SAFETY: nothing uses the handle any more. A failure leaves nothing to be done.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, shape: &Shape, alignments: Alignments) -> Result<Plan> {
        let matmul = lt::create_matmul_desc(Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F).map_err(failed)?;
        let attributes = [
            (MatmulAttribute::CUBLASLT_MATMUL_DESC_TRANSA, shape.transposes.1),
            (MatmulAttribute::CUBLASLT_MATMUL_DESC_TRANSB, shape.transposes.0),
        ];
        for (attribute, transposed) in attributes {
            // CUBLAS_OP_N and CUBLAS_OP_T.
            let operation = i32::from(transposed);
            // SAFETY: the attribute is a number of this size.
            unsafe { lt::set_matmul_desc_attribute(matmul, attribute, (&raw const operation).cast(), 4) }
                .map_err(failed)?;
        }
        let out = if shape.is_float { Type::CUDA_R_32F } else { Type::CUDA_R_16BF };
        let half = Type::CUDA_R_16BF;
        let turn = |(rows, columns), transposed: bool| if transposed { (columns, rows) } else { (rows, columns) };
        let (a, b) = (turn((shape.m, shape.k), shape.transposes.0), turn((shape.k, shape.n), shape.transposes.1));
        let layouts = [
            layout(half, b, shape.strides.1, shape.batch)?,
            layout(half, a, shape.strides.0, shape.batch)?,
            layout(out, (shape.m, shape.n), shape.strides.2, shape.batch)?,
        ];
        let algorithm = algorithm(handle, matmul, layouts, alignments)
            .map_err(|error| Error::Device(format!("cuBLASLt: no algorithm for {shape:?}: {error:?}")))?;
        Ok(Plan { matmul, layouts, algorithm })
    }

    fn destroy(self) {
        // SAFETY: they are used no more; a failure leaves nothing to be done.
        unsafe {
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
            let _ = lt::destroy_matmul_desc(self.matmul);
        }
    }
}

/// A row-major matrix, told as its column-major transpose.
fn layout(
    kind: Type,
    (rows, columns): (usize, usize),
    stride: usize,
    batch: usize,
) -> Result<sys::cublasLtMatrixLayout_t> {
    let layout = lt::create_matrix_layout(kind, columns as u64, rows as u64, stride as i64).map_err(failed)?;
    if batch > 1 {
        let (count, apart) = (batch as i32, (rows * stride) as i64);
        let attributes = [
            (LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast::<c_void>(), 4),
            (LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, (&raw const apart).cast(), 8),
        ];
        for (attribute, value, size) in attributes {
            // SAFETY: the values have the sizes of these attributes.
            unsafe { lt::set_matrix_layout_attribute(layout, attribute, value, size) }.map_err(failed)?;
        }
    }
    Ok(layout)
}

fn algorithm(
    handle: sys::cublasLtHandle_t,
    matmul: sys::cublasLtMatmulDesc_t,
    [first, second, out]: [sys::cublasLtMatrixLayout_t; 3],
    [a, b, c, d]: Alignments,
) -> std::result::Result<sys::cublasLtMatmulAlgo_t, CublasError> {
    let preference = lt::create_matmul_pref()?;
    let bytes = WORKSPACE_BYTES;
    // The library's first operand is b; see `run`.
    let alignments = [
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
    ];
    // SAFETY: all descriptors are alive; the attributes are numbers of these sizes.
    unsafe {
        let workspace = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let set = |kind, value: *const c_void, size| lt::set_matmul_pref_attribute(preference, kind, value, size);
        let found = set(workspace, (&raw const bytes).cast(), 8)
            .and_then(|()| alignments.iter().try_for_each(|(kind, bytes)| set(*kind, (&raw const *bytes).cast(), 4)))
            .and_then(|()| lt::get_matmul_algo_heuristic(handle, matmul, first, second, out, out, preference));
        lt::destroy_matmul_pref(preference)?;
        Ok(found?.algo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_told_how_operands_lie() {
        let shape = Shape::of((64, 48, 40), (false, true), true);
        let mut product = Product { shape, a: 0x1000, b: 0x1080, c: 0x1010, out: 0x1300, alpha: 1.0, beta: 1.0 };
        assert_eq!(product.alignments(), [256, 128, 16, 256]);
        // Matrices of 64 x 40 and 48 x 40 bfloat16 and 64 x 48 float32 numbers, side by side.
        product.shape.batch = 2;
        assert_eq!(product.alignments(), [256, 128, 16, 256]);
        product.shape = Shape { batch: 2, ..Shape::of((7, 9, 8), (false, false), false) };
        assert_eq!(product.alignments(), [16, 16, 2, 2]);
    }
}
