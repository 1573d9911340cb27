//! Which parts of `SLOTS` are free.
//!
//! A service's backends stand side by side, and a changed set gets a fresh region: of the free ones the smallest that
//! fits, so that large ones stay for services that need them. Neighbours that are free are one region.

use std::collections::{BTreeMap, BTreeSet};

/// Slots side by side; none if `count` is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Region {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Region {
    /// As [`abi::Service::slots`] has it.
    pub(crate) fn of(slots: u64) -> Self {
        Self { first: abi::Service::first(slots), count: abi::Service::count(slots) }
    }

    /// [`abi::Service::slots`]; all regions of no slots are one.
    pub(crate) fn word(self) -> u64 {
        if self.count == 0 { 0 } else { abi::Service::region(self.first, self.count) }
    }

    /// The slots in it.
    pub(crate) fn slots(self) -> std::ops::Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// The free regions, by place and by size.
#[derive(Default)]
pub(crate) struct Slots {
    capacity: u32,
    by_first: BTreeMap<u32, u32>,
    by_count: BTreeSet<(u32, u32)>,
}

impl Slots {
    /// All of `SLOTS`.
    pub(crate) fn new(capacity: u32) -> Self {
        let mut slots = Self { capacity, ..Self::default() };
        slots.insert(Region { first: 0, count: capacity });
        slots
    }

    /// A region of `count` slots, if there is one.
    pub(crate) fn take(&mut self, count: u32) -> Option<Region> {
        if count == 0 {
            return Some(Region::default());
        }
        let (held, first) = *self.by_count.range((count, 0)..).next()?;
        self.remove(Region { first, count: held });
        self.insert(Region { first: first + count, count: held - count });
        Some(Region { first, count })
    }

    /// Takes this very region; false if not all of it is free.
    pub(crate) fn take_at(&mut self, region: Region) -> bool {
        if region.count == 0 {
            return true;
        }
        let Some((&first, &count)) = self.by_first.range(..=region.first).next_back() else { return false };
        let (end, wanted) = (first + count, u64::from(region.first) + u64::from(region.count));
        if wanted > u64::from(end) {
            return false;
        }
        self.remove(Region { first, count });
        self.insert(Region { first, count: region.first - first });
        self.insert(Region { first: region.slots().end, count: end - region.slots().end });
        true
    }

    /// A region that nobody uses any more.
    pub(crate) fn give_back(&mut self, mut region: Region) {
        if region.count == 0 {
            return;
        }
        if let Some((&first, &count)) = self.by_first.range(..region.first).next_back()
            && first + count == region.first
        {
            self.remove(Region { first, count });
            region = Region { first, count: count + region.count };
        }
        let end = region.slots().end;
        if let Some(&count) = self.by_first.get(&end) {
            self.remove(Region { first: end, count });
            region.count += count;
        }
        self.insert(region);
    }

    /// Slots of which no free region is made: what is used, and what is free in smaller pieces than the largest.
    pub(crate) fn unusable(&self) -> u32 {
        self.capacity - self.by_count.last().map_or(0, |(count, _)| *count)
    }

    fn insert(&mut self, region: Region) {
        if region.count != 0 {
            self.by_first.insert(region.first, region.count);
            self.by_count.insert((region.count, region.first));
        }
    }

    fn remove(&mut self, region: Region) {
        self.by_first.remove(&region.first);
        self.by_count.remove(&(region.count, region.first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(first: u32, count: u32) -> Region {
        Region { first, count }
    }

    #[test]
    fn the_smallest_that_fits_is_taken() {
        let mut slots = Slots::new(100);
        for taken in [region(0, 10), region(14, 6), region(30, 70)] {
            assert!(slots.take_at(taken));
        }
        assert_eq!(slots.take(4), Some(region(10, 4)), "the hole of four, not the one of ten");
        assert_eq!(slots.take(10), Some(region(20, 10)));
        assert_eq!(slots.take(1), None);
    }

    #[test]
    fn neighbours_that_are_free_are_one() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut slots = Slots::new(30);
            let regions = [slots.take(10).unwrap(), slots.take(10).unwrap(), slots.take(10).unwrap()];
            assert_eq!((slots.take(1), slots.unusable()), (None, 30));
            order.into_iter().for_each(|which: usize| slots.give_back(regions[which]));
            assert_eq!(slots.take(30), Some(region(0, 30)), "{order:?}");
        }
    }

    #[test]
    fn what_is_not_all_free_is_not_taken() {
        let mut slots = Slots::new(20);
        assert!(slots.take_at(region(5, 5)));
        for taken in
            [region(5, 5), region(4, 2), region(9, 2), region(0, 20), region(19, 2), region(u32::MAX, 2)]
        {
            assert!(!slots.take_at(taken), "{taken:?}");
        }
        assert!(slots.take_at(region(0, 5)) && slots.take_at(region(10, 10)));
        assert!(slots.take_at(region(77, 0)), "no slots are free anywhere");
    }

    #[test]
    fn no_slots_are_no_region() {
        let mut slots = Slots::new(1);
        assert_eq!(slots.take(0), Some(Region::default()));
        slots.give_back(region(7, 0));
        assert_eq!((slots.unusable(), region(7, 0).word()), (0, 0));
    }

    #[test]
    fn scattered_slots_count_as_unusable() {
        let mut slots = Slots::new(10);
        assert!(slots.take_at(region(4, 1)));
        assert_eq!(slots.unusable(), 5, "one used, four beside it");
    }
}
