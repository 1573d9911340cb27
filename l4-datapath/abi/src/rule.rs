//! The `RULES` map: rulesets, shared between endpoints, immutable once an endpoint points at them.

/// Data part of a `RULES` key, matched as a prefix from the left. A ruleset serves one direction.
///
/// A decision is two look-ups: the peer's identity, and identity 0 (any peer). [`RuleVerdict::Deny`] from either one
/// denies; else [`RuleVerdict::Allow`] or [`RuleVerdict::Proxy`] from either one allows; else the packet is denied, be it
/// for want of an entry or by [`RuleVerdict::Unmet`]. Of two entries that allow, the greater [`RuleValue::requirement`]
/// counts, and the way is direct unless both that there are say [`RuleVerdict::Proxy`]. Within one identity the compiler has already resolved overlaps, so the longest prefix
/// is right.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RuleKey {
    /// Ruleset id, network order.
    pub ruleset: [u8; 4],
    /// Security identity of the peer, network order; 0 any.
    pub identity: [u8; 4],
    /// IP protocol number; left out of the prefix for any.
    pub protocol: u8,
    /// Always zero, always inside the prefix when the protocol is.
    pub zero: u8,
    /// Destination port, or ICMP type, network order; a prefix of it for a range, left out for any.
    pub port: [u8; 2],
}

impl RuleKey {
    /// Prefix length in bits that covers ruleset and identity: any protocol, any port.
    pub const ANY_PROTOCOL: u32 = 64;
    /// Prefix length that covers the protocol too: any port.
    pub const ANY_PORT: u32 = 80;
    /// Prefix length of a whole key; also what a look-up uses.
    pub const EXACT: u32 = 96;

    /// The key a look-up uses: everything known.
    #[inline(always)]
    pub const fn exact(ruleset: u32, identity: u32, protocol: u8, port: u16) -> Self {
        Self {
            ruleset: ruleset.to_be_bytes(),
            identity: identity.to_be_bytes(),
            protocol,
            zero: 0,
            port: port.to_be_bytes(),
        }
    }
}

/// What an entry of a ruleset says.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RuleVerdict {
    /// Refused by a deny rule, whatever the other look-up says.
    Deny = 0,
    /// Passes.
    Allow = 1,
    /// A rule would allow it under a demand (L7) that has no enforcer yet: refused unless the other
    /// look-up allows. It differs from no entry only in the reason and the cookie that the event carries.
    Unmet = 2,
    /// Passes by way of the L7 proxy, which judges each request; directly, if the other look-up allows.
    Proxy = 3,
}

/// Value of `RULES`. Writer: the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RuleValue {
    /// Which policies made this entry: an index the agent resolves, copied into events.
    pub cookie: u32,
    /// [`RuleVerdict`] as u8.
    pub verdict: u8,
    /// What the peer must have proven: 0 nothing, [`crate::REQUIRED`] who it is.
    pub requirement: u8,
    /// Zero.
    pub zero: [u8; 2],
}
const _: () = assert!(size_of::<RuleKey>() == 12 && size_of::<RuleValue>() == 8);
