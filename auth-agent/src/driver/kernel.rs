//! The kernel's maps of authentication, of which this process is the only writer.
//!
//! Promise: what is asked for is done when the call returns; and what could not be done leaves less than was there,
//! never more: a mark whose keys cannot be written is withdrawn again.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::{Mark, Pair, PairKey};
use maps::{Leases, Marks, Pairs, handed_over};
use mesh::auth::{Refusal, Side};
use tracing::warn;

use crate::event::Time;
use crate::machine::Adopted;

/// The maps, open.
pub(super) struct Kernel {
    pairs: Pairs,
    marks: Marks,
    leases: Leases,
    last_epoch: u64,
}

impl Kernel {
    /// Opens them, and reads what is there. Needs BPF, which writing later does not.
    pub(super) fn open(
        pairs: OwnedFd,
        marks: OwnedFd,
        leases: OwnedFd,
    ) -> Result<(Self, Adopted), maps::Error> {
        let pairs = Pairs::new(handed_over(abi::map::AUTH, pairs)?)?;
        let marks = Marks::new(handed_over(abi::map::MARKS, marks)?)?;
        let leases = Leases::new(handed_over(abi::map::LEASES, leases)?)?;
        let adopted = Adopted {
            last_epoch: marks.last_epoch()?,
            marks: numbered(1..marks.len(), |number| marks.get(number), |mark| mark.epoch != 0)?,
            keys: pairs.entries()?.into_iter().map(|(key, pair)| (key, pair.mark)).collect(),
            leases: numbered(0..leases.len(), |number| leases.get(number), |end| *end != 0)?,
        };
        Ok((Self { pairs, marks, leases, last_epoch: adopted.last_epoch }, adopted))
    }

    /// Their descriptors.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.pairs.as_fd(), self.marks.as_fd(), self.leases.as_fd()]
    }

    /// [`crate::event::Output::SetMark`]. False: nothing of it is there.
    pub(super) fn set_mark(&mut self, number: u32, mark: Mark, keys: &[PairKey]) -> bool {
        let result = self.try_set_mark(number, mark, keys);
        if let Err(error) = &result {
            warn!(%error, "mark {number} cannot be made");
            self.clear_mark(number, keys);
        }
        result.is_ok()
    }

    fn try_set_mark(&mut self, number: u32, mark: Mark, keys: &[PairKey]) -> Result<(), maps::Error> {
        // Before anybody can see the epoch: whoever starts after a crash must not give it out again.
        if mark.epoch > self.last_epoch {
            self.marks.set_last_epoch(mark.epoch)?;
            self.last_epoch = mark.epoch;
        }
        if number != 0 {
            self.marks.set(number, mark)?;
        }
        let pair = Pair { mark: number, ..Pair::default() };
        keys.iter().try_for_each(|key| self.pairs.insert(*key, pair))
    }

    /// [`crate::event::Output::RenewMark`].
    pub(super) fn renew_mark(&mut self, number: u32, expiry: Time) {
        report("renewing a mark", self.marks.renew(number, expiry));
    }

    /// [`crate::event::Output::ClearMark`].
    pub(super) fn clear_mark(&mut self, number: u32, keys: &[PairKey]) {
        // Number 0 is no mark, and its epoch is the memory of all.
        if number != 0 {
            report("withdrawing a mark", self.marks.clear(number));
        }
        self.forget(keys);
    }

    /// [`crate::event::Output::Refuse`].
    pub(super) fn refuse(&mut self, keys: &[PairKey], why: Refusal, side: Option<Side>, until: Time) {
        let pair = Pair { refusal: why.encode(side), until, ..Pair::default() };
        for key in keys {
            report("refusing a pair", self.pairs.insert(*key, pair));
        }
    }

    /// [`crate::event::Output::Forget`].
    pub(super) fn forget(&mut self, keys: &[PairKey]) {
        for key in keys {
            report("forgetting a pair", self.pairs.remove(*key));
        }
    }

    /// [`crate::event::Output::Lease`].
    pub(super) fn lease(&mut self, number: u32, end: Time) {
        report("moving a lease", self.leases.set(number, end));
    }
}

fn report(doing: &str, result: Result<(), maps::Error>) {
    if let Err(error) = result {
        warn!(%error, "{doing}");
    }
}

fn numbered<T>(
    numbers: std::ops::Range<u32>,
    read: impl Fn(u32) -> Result<T, maps::Error>,
    is_there: impl Fn(&T) -> bool,
) -> Result<BTreeMap<u32, T>, maps::Error> {
    let all = numbers.map(|number| Ok((number, read(number)?)));
    all.filter(|element| element.as_ref().map_or(true, |(_, value)| is_there(value))).collect()
}

#[cfg(test)]
mod tests {
    //! Need root: they make maps.

    use super::*;

    fn open(fds: &[OwnedFd; 3]) -> (Kernel, Adopted) {
        let [pairs, marks, leases] = [0, 1, 2].map(|at| fds[at].try_clone().unwrap());
        Kernel::open(pairs, marks, leases).unwrap()
    }

    fn key(instance: u32) -> PairKey {
        PairKey { remote: abi::Address([1; 16]), identity: 256, instance }
    }

    #[test]
    fn who_comes_after_finds_what_was_left_and_no_epoch_is_forgotten() {
        let fds = maps::scratch::auth().unwrap();
        let (mut first, found) = open(&fds);
        assert_eq!((found.last_epoch, found.marks.len(), found.keys.len(), found.leases.len()), (0, 0, 0, 0));
        let mark = |epoch| Mark { epoch, expiry: 5, instances: [1, 0], ..Mark::default() };
        assert!(first.set_mark(1, mark(10), &[key(1), key(2)]));
        assert!(first.set_mark(2, mark(11), &[key(3)]));
        first.clear_mark(2, &[key(3)]);
        first.renew_mark(1, 6);
        first.lease(0, 77);
        first.refuse(&[key(4), key(5)], Refusal::Expired, Some(Side::Own), 99);
        first.forget(&[key(5)]);
        drop(first);

        let (_, mut found) = open(&fds);
        found.keys.sort_unstable();
        assert_eq!(found.keys, [(key(1), 1), (key(2), 1), (key(4), 0)]);
        assert_eq!(found.marks, BTreeMap::from([(1, Mark { expiry: 6, ..mark(10) })]));
        assert_eq!(found.leases, BTreeMap::from([(0, 77)]));
        assert_eq!(found.last_epoch, 11);
        let pairs = Pairs::new(handed_over("AUTH", fds[0].try_clone().unwrap()).unwrap()).unwrap();
        let refusal = Refusal::Expired.encode(Some(Side::Own));
        let refused = Pair { refusal, until: 99, ..Pair::default() };
        assert_eq!(pairs.get(key(4)).unwrap(), Some(refused));
    }

    #[test]
    fn a_mark_whose_keys_do_not_fit_is_no_mark() {
        let fds = maps::scratch::auth().unwrap();
        let (mut kernel, _) = open(&fds);
        let keys: Vec<_> = (0..1 << 14).map(key).collect();
        assert!(!kernel.set_mark(1, Mark { epoch: 1, expiry: 5, ..Mark::default() }, &keys));
        let (_, found) = open(&fds);
        assert_eq!((found.marks.len(), found.keys.len(), found.last_epoch), (0, 0, 1));
    }
}
