//! Identity numbers: equal labels have one number, also over restarts.
//!
//! A number whose labels nobody has any more stays theirs for [`KEPT`] longer: packets in flight, events in the ring
//! and connections in the kernel still carry it, and a workload that restarts gets it back. Numbers are handed out
//! upwards, so that a released one is used again as late as possible.
//!
//! The addresses of services are remembered the same way, in a file of their own.
//!
//! Nothing is written before [`Allocator::save`]; call it before a new number reaches the kernel. What was asked for
//! counts as used until it is let go, so that who asks only for what is new costs no more than that.

mod journal;
mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use serde::{Deserialize, Serialize};

use crate::durable;
use journal::{Journal, Line};
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
    /// Which allocator it is.
    token: Token,
    /// Of the whole that was written last.
    epoch: u64,
    /// The whole must be written.
    whole: bool,
    journal: Journal,
    workloads: Pool<LabelSet>,
    prefixes: Pool<IpNet>,
    pub(crate) vips: Vips,
}

/// Tells allocators from each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Token(Arc<()>);

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    #[serde(default)]
    epoch: u64,
    workloads: Vec<StoredNumber<LabelSet>>,
    prefixes: Vec<StoredNumber<IpNet>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredNumber<K> {
    identity: u32,
    of: K,
}

impl Allocator {
    /// Reads `identities.json` and `services.json` of the state directory; without them, nothing is allocated yet.
    pub fn open(state: &Path) -> Result<Self, AllocateError> {
        let path = state.join("identities.json");
        let unusable = |reason: String| AllocateError::Unusable { path: path.clone(), reason };
        let (mut stored, mut whole): (Stored, _) = match std::fs::read(&path) {
            Ok(bytes) => {
                (serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?, false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (Stored { version: VERSION, epoch: 0, workloads: Vec::new(), prefixes: Vec::new() }, true)
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        if stored.version != VERSION {
            return Err(unusable(format!("version {}, expected {VERSION}", stored.version)));
        }
        let journal = Journal::beside(&path);
        whole |= journal.replay(&mut stored).map_err(unusable)?;
        let epoch = stored.epoch;
        let workloads = Pool::restore(stored.workloads, WORKLOADS).map_err(unusable)?;
        let prefixes = Pool::restore(stored.prefixes, PREFIXES).map_err(unusable)?;
        let (token, vips) = (Token::default(), Vips::open(state)?);
        Ok(Self { path, token, epoch, whole, journal, workloads, prefixes, vips })
    }

    /// The same numbers, for asking what would be given: it has no file, and what it gives is never durable.
    #[must_use]
    pub fn scratch(&self) -> Self {
        Self {
            path: PathBuf::new(),
            token: Token::default(),
            epoch: self.epoch,
            whole: true,
            journal: Journal::beside(Path::new("")),
            workloads: self.workloads.clone(),
            prefixes: self.prefixes.clone(),
            vips: self.vips.scratch(),
        }
    }

    /// The number of a workload's labels.
    pub fn workload(&mut self, labels: &LabelSet) -> Result<Identity, AllocateError> {
        self.workloads.number(labels, WORKLOADS, "label sets")
    }

    /// The number of an address prefix.
    pub fn prefix(&mut self, prefix: IpNet) -> Result<Identity, AllocateError> {
        self.prefixes.number(&prefix, PREFIXES, "prefixes")
    }

    /// No workload has these labels any more.
    pub(crate) fn let_workload_go(&mut self, labels: &LabelSet) {
        self.workloads.let_go(labels);
    }

    /// No policy names this prefix any more.
    pub(crate) fn let_prefix_go(&mut self, prefix: &IpNet) {
        self.prefixes.let_go(prefix);
    }

    /// Whoever plans from nothing asks for everything anew; what is not asked for then is let go.
    pub(crate) fn let_all_go(&mut self) -> Token {
        self.workloads.let_all_go();
        self.prefixes.let_all_go();
        self.vips.let_all_go();
        self.token.clone()
    }

    /// Which allocator this is.
    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    /// Who has a number that he does not use.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> (Vec<LabelSet>, Vec<IpNet>) {
        (self.workloads.idle.keys().cloned().collect(), self.prefixes.idle.keys().copied().collect())
    }

    /// Makes all numbers durable. Those that nobody asked for, or that were let go, begin to age; those that have aged
    /// for [`KEPT`] are released.
    pub fn save(&mut self, now: SystemTime) -> Result<(), AllocateError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.vips.save(now)?;
        // A number that is released must not come back from the journal.
        self.whole |= self.workloads.age(now) | self.prefixes.age(now);
        let new = self.workloads.new.len() + self.prefixes.new.len();
        if self.whole || self.journal.is_long(new) {
            return self.save_whole();
        }
        if new == 0 {
            return Ok(());
        }
        let workloads = self.workloads.new.drain(..).map(Line::Workload);
        let lines: Vec<_> = workloads.chain(self.prefixes.new.drain(..).map(Line::Prefix)).collect();
        let appended = self.journal.append(self.epoch, &lines);
        self.whole = appended.is_err();
        appended.map_err(|source| AllocateError::Write { path: self.path.clone(), source })
    }

    fn save_whole(&mut self) -> Result<(), AllocateError> {
        self.whole = true;
        let stored = Stored {
            version: VERSION,
            epoch: self.epoch + 1,
            workloads: self.workloads.store(),
            prefixes: self.prefixes.store(),
        };
        let written =
            serde_json::to_vec(&stored).map_err(io::Error::from).and_then(|b| durable::write(&self.path, &b));
        written.map_err(|source| AllocateError::Write { path: self.path.clone(), source })?;
        self.epoch += 1;
        self.whole = false;
        self.journal.end();
        self.workloads.new.clear();
        self.prefixes.new.clear();
        Ok(())
    }
}

/// Numbers of one range.
#[derive(Clone, Debug)]
struct Pool<K> {
    numbers: BTreeMap<K, Number>,
    /// Those that nobody uses, and since when (since 1970) as far as a save has seen it. Not stored: after a restart
    /// every number ages from its beginning.
    idle: BTreeMap<K, Option<Duration>>,
    taken: BTreeSet<u32>,
    /// Where to look for the next free one.
    next: u32,
    /// Given since the last save.
    new: Vec<StoredNumber<K>>,
}

#[derive(Clone, Debug)]
struct Number {
    identity: Identity,
    /// It is not among the idle.
    used: bool,
}

impl<K: Ord + Clone> Pool<K> {
    fn new(first: u32) -> Self {
        let (numbers, idle, taken) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { numbers, idle, taken, next: first, new: Vec::new() }
    }

    fn let_go(&mut self, of: &K) {
        if let Some(number) = self.numbers.get_mut(of)
            && std::mem::take(&mut number.used)
        {
            self.idle.insert(of.clone(), None);
        }
    }

    fn let_all_go(&mut self) {
        for (of, number) in &mut self.numbers {
            if std::mem::take(&mut number.used) {
                self.idle.insert(of.clone(), None);
            }
        }
    }

    fn restore(stored: Vec<StoredNumber<K>>, range: RangeInclusive<u32>) -> Result<Self, String> {
        let mut pool = Self::new(*range.start());
        for StoredNumber { identity: number, of } in stored {
            let fits = Identity::new(number).filter(|_| range.contains(&number));
            let identity = fits.ok_or_else(|| format!("identity {number} is outside {range:?}"))?;
            let entry = Number { identity, used: false };
            pool.idle.insert(of.clone(), None);
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
            if !std::mem::replace(&mut number.used, true) {
                self.idle.remove(of);
            }
            return Ok(number.identity);
        }
        let identity = self.free(range.clone()).and_then(Identity::new);
        let identity = identity.ok_or(AllocateError::Exhausted { of: what, most: range.count() })?;
        self.taken.insert(identity.number());
        self.next = identity.number().saturating_add(1);
        self.new.push(StoredNumber { identity: identity.number(), of: of.clone() });
        self.numbers.insert(of.clone(), Number { identity, used: true });
        Ok(identity)
    }

    fn free(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let (first, last) = (*range.start(), *range.end());
        let next = self.next.clamp(first, last);
        (next..=last).chain(first..next).find(|number| !self.taken.contains(number))
    }

    /// Whether a number was released.
    fn age(&mut self, now: Duration) -> bool {
        let (numbers, taken) = (&mut self.numbers, &mut self.taken);
        let mut changed = false;
        self.idle.retain(|of, since| {
            let keep = now.saturating_sub(*since.get_or_insert(now)) < KEPT;
            if !keep {
                changed = true;
                if let Some(number) = numbers.remove(of) {
                    taken.remove(&number.identity.number());
                }
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
    fn what_was_given_since_the_whole_was_written_survives_a_restart_and_a_torn_end() {
        let state = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(state.path()).unwrap();
        allocator.workload(&labels("org=empire")).unwrap();
        allocator.save(at(0)).unwrap();
        let whole = std::fs::read(state.path().join("identities.json")).unwrap();
        let alliance = allocator.workload(&labels("org=alliance")).unwrap();
        allocator.save(at(1)).unwrap();
        let v6 = allocator.prefix("fd00::/8".parse().unwrap()).unwrap();
        allocator.save(at(2)).unwrap();
        assert!(
            std::fs::read(state.path().join("identities.json")).unwrap() == whole,
            "it was not written again"
        );

        let log = state.path().join("identities.log");
        let mut text = std::fs::read_to_string(&log).unwrap();
        text.push_str("{\"workload\":{\"identity\":258,\"of\"");
        std::fs::write(&log, &text).unwrap();
        let mut again = Allocator::open(state.path()).unwrap();
        assert_eq!(again.workload(&labels("org=alliance")).unwrap(), alliance);
        assert_eq!(again.prefix("fd00::/8".parse().unwrap()).unwrap(), v6);
        assert_eq!(again.workload(&labels("org=rebels")).unwrap().number(), 258);
        again.save(at(3)).unwrap();
        // What is left of the earlier journal says nothing beside the new whole.
        let mut last = Allocator::open(state.path()).unwrap();
        assert_eq!(last.workload(&labels("org=rebels")).unwrap().number(), 258);
        assert_eq!(last.workload(&labels("org=hutts")).unwrap().number(), 259);

        let damaged = text.replace("\"fd00::/8\"}", "");
        assert_ne!(damaged, text);
        std::fs::write(state.path().join("identities.json"), &whole).unwrap();
        std::fs::write(&log, damaged).unwrap();
        let error = Allocator::open(state.path()).unwrap_err().to_string();
        assert!(error.contains("identities.log:3"), "{error}");
    }

    #[test]
    fn an_unused_number_is_kept_for_an_hour_and_then_used_again_last() {
        let state = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(state.path()).unwrap();
        let gone = allocator.workload(&labels("org=empire")).unwrap();
        allocator.save(at(0)).unwrap();
        allocator.save(at(5000)).unwrap();
        allocator.let_workload_go(&labels("org=empire"));
        allocator.save(at(5010)).unwrap();
        allocator.save(at(5010 + 3599)).unwrap();
        assert_eq!(allocator.workload(&labels("org=empire")).unwrap(), gone, "back in time");
        allocator.save(at(9000)).unwrap();
        allocator.let_all_go();
        allocator.save(at(9001)).unwrap();
        allocator.save(at(9001 + 3600)).unwrap();
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
        let mut pool: Pool<u32> = Pool::new(1);
        for key in 1..=3 {
            pool.number(&key, 1..=3, "things").unwrap();
        }
        let error = pool.number(&4, 1..=3, "things").unwrap_err().to_string();
        assert_eq!(error, "identities of things: all 3 numbers are in use; use fewer distinct things");
    }
}
