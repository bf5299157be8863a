//! What computes for someone who waits goes before what nobody waits for, where the system allows it.
//!
//! A fair scheduler gives a thread beside a compiler half of a core, and an answer then takes twice as long.

/// Three quarters of a core that a thread at 0 wants too (Linux: a step of 5 is three times the weight).
pub const NICENESS: i32 = -5;

/// Gives the calling thread, and threads that it starts from now on, priority over others; says whether they have it. Linux allows it to root
/// and within `ulimit -e`. A niceness that somebody chose for this program stays.
#[cfg(target_os = "linux")]
pub fn raise() -> bool {
    match niceness() {
        0 => set(NICENESS),
        chosen => chosen < 0,
    }
}

/// Elsewhere priority is a process's, or needs rights that no editor has: it is not tried.
#[cfg(not(target_os = "linux"))]
pub fn raise() -> bool {
    false
}

#[cfg(target_os = "linux")]
fn set(niceness: i32) -> bool {
    // SAFETY: the call reads its arguments alone; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) == 0 }
}

/// The niceness of the calling thread.
#[cfg(target_os = "linux")]
pub(crate) fn niceness() -> i32 {
    // SAFETY: as above.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The niceness of a thread that has done `f`, and of one that it starts then.
    fn after(f: fn()) -> (i32, i32) {
        let thread = std::thread::spawn(move || {
            f();
            (niceness(), std::thread::spawn(niceness).join().expect("a thread that it starts"))
        });
        thread.join().expect("a thread")
    }

    #[test]
    fn a_thread_is_set_with_those_that_it_starts_and_no_other() {
        let before = niceness();
        let lower = after(|| assert!(set(niceness() + 3)));
        assert_eq!((lower, niceness()), ((before + 3, before + 3), before), "everybody may have less");
    }

    #[test]
    fn nobody_has_less_than_before_and_what_was_chosen_stays() {
        let before = niceness();
        let raised = after(|| _ = raise());
        assert!(raised == (before, before) || before == 0 && raised == (NICENESS, NICENESS), "{before}: {raised:?}");
        assert_eq!(after(|| _ = (set(9), raise())), (9, 9));
    }
}
