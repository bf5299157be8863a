//! Where the time of a tape went, by kind of operation.

use std::time::Duration;

/// Time and calls by name, in the order of first appearance.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    entries: Vec<(&'static str, Duration, usize)>,
}

impl Profile {
    pub(super) fn add(&mut self, name: &'static str, time: Duration) {
        match self.entries.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, total, calls)) => {
                *total += time;
                *calls += 1;
            }
            None => self.entries.push((name, time, 1)),
        }
    }

    /// Name, total time and calls, the longest time first.
    pub fn entries(&self) -> Vec<(&'static str, Duration, usize)> {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|(_, time, _)| std::cmp::Reverse(*time));
        entries
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }
}
