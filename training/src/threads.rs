//! How the threads of candle and of rayon share the cores.

const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";

/// Sends the threads of candle's own pool (element-wise loops) to sleep soon after their work: by default each spins for 25,000 turns, on
/// a core that rayon's threads (everything else) need. Call first in `main`, before there is another thread. A limit that the user set stays.
pub fn park_idle_workers() {
    if std::env::var_os(SPIN_LIMIT).is_none() {
        // SAFETY: the caller has no other thread that could read the environment meanwhile.
        unsafe { std::env::set_var(SPIN_LIMIT, "100") }
    }
}
