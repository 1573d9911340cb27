//! A ruleset: the flat table that one direction of one or many endpoints is judged by.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{Authentication, Needs, PolicyName};
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
    /// The entries. Within one identity prefixes may nest, the longest is right; how the two look-ups (the peer's
    /// identity, any identity) combine is [`Ruleset::judge`].
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
    /// The policies it comes from, sorted; empty for what holds without any policy. Shared, because one statement may
    /// stand in an entry for each of ten thousand identities.
    pub by: Arc<[PolicyName]>,
    /// Set on a denial that is no deny rule: the policies in `by` wanted to allow it, but under a demand that nothing
    /// enforces yet. An allow found by the other look-up goes before it ([`abi::RuleVerdict::Unmet`]).
    pub needs: Option<Needs>,
    /// Of an allow: what the peer must have proven. Of the two look-ups the stricter counts. `None` on denials.
    pub authentication: Authentication,
    /// Of an allow: by way of the L7 proxy, which judges each request, unless the other look-up allows directly.
    pub proxied: bool,
}

impl Outcome {
    /// How the kernel is told what the peer must have proven ([`abi::RuleValue::requirement`]).
    pub fn requirement(&self) -> u8 {
        match self.authentication {
            Authentication::None => 0,
            Authentication::Required => abi::REQUIRED,
        }
    }

    /// How the kernel is told.
    pub fn verdict(&self) -> abi::RuleVerdict {
        match (self.allow, self.proxied, self.needs) {
            (true, false, _) => abi::RuleVerdict::Allow,
            (true, true, _) => abi::RuleVerdict::Proxy,
            (false, _, None) => abi::RuleVerdict::Deny,
            (false, _, Some(_)) => abi::RuleVerdict::Unmet,
        }
    }
}

impl Ruleset {
    /// The same for equal rulesets, and hardly ever for others: for finding an equal one without holding it against
    /// each, entry by entry.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest(u64::from(self.enforced));
        digest.names(&self.denied_by_default);
        // One list of policies stands in thousands of entries in a row.
        let mut by: (Option<&Arc<[PolicyName]>>, u64) = (None, 0);
        for (matched, outcome) in &self.entries {
            let Match { identity, protocol, port, port_bits } = *matched;
            if by.0.is_none_or(|known| !Arc::ptr_eq(known, &outcome.by)) {
                let mut names = Digest(0);
                names.names(&outcome.by);
                by = (Some(&outcome.by), names.0);
            }
            let identity = identity.map_or(0, Identity::number);
            let protocol = protocol.map_or(256, u64::from);
            digest.add(u64::from(identity) << 32 | u64::from(port) << 8 | u64::from(port_bits));
            digest.add(protocol << 16 | u64::from(outcome.requirement()) << 8 | outcome.verdict() as u64);
            digest.add(by.1);
        }
        digest.0
    }

    /// The verdict on a packet, as the kernel finds it: two look-ups; a deny rule in either wins, then an allow in
    /// either, and what is left is denied. The outcome is the entry that decided, if one did: of two that allow the one
    /// that asks for the stricter authentication ([`Authentication::of`] tells whether this peer is asked at all), else
    /// the one that allows directly. Whether it goes by the proxy is [`Ruleset::is_proxied`].
    pub fn judge(&self, peer: Identity, protocol: u8, port: u16) -> (bool, Option<&Outcome>) {
        let found = [self.longest(Some(peer), protocol, port), self.longest(None, protocol, port)];
        let first = |verdict| found.into_iter().flatten().find(|outcome| outcome.verdict() == verdict);
        if let Some(denial) = first(abi::RuleVerdict::Deny) {
            return (false, Some(denial));
        }
        let allowing = found.into_iter().flatten().filter(|outcome| outcome.allow);
        match allowing.min_by_key(|outcome| (Reverse(outcome.authentication), outcome.proxied)) {
            Some(allowance) => (true, Some(allowance)),
            None => (false, first(abi::RuleVerdict::Unmet)),
        }
    }

    /// Whether a packet that [`Self::judge`] allows goes by way of the L7 proxy: no look-up allows it directly.
    pub fn is_proxied(&self, peer: Identity, protocol: u8, port: u16) -> bool {
        let (allowed, _) = self.judge(peer, protocol, port);
        let found = [self.longest(Some(peer), protocol, port), self.longest(None, protocol, port)];
        allowed && found.into_iter().flatten().filter(|outcome| outcome.allow).all(|outcome| outcome.proxied)
    }

    fn longest(&self, identity: Option<Identity>, protocol: u8, port: u16) -> Option<&Outcome> {
        let of_protocol = (0..=16u8).rev().map(|port_bits| {
            let mask = u16::MAX.checked_shl(16 - u32::from(port_bits)).unwrap_or(0);
            Match { identity, protocol: Some(protocol), port: port & mask, port_bits }
        });
        let any_protocol = Match { identity, protocol: None, port: 0, port_bits: 0 };
        of_protocol.chain([any_protocol]).find_map(|key| self.entries.get(&key))
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

/// A digest in the making. No protection against who wants two to be the same; whoever uses it compares as well.
struct Digest(u64);

impl Digest {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn names(&mut self, names: &[PolicyName]) {
        for name in names {
            self.add(name.kind as u64 + 1);
            let namespace = name.namespace.as_deref().unwrap_or_default();
            for text in [namespace, &name.name] {
                self.add(text.len() as u64);
                text.as_bytes().chunks(8).for_each(|chunk| {
                    self.add(chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
                });
            }
        }
    }
}
