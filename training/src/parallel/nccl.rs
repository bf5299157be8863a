//! Ranks that are processes with a GPU each, over NCCL. Values pass through the host, where the gradients are.
//!
//! The launcher gives each process its rank (`RANK` and `WORLD_SIZE`, or MPI's or SLURM's variables) and one visible GPU
//! (`CUDA_VISIBLE_DEVICES`), or all of its machine, of which it takes the one of its number there. NCCL's identifier comes from rank 0: over MPI where the program has it and MPI's launcher started it,
//! else through the file that `MULTICODER_RENDEZVOUS` names, on a file system that all ranks see, a new one for each run.
//!
//! No machine with several GPUs has run this file yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nccl::{Comm, Id, ReduceOp};

use super::mesh::Launch;
use super::wire::{Traffic, Wire};

const RENDEZVOUS: &str = "MULTICODER_RENDEZVOUS";
/// Bytes of NCCL's identifier.
const ID_BYTES: usize = 128;
const POLL: Duration = Duration::from_millis(20);

/// This process among those of one NCCL communicator.
pub(super) struct Nccl {
    comm: Comm,
    stream: Arc<CudaStream>,
    traffic: Traffic,
}

impl Nccl {
    /// Meets the other ranks.
    ///
    /// # Errors
    /// No GPU, no NCCL, no identifier within `timeout`.
    pub(super) fn connect(launch: Launch, timeout: Duration) -> Result<Nccl> {
        find_libraries()?;
        let ordinal = launch.gpu(CudaContext::device_count().context("number of GPUs")? as usize);
        let stream = CudaContext::new(ordinal).with_context(|| format!("GPU {ordinal}"))?.default_stream();
        let id = share_id(&launch, timeout)?;
        let comm = Comm::from_rank(stream.clone(), launch.rank, launch.world, id).map_err(failed)?;
        Ok(Nccl { comm, stream, traffic: Traffic::default() })
    }

    fn gather_equal(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let sent = self.stream.clone_htod(bytes)?;
        let mut all = self.stream.alloc_zeros::<u8>(bytes.len() * self.comm.world_size())?;
        self.comm.all_gather(&sent, &mut all).map_err(failed)?;
        Ok(self.stream.clone_dtoh(&all)?)
    }
}

impl Wire for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn world(&self) -> usize {
        self.comm.world_size()
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn all_gather(&mut self, mut bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.traffic.add(bytes.len(), self.world() - 1);
        let sizes = self.gather_equal(&(bytes.len() as u64).to_le_bytes())?;
        let sizes: Vec<usize> =
            sizes.as_chunks::<8>().0.iter().map(|size| u64::from_le_bytes(*size) as usize).collect();
        let largest = sizes.iter().copied().max().unwrap_or(0).max(1);
        bytes.resize(largest, 0);
        let all = self.gather_equal(&bytes)?;
        Ok(all.chunks(largest).zip(sizes).map(|(bytes, size)| bytes[..size].to_vec()).collect())
    }

    fn all_to_all_v(&mut self, parts: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        self.traffic.add_parts(self.rank(), &parts);
        let (rank, world) = (self.rank(), self.world());
        let sizes = parts.iter().flat_map(|part| (part.len() as u64).to_le_bytes()).collect();
        let sizes = self.all_gather(sizes)?;
        let size_from = |from: usize| {
            let size = sizes[from].as_chunks::<8>().0.get(rank).copied();
            size.map(|size| u64::from_le_bytes(size) as usize).with_context(|| format!("rank {from} sent no sizes"))
        };
        let received: Vec<usize> = (0..world).map(size_from).collect::<Result<_>>()?;
        // A size of zero is no message, and no allocation of nothing either.
        let sent =
            parts.iter().map(|part| if part.is_empty() { Ok(None) } else { self.stream.clone_htod(part).map(Some) });
        let sent = sent.collect::<Result<Vec<_>, _>>()?;
        let arrived =
            received.iter().map(|&n| if n == 0 { Ok(None) } else { self.stream.alloc_zeros::<f32>(n).map(Some) });
        let mut arrived = arrived.collect::<Result<Vec<_>, _>>()?;
        {
            let views: Vec<_> = sent.iter().map(|part| part.as_ref().map(|part| part.as_view())).collect();
            let views_mut: Vec<_> =
                arrived.iter_mut().map(|part| part.as_mut().map(|part| part.as_view_mut())).collect();
            let mut group = self.comm.group();
            for (peer, (view, view_mut)) in views.into_iter().zip(views_mut).enumerate() {
                view.map_or(Ok(()), |view| group.send(view, peer as i32)).map_err(failed)?;
                view_mut.map_or(Ok(()), |view| group.recv(view, peer as i32).map(drop)).map_err(failed)?;
            }
        }
        let values =
            arrived.iter().map(|part| part.as_ref().map_or(Ok(Vec::new()), |part| self.stream.clone_dtoh(part)));
        Ok(values.collect::<Result<_, _>>()?)
    }

    /// NCCL's own sum: the same bits on all ranks, in an order of its own.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<()> {
        let world = self.world();
        self.traffic.add(2 * size_of_val(values) * (world - 1) / world, 1);
        let mut sum = self.stream.clone_htod(values)?;
        self.comm.all_reduce_in_place(&mut sum, &ReduceOp::Sum).map_err(failed)?;
        Ok(self.stream.memcpy_dtoh(&sum, values)?)
    }
}

/// cudarc panics at the first call of a library that is not there, and knows NCCL only by the name that development packages give it.
fn find_libraries() -> Result<()> {
    // SAFETY: both only try to load the library.
    let (has_driver, has_nccl) =
        unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nccl::sys::is_culib_present()) };
    ensure!(has_driver, "parallel.backend = \"nccl\": no CUDA driver (libcuda.so.1) on this machine");
    ensure!(
        has_nccl,
        "parallel.backend = \"nccl\": no libnccl.so in the library path; where there is a libnccl.so.2 alone, as in PyTorch's wheels, make \
         a link libnccl.so to it in a folder of LD_LIBRARY_PATH"
    );
    Ok(())
}

fn failed(error: cudarc::nccl::result::NcclError) -> anyhow::Error {
    anyhow!("NCCL: {error:?}")
}

/// Rank 0's identifier on every rank.
fn share_id(launch: &Launch, timeout: Duration) -> Result<Id> {
    #[cfg(feature = "mpi")]
    if !launch.by.starts_with("WORLD") {
        let mut wire = super::mpi::Mpi::connect()?;
        let mine = if launch.rank == 0 { new_id()? } else { Vec::new() };
        let ids = wire.all_gather(mine)?;
        wire.leave()?;
        return parse_id(&ids[0]);
    }
    let path = std::env::var_os(RENDEZVOUS).map(PathBuf::from);
    let path =
        path.with_context(|| format!("{RENDEZVOUS} is not set: it names the file through which the ranks meet"))?;
    if launch.rank == 0 {
        let id = new_id()?;
        ensure!(!path.exists(), "{}: it exists; {RENDEZVOUS} must name a new file for each run", path.display());
        let part = path.with_extension("part");
        fs::write(&part, &id).and_then(|()| fs::rename(&part, &path)).with_context(|| path.display().to_string())?;
        return parse_id(&id);
    }
    parse_id(&wait_for(&path, timeout)?)
}

fn wait_for(path: &Path, timeout: Duration) -> Result<Vec<u8>> {
    let start = Instant::now();
    loop {
        match fs::read(path) {
            Ok(bytes) => return Ok(bytes),
            Err(error) if start.elapsed() > timeout => {
                bail!("{}: rank 0 has not written it within {timeout:?}: {error}", path.display())
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

fn new_id() -> Result<Vec<u8>> {
    let id = Id::new().map_err(failed)?;
    Ok(id.internal().iter().map(|byte| *byte as u8).collect())
}

fn parse_id(bytes: &[u8]) -> Result<Id> {
    let bytes: [u8; ID_BYTES] = bytes.try_into().with_context(|| format!("an identifier of {} bytes", bytes.len()))?;
    Ok(Id::uninit(bytes.map(|byte| byte as std::ffi::c_char)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rank_sums_with_itself_or_says_what_is_missing() {
        let launch = Launch { rank: 0, world: 1, local: 0, by: "WORLD_SIZE" };
        let folder = tempfile::tempdir().unwrap();
        // SAFETY: no other test of this program reads this variable.
        unsafe { std::env::set_var(RENDEZVOUS, folder.path().join("id")) };
        match Nccl::connect(launch, Duration::from_secs(5)) {
            Ok(mut wire) => {
                let mut values = [1.0, 2.5];
                wire.all_reduce(&mut values).unwrap();
                assert_eq!((values, wire.all_gather(vec![7]).unwrap()), ([1.0, 2.5], vec![vec![7]]));
            }
            Err(error) => {
                let error = format!("{error:#}");
                assert!(error.contains("no CUDA driver") || error.contains("no libnccl.so"), "{error}");
                eprintln!("SKIPPED one_rank_sums_with_itself_or_says_what_is_missing: {error}");
            }
        }
    }
}
