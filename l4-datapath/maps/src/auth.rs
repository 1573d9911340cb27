//! The maps of authentication: what is known of a pair, the marks, the leases.
//!
//! All three have one writer, the auth-agent, which is handed their descriptors and holds no capability: element
//! commands of bpf(2) by descriptor need none since Linux 5.19, and a mapping needs none at all. Others read.
#![allow(unsafe_code, reason = "marks and leases are stored word by word through a mapping")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use abi::{Mark, Pair, PairKey};
use aya::maps::{HashMap, IterableMap, Map, MapData};

use crate::mapped::Mapped;
use crate::{Error, absent_is_fine, batch};

/// A map that another process has opened. `map` is its name, one of [`abi::map`], for errors.
pub fn handed_over(map: &'static str, descriptor: OwnedFd) -> Result<Map, Error> {
    MapData::from_fd(descriptor).and_then(Map::from_map_data).map_err(Error::of(map, "taking over"))
}

/// `AUTH`: pair → number of its mark, or why it has none. Written by the auth-agent; read by the programs.
pub struct Pairs(HashMap<MapData, PairKey, Pair>);

impl AsFd for Pairs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.map().fd().as_fd()
    }
}

impl Pairs {
    const MAP: &str = abi::map::AUTH;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// What is known of a pair.
    pub fn get(&self, key: PairKey) -> Result<Option<Pair>, Error> {
        use aya::maps::MapError::KeyNotFound;
        match self.0.get(&key, 0) {
            Ok(pair) => Ok(Some(pair)),
            Err(KeyNotFound) => Ok(None),
            Err(error) => Err(Error::of(Self::MAP, "reading")(error)),
        }
    }

    /// Writes what is known of a pair. A program sees what was known before, or this.
    pub fn insert(&mut self, key: PairKey, pair: Pair) -> Result<(), Error> {
        self.0.insert(key, pair, 0).map_err(Error::of(Self::MAP, "writing a pair"))
    }

    /// Forgets a pair; one that is not there is fine.
    pub fn remove(&mut self, key: PairKey) -> Result<(), Error> {
        absent_is_fine(self.0.remove(&key)).map_err(Error::of(Self::MAP, "removing a pair"))
    }

    /// Every entry.
    pub fn entries(&self) -> Result<Vec<(PairKey, Pair)>, Error> {
        batch::entries(&self.0, Self::MAP)
    }
}

/// `MARKS`: number → mark. Written by the auth-agent; read by the programs at every authenticated packet.
///
/// The order of its stores is what [`Mark`] promises its readers.
pub struct Marks(Mapped<Mark>);

/// A mark as it is stored: eight bytes at once, the epoch first.
const WORDS: usize = size_of::<Mark>() / 8;
const _: () = assert!(size_of::<Mark>() == WORDS * 8 && std::mem::offset_of!(Mark, epoch) == 0);
/// The word that holds [`Mark::expiry`].
const EXPIRY: usize = std::mem::offset_of!(Mark, expiry) / 8;

impl AsFd for Marks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Marks {
    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Mapped::new(abi::map::MARKS, map).map(Self)
    }

    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.0.len()
    }

    /// Whether there are no elements, which no map of the kernel has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mark of a number; `epoch` 0 where there is none. Who reads while the writer lives may read a mark that is
    /// being made: its `epoch` is 0 then.
    pub fn get(&self, number: u32) -> Result<Mark, Error> {
        let words = self.words(number)?;
        let epoch = words[0].load(Ordering::Acquire);
        let mut copy = [0u64; WORDS];
        for (copy, word) in copy.iter_mut().zip(words) {
            *copy = word.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        let again = words[0].load(Ordering::Relaxed);
        copy[0] = if epoch == again { epoch } else { 0 };
        // SAFETY: as many bytes, and any bytes are a mark.
        Ok(unsafe { std::mem::transmute::<[u64; WORDS], Mark>(copy) })
    }

    /// Makes a mark, over one that may be there.
    pub fn set(&mut self, number: u32, mark: Mark) -> Result<(), Error> {
        // SAFETY: as many bytes, none of them padding (`abi` asserts the size).
        let values = unsafe { std::mem::transmute::<Mark, [u64; WORDS]>(mark) };
        let words = self.words(number)?;
        words[0].store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in words.iter().zip(values).skip(1) {
            word.store(value, Ordering::Relaxed);
        }
        words[0].store(mark.epoch, Ordering::Release);
        Ok(())
    }

    /// Moves a mark's end, nothing else.
    pub fn renew(&mut self, number: u32, expiry: u64) -> Result<(), Error> {
        self.words(number)?[EXPIRY].store(expiry, Ordering::Release);
        Ok(())
    }

    /// Withdraws a mark: one store.
    pub fn clear(&mut self, number: u32) -> Result<(), Error> {
        self.words(number)?[0].store(0, Ordering::Release);
        Ok(())
    }

    /// Remembers the latest epoch that was given out, in the element that is never a mark.
    pub fn set_last_epoch(&mut self, epoch: u64) -> Result<(), Error> {
        self.words(0)?[0].store(epoch, Ordering::Release);
        Ok(())
    }

    /// What [`Self::set_last_epoch`] has remembered; 0 in a new map.
    pub fn last_epoch(&self) -> Result<u64, Error> {
        Ok(self.words(0)?[0].load(Ordering::Acquire))
    }

    fn words(&self, number: u32) -> Result<&[AtomicU64; WORDS], Error> {
        // SAFETY: a valid element, aligned to eight bytes, mapped for the life of `self`; all who write it here do so by
        // atomic stores, and a u64 in shared memory may be looked at as an atomic one.
        Ok(unsafe { self.0.at(number)?.cast().as_ref() })
    }
}

/// `LEASES`: number of a node → when its word ends, CLOCK_BOOTTIME in nanoseconds. Written by the auth-agent; read by
/// the programs at every authenticated packet.
pub struct Leases(Mapped<u64>);

impl AsFd for Leases {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Leases {
    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Mapped::new(abi::map::LEASES, map).map(Self)
    }

    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.0.len()
    }

    /// Whether there are no elements, which no map of the kernel has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When a node's word ends; 0: it has none.
    pub fn get(&self, node: u32) -> Result<u64, Error> {
        Ok(self.word(node)?.load(Ordering::Acquire))
    }

    /// Sets when a node's word ends.
    pub fn set(&mut self, node: u32, end: u64) -> Result<(), Error> {
        self.word(node)?.store(end, Ordering::Release);
        Ok(())
    }

    fn word(&self, node: u32) -> Result<&AtomicU64, Error> {
        // SAFETY: as for marks.
        Ok(unsafe { self.0.at(node)?.cast().as_ref() })
    }
}

#[cfg(test)]
mod tests {
    //! Need root: they make maps.

    use super::*;
    use crate::scratch;

    fn mark(epoch: u64) -> Mark {
        Mark {
            epoch,
            expiry: 2,
            lease: 3,
            zero: 0,
            principals: [4, 5],
            instances: [6, 7],
            ipv4: [10, 0, 0, 8],
            zero4: [0; 4],
            ipv6: [9; 16],
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_set_renewed_alone_and_withdrawn_at_once() {
        let [_, marks, _] = scratch::auth().unwrap();
        let mut marks = Marks::new(handed_over("MARKS", marks).unwrap()).unwrap();
        assert_eq!(marks.len(), abi::MARKS);
        assert_eq!(marks.get(7).unwrap(), Mark::default());
        marks.set(7, mark(1)).unwrap();
        assert_eq!(marks.get(7).unwrap(), mark(1));
        assert_eq!([marks.get(6).unwrap(), marks.get(8).unwrap()], [Mark::default(); 2]);
        marks.renew(7, 99).unwrap();
        assert_eq!(marks.get(7).unwrap(), Mark { expiry: 99, ..mark(1) });
        marks.clear(7).unwrap();
        assert_eq!(marks.get(7).unwrap().epoch, 0);
        assert_eq!(marks.last_epoch().unwrap(), 0);
        marks.set_last_epoch(1).unwrap();
        assert_eq!(marks.last_epoch().unwrap(), 1);
        assert!(marks.set(abi::MARKS, mark(2)).is_err(), "beyond the end");
    }

    #[test]
    fn what_one_handle_writes_another_of_the_same_map_reads() {
        let [pairs, _, leases] = scratch::auth().unwrap();
        let two = |fd: &OwnedFd, map| [(); 2].map(|()| handed_over(map, fd.try_clone().unwrap()).unwrap());
        let [writer, reader] = two(&leases, "LEASES").map(|map| Leases::new(map).unwrap());
        let mut writer = writer;
        writer.set(1, u64::MAX).unwrap();
        assert_eq!([reader.get(0).unwrap(), reader.get(1).unwrap()], [0, u64::MAX]);

        let [mut writer, reader] = two(&pairs, "AUTH").map(|map| Pairs::new(map).unwrap());
        let key = PairKey { remote: abi::Address([1; 16]), identity: 300, instance: 4 };
        let pair = Pair { mark: 9, ..Pair::default() };
        writer.insert(key, pair).unwrap();
        assert_eq!(reader.get(key).unwrap(), Some(pair));
        assert_eq!(reader.entries().unwrap(), [(key, pair)]);
        writer.remove(key).unwrap();
        writer.remove(key).unwrap();
        assert_eq!(reader.get(key).unwrap(), None);
    }

    #[test]
    fn a_descriptor_that_is_another_map_or_none_is_refused_by_name() {
        let [pairs, marks, _] = scratch::auth().unwrap();
        let error = Marks::new(handed_over("MARKS", pairs).unwrap()).err().unwrap().to_string();
        assert!(error.starts_with("map MARKS"), "{error}");
        assert!(Pairs::new(handed_over("AUTH", marks).unwrap()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(handed_over("AUTH", file.into()).is_err());
    }
}
