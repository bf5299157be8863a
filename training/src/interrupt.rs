//! Ctrl-C and SIGTERM: the first asks the loop to save and leave, the second ends the process at once.

use std::sync::atomic::{AtomicUsize, Ordering};

static N_SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Whether the run was asked to end.
pub fn requested() -> bool {
    N_SIGNALS.load(Ordering::Relaxed) > 0
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
