//! Names for shown items: random UUIDs (version 4). They tell items apart and guard nothing.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// A new name, such as `3f2a9d6e-7c41-4b0e-9a53-0d2f6f1c8b7a`.
pub(crate) fn new() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Each `RandomState` has keys of its own, seeded by the operating system.
    let [high, low] = [0u64, 1].map(|half| RandomState::new().hash_one((count, half)));
    let version_4 = high & !0xf000 | 0x4000;
    let variant_1 = low & !(0b11 << 62) | 0b10 << 62;
    let text = format!("{version_4:016x}{variant_1:016x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_well_formed_and_differ() {
        let names: std::collections::BTreeSet<String> = (0..1000).map(|_| super::new()).collect();
        assert_eq!(names.len(), 1000);
        let is_valid =
            |name: &String| name.len() == 36 && name.as_bytes()[14] == b'4' && b"89ab".contains(&name.as_bytes()[19]);
        assert!(names.iter().all(is_valid));
    }
}
