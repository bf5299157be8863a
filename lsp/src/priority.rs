//! What computes for someone who waits goes before what nobody waits for, where the system allows it.
//!
//! A fair scheduler gives a thread beside a compiler half of a core, and an answer then takes twice as long.

/// Three quarters of a core that a thread at 0 wants too (Linux: a step of 5 is three times the weight).
pub const NICENESS: i32 = -5;

/// Gives the calling thread, and threads that it starts from now on, priority over others; says whether the system allows it: Linux to
/// root and within `ulimit -e`.
#[cfg(target_os = "linux")]
pub fn raise() -> bool {
    // SAFETY: the call reads its arguments alone; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) == 0 }
}

/// Elsewhere priority is a process's, or needs rights that no editor has: it is not tried.
#[cfg(not(target_os = "linux"))]
pub fn raise() -> bool {
    false
}

/// The niceness of the calling thread.
#[cfg(all(test, target_os = "linux"))]
pub(crate) fn niceness() -> i32 {
    // SAFETY: as above.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_raised_with_those_that_it_starts_and_no_other() {
        let before = niceness();
        let of_thread = || {
            let expected = if raise() { NICENESS } else { before };
            let child = std::thread::scope(|scope| scope.spawn(niceness).join().unwrap());
            assert_eq!((niceness(), child), (expected, expected));
        };
        std::thread::scope(|scope| scope.spawn(of_thread).join().unwrap());
        assert_eq!(niceness(), before, "the caller's own stays");
    }
}
