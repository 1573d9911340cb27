//! Numbers for requests that have none: UUIDs of version 4.

use std::hash::{BuildHasher, RandomState};

/// Where they are.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// A source of them: unlike each other, and unlike those of other processes; nothing is kept secret by them. No system call
/// is made for one.
#[derive(Debug, Default)]
pub(crate) struct RequestIds {
    /// Keyed by the kernel's random numbers.
    keyed: RandomState,
    last: u64,
}

impl RequestIds {
    pub(crate) fn next(&mut self) -> String {
        self.last += 1;
        let half = |which: u8| u128::from(self.keyed.hash_one((self.last, which)));
        let random = half(0) << 64 | half(1);
        // Version 4, variant 1.
        let id = random & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
        let text = format!("{id:032x}");
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| text.get(part).unwrap_or_default());
        parts.join("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_of_version_4_and_differ() {
        let mut ids = RequestIds::default();
        let mut all: Vec<_> = (0..1000).map(|_| ids.next()).collect();
        for id in &all {
            let lengths: Vec<_> = id.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
            assert_eq!(&id[14..15], "4", "{id}");
            assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        }
        all.push(RequestIds::default().next());
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 1001);
    }
}
