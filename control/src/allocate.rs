//! Identity numbers: equal labels have one number, also over restarts.
//!
//! A number whose labels nobody has any more stays theirs for [`KEPT`] longer: packets in flight, events in the ring
//! and connections in the kernel still carry it, and a workload that restarts gets it back. Numbers are handed out
//! upwards, so that a released one is used again as late as possible.
//!
//! The addresses of services are remembered the same way, in a file of their own.
//!
//! Nothing is written before [`Allocator::save`]; call it before a new number reaches the kernel.

mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use serde::{Deserialize, Serialize};

use crate::durable;
pub(crate) use vips::Vips;

/// How long an unused number is kept from others.
pub const KEPT: Duration = Duration::from_secs(3600);

const VERSION: u32 = 1;
const WORKLOADS: RangeInclusive<u32> = Identity::FIRST_WORKLOAD..=Identity::LAST_WORKLOAD;
const PREFIXES: RangeInclusive<u32> = Identity::FIRST_CIDR..=Identity::LAST_CIDR;

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// What was allocated earlier cannot be known.
    #[error("{path}: {reason}; restore it, or stop all workloads and remove it")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Which service had which address cannot be known.
    #[error("{path}: {reason}; restore it, or remove it: services without clusterIP then get new addresses")]
    UnusableVips {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It cannot be made durable.
    #[error("{path}: {source}; what is allocated must be durable before it is used")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Every number is taken.
    #[error("identities of {of}: all {most} numbers are in use; use fewer distinct {of}")]
    Exhausted {
        /// What the numbers are for.
        of: &'static str,
        /// How many there are.
        most: usize,
    },
}

/// The numbers given, and the file that remembers them.
#[derive(Debug)]
pub struct Allocator {
    path: PathBuf,
    workloads: Pool<LabelSet>,
    prefixes: Pool<IpNet>,
    pub(crate) vips: Vips,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    workloads: Vec<StoredNumber<LabelSet>>,
    prefixes: Vec<StoredNumber<IpNet>>,
}

#[derive(Serialize, Deserialize)]
struct StoredNumber<K> {
    identity: u32,
    of: K,
}

impl Allocator {
    /// Reads `identities.json` and `services.json` of the state directory; without them, nothing is allocated yet.
    pub fn open(state: &Path) -> Result<Self, AllocateError> {
        let path = state.join("identities.json");
        let unusable = |reason: String| AllocateError::Unusable { path: path.clone(), reason };
        let stored = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Stored { version: VERSION, workloads: Vec::new(), prefixes: Vec::new() }
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        if stored.version != VERSION {
            return Err(unusable(format!("version {}, expected {VERSION}", stored.version)));
        }
        let workloads = Pool::restore(stored.workloads, WORKLOADS).map_err(unusable)?;
        let prefixes = Pool::restore(stored.prefixes, PREFIXES).map_err(unusable)?;
        Ok(Self { path, workloads, prefixes, vips: Vips::open(state)? })
    }

    /// The same numbers, for asking what would be given: it has no file, and what it gives is never durable.
    #[must_use]
    pub fn scratch(&self) -> Self {
        let (workloads, prefixes) = (self.workloads.clone(), self.prefixes.clone());
        Self { path: PathBuf::new(), workloads, prefixes, vips: self.vips.scratch() }
    }

    /// The number of a workload's labels.
    pub fn workload(&mut self, labels: &LabelSet) -> Result<Identity, AllocateError> {
        self.workloads.number(labels, WORKLOADS, "label sets")
    }

    /// The number of an address prefix.
    pub fn prefix(&mut self, prefix: IpNet) -> Result<Identity, AllocateError> {
        self.prefixes.number(&prefix, PREFIXES, "prefixes")
    }

    /// Makes all numbers durable. Those that were not asked for since the last call begin to age; those that have
    /// aged for [`KEPT`] are released.
    pub fn save(&mut self, now: SystemTime) -> Result<(), AllocateError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.vips.save(now)?;
        let changed = self.workloads.age(now) | self.prefixes.age(now);
        if !changed {
            return Ok(());
        }
        let stored =
            Stored { version: VERSION, workloads: self.workloads.store(), prefixes: self.prefixes.store() };
        let written =
            serde_json::to_vec(&stored).map_err(io::Error::from).and_then(|b| durable::write(&self.path, &b));
        written.map_err(|source| {
            self.workloads.unsaved = true;
            AllocateError::Write { path: self.path.clone(), source }
        })
    }
}

/// Numbers of one range.
#[derive(Clone, Debug)]
struct Pool<K> {
    numbers: BTreeMap<K, Number>,
    taken: BTreeSet<u32>,
    /// Where to look for the next free one.
    next: u32,
    unsaved: bool,
}

#[derive(Clone, Debug)]
struct Number {
    identity: Identity,
    /// Asked for since the last save.
    used: bool,
    /// Since 1970. Not stored: after a restart every number ages from its beginning.
    unused_since: Option<Duration>,
}

impl<K: Ord + Clone> Pool<K> {
    fn restore(stored: Vec<StoredNumber<K>>, range: RangeInclusive<u32>) -> Result<Self, String> {
        let mut pool =
            Self { numbers: BTreeMap::new(), taken: BTreeSet::new(), next: *range.start(), unsaved: false };
        for StoredNumber { identity: number, of } in stored {
            let fits = Identity::new(number).filter(|_| range.contains(&number));
            let identity = fits.ok_or_else(|| format!("identity {number} is outside {range:?}"))?;
            let entry = Number { identity, used: false, unused_since: None };
            if !pool.taken.insert(number) || pool.numbers.insert(of, entry).is_some() {
                return Err(format!("identity {number} is given twice"));
            }
            pool.next = pool.next.max(number.saturating_add(1));
        }
        Ok(pool)
    }

    fn store(&self) -> Vec<StoredNumber<K>> {
        let stored =
            |(of, number): (&K, &Number)| StoredNumber { identity: number.identity.number(), of: of.clone() };
        self.numbers.iter().map(stored).collect()
    }

    fn number(
        &mut self,
        of: &K,
        range: RangeInclusive<u32>,
        what: &'static str,
    ) -> Result<Identity, AllocateError> {
        if let Some(number) = self.numbers.get_mut(of) {
            number.used = true;
            return Ok(number.identity);
        }
        let identity = self.free(range.clone()).and_then(Identity::new);
        let identity = identity.ok_or(AllocateError::Exhausted { of: what, most: range.count() })?;
        self.taken.insert(identity.number());
        self.next = identity.number().saturating_add(1);
        self.unsaved = true;
        self.numbers.insert(of.clone(), Number { identity, used: true, unused_since: None });
        Ok(identity)
    }

    fn free(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let (first, last) = (*range.start(), *range.end());
        let next = self.next.clamp(first, last);
        (next..=last).chain(first..next).find(|number| !self.taken.contains(number))
    }

    /// Whether there is something to write.
    fn age(&mut self, now: Duration) -> bool {
        let taken = &mut self.taken;
        let mut changed = std::mem::take(&mut self.unsaved);
        self.numbers.retain(|_, number| {
            if std::mem::take(&mut number.used) {
                number.unused_since = None;
                return true;
            }
            let since = *number.unused_since.get_or_insert(now);
            let keep = now.saturating_sub(since) < KEPT;
            if !keep {
                taken.remove(&number.identity.number());
                changed = true;
            }
            keep
        });
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> LabelSet {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn equal_labels_have_one_number_also_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(state.path()).unwrap();
        let empire = allocator.workload(&labels("org=empire")).unwrap();
        let alliance = allocator.workload(&labels("org=alliance")).unwrap();
        let v4 = allocator.prefix("10.0.0.0/8".parse().unwrap()).unwrap();
        let v6 = allocator.prefix("fd00::/8".parse().unwrap()).unwrap();
        assert_eq!([empire.number(), alliance.number()], [256, 257]);
        assert_eq!([v4.number(), v6.number()], [0x0100_0000, 0x0100_0001]);
        allocator.save(at(0)).unwrap();

        let mut allocator = Allocator::open(state.path()).unwrap();
        assert_eq!(allocator.workload(&labels("org=rebels")).unwrap().number(), 258);
        assert_eq!(allocator.workload(&labels("org=alliance")).unwrap(), alliance);
        assert_eq!(allocator.prefix("fd00::/8".parse().unwrap()).unwrap(), v6);
    }

    #[test]
    fn an_unused_number_is_kept_for_an_hour_and_then_used_again_last() {
        let state = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(state.path()).unwrap();
        let gone = allocator.workload(&labels("org=empire")).unwrap();
        allocator.save(at(0)).unwrap();
        allocator.save(at(10)).unwrap();
        allocator.save(at(10 + 3599)).unwrap();
        assert_eq!(allocator.workload(&labels("org=empire")).unwrap(), gone, "back in time");
        allocator.save(at(4000)).unwrap();
        allocator.save(at(4001)).unwrap();
        allocator.save(at(4001 + 3600)).unwrap();
        assert_ne!(allocator.workload(&labels("org=empire")).unwrap(), gone, "released");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_and_nothing_is_guessed() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("identities.json"), "{").unwrap();
        let error = Allocator::open(state.path()).unwrap_err().to_string();
        assert!(error.contains("identities.json: EOF while parsing"), "{error}");
        let twice = r#"{"version":1,"workloads":[{"identity":256,"of":[]},{"identity":256,"of":["k8s:a"]}],"prefixes":[]}"#;
        std::fs::write(state.path().join("identities.json"), twice).unwrap();
        let error = Allocator::open(state.path()).unwrap_err().to_string();
        assert!(error.contains("identity 256 is given twice"), "{error}");
    }

    #[test]
    fn when_all_numbers_are_taken_the_error_says_so() {
        let mut pool: Pool<u32> =
            Pool { numbers: BTreeMap::new(), taken: BTreeSet::new(), next: 1, unsaved: false };
        for key in 1..=3 {
            pool.number(&key, 1..=3, "things").unwrap();
        }
        let error = pool.number(&4, 1..=3, "things").unwrap_err().to_string();
        assert_eq!(error, "identities of things: all 3 numbers are in use; use fewer distinct things");
    }
}
