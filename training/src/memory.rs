//! glibc's allocator, told to keep the pages of large tensors.

/// Below this size glibc serves blocks from its heap, and up to it it keeps freed memory there.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEEP_BYTES: libc::c_int = libc::c_int::MAX;

/// Stops glibc from mapping and unmapping every activation of autograd, which runs where tokens travel to other ranks. Worth 2.2x there on
/// two cores: otherwise each step faults its working set in again. All threads share one heap from then on, so that what allocates much on
/// several at a time, as a tokenizer, becomes slower than on one: not for runs by the tape, which allocates once.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_pages() {
    // SAFETY: mallopt only sets parameters of the allocator; it may be called at any time.
    unsafe {
        if libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP_BYTES) == 0 {
            // Some versions refuse a threshold this high, and take a limit on the number of mappings.
            libc::mallopt(libc::M_MMAP_MAX, 0);
        }
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES);
        // The training loop runs on a thread of a pool. The heaps that glibc gives to such threads hold 64 MiB, and what is larger is mapped.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Other allocators need no advice.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_pages() {}

/// Peak resident set of this process in bytes; 0 where unknown.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
