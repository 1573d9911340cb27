//! Numbers: indices in `SERVICES`, and backends in `BACKENDS`. 0 is nobody's.

use std::collections::{BTreeMap, BTreeSet};

use mesh::service::Backend;

/// The numbers from 1 below a capacity.
#[derive(Default)]
pub(crate) struct Numbers {
    capacity: u32,
    /// The lowest that never was given out.
    next: u32,
    free: Vec<u32>,
}

impl Numbers {
    /// All but those in use.
    pub(crate) fn new(capacity: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(1, |last| last + 1);
        let free = (1..next).rev().filter(|number| !used.contains(number)).collect();
        Self { capacity, next, free }
    }

    /// A number in use by nobody.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let number = self.next;
            self.next += u32::from(number < self.capacity);
            (number < self.capacity).then_some(number)
        })
    }

    /// A number that nobody uses any more.
    pub(crate) fn give_back(&mut self, number: u32) {
        self.free.push(number);
    }

    /// Numbers in use, 0 included.
    pub(crate) fn held(&self) -> u64 {
        u64::from(self.next) - self.free.len() as u64
    }
}

/// A backend's number, and how many services name it.
struct Entry {
    number: u32,
    services: u32,
}

/// The numbers of backends: one for each address and port, shared between services.
#[derive(Default)]
pub(crate) struct Backends {
    numbers: Numbers,
    entries: BTreeMap<Backend, Entry>,
    /// Named by no service; a program may still come by one until a grace has passed.
    idle: BTreeSet<Backend>,
}

impl Backends {
    /// What slots name, each as often as they do.
    pub(crate) fn found(capacity: u32, named: impl Iterator<Item = (u32, Backend)>) -> Self {
        let mut entries: BTreeMap<Backend, Entry> = BTreeMap::new();
        for (number, backend) in named {
            entries.entry(backend).or_insert(Entry { number, services: 0 }).services += 1;
        }
        let used = entries.values().map(|entry| entry.number).collect();
        Self { numbers: Numbers::new(capacity, &used), entries, idle: BTreeSet::new() }
    }

    /// The number of a backend that has one.
    pub(crate) fn number(&self, backend: &Backend) -> Option<u32> {
        self.entries.get(backend).map(|entry| entry.number)
    }

    /// The number of a backend for one service more, and whether it must be written first; none if all are taken.
    pub(crate) fn name(&mut self, backend: Backend) -> Option<(u32, bool)> {
        if let Some(entry) = self.entries.get_mut(&backend) {
            if entry.services == 0 {
                self.idle.remove(&backend);
            }
            entry.services += 1;
            return Some((entry.number, false));
        }
        let number = self.numbers.take()?;
        self.entries.insert(backend, Entry { number, services: 1 });
        Some((number, true))
    }

    /// One service less names the backend.
    pub(crate) fn unname(&mut self, backend: Backend) {
        if let Some(entry) = self.entries.get_mut(&backend) {
            entry.services -= 1;
            if entry.services == 0 {
                self.idle.insert(backend);
            }
        }
    }

    /// A grace has passed since the last [`Backends::unname`].
    pub(crate) fn retire(&mut self) {
        for backend in std::mem::take(&mut self.idle) {
            if let Some(entry) = self.entries.remove(&backend) {
                self.numbers.give_back(entry.number);
            }
        }
    }

    /// Numbers in use, 0 included.
    pub(crate) fn held(&self) -> u64 {
        self.numbers.held()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(port: u16) -> Backend {
        ([10, 0, 0, 1], port).into()
    }

    #[test]
    fn gaps_are_given_out_first_and_zero_and_the_capacity_never() {
        let mut numbers = Numbers::new(6, &BTreeSet::from([2, 4]));
        assert_eq!(numbers.held(), 3);
        let given: Vec<u32> = std::iter::from_fn(|| numbers.take()).collect();
        assert_eq!((given, numbers.held()), (vec![1, 3, 5], 6));
        numbers.give_back(3);
        assert_eq!((numbers.take(), numbers.take()), (Some(3), None));
    }

    #[test]
    fn services_share_the_number_of_a_backend() {
        let mut backends = Backends::found(4, [(3, backend(1)), (3, backend(1))].into_iter());
        assert_eq!(backends.name(backend(1)).unwrap(), (3, false));
        assert_eq!(backends.name(backend(2)).unwrap(), (1, true));
        assert_eq!(backends.name(backend(2)).unwrap(), (1, false));
    }

    #[test]
    fn a_number_is_anothers_only_after_a_grace() {
        let mut backends = Backends::found(3, std::iter::empty());
        assert_eq!(backends.name(backend(1)).unwrap(), (1, true));
        assert_eq!(backends.name(backend(2)).unwrap(), (2, true));
        backends.unname(backend(1));
        assert_eq!((backends.name(backend(3)), backends.held()), (None, 3));
        backends.retire();
        assert_eq!(backends.name(backend(3)).unwrap(), (1, true));
    }

    #[test]
    fn a_backend_that_comes_back_before_a_grace_keeps_its_number() {
        let mut backends = Backends::found(3, std::iter::empty());
        backends.name(backend(1)).unwrap();
        backends.unname(backend(1));
        assert_eq!(backends.name(backend(1)).unwrap(), (1, false));
        backends.retire();
        assert_eq!(backends.name(backend(1)).unwrap(), (1, false), "it was in use");
    }
}
