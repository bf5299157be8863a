//! Threads that help: one thread works through a stage's parts, and others take some of them if their cores are free.
//!
//! Nobody waits for a helper to begin: parts are taken from counters, and only one that a helper has taken and not finished is waited for.
//! So a helper offers its core to other programs between parts, before the system takes it away in the middle of one. One that was stopped
//! in the middle all the same costs that wait once; then the work is done without that helper for a while, for longer each time. Helpers
//! look for the next stage for some microseconds and then sleep.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How often a helper looks for a stage before it sleeps: some tens of microseconds.
const LOOKS: usize = 4000;
/// A wait for a helper that says that it has no core.
const STALL: Duration = Duration::from_micros(300);
/// How long work is done without a helper after its first stall, and at most.
const REST: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// How long a helper works before it offers its core to whoever waits for it: less than what the system grants at a time, so that it loses
/// the core between parts and not in the middle of one.
const TURN: Duration = Duration::from_micros(500);

/// What a stage does to its `i`-th part.
type Part<'a> = &'a (dyn Fn(usize) + Sync);

/// A counter in lines of the cache of its own.
#[repr(align(128))]
struct Taken(AtomicUsize);

struct Shared {
    /// Odd while a stage is open; closed for good at `usize::MAX - 1`.
    stage: AtomicUsize,
    /// Of the open stage: written only while it is closed, when no helper reads it.
    part: UnsafeCell<Option<Part<'static>>>,
    n_parts: AtomicUsize,
    /// Of each thread's share of the parts, the caller's first, how many are taken; more than there are when somebody tried in vain.
    taken: Vec<Taken>,
    panicked: AtomicBool,
    helpers: Vec<Helper>,
}

/// What is known of a helper, by it and by the caller.
#[derive(Default)]
#[repr(align(128))]
struct Helper {
    /// May read `part`.
    is_inside: AtomicBool,
    is_asleep: AtomicBool,
    /// Is left alone.
    rests: AtomicBool,
}

// SAFETY: `part` is written by the one thread that runs stages, while the stage is closed and all who saw an earlier one open have left;
// helpers read it while their `is_inside` is up, and only if they have seen the stage open after they raised it. All of these are
// sequentially consistent.
unsafe impl Sync for Shared {}

/// The helpers of one thread; they end when it is dropped.
pub struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Of each helper.
    rests: Vec<Rest>,
}

/// Until when a helper is left alone, when it last stalled, and for how long it was left alone then.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    until: Option<Instant>,
    last_stall: Option<Instant>,
    length: Duration,
}

/// A number of the last stage of all.
const ENDED: usize = usize::MAX - 1;

impl Crew {
    /// `n_threads` that work, the caller among them; as many helpers less as the operating system refuses.
    pub fn new(n_threads: usize) -> Crew {
        let n_helpers = n_threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            stage: AtomicUsize::new(0),
            part: UnsafeCell::new(None),
            n_parts: AtomicUsize::new(0),
            taken: (0..=n_helpers).map(|_| Taken(AtomicUsize::new(0))).collect(),
            panicked: AtomicBool::new(false),
            helpers: (0..n_helpers).map(|_| Helper::default()).collect(),
        });
        let helper = |idx: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name("decoder".into()).spawn(move || shared.help(idx)).ok()
        };
        let threads: Vec<JoinHandle<()>> = (0..n_helpers).map_while(helper).collect();
        let rests = vec![Rest::default(); threads.len()];
        Crew { shared, threads, rests }
    }

    /// Threads that work, the caller among them.
    pub fn n_threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `part` for all numbers below `n_parts`, and returns when all are done. Parts may run at the same time.
    ///
    /// # Panics
    /// If a part did.
    pub fn run(&mut self, n_parts: usize, part: Part) {
        if n_parts < 2 || !self.has_helpers() {
            return (0..n_parts).for_each(part);
        }
        let shared = &self.shared;
        // SAFETY: no helper reads the part after this function: it waits for those inside, and later ones see the stage closed.
        let lasting: Part<'static> = unsafe { std::mem::transmute::<Part, Part<'static>>(part) };
        // SAFETY: the stage is closed: a helper that is inside by now does not read it.
        unsafe { *shared.part.get() = Some(lasting) };
        shared.n_parts.store(n_parts, Ordering::SeqCst);
        shared.taken.iter().for_each(|Taken(taken)| taken.store(0, Ordering::SeqCst));
        shared.panicked.store(false, Ordering::SeqCst);
        shared.stage.fetch_add(1, Ordering::SeqCst);
        self.wake();
        let closes = Close(self, Instant::now());
        closes.0.shared.take_parts(0, (part, n_parts), || false);
        drop(closes);
        assert!(!self.shared.panicked.load(Ordering::SeqCst), "a helper of the decoder panicked");
    }

    fn wake(&self) {
        for (helper, thread) in self.shared.helpers.iter().zip(&self.threads) {
            if !helper.rests.load(Ordering::SeqCst) && helper.is_asleep.swap(false, Ordering::SeqCst) {
                Thread::unpark(thread.thread());
            }
        }
    }

    /// Whether there are helpers that are not left alone at present.
    fn has_helpers(&mut self) -> bool {
        for (helper, rest) in self.shared.helpers.iter().zip(&mut self.rests) {
            if rest.until.is_some_and(|until| Instant::now() >= until) {
                rest.until = None;
                helper.rests.store(false, Ordering::SeqCst);
            }
        }
        self.rests.iter().any(|rest| rest.until.is_none())
    }

    /// Waits for the helpers inside; those that take longer than `own`, all of the caller's own work, are left alone for a while.
    fn wait(&mut self, own: Duration) {
        let shared = self.shared.clone();
        let is_busy = || shared.helpers.iter().any(|helper| helper.is_inside.load(Ordering::SeqCst));
        for _ in 0..LOOKS / 4 {
            if !is_busy() {
                return;
            }
            std::hint::spin_loop();
        }
        let (start, mut is_judged) = (Instant::now(), false);
        while is_busy() {
            if !is_judged && start.elapsed() >= STALL.max(own) {
                is_judged = true;
                let stalled = shared.helpers.iter().filter(|helper| helper.is_inside.load(Ordering::SeqCst));
                stalled.for_each(|helper| helper.rests.store(true, Ordering::SeqCst));
            }
            std::thread::yield_now();
        }
        // A rest begins when the wait is over.
        let helpers = shared.helpers.iter().zip(&mut self.rests);
        let stalled = helpers.filter(|(helper, rest)| helper.rests.load(Ordering::SeqCst) && rest.until.is_none());
        stalled.for_each(|(_, rest)| rest.begin());
    }
}

impl Rest {
    /// Of a helper that has stalled.
    fn begin(&mut self) {
        let now = Instant::now();
        let is_soon = self.last_stall.is_some_and(|last| now - last < 2 * REST[1]);
        self.length = if is_soon { (2 * self.length).min(REST[1]) } else { REST[0] };
        (self.until, self.last_stall) = (Some(now + self.length), Some(now));
    }
}

/// Closes the stage, also when a part of the caller's own panics; with when that one began to work.
struct Close<'a>(&'a mut Crew, Instant);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.shared.stage.fetch_add(1, Ordering::SeqCst);
        self.0.wait(self.1.elapsed());
    }
}

impl Shared {
    /// Takes the parts of the share `own`, one after the other, and then what is left of the others' shares, until `stops`: parts that lie
    /// side by side are done by one thread, whose core then asks for what it needs itself when it reads ahead.
    fn take_parts(&self, own: usize, (part, n_parts): (Part, usize), stops: impl Fn() -> bool) {
        let n_shares = self.taken.len();
        for share in (own..n_shares).chain(0..own) {
            let (start, end) = (n_parts * share / n_shares, n_parts * (share + 1) / n_shares);
            let Taken(taken) = &self.taken[share];
            while taken.load(Ordering::SeqCst) < end - start {
                let i = start + taken.fetch_add(1, Ordering::SeqCst);
                if i < end {
                    part(i);
                }
                if stops() {
                    return;
                }
            }
        }
    }

    /// The life of a helper.
    fn help(&self, idx: usize) {
        let (helper, mut seen, mut since) = (&self.helpers[idx], 0, Instant::now());
        loop {
            let stage = self.await_stage(helper, seen);
            if stage == ENDED {
                return;
            }
            helper.is_inside.store(true, Ordering::SeqCst);
            let is_open = !self.stage.load(Ordering::SeqCst).is_multiple_of(2);
            // SAFETY: the stage was open after this thread was counted inside: the part stays until it is not. Of a closed stage it may be
            // written at this moment, and is not read.
            let part = if is_open { unsafe { *self.part.get() } } else { None };
            if let Some(part) = part {
                let n_parts = self.n_parts.load(Ordering::SeqCst);
                let work = || self.take_parts(idx + 1, (part, n_parts), || since.elapsed() >= TURN);
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                    self.panicked.store(true, Ordering::SeqCst);
                }
            }
            helper.is_inside.store(false, Ordering::SeqCst);
            if since.elapsed() < TURN {
                seen = stage;
                continue;
            }
            // Nobody waits for this thread now. It comes back to the same stage if that is still open.
            std::thread::yield_now();
            since = Instant::now();
        }
    }

    /// The number of a stage that is not `seen`, for a helper that is not left alone.
    fn await_stage(&self, helper: &Helper, seen: usize) -> usize {
        let news = || {
            let stage = self.stage.load(Ordering::SeqCst);
            let is_open = !stage.is_multiple_of(2) && stage != seen && !helper.rests.load(Ordering::SeqCst);
            (is_open || stage == ENDED).then_some(stage)
        };
        let mut look = 0;
        loop {
            if let Some(stage) = news() {
                return stage;
            }
            if look < LOOKS {
                look += 1;
                std::hint::spin_loop();
                continue;
            }
            helper.is_asleep.store(true, Ordering::SeqCst);
            // A stage that was opened before the flag was up has not woken this thread.
            if news().is_none() {
                std::thread::park();
            }
            helper.is_asleep.store(false, Ordering::SeqCst);
            look = 0;
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stage.store(ENDED, Ordering::SeqCst);
        self.wake();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // It has caught its own panics.
            let _ = thread.join();
        }
    }
}

/// A slice of which the parts of a stage write pieces of their own.
pub(super) struct Pieces<'a, T> {
    start: *mut T,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: whoever takes a piece promises that nobody else has it.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Pieces<'a, T> {
        Pieces { start: slice.as_mut_ptr(), len: slice.len(), owner: std::marker::PhantomData }
    }

    /// # Safety
    /// Pieces that are held at the same time do not overlap.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn take(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a piece {range:?} of {}", self.len);
        // SAFETY: within the slice, which is borrowed for as long as this lives; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_stage_after_stage() {
        for n_threads in [1, 2, 4] {
            let mut crew = Crew::new(n_threads);
            for stage in 0..2000 {
                let n_parts = stage % 7;
                let mut done = vec![0u32; n_parts];
                let pieces = Pieces::new(&mut done);
                // SAFETY: each part takes a place of its own.
                crew.run(n_parts, &|i| unsafe { pieces.take(i..i + 1)[0] += 1 + i as u32 });
                assert!(done.iter().enumerate().all(|(i, n)| *n == 1 + i as u32), "{done:?}");
            }
        }
    }

    #[test]
    fn a_helper_whose_turn_is_over_comes_back_to_the_same_stage() {
        let (mut crew, done) = (Crew::new(2), AtomicUsize::new(0));
        let (caller, start) = (std::thread::current().id(), Instant::now());
        crew.run(40, &|_| {
            if std::thread::current().id() == caller {
                // Its own share is done by the helper too, in more than one turn.
                while done.load(Ordering::SeqCst) < 39 && start.elapsed() < 30 * REST[1] {
                    std::thread::yield_now();
                }
            } else {
                std::thread::sleep(TURN / 4);
            }
            done.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(done.load(Ordering::SeqCst), 40);
        assert!(start.elapsed() < 30 * REST[1], "the helper did not come back");
    }

    #[test]
    fn helpers_sleep_between_stages_and_wake_again() {
        let mut crew = Crew::new(3);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(5));
            let n = AtomicUsize::new(0);
            crew.run(50, &|_| {
                n.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(n.load(Ordering::SeqCst), 50);
        }
        std::thread::sleep(Duration::from_millis(50));
        let is_asleep = |helper: &Helper| helper.is_asleep.load(Ordering::SeqCst);
        assert!(crew.shared.helpers.iter().all(is_asleep), "idle helpers sleep");
    }

    /// A stage of which the helper takes a part and is then away for longer than all of the caller's work, as one whose core is taken.
    fn stall(crew: &mut Crew) {
        let (start, caller) = (Instant::now(), std::thread::current().id());
        let (has_begun, is_done) = (AtomicBool::new(false), AtomicBool::new(false));
        crew.run(2, &|_| {
            if std::thread::current().id() == caller {
                while !has_begun.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                is_done.store(true, Ordering::SeqCst);
            } else {
                has_begun.store(true, Ordering::SeqCst);
                while !is_done.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(20).max(2 * start.elapsed()));
            }
        });
    }

    #[test]
    fn a_helper_without_a_core_is_left_alone_for_longer_each_time_and_then_asked_again() {
        let mut crew = Crew::new(2);
        for times in [1, 2, 4] {
            crew.rests[0].last_stall = crew.rests[0].last_stall.map(|_| Instant::now());
            // Blocks until the helper has begun: it is asked again when its rest is over.
            stall(&mut crew);
            assert!(crew.rests[0].until.is_some() && crew.rests[0].length == times * REST[0], "{:?}", crew.rests);
            crew.rests[0].until = Some(Instant::now() + Duration::from_secs(3600));
            let caller = std::thread::current().id();
            crew.run(8, &|_| assert_eq!(std::thread::current().id(), caller, "a helper that rests"));
            crew.rests[0].until = Some(Instant::now());
        }
        (crew.rests[0].length, crew.rests[0].last_stall) = (REST[1], Some(Instant::now()));
        stall(&mut crew);
        assert_eq!(crew.rests[0].length, REST[1], "no longer than this");
        (crew.rests[0].until, crew.rests[0].last_stall) = (Some(Instant::now()), None);
        stall(&mut crew);
        assert_eq!(crew.rests[0].length, REST[0], "after a long time without");
    }

    /// One busy core sent every helper to rest.
    #[test]
    fn who_is_not_stalled_goes_on_helping() {
        let mut crew = Crew::new(3);
        let caller = std::thread::current().id();
        let (first, n_begun, start) = (std::sync::OnceLock::new(), AtomicUsize::new(0), Instant::now());
        let shared = crew.shared.clone();
        let n_inside = || shared.helpers.iter().filter(|helper| helper.is_inside.load(Ordering::SeqCst)).count();
        crew.run(3, &|_| {
            let id = std::thread::current().id();
            if id != caller {
                let is_first = *first.get_or_init(|| id) == id;
                n_begun.fetch_add(1, Ordering::SeqCst);
                while is_first && n_begun.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
                if is_first {
                    std::thread::sleep(Duration::from_millis(20).max(2 * start.elapsed()));
                }
            } else {
                while n_begun.load(Ordering::SeqCst) < 2 || n_inside() > 1 {
                    std::thread::yield_now();
                }
                n_begun.fetch_add(1, Ordering::SeqCst);
            }
        });
        let resting: Vec<usize> = (0..2).filter(|idx| crew.rests[*idx].until.is_some()).collect();
        assert_eq!(resting.len(), 1, "{:?}", crew.rests);
        crew.rests[resting[0]].until = Some(Instant::now() + Duration::from_secs(3600));
        let has_helped = AtomicBool::new(false);
        crew.run(3, &|_| {
            let id = std::thread::current().id();
            assert_ne!(Some(&id), first.get(), "a helper that rests");
            has_helped.fetch_or(id != caller, Ordering::SeqCst);
            while id == caller && !has_helped.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_panic_in_a_part_comes_out_and_leaves_the_crew_whole() {
        let mut crew = Crew::new(2);
        let run = || crew.run(8, &|i| assert!(i != 3, "the fourth part"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        let n = AtomicUsize::new(0);
        crew.run(8, &|_| {
            n.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(n.load(Ordering::SeqCst), 8);
    }
}
