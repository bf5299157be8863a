//! Ctrl-C and SIGTERM: the first asks the loop to save and leave, the second ends the process at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static N_SIGNALS: AtomicUsize = AtomicUsize::new(0);
static BY_ANOTHER_RANK: AtomicBool = AtomicBool::new(false);

/// Whether the run was asked to end.
pub fn requested() -> bool {
    N_SIGNALS.load(Ordering::Relaxed) > 0 || BY_ANOTHER_RANK.load(Ordering::Relaxed)
}

/// Asks the run to end because another rank was asked. Counts as no signal: this process may still get its first.
pub fn follow() {
    BY_ANOTHER_RANK.store(true, Ordering::Relaxed);
}

/// Installs the handler; call once, before the loop.
#[cfg(unix)]
pub fn install() {
    extern "C" fn on_signal(signal: libc::c_int) {
        if N_SIGNALS.fetch_add(1, Ordering::Relaxed) > 0 {
            // SAFETY: `_exit` is async-signal-safe.
            unsafe { libc::_exit(128 + signal) }
        }
    }
    let handler = on_signal as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler touches one atomic and `_exit`, both async-signal-safe.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Elsewhere signals keep their default: the run ends and `--resume` continues from the last checkpoint.
#[cfg(not(unix))]
pub fn install() {}
