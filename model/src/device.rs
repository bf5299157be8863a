//! Which device a model lives on: the CPU, or a GPU where this program was built for one.

use candle_core::Device;

use crate::error::{Error, Result};

/// Whether this program has CUDA code.
pub const HAS_CUDA: bool = cfg!(feature = "candle-cuda");

/// The first CUDA GPU.
///
/// # Errors
/// [`Error::Device`]: a program without CUDA code, a machine without a GPU or with a driver that does not serve this program.
pub fn cuda() -> Result<Device> {
    if !HAS_CUDA {
        let reason = "this program was built without CUDA; expected a build with --features candle-cuda (to train and to answer also cuda, our kernels)";
        return Err(Error::Device(reason.to_owned()));
    }
    guarded(gpu::open).map_err(Error::Device)
}

/// What the driver calls a GPU, such as `NVIDIA H200`; nothing for a CPU.
pub fn gpu_name(device: &Device) -> Option<String> {
    gpu::name(device)
}

/// What `f` returns; a panic in the CUDA libraries is an error too.
fn guarded<T>(f: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    caught.unwrap_or_else(|_| Err("the CUDA libraries do not work here (the message above says why)".to_owned()))
}

#[cfg(not(feature = "candle-cuda"))]
mod gpu {
    pub(super) fn open() -> std::result::Result<candle_core::Device, String> {
        Err("no CUDA device".to_owned())
    }

    pub(super) fn name(_device: &candle_core::Device) -> Option<String> {
        None
    }
}

#[cfg(feature = "candle-cuda")]
mod gpu {
    use candle_core::Device;
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};

    pub(super) fn open() -> Result<Device, String> {
        let said = |e: DriverError| format!("no CUDA device: the driver says {:?}", e.0);
        let mut n = 0;
        // SAFETY: the driver's own entry points, in their order; the second writes one number.
        unsafe {
            sys::cuInit(0).result().map_err(said)?;
            sys::cuDeviceGetCount(&mut n).result().map_err(said)?;
        }
        if n == 0 {
            return Err("no CUDA device: the driver lists none".to_owned());
        }
        let broken = |e: candle_core::Error| format!("GPU 0: {e}");
        // A stream of the device's own: candle's default is another one for each thread, and a model is loaded on one thread and
        // trained on another.
        let device = Device::new_cuda_with_stream(0).map_err(broken)?;
        let cuda = device.as_cuda_device().map_err(broken)?;
        // SAFETY: this one stream does everything, in order, so that nothing has to be waited for.
        unsafe { cuda.disable_event_tracking() };
        keep_memory(cuda.cuda_stream().context()).map_err(|e| format!("GPU 0: {:?}", e.0))?;
        Ok(device)
    }

    pub(super) fn name(device: &Device) -> Option<String> {
        device.as_cuda_device().ok()?.cuda_stream().context().name().ok()
    }

    /// Stops the driver from taking freed memory back whenever the host waits for the GPU, which is after every micro-step.
    fn keep_memory(context: &CudaContext) -> Result<(), DriverError> {
        if !context.has_async_alloc() {
            return Ok(());
        }
        let mut threshold = u64::MAX;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the device is the context's, and the attribute is a number of 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device())?;
            result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_cuda_says_so() {
        if HAS_CUDA {
            return eprintln!("SKIPPED a_program_without_cuda_says_so: this one has CUDA");
        }
        let error = cuda().unwrap_err().to_string();
        assert!(error.contains("built without CUDA") && error.contains("candle-cuda"), "{error}");
    }
}
