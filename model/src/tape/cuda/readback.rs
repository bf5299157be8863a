//! Values on their way back from a device, in memory of the host that is written again when nobody reads it any more.

use std::sync::Arc;

use cudarc::driver::PinnedHostSlice;

use super::device::Device;
use super::gpu::driver;
use crate::error::Result;

/// Memory of the host: beside a GPU such as that reaches by itself, four times as fast.
pub(super) enum Block {
    Plain(Vec<f32>),
    Pinned(PinnedHostSlice<f32>),
}

impl Block {
    fn new(device: &Device, len: usize) -> Result<Block> {
        let Some(gpu) = device.gpu() else { return Ok(Block::Plain(vec![0.0; len])) };
        // SAFETY: it is written before it is read.
        Ok(Block::Pinned(unsafe { gpu.context.alloc_pinned_with_flags(len, 0) }.map_err(driver)?))
    }

    fn values(&mut self) -> Result<&mut [f32]> {
        match self {
            Block::Plain(values) => Ok(values),
            Block::Pinned(values) => values.as_mut_slice().map_err(driver),
        }
    }
}

impl AsRef<[f32]> for Block {
    fn as_ref(&self) -> &[f32] {
        match self {
            Block::Plain(values) => values,
            // It fails only where copies are waited for that it knows of: there are none.
            Block::Pinned(values) => values.as_slice().unwrap_or_default(),
        }
    }
}

/// What was read before and may still be in use.
#[derive(Default)]
pub(super) struct Readback(Vec<Arc<Block>>);

impl Readback {
    /// The `len` values on the device from `from` on, after all queued work; the block may have more.
    pub(super) fn read(&mut self, device: &Device, from: u64, len: usize) -> Result<Arc<Block>> {
        let free = self.0.iter().position(|block| Arc::strong_count(block) == 1);
        let known = free.map(|at| self.0.swap_remove(at)).filter(|block| (**block).as_ref().len() >= len);
        let mut block = match known {
            Some(block) => block,
            None => Arc::new(Block::new(device, len)?),
        };
        if let Some(block) = Arc::get_mut(&mut block) {
            device.read(&mut block.values()?[..len], from)?;
        }
        self.0.push(block.clone());
        Ok(block)
    }
}
