//! A GPU: its driver and libraries, streams, memory, and the launch of kernels. The only file, with `gemm.rs`, that calls the driver.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::result::{launch_kernel, memcpy_dtod_async, memcpy_dtoh_async, memcpy_htod_async, memset_d8_async};
use cudarc::driver::sys::{
    CUevent_flags as EventFlags, CUfunction_attribute_enum as FunctionAttribute,
    CUgraphInstantiate_flags_enum as GraphFlags, CUstreamCaptureMode as CaptureMode,
};
use cudarc::driver::{CudaContext, CudaEvent, CudaGraph, CudaStream, DevicePtr, DriverError};

use super::device::{Arg, Backend, DeviceBuffer, Graph, Grid};
use super::gemm::{Gemm, Product, WORKSPACE_BYTES};
use super::kernels::{Kernel, Kernels};
use crate::error::{Error, Result};

/// A GPU that kernels can be launched on.
pub(super) struct Gpu {
    gemm: Gemm,
    kernels: Kernels,
    /// Where the next batch is brought, beside the work.
    pub(super) copies: Arc<CudaStream>,
    /// Where all work is queued, in order.
    pub(super) stream: Arc<CudaStream>,
    pub(super) context: Arc<CudaContext>,
}

/// An error of the driver.
pub(super) fn driver(error: DriverError) -> Error {
    Error::Device(format!("CUDA driver: {error:?}"))
}

/// Whether the libraries can be loaded that a GPU needs.
///
/// # Errors
/// [`Error::Device`] with the first one that is missing.
fn check_libraries() -> Result<()> {
    // SAFETY: loading these libraries runs no more than their own initialisers.
    let (driver, nvrtc, cublaslt) = unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
            cudarc::cublaslt::sys::is_culib_present(),
        )
    };
    let missing = |name: &str| Err(Error::Device(format!("{name} cannot be loaded: expected on the library path")));
    match (driver, nvrtc, cublaslt) {
        (false, ..) => Err(Error::Device("no CUDA driver (libcuda) on this machine".to_owned())),
        (_, false, _) => missing("the CUDA library libnvrtc"),
        (.., false) => missing("the CUDA library libcublasLt"),
        _ => Ok(()),
    }
}

/// The number of GPUs that the driver knows, at least one.
///
/// # Errors
/// [`Error::Device`] with what is missing.
pub(in super::super) fn n_gpus() -> Result<usize> {
    check_libraries()?;
    match guarded(|| CudaContext::device_count().map_err(driver))? {
        0 => Err(Error::Device("no CUDA device: the driver lists none".to_owned())),
        n => Ok(n as usize),
    }
}

/// Runs `f`, which calls libraries that are loaded at run time, and where one is missing after all gives an error instead of a panic.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        Err(Error::Device(message.unwrap_or_else(|| "a CUDA library cannot be loaded".to_owned())))
    })
}

impl Gpu {
    pub(super) fn open(ordinal: usize, head: usize) -> Result<Gpu> {
        check_libraries()?;
        guarded(|| {
            let context = CudaContext::new(ordinal).map_err(driver)?;
            // SAFETY: all buffers are used by one stream in order; the stream of copies waits by events of its own.
            unsafe { context.disable_event_tracking() };
            let (stream, copies) = (context.new_stream().map_err(driver)?, context.new_stream().map_err(driver)?);
            let kernels = Kernels::load(&context, head)?;
            Ok(Gpu { gemm: Gemm::new(&stream)?, kernels, copies, stream, context })
        })
    }

    /// The point that the stream has reached, with its time if `timed`.
    pub(super) fn mark(&self, timed: bool) -> Result<CudaEvent> {
        self.stream.record_event(timed.then_some(EventFlags::CU_EVENT_DEFAULT)).map_err(driver)
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(driver)
    }
}

/// Bytes on a GPU, all zero.
pub(super) fn zeros(stream: &Arc<CudaStream>, n_bytes: usize) -> Result<DeviceBuffer> {
    let bytes = stream.alloc_zeros::<u8>(n_bytes.max(256)).map_err(driver)?;
    let at = bytes.device_ptr(stream).0;
    Ok(DeviceBuffer { at, n_bytes: bytes.len(), _owner: Box::new(bytes) })
}

impl Backend for Gpu {
    fn zeros(&self, n_bytes: usize) -> Result<DeviceBuffer> {
        zeros(&self.stream, n_bytes)
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: callers give addresses of buffers of at least that many bytes. Memory that is not pinned is read before the call returns.
        unsafe { memcpy_htod_async(to, bytes, self.stream.cu_stream()) }.map_err(driver)
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: as in `write`; the copy ends before this returns.
        unsafe { memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }.map_err(driver)?;
        self.wait()
    }

    fn copy(&self, to: u64, from: u64, n_bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: callers give addresses of buffers of at least that many bytes, which outlive the stream's work.
        unsafe { memcpy_dtod_async(to, from, n_bytes, self.stream.cu_stream()) }.map_err(driver)
    }

    fn clear(&self, at: u64, n_bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: as in `copy`.
        unsafe { memset_d8_async(at, 0, n_bytes, self.stream.cu_stream()) }.map_err(driver)
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(driver)
    }

    fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        self.bind()?;
        let function = self.kernels.get(kernel);
        let failed = |error: DriverError| Error::Device(format!("kernel {}, {grid:?}: {error:?}", kernel.name()));
        // More needs to be asked for.
        if grid.shared_bytes > 48 << 10 {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, grid.shared_bytes as i32).map_err(failed)?;
        }
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let (x, y, z) = grid.blocks;
        let blocks = (x as u32, y as u32, z as u32);
        let (threads, shared) = ((grid.threads as u32, 1, 1), grid.shared_bytes as u32);
        // SAFETY: the pointers are those of values that live through the call and are those of the kernel's signature (tests run each of
        // them); addresses are of buffers that outlive the stream's work.
        unsafe {
            launch_kernel(function.cu_function(), blocks, threads, shared, self.stream.cu_stream(), &mut pointers)
        }
        .map_err(failed)
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.bind()?;
        self.gemm.run(product)
    }

    fn capture(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.bind()?;
        self.stream.begin_capture(CaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(driver)?;
        let queued = queue();
        // The capture ends whatever came of it: else the stream takes no more work.
        let graph = self.stream.end_capture(GraphFlags(0)).map_err(driver);
        queued?;
        let graph = graph?.ok_or_else(|| Error::Device("a captured graph is empty".to_owned()))?;
        Ok(Box::new(graph))
    }

    fn own_bytes(&self) -> usize {
        WORKSPACE_BYTES
    }

    fn describe(&self) -> String {
        match (self.context.name(), self.context.total_mem()) {
            (Ok(name), Ok(n_bytes)) => format!("{name}, {} GiB", n_bytes >> 30),
            _ => "a GPU that gives no name".to_owned(),
        }
    }
}

impl Graph for CudaGraph {
    fn replay(&self) -> Result<()> {
        self.launch().map_err(driver)
    }
}

impl Arg {
    /// The address of the number itself.
    pub(super) fn pointer(&self) -> *mut c_void {
        match self {
            Arg::At(value) | Arg::Long(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
        }
    }
}
