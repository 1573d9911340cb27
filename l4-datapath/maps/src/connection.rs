//! What the programs write of connections and sockets, for the agent to read.

use abi::{Called, Connection, ConnectionKey4, ConnectionKey6, PacketTuple, SocketKey, Translation};
use aya::maps::{HashMap, Map, MapData, MapError};

use crate::{Error, batch};

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
        match self.0.get(key, 0) {
            Ok(called) => Ok(Some(called)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::of(Self::MAP, "looking up")(error)),
        }
    }
}

/// `TRANSLATIONS`: packets that leave with other addresses than they came with. Written by the programs; the agent reads.
pub struct Translations(HashMap<MapData, PacketTuple, Translation>);

impl Translations {
    const MAP: &str = abi::map::TRANSLATIONS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Every half.
    pub fn entries(&self) -> Result<Vec<(PacketTuple, Translation)>, Error> {
        batch::entries(&self.0, Self::MAP)
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

            /// One entry.
            pub fn get(&self, key: &$key) -> Result<Option<Connection>, Error> {
                match self.0.get(key, 0) {
                    Ok(connection) => Ok(Some(connection)),
                    Err(MapError::KeyNotFound) => Ok(None),
                    Err(error) => Err(Error::of($map, "looking up")(error)),
                }
            }

            /// Every entry, dead ones included.
            pub fn entries(&self) -> Result<Vec<($key, Connection)>, Error> {
                batch::entries(&self.0, $map)
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
