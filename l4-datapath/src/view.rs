//! What the kernel has, for people: services as the programs find them, and connections.
//!
//! Promise: read from the maps, not from the copies in memory; where the two differ, this says so by showing the kernel's.
//! By handles of its own, so that reading a full table need not stop whoever writes them: what changes meanwhile is seen
//! as it was or as it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use abi::{
    Address, Connection, ConnectionKey4, ConnectionKey6, Leg, Memo, PacketTuple, Service, SocketKey,
    Translation, TranslationKind, timeout,
};
use aya::maps::{Map, MapData};
use mesh::policy::protocol;
use mesh::service::{Backend, Frontend};
use nix::time::{ClockId, clock_gettime};
use node_api::{ConnectionView, LoadBalancerView};

use crate::Error;
use crate::address::{address, frontend, socket};
use crate::apply::ServiceMaps;
use crate::pins::Pins;

/// The maps that people ask about.
pub struct View {
    /// Of the pins.
    directory: PathBuf,
    connections4: maps::Connections4,
    connections6: maps::Connections6,
    translations: maps::Translations,
    sockets: maps::Sockets,
}

fn pinned(directory: &Path, map: &'static str) -> Result<Map, Error> {
    let opened = MapData::from_pin(directory.join(map)).and_then(Map::from_map_data);
    opened.map_err(|source| Error::Map(maps::Error { map, operation: "opening", source }))
}

/// What a program finds by a frontend's key: affinity, and slots in order with the numbers of backends.
fn found(maps: &ServiceMaps, key: abi::Frontend, id: u32) -> Result<(u32, Vec<(u32, Backend)>), Error> {
    loop {
        let service = maps.services.get(id)?;
        if service.frontend != key {
            // What a program does not take for the service it looked for has no slots to it.
            return Ok((service.affinity, Vec::new()));
        }
        let slots = slots(maps, service.slots)?;
        // The region may have been given to another while it was read, but not while this one has it.
        if maps.services.get(id)? == service {
            return Ok((service.affinity, slots));
        }
    }
}

fn slots(maps: &ServiceMaps, slots: u64) -> Result<Vec<(u32, Backend)>, Error> {
    let first = Service::first(slots);
    let range = first..first.saturating_add(Service::count(slots));
    range
        .map(|slot| {
            let number = maps.slots.get(slot)?;
            let backend = maps.backends.get(number)?;
            Ok((number, socket(backend.address, backend.port)))
        })
        .collect()
}

impl View {
    /// Opens the maps by their pins.
    pub(crate) fn open(pins: &Pins) -> Result<Self, Error> {
        let directory = pins.maps();
        let take = |map| pinned(&directory, map);
        Ok(Self {
            connections4: maps::Connections4::new(take(abi::map::CONNECTIONS4)?)?,
            connections6: maps::Connections6::new(take(abi::map::CONNECTIONS6)?)?,
            translations: maps::Translations::new(take(abi::map::TRANSLATIONS)?)?,
            sockets: maps::Sockets::new(take(abi::map::SOCKETS)?)?,
            directory,
        })
    }

    /// Every frontend in `FRONTENDS` with what a program finds by it, in the order of frontends.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn load_balancer(&self) -> Result<Vec<LoadBalancerView>, Error> {
        let maps = ServiceMaps::open(|map| pinned(&self.directory, map))?;
        let mut views = Vec::new();
        for (key, id) in maps.frontends.entries()? {
            if key == abi::Frontend::address_only(key.address) {
                continue;
            }
            let (affinity, slots) = found(&maps, key, id)?;
            views.push(LoadBalancerView { id, frontend: frontend(&key), slots, affinity });
        }
        views.sort_by_key(|view| view.frontend);
        Ok(views)
    }

    /// What the owner of the socket with this cookie called to get to the backend; none if that was no service.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn called(&self, cookie: u64, backend: SocketAddr, protocol: u8) -> Result<Option<Frontend>, Error> {
        let port = backend.port().to_be_bytes();
        let key = SocketKey { cookie, address: address(backend.ip()), port, protocol, zero: [0; 5] };
        Ok(self.sockets.get(&key)?.map(|called| frontend(&called.frontend)))
    }

    /// Epoch of the mark on which the connection between these two ends depends; none if there is no such connection, or
    /// it depends on none.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn epoch(&self, protocol: u8, one: SocketAddr, other: SocketAddr) -> Result<Option<u64>, Error> {
        Ok(self.proof(protocol, one, other)?.map(|(_, epoch)| epoch))
    }

    /// Whether the connection between these two ends depends on a mark that is no more.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn is_unproven(&self, protocol: u8, one: SocketAddr, other: SocketAddr) -> Result<bool, Error> {
        let Some((mark, epoch)) = self.proof(protocol, one, other)? else { return Ok(false) };
        // Opened for each: it is mapped memory, which threads do not share. Of a mark that is being made just now there is
        // none; it is another's anyway.
        let marks = maps::Marks::new(pinned(&self.directory, abi::map::MARKS)?)?;
        Ok(marks.get(mark)?.epoch != epoch)
    }

    /// Number and epoch of the mark that a connection depends on.
    fn proof(&self, protocol: u8, one: SocketAddr, other: SocketAddr) -> Result<Option<(u32, u64)>, Error> {
        let (low, high) = if one <= other { (one, other) } else { (other, one) };
        let (low_port, high_port) = (low.port().to_be_bytes(), high.port().to_be_bytes());
        let leg = Leg::Pod as u8;
        let found = match (low.ip(), high.ip()) {
            (IpAddr::V4(low), IpAddr::V4(high)) => {
                let (low, high) = (low.octets(), high.octets());
                let key = ConnectionKey4 { low, high, low_port, high_port, protocol, leg, zero: [0; 2] };
                self.connections4.get(&key)?
            }
            (low, high) => {
                let (low, high) = (address(low).0, address(high).0);
                let key = ConnectionKey6 { low, high, low_port, high_port, protocol, leg, zero: [0; 2] };
                self.connections6.get(&key)?
            }
        };
        Ok(found.map(|connection| (connection.mark, connection.epoch)).filter(|(_, epoch)| *epoch != 0))
    }

    /// Every connection that is alive, in the order of protocol, source and destination.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn connections(&self) -> Result<Vec<ConnectionView>, Error> {
        let four = self.connections4.entries()?.into_iter().map(|(key, value)| (mapped(&key), value));
        let entries = self.connections6.entries()?.into_iter().chain(four);
        let translated = Translated::new(self.translations.entries()?);
        let now = now();
        let alive = entries.filter_map(|(key, connection)| Alive::new(&key, connection, now));
        let mut views: Vec<ConnectionView> = alive.map(|alive| alive.view(&translated)).collect();
        views.sort_by_key(|view| (view.protocol, view.source, view.destination));
        Ok(views)
    }
}

/// What becomes of connections' packets, by the ends of the connection as it was opened.
#[derive(Default)]
struct Translated {
    /// The VIP that stands for the destination.
    called: BTreeMap<PacketTuple, SocketAddr>,
    /// What stands for the source.
    masqueraded: BTreeMap<PacketTuple, SocketAddr>,
}

impl Translated {
    /// From all halves. The forward one tells: of a connection whose opener is its own backend, the VIP stands for both
    /// ends in the other.
    fn new(halves: Vec<(PacketTuple, Translation)>) -> Self {
        let mut translated = Self::default();
        for (key, half) in halves.into_iter().filter(|(_, half)| half.is_forward == 1) {
            let to = half.tuple;
            if half.kind == TranslationKind::Masquerade as u8 {
                translated.masqueraded.insert(key, socket(to.source, to.source_port));
            } else {
                let ends =
                    PacketTuple { destination: to.destination, destination_port: to.destination_port, ..key };
                translated.called.insert(ends, socket(key.destination, key.destination_port));
            }
        }
        translated
    }
}

/// A connection that is not dead, in the direction in which it was opened.
struct Alive {
    tuple: PacketTuple,
    connection: Connection,
    expires: u32,
}

impl Alive {
    fn new(key: &ConnectionKey6, connection: Connection, now: u32) -> Option<Self> {
        let up = PacketTuple {
            source: Address(key.low),
            destination: Address(key.high),
            source_port: key.low_port,
            destination_port: key.high_port,
            protocol: key.protocol,
            zero: [0; 3],
        };
        let tuple = if connection.opened_by_high == 1 { up.reversed() } else { up };
        let limit = timeout::of(key.protocol, connection.replied == 1, || is_closing(&connection));
        let expires = limit.saturating_sub(now.saturating_sub(connection.seen));
        (expires > 0).then_some(Self { tuple, connection, expires })
    }

    fn view(&self, translated: &Translated) -> ConnectionView {
        let Self { tuple, connection, expires } = self;
        ConnectionView {
            protocol: tuple.protocol,
            source: socket(tuple.source, tuple.source_port),
            destination: socket(tuple.destination, tuple.destination_port),
            // A half outlives its connection: another's may have the same ends.
            called: translated.called.get(tuple).copied().filter(|_| connection.translated == 1),
            masqueraded: translated.masqueraded.get(tuple).copied(),
            state: self.state().to_owned(),
            expires: *expires,
            generation: connection.memo >> Memo::GENERATION_SHIFT,
            audited: connection.memo & Memo::AUDITED != 0,
            charged: u16::try_from(connection.charged).ok().filter(|charged| *charged != 0),
        }
    }

    fn state(&self) -> &'static str {
        match self.connection.replied {
            _ if self.tuple.protocol == protocol::TCP && is_closing(&self.connection) => "closing",
            0 => "opening",
            _ => "established",
        }
    }
}

fn is_closing(connection: &Connection) -> bool {
    connection.reset == 1
        || (connection.fin_opener == 1 && connection.fin_other == 1)
        || connection.ended == 1
}

/// The same connection as `CONNECTIONS6` would have it.
fn mapped(key: &abi::ConnectionKey4) -> ConnectionKey6 {
    ConnectionKey6 {
        low: Address::v4(key.low).0,
        high: Address::v4(key.high).0,
        low_port: key.low_port,
        high_port: key.high_port,
        protocol: key.protocol,
        leg: key.leg,
        zero: [0; 2],
    }
}

/// The clock of the programs (`conntrack::now`), in seconds.
fn now() -> u32 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| time.tv_sec());
    u32::try_from(time).unwrap_or(u32::MAX).saturating_add(timeout::BOOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(protocol: u8, change: impl FnOnce(&mut Connection)) -> (ConnectionKey6, Connection) {
        let key = abi::ConnectionKey4 {
            low: [10, 0, 0, 1],
            high: [10, 0, 0, 2],
            low_port: 1000u16.to_be_bytes(),
            high_port: 80u16.to_be_bytes(),
            protocol,
            leg: 0,
            zero: [0; 2],
        };
        let mut connection = Connection { seen: 100, ..Connection::EMPTY };
        change(&mut connection);
        (mapped(&key), connection)
    }

    #[test]
    fn state_and_life_are_the_programs() {
        let none = |_: &mut Connection| {};
        let replied = |connection: &mut Connection| connection.replied = 1;
        let reset = |connection: &mut Connection| connection.reset = 1;
        let half = |connection: &mut Connection| (connection.replied, connection.fin_other) = (1, 1);
        for (protocol, change, now, expected) in [
            (6, none as fn(&mut Connection), 100, Some(("opening", 60))),
            (6, replied, 101, Some(("established", 7999))),
            (6, half, 100, Some(("established", 8000))),
            (6, reset, 109, Some(("closing", 1))),
            (6, reset, 110, None),
            (17, replied, 99, Some(("established", 180))),
            (17, reset, 100, Some(("opening", 60))),
            (1, replied, 159, Some(("established", 1))),
        ] {
            let (key, connection) = entry(protocol, change);
            let alive = Alive::new(&key, connection, now);
            assert_eq!(alive.map(|alive| (alive.state(), alive.expires)), expected, "{protocol} {now}");
        }
    }

    #[test]
    fn the_source_is_who_opened() {
        let (key, connection) = entry(6, |connection| connection.opened_by_high = 1);
        let tuple = Alive::new(&key, connection, 100).unwrap().tuple;
        assert_eq!(socket(tuple.source, tuple.source_port), "10.0.0.2:80".parse().unwrap());
        assert_eq!(socket(tuple.destination, tuple.destination_port), "10.0.0.1:1000".parse().unwrap());
    }
}
