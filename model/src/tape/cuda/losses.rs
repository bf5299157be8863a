//! The losses of all sequences since gradients were cleared, one after the other on the device until the report is read.

use super::device::{Device, DeviceBuffer};
use crate::error::Result;

/// Float64 sums in the order of the steps.
pub(super) struct Losses {
    buffer: DeviceBuffer,
    n: usize,
}

impl Losses {
    pub(super) fn new(device: &Device) -> Result<Losses> {
        Ok(Losses { buffer: device.zeros(0)?, n: 0 })
    }

    pub(super) fn clear(&mut self) {
        self.n = 0;
    }

    /// Queues a copy of the `n` losses at `from`. It is no part of a graph: each step of several has another place.
    pub(super) fn append(&mut self, device: &Device, from: u64, n: usize) -> Result<()> {
        let needed = 8 * (self.n + n);
        if needed > self.buffer.n_bytes {
            let larger = device.zeros(needed.next_power_of_two())?;
            if self.n > 0 {
                device.copy(larger.at, self.buffer.at, 8 * self.n)?;
            }
            self.buffer = larger;
        }
        device.copy(self.buffer.at + 8 * self.n as u64, from, 8 * n)?;
        self.n += n;
        Ok(())
    }

    /// Waits for them.
    pub(super) fn read(&self, device: &Device) -> Result<Vec<f64>> {
        let mut losses = vec![0.0; self.n];
        if self.n > 0 {
            device.read(&mut losses, self.buffer.at)?;
        }
        Ok(losses)
    }
}
