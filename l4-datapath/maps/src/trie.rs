//! The tries: rulesets and address prefixes.

use abi::{AddressKey, Remote, RuleKey, RuleValue};
use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData};

use crate::{Error, absent_is_fine};

/// A key of a trie: the leading `bits` of `data` count, the others are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Prefix<K> {
    /// Length in bits.
    pub bits: u32,
    /// The bits, from the left.
    pub data: K,
}

impl<K: aya::Pod> Prefix<K> {
    fn key(self) -> Key<K> {
        Key::new(self.bits, self.data)
    }
}

macro_rules! trie {
    ($(#[$doc:meta])* $name:ident, $map:expr, $key:ty, $value:ty) => {
        $(#[$doc])*
        pub struct $name(LpmTrie<MapData, $key, $value>);

        impl $name {
            /// The handle over a loaded map.
            pub fn new(map: Map) -> Result<Self, Error> {
                LpmTrie::try_from(map).map(Self).map_err(Error::of($map, "opening"))
            }

            /// Writes one entry. A reader sees the old value or the new one, never a mixture: tries replace a node
            /// and free the old one after an RCU grace.
            pub fn insert(&mut self, prefix: Prefix<$key>, value: $value) -> Result<(), Error> {
                self.0.insert(&prefix.key(), value, 0).map_err(Error::of($map, "writing an entry"))
            }

            /// Removes one entry; one that is not there is fine.
            pub fn remove(&mut self, prefix: Prefix<$key>) -> Result<(), Error> {
                absent_is_fine(self.0.remove(&prefix.key())).map_err(Error::of($map, "removing an entry"))
            }

            /// The value of the longest prefix that covers all of `data`.
            pub fn longest(&self, data: $key) -> Result<Option<$value>, Error> {
                match self.0.get(&Key::new(8 * size_of::<$key>() as u32, data), 0) {
                    Ok(value) => Ok(Some(value)),
                    Err(aya::maps::MapError::KeyNotFound) => Ok(None),
                    Err(error) => Err(Error::of($map, "looking up")(error)),
                }
            }

            /// Every entry.
            pub fn entries(&self) -> Result<Vec<(Prefix<$key>, $value)>, Error> {
                self.0
                    .iter()
                    .map(|entry| {
                        let (key, value) = entry.map_err(Error::of($map, "reading"))?;
                        Ok((Prefix { bits: key.prefix_len(), data: key.data() }, value))
                    })
                    .collect()
            }
        }
    };
}

trie! {
    /// `RULES`: rulesets. Since Linux 4.11. Written by the agent, a whole ruleset under a fresh id; read by every hook.
    Rules, abi::map::RULES, RuleKey, RuleValue
}

trie! {
    /// `IPCACHE`: address prefix → identity. Since Linux 4.11. Written by the agent; read by every hook.
    Ipcache, abi::map::IPCACHE, AddressKey, Remote
}

trie! {
    /// `UNMASQUERADED`: destinations that see workloads' own addresses. Since Linux 4.11. Written by the agent; read by
    /// `to_netdev`.
    Unmasqueraded, abi::map::UNMASQUERADED, AddressKey, u32
}
