//! VIPs: which service has which address, also over restarts.
//!
//! Explicit ones are remembered too, so that of two services that claim an address the one that had it keeps it. What
//! a service had stays reserved for [`super::KEPT`] after it is gone, against allocation; who asks for the very address
//! gets it. Addresses are handed out upwards, so that a released one is used again as late as possible.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use mesh::service::ServiceName;
use serde::{Deserialize, Serialize};

use super::{AllocateError, KEPT};
use crate::durable;
use crate::kind::Family;

const VERSION: u32 = 1;

/// Left free: the network's own, and the one that people give their DNS.
const LEFT_FREE: [u128; 2] = [0, 10];

/// The addresses given, and the file that remembers them. The default is for asking what would be given; it has no file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vips {
    path: PathBuf,
    of: BTreeMap<(ServiceName, Family), Held>,
    by: BTreeMap<IpAddr, ServiceName>,
    /// Where to look for the next free one: offset within the pool.
    next: BTreeMap<Family, u128>,
    /// Some may be unused.
    is_aging: bool,
    unsaved: bool,
}

#[derive(Clone, Debug)]
struct Held {
    address: IpAddr,
    /// Asked for, and not let go since.
    used: bool,
    /// Since 1970. Not stored: after a restart every address ages from its beginning.
    unused_since: Option<Duration>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    vips: Vec<StoredVip>,
}

#[derive(Serialize, Deserialize)]
struct StoredVip {
    address: IpAddr,
    service: ServiceName,
}

impl Vips {
    /// Reads `services.json` of the state directory; without one, nobody has anything yet.
    pub(super) fn open(state: &Path) -> Result<Self, AllocateError> {
        let path = state.join("services.json");
        let unusable = |reason: String| AllocateError::UnusableVips { path: path.clone(), reason };
        let stored = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Stored { version: VERSION, vips: Vec::new() }
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        if stored.version != VERSION {
            return Err(unusable(format!("version {}, expected {VERSION}", stored.version)));
        }
        let mut vips = Self { path: path.clone(), is_aging: true, ..Self::default() };
        for StoredVip { address, service } in stored.vips {
            let held = Held { address, used: false, unused_since: None };
            let earlier = vips.of.insert((service.clone(), Family::of(address)), held);
            if vips.by.insert(address, service).is_some() || earlier.is_some() {
                return Err(unusable(format!("{address}, or an address of its service, is given twice")));
            }
        }
        Ok(vips)
    }

    /// The same addresses, for asking; it has no file.
    pub(super) fn scratch(&self) -> Self {
        Self { path: PathBuf::new(), ..self.clone() }
    }

    /// The address that a service had when it was last asked for.
    pub(crate) fn had(&self, service: &ServiceName, family: Family) -> Option<IpAddr> {
        // A tuple of references cannot be looked up; names are short.
        self.of.get(&(service.clone(), family)).map(|held| held.address)
    }

    /// Records that a service has an address, whoever had it before.
    pub(crate) fn give(&mut self, service: &ServiceName, address: IpAddr) {
        let key = (service.clone(), Family::of(address));
        if let Some(held) = self.of.get_mut(&key)
            && held.address == address
        {
            held.used = true;
            return;
        }
        self.unsaved = true;
        if let Some(former) = self.by.insert(address, service.clone()) {
            self.of.remove(&(former, Family::of(address)));
        }
        let held = Held { address, used: true, unused_since: None };
        if let Some(former) = self.of.insert(key, held) {
            self.by.remove(&former.address);
        }
    }

    /// Whoever plans services anew gives everything anew; what is not given then is let go.
    pub(crate) fn let_all_go(&mut self) {
        self.of.values_mut().for_each(|held| held.used = false);
        self.is_aging = true;
    }

    /// An address of the pool that nobody has or lately had and that `fits`.
    pub(crate) fn free(&mut self, pool: IpNet, fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let family = Family::of(pool.addr());
        let size = size(pool);
        let next = self.next.get(&family).copied().unwrap_or(0) % size;
        let mut offsets = (next..size).chain(0..next);
        let found = offsets.find(|offset| {
            let address = nth(pool, *offset);
            let last = pool.addr().is_ipv4() && *offset == size - 1;
            !LEFT_FREE.contains(offset) && !last && !self.by.contains_key(&address) && fits(address)
        })?;
        self.next.insert(family, found + 1);
        Some(nth(pool, found))
    }

    /// Makes the addresses durable; what nobody asked for, or what was let go, begins to age.
    pub(super) fn save(&mut self, now: Duration) -> Result<(), AllocateError> {
        self.age(now);
        if !self.unsaved {
            return Ok(());
        }
        let stored = |(address, service): (&IpAddr, &ServiceName)| StoredVip {
            address: *address,
            service: service.clone(),
        };
        let stored = Stored { version: VERSION, vips: self.by.iter().map(stored).collect() };
        let written = serde_json::to_vec(&stored).map_err(io::Error::from);
        let written = written.and_then(|bytes| durable::write(&self.path, &bytes));
        self.unsaved = written.is_err();
        written.map_err(|source| AllocateError::Write { path: self.path.clone(), source })
    }

    fn age(&mut self, now: Duration) {
        if !self.is_aging {
            return;
        }
        let mut aging = false;
        let (by, unsaved) = (&mut self.by, &mut self.unsaved);
        self.of.retain(|_, held| {
            if held.used {
                held.unused_since = None;
                return true;
            }
            aging = true;
            let since = *held.unused_since.get_or_insert(now);
            let keep = now.saturating_sub(since) < KEPT;
            if !keep {
                by.remove(&held.address);
                *unsaved = true;
            }
            keep
        });
        self.is_aging = aging;
    }
}

/// Number of addresses of a pool; pools are far smaller than the whole of IPv6.
fn size(pool: IpNet) -> u128 {
    let bits = u32::from(pool.max_prefix_len() - pool.prefix_len());
    1_u128.checked_shl(bits).unwrap_or(u128::MAX)
}

fn nth(pool: IpNet, offset: u128) -> IpAddr {
    match pool {
        IpNet::V4(pool) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            Ipv4Addr::from_bits(pool.network().to_bits().wrapping_add(offset)).into()
        }
        IpNet::V6(pool) => Ipv6Addr::from_bits(pool.network().to_bits().wrapping_add(offset)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName { namespace: "default".to_owned(), name: name.to_owned() }
    }

    fn vips() -> (tempfile::TempDir, Vips) {
        let state = tempfile::tempdir().unwrap();
        let vips = Vips::open(state.path()).unwrap();
        (state, vips)
    }

    fn take(vips: &mut Vips, service: &str, pool: &str) -> Option<String> {
        let address = vips.free(pool.parse().unwrap(), |_| true)?;
        vips.give(&name(service), address);
        Some(address.to_string())
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn addresses_are_handed_out_upwards_and_a_few_are_left_free() {
        let (_state, mut vips) = vips();
        let all: Vec<_> = (0..20).map_while(|n| take(&mut vips, &format!("s{n}"), "10.218.0.0/28")).collect();
        let expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14].map(|n| format!("10.218.0.{n}"));
        assert_eq!(all, expected, "neither .0 nor .10 nor the broadcast address; then none is left");
        assert_eq!(take(&mut vips, "six", "fd00:218::/124").as_deref(), Some("fd00:218::1"));
    }

    #[test]
    fn a_service_gets_its_address_back_also_after_a_restart() {
        let (state, mut vips) = vips();
        take(&mut vips, "a", "10.218.0.0/16");
        take(&mut vips, "b", "10.218.0.0/16");
        vips.give(&name("explicit"), "10.96.0.7".parse().unwrap());
        vips.save(seconds(0)).unwrap();
        let vips = Vips::open(state.path()).unwrap();
        let had = |service: &str| vips.had(&name(service), Family::V4).map(|a| a.to_string());
        assert_eq!(had("b").as_deref(), Some("10.218.0.2"));
        assert_eq!(had("explicit").as_deref(), Some("10.96.0.7"));
    }

    #[test]
    fn an_address_is_kept_for_an_hour_and_then_free() {
        let (_state, mut vips) = vips();
        take(&mut vips, "gone", "10.218.0.0/29");
        vips.save(seconds(0)).unwrap();
        vips.let_all_go();
        vips.save(seconds(10)).unwrap();
        vips.save(seconds(10 + 3599)).unwrap();
        let others: Vec<_> =
            (0..9).map_while(|n| take(&mut vips, &format!("s{n}"), "10.218.0.0/29")).collect();
        assert_eq!(others.len(), 5, "the sixth is kept: {others:?}");
        vips.save(seconds(10 + 3600)).unwrap();
        assert_eq!(take(&mut vips, "next", "10.218.0.0/29").as_deref(), Some("10.218.0.1"));
    }

    #[test]
    fn who_asks_for_the_very_address_gets_it_from_one_who_is_gone() {
        let (_state, mut vips) = vips();
        take(&mut vips, "gone", "10.218.0.0/16");
        vips.give(&name("new"), "10.218.0.1".parse().unwrap());
        assert_eq!(vips.had(&name("gone"), Family::V4), None);
        assert_eq!(vips.had(&name("new"), Family::V4), Some("10.218.0.1".parse().unwrap()));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_and_nothing_is_guessed() {
        let state = tempfile::tempdir().unwrap();
        let twice = r#"{"version":1,"vips":[{"address":"10.0.0.1","service":"a/b"},{"address":"10.0.0.1","service":"a/c"}]}"#;
        for (text, expected) in
            [("{", "EOF while parsing"), (twice, "10.0.0.1, or an address of its service, is given twice")]
        {
            std::fs::write(state.path().join("services.json"), text).unwrap();
            let error = Vips::open(state.path()).unwrap_err().to_string();
            assert!(error.contains("services.json: ") && error.contains(expected), "{error}");
        }
    }
}
