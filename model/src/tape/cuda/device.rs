//! What a tape needs of a device: memory, launches, products. A GPU offers it; in tests an emulator on the host does, too.

use std::any::Any;
use std::cell::Cell;
use std::rc::Rc;

use super::gemm::Product;
use super::gpu::Gpu;
use super::kernels::Kernel;
use crate::error::Result;

/// Calls queue work, in order; only those that say so wait for it.
pub(super) trait Backend {
    /// `n_bytes` bytes, all zero.
    fn zeros(&self, n_bytes: usize) -> Result<DeviceBuffer>;
    /// Queues a copy to the device; `bytes` have been read when this returns.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Copies from the device, after all queued work, and waits.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()>;
    fn copy(&self, to: u64, from: u64, n_bytes: usize) -> Result<()>;
    fn clear(&self, at: u64, n_bytes: usize) -> Result<()>;
    fn wait(&self) -> Result<()>;
    /// Queues a kernel, with the arguments of its signature.
    fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()>;
    fn product(&self, product: &Product) -> Result<()>;
    /// Makes a graph of what `queue` queues, which does not run now. What it is called with is part of the graph: addresses, sizes.
    fn capture(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>>;
    /// Bytes on the device that nobody asked for by [`Backend::zeros`].
    fn own_bytes(&self) -> usize;
    /// In words.
    fn describe(&self) -> String;
}

/// Launches and products in their order, to be queued again and again.
pub(super) trait Graph {
    fn replay(&self) -> Result<()>;
}

/// A device.
#[derive(Clone)]
pub(super) struct Device {
    backend: Rc<dyn Backend>,
    gpu: Option<Rc<Gpu>>,
    memory: Rc<Memory>,
}

/// Bytes of all buffers of a device.
#[derive(Default)]
struct Memory {
    now: Cell<usize>,
    peak: Cell<usize>,
}

/// The share of a buffer in its device's memory, until it is freed.
struct Counted {
    n_bytes: usize,
    memory: Rc<Memory>,
}

impl Memory {
    fn count(memory: &Rc<Memory>, n_bytes: usize) -> Counted {
        memory.now.set(memory.now.get() + n_bytes);
        memory.peak.set(memory.peak.get().max(memory.now.get()));
        Counted { n_bytes, memory: memory.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.now.set(self.memory.now.get() - self.n_bytes);
    }
}

/// Bytes on the device, freed with the value.
pub(super) struct DeviceBuffer {
    /// Address on the device.
    pub(super) at: u64,
    pub(super) n_bytes: usize,
    /// What frees them.
    pub(super) _owner: Box<dyn Any>,
}

/// What a kernel is called with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    At(u64),
    Int(i32),
    Long(u64),
    Float(f32),
}

/// How many blocks, of how many threads and bytes of shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: (usize, usize, usize),
    pub(super) threads: usize,
    pub(super) shared_bytes: usize,
}

impl Grid {
    /// Blocks along one dimension.
    pub(super) fn of(blocks: usize, threads: usize) -> Grid {
        Grid { blocks: (blocks, 1, 1), threads, shared_bytes: 0 }
    }
}

impl Device {
    /// Opens GPU `ordinal` and compiles the kernels for heads of width `head`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where a library or the GPU is missing, or a kernel does not compile.
    pub(super) fn open(ordinal: usize, head: usize) -> Result<Device> {
        let gpu = Rc::new(Gpu::open(ordinal, head)?);
        Ok(Device { backend: gpu.clone(), gpu: Some(gpu), memory: Rc::default() })
    }

    /// A device that is no GPU.
    #[cfg(test)]
    pub(super) fn emulated(backend: Rc<dyn Backend>) -> Device {
        Device { backend, gpu: None, memory: Rc::default() }
    }

    /// The GPU, for what only one has: streams, events, graphs.
    pub(super) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_deref()
    }

    pub(super) fn zeros(&self, n_bytes: usize) -> Result<DeviceBuffer> {
        let DeviceBuffer { at, n_bytes, _owner } = self.backend.zeros(n_bytes)?;
        Ok(DeviceBuffer { at, n_bytes, _owner: Box::new((_owner, Memory::count(&self.memory, n_bytes))) })
    }

    /// Bytes of all buffers when they were most, and of what the device keeps for itself.
    pub(super) fn peak_bytes(&self) -> usize {
        self.memory.peak.get() + self.backend.own_bytes()
    }

    /// Makes `buffer` hold at least `n_bytes` and says whether it moved; what it held is lost then.
    pub(super) fn grow(&self, buffer: &mut DeviceBuffer, n_bytes: usize) -> Result<bool> {
        let grows = buffer.n_bytes < n_bytes;
        if grows {
            *buffer = self.zeros(n_bytes)?;
        }
        Ok(grows)
    }

    /// Queues a copy to the device; `values` have been read when this returns.
    pub(super) fn write<T: Copy>(&self, values: &[T], to: u64) -> Result<()> {
        // SAFETY: any value is bytes; the types that are copied have no padding.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        self.backend.write(to, bytes)
    }

    /// Copies from the device, after all queued work, and waits. Any bytes must make a valid `T`.
    pub(super) fn read<T: Copy + Number>(&self, values: &mut [T], from: u64) -> Result<()> {
        // SAFETY: any bytes are a number.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) };
        self.backend.read(from, bytes)
    }

    pub(super) fn copy(&self, to: u64, from: u64, n_bytes: usize) -> Result<()> {
        self.backend.copy(to, from, n_bytes)
    }

    pub(super) fn clear(&self, at: u64, n_bytes: usize) -> Result<()> {
        self.backend.clear(at, n_bytes)
    }

    pub(super) fn wait(&self) -> Result<()> {
        self.backend.wait()
    }

    /// Queues a kernel, unless the grid is empty.
    pub(super) fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        match grid.blocks.0 * grid.blocks.1 * grid.blocks.2 {
            0 => Ok(()),
            _ => self.backend.launch(kernel, grid, args),
        }
    }

    /// Queues a matrix product, unless it is empty.
    pub(super) fn product(&self, product: &Product) -> Result<()> {
        match product.shape.m * product.shape.n * product.shape.k * product.shape.batch {
            0 => Ok(()),
            _ => self.backend.product(product),
        }
    }

    pub(super) fn capture(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.backend.capture(queue)
    }

    pub(super) fn describe(&self) -> String {
        self.backend.describe()
    }
}

/// Types of which any bytes are a value.
pub(super) trait Number {}
impl Number for f32 {}
impl Number for f64 {}
impl Number for u16 {}
impl Number for u32 {}
