//! The kernels: their sources, compiled for a device when it is opened, and their handles.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaFunction};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys};

use super::gpu::driver;
use crate::error::{Error, Result};

const COMMON: &str = include_str!("kernels/common.cuh");
const TILE: &str = include_str!("kernels/attention_tile.cuh");

/// One file of kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) name: &'static str,
    text: &'static str,
    /// Whether it depends on the width of a head.
    pub(super) is_attention: bool,
}

macro_rules! kernels {
    ($($file:literal $(, attention = $attention:literal)?: $($variant:ident $name:literal),*;)*) => {
        /// A kernel by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kernel { $($($variant),*),* }

        const KERNELS: &[(Kernel, &str, &str)] = &[$($((Kernel::$variant, $file, $name)),*),*];

        pub(super) const SOURCES: &[Source] = &[$(Source {
            name: $file,
            text: include_str!(concat!("kernels/", $file)),
            is_attention: false $(|| $attention)?,
        }),*];
    };
}

kernels! {
    "norm.cu": Norm "rms_norm", NormGrad "rms_norm_grad", AddColumns "add_columns", SumColumns "sum_columns", Rope "rope",
        HeadNormRope "head_norm_rope", HeadNormRopeGrad "head_norm_rope_grad";
    "elementwise.cu": Relu2 "relu2", Relu2Grad "relu2_grad", Swiglu "swiglu", SwigluGrad "swiglu_grad", AddBias "add_bias";
    "rows.cu": Embed "embed", AddRows "add_rows", SumPieces "sum_pieces", SumPiecesFloat "sum_pieces_float",
        AddPieces "add_pieces", TakeRows "take_rows", CollectRows "collect_rows";
    "cross_entropy.cu": SoftmaxLoss "softmax_loss", SequenceLosses "sequence_losses",
        AddLosses "add_losses";
    "grouped.cu": GroupedForward "grouped_forward", GroupedGradInput "grouped_grad_input",
        GroupedGradWeight "grouped_grad_weight";
    "optimizer.cu": Squares "squares", Judge "judge", AdamW "adamw", RoundWeights "round_weights",
        MuonDirection "muon_direction", MuonNormalize "muon_normalize", MuonApply "muon_apply";
    "attention.cu", attention = true: Attention "attention";
    "attention_grad.cu", attention = true: AttentionAlong "attention_along", AttentionGradQ "attention_grad_q",
        AttentionGradKv "attention_grad_kv";
    "kept.cu", attention = true: Keep "keep", AttendKept "attend_kept";
}

/// Widths of heads that attention has kernels for.
pub(super) const HEADS: [usize; 3] = [32, 64, 128];

impl Kernel {
    pub(super) fn name(self) -> &'static str {
        KERNELS.iter().find(|(kernel, ..)| *kernel == self).map_or("", |(_, _, name)| name)
    }
}

/// The kernels of one device.
pub(super) struct Kernels {
    functions: Vec<CudaFunction>,
}

impl Kernels {
    /// Compiles what has not been compiled for this kind of device in this process yet, and loads it.
    pub(super) fn load(context: &Arc<CudaContext>, head: usize) -> Result<Kernels> {
        let attribute = |attribute| context.attribute(attribute).map_err(driver);
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            let message = format!("compute capability {major}.{minor}: expected 8.0 or higher, for bf16 products");
            return Err(Error::Device(message));
        }
        let mut modules = HashMap::new();
        for source in SOURCES {
            let cubin = compiled(source, &format!("sm_{major}{minor}"), head)?;
            modules.insert(source.name, context.load_module(Ptx::from_binary(cubin)).map_err(driver)?);
        }
        let function = |(_, file, name): &(Kernel, &str, &str)| modules[file].load_function(name).map_err(driver);
        Ok(Kernels { functions: KERNELS.iter().map(function).collect::<Result<_>>()? })
    }

    pub(super) fn get(&self, kernel: Kernel) -> &CudaFunction {
        &self.functions[kernel as usize]
    }
}

/// Machine code by file, architecture and width of a head.
type Cache = Mutex<HashMap<(&'static str, String, usize), Vec<u8>>>;

fn compiled(source: &Source, arch: &str, head: usize) -> Result<Vec<u8>> {
    static CACHE: OnceLock<Cache> = OnceLock::new();
    let key = (source.name, arch.to_owned(), if source.is_attention { head } else { 0 });
    let cache = CACHE.get_or_init(Cache::default);
    if let Some(cubin) = cache.lock().ok().and_then(|cache| cache.get(&key).cloned()) {
        return Ok(cubin);
    }
    let cubin = compile(source, arch, head)?;
    if let Ok(mut cache) = cache.lock() {
        cache.insert(key, cubin.clone());
    }
    Ok(cubin)
}

/// Machine code of a file for the architecture `arch`, such as `sm_90`.
///
/// # Errors
/// [`Error::Device`] with the compiler's log.
pub(super) fn compile(source: &Source, arch: &str, head: usize) -> Result<Vec<u8>> {
    let tile = if source.is_attention { TILE } else { "" };
    let text = format!("#define HEAD {head}\n{COMMON}\n{tile}\n#line 1\n{}", source.text);
    let failed = |what: &str| Error::Device(format!("{}: {what}", source.name));
    let (Ok(text), Ok(name)) = (CString::new(text), CString::new(source.name)) else {
        return Err(failed("a zero byte in the source"));
    };
    let program = nvrtc::create_program(&text, Some(&name)).map_err(|error| failed(&format!("{error:?}")))?;
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
    // SAFETY: `program` is destroyed at the end of this function alone.
    let result = unsafe { nvrtc::compile_program(program, &options) }
        .map_err(|error| {
            // SAFETY: as above; the log ends with a zero byte.
            let log = unsafe { nvrtc::get_program_log(program) }.unwrap_or_default();
            let log =
                if log.contains(&0) { unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy() } else { "".into() };
            failed(&format!("{error:?}\n{log}"))
        })
        .and_then(|()| cubin(program).ok_or_else(|| failed("no machine code")));
    // SAFETY: it is not used any more.
    let destroyed = unsafe { nvrtc::destroy_program(program) };
    destroyed.map_err(|error| failed(&format!("{error:?}")))?;
    result
}

fn cubin(program: sys::nvrtcProgram) -> Option<Vec<u8>> {
    let mut size = 0;
    // SAFETY: the program is compiled; the second call fills as many bytes as the first one says.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &raw mut size).result().ok()?;
        let mut cubin = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result().ok()?;
        Some(cubin)
    }
}
