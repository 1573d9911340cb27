//! A model of what the programs do with marks, by the rules that `abi` states.

use std::collections::BTreeMap;
use std::net::IpAddr;

use abi::{Address, Mark, Pair, PairKey};
use auth_agent::event::{Output, Time};
use auth_agent::machine::Adopted;

/// The maps of one node; they outlive its auth-agent.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) marks: BTreeMap<u32, Mark>,
    pub(crate) auth: BTreeMap<PairKey, Pair>,
    pub(crate) leases: BTreeMap<u32, Time>,
    pub(crate) epoch: u64,
}

/// What a connection keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    pub(crate) mark: u32,
    pub(crate) epoch: u64,
}

pub(crate) fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::v4(address.octets()),
        IpAddr::V6(address) => Address(address.octets()),
    }
}

impl Kernel {
    /// Does what the driver does to the maps. Panics at what it must never be asked for.
    pub(crate) fn apply(&mut self, output: &Output) {
        match output {
            Output::SetMark { number, mark, keys } => {
                assert!(*number != 0 && *number < abi::MARKS, "mark number {number}");
                assert!(mark.epoch > self.epoch, "epoch {} after {}", mark.epoch, self.epoch);
                assert!(!self.marks.contains_key(number), "mark {number} is set twice");
                self.epoch = mark.epoch;
                self.marks.insert(*number, *mark);
                for key in keys {
                    self.auth.insert(*key, Pair { mark: *number, ..Pair::default() });
                }
            }
            Output::RenewMark { number, expiry } => {
                self.marks.get_mut(number).expect("a mark that is renewed is there").expiry = *expiry;
            }
            Output::ClearMark { number, keys } => {
                self.marks.remove(number);
                for key in keys {
                    if self.auth.get(key).is_some_and(|pair| pair.mark == *number) {
                        self.auth.remove(key);
                    }
                }
            }
            Output::Refuse { keys, why, side, until } => {
                for key in keys {
                    let before = self.auth.get(key).map_or(0, |pair| pair.mark);
                    assert!(!self.marks.contains_key(&before), "a refusal over a mark");
                    let pair = Pair { mark: 0, refusal: why.encode(*side), until: *until, ..Pair::default() };
                    self.auth.insert(*key, pair);
                }
            }
            Output::Forget(keys) => {
                for key in keys {
                    let before = self.auth.remove(key).map_or(0, |pair| pair.mark);
                    assert!(!self.marks.contains_key(&before), "a mark's key is forgotten");
                }
            }
            Output::Lease { number, end } => {
                assert!(*number < abi::LEASES);
                self.leases.insert(*number, *end);
            }
            _ => {}
        }
    }

    /// Whether a mark is alive: the comparison of every packet.
    pub(crate) fn alive(&self, now: Time, memory: Memory) -> bool {
        self.marks.get(&memory.mark).is_some_and(|mark| {
            mark.epoch == memory.epoch
                && now < mark.expiry
                && now < self.leases.get(&mark.lease).copied().unwrap_or(0)
        })
    }

    /// What a first packet finds: the mark of a local instance with an address, whatever identity the address is
    /// believed to have.
    pub(crate) fn find(
        &self,
        now: Time,
        instance: u64,
        remote: IpAddr,
        beside: Option<u64>,
    ) -> Option<Memory> {
        let half = instance as u32;
        let of_pair = |key: &&PairKey| key.instance == half && key.remote == address(remote);
        self.auth.keys().filter(of_pair).find_map(|key| {
            let number = self.auth[key].mark;
            let mark = self.marks.get(&number)?;
            let theirs = match (remote, mark.instances[1]) {
                (_, other) if other != 0 => {
                    beside.is_some_and(|beside| mark.instances.contains(&(beside as u32)))
                }
                (IpAddr::V4(remote), _) => remote.octets() == mark.ipv4,
                (IpAddr::V6(remote), _) => remote.octets() == mark.ipv6,
            };
            let memory = Memory { mark: number, epoch: mark.epoch };
            (mark.instances.contains(&half) && theirs && self.alive(now, memory)).then_some(memory)
        })
    }

    /// What the next auth-agent finds.
    pub(crate) fn leave(&self) -> Adopted {
        Adopted {
            last_epoch: self.epoch,
            marks: self.marks.clone(),
            keys: self.auth.iter().map(|(key, pair)| (*key, pair.mark)).collect(),
            leases: self.leases.iter().filter(|(_, end)| **end != 0).map(|(n, end)| (*n, *end)).collect(),
        }
    }
}
