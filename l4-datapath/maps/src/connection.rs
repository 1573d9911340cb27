//! What the programs write of connections and sockets, for the agent to read.

use abi::{Called, Connection, ConnectionKey4, ConnectionKey6, PacketTuple, SocketKey, Translation};
use aya::maps::{HashMap, Map, MapData, MapError};

use crate::Error;

/// The entry under a key, if there is one.
fn found<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<Option<V>, Error> {
    match map.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(Error::of(name, "looking up")(error)),
    }
}

/// `SOCKETS`: what the owner of a socket called. Written by the cgroup programs; the agent asks.
pub struct Sockets(HashMap<MapData, SocketKey, Called>);

impl Sockets {
    const MAP: &str = abi::map::SOCKETS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// What was called by the socket that talks with the backend of the key.
    pub fn get(&self, key: &SocketKey) -> Result<Option<Called>, Error> {
        found(&self.0, key, Self::MAP)
    }
}

/// `TRANSLATIONS`: packets that leave with other addresses than they came with. Written by the programs; the agent asks.
pub struct Translations(HashMap<MapData, PacketTuple, Translation>);

impl Translations {
    const MAP: &str = abi::map::TRANSLATIONS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// What a packet with this tuple becomes.
    pub fn get(&self, tuple: &PacketTuple) -> Result<Option<Translation>, Error> {
        found(&self.0, tuple, Self::MAP)
    }
}

macro_rules! connections {
    ($(#[$doc:meta])* $name:ident, $map:expr, $key:ty) => {
        $(#[$doc])*
        pub struct $name(HashMap<MapData, $key, Connection>);

        impl $name {
            /// The handle over a loaded map.
            pub fn new(map: Map) -> Result<Self, Error> {
                HashMap::try_from(map).map(Self).map_err(Error::of($map, "opening"))
            }

            /// Entries, dead ones included, of which one may come twice: where an entry vanishes under the walk, the
            /// kernel begins anew. After `most` of them the walk ends, so that it does under any traffic.
            pub fn entries(&self, most: usize) -> Result<Vec<($key, Connection)>, Error> {
                self.0.iter().take(most).collect::<Result<_, _>>().map_err(Error::of($map, "reading"))
            }
        }
    };
}

connections! {
    /// `CONNECTIONS4`: IPv4 connections that were allowed. Written by the programs; the agent reads.
    Connections4, abi::map::CONNECTIONS4, ConnectionKey4
}

connections! {
    /// `CONNECTIONS6`: IPv6 connections that were allowed. Written by the programs; the agent reads.
    Connections6, abi::map::CONNECTIONS6, ConnectionKey6
}
