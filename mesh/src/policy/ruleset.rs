//! A ruleset: the flat table that one direction of one or many endpoints is judged by.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Needs, PolicyName};
use crate::identity::Identity;

/// Everything one direction of an endpoint allows and denies. What no entry matches is denied.
///
/// Endpoints with equal rulesets share one in the kernel.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Ruleset {
    /// False where nothing restricts the direction: it then holds one entry that allows everything (and the denies).
    pub enforced: bool,
    /// The policies whose default deny holds here: who is to be named when nothing matches.
    pub denied_by_default: Vec<PolicyName>,
    /// The entries. Within one identity prefixes may nest, the longest is right; across the two look-ups (the peer's
    /// identity, any identity) deny wins.
    #[serde(serialize_with = "entries_as_list")]
    pub entries: BTreeMap<Match, Outcome>,
}

/// What an entry matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Match {
    /// The peer; `None` any.
    pub identity: Option<Identity>,
    /// IP protocol; `None` any, and then the port is any too.
    pub protocol: Option<u8>,
    /// Destination port or ICMP type: the leading `port_bits` bits count, the others are zero.
    pub port: u16,
    /// 0 (any port) to 16 (exactly this one).
    pub port_bits: u8,
}

/// What an entry says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Outcome {
    /// True allows.
    pub allow: bool,
    /// The policies it comes from, sorted; empty for what holds without any policy.
    pub by: Vec<PolicyName>,
    /// Why it is denied although a statement wanted to allow it.
    pub needs: Option<Needs>,
}

impl Ruleset {
    /// The verdict on a packet, as the kernel finds it: two look-ups, deny wins, no entry denies.
    pub fn judge(&self, peer: Identity, protocol: u8, port: u16) -> (bool, Option<&Outcome>) {
        let specific = self.longest(Some(peer), protocol, port);
        let any = self.longest(None, protocol, port);
        match (specific, any) {
            (Some(outcome), _) if !outcome.allow => (false, Some(outcome)),
            (_, Some(outcome)) if !outcome.allow => (false, Some(outcome)),
            (Some(outcome), _) | (None, Some(outcome)) => (true, Some(outcome)),
            (None, None) => (false, None),
        }
    }

    fn longest(&self, identity: Option<Identity>, protocol: u8, port: u16) -> Option<&Outcome> {
        let exact = (0..=16u8).rev().map(|port_bits| {
            let mask = if port_bits == 0 { 0 } else { u16::MAX << (16 - port_bits) };
            Match { identity, protocol: Some(protocol), port: port & mask, port_bits }
        });
        let whole = Match { identity, protocol: None, port: 0, port_bits: 0 };
        exact.chain([whole]).find_map(|key| self.entries.get(&key))
    }
}

fn entries_as_list<S: serde::Serializer>(
    entries: &BTreeMap<Match, Outcome>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Entry<'a> {
        #[serde(rename = "match")]
        key: &'a Match,
        #[serde(flatten)]
        outcome: &'a Outcome,
    }
    serializer.collect_seq(entries.iter().map(|(key, outcome)| Entry { key, outcome }))
}
