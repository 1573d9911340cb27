//! The `CONNECTIONS4` and `CONNECTIONS6` maps: connection tracking with the verdict memo.
//!
//! A connection has one entry. Its key holds the two ends *sorted* by (address, port), so that packets of both
//! directions find it with one look-up; which end opened the connection is in the entry.

/// Whose leg of a conversation an entry is, part of the key: the proxy's own port can equal one the pod uses.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// Between the two ends themselves; of a proxied connection, between its opener and the proxy.
    Pod = 0,
    /// Between the proxy, in the opener's name, and the end that was called.
    Proxy = 1,
}

/// Key of `CONNECTIONS4`. `low` < `high` compared as (address, port) in network order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnectionKey4 {
    /// Lower address, network order.
    pub low: [u8; 4],
    /// Higher address, network order.
    pub high: [u8; 4],
    /// Port of the lower end, network order. For ICMP echo both ports are the identifier.
    pub low_port: [u8; 2],
    /// Port of the higher end, network order.
    pub high_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// [`Leg`] as u8.
    pub leg: u8,
    /// Zero.
    pub zero: [u8; 2],
}

/// Key of `CONNECTIONS6`; fields as in [`ConnectionKey4`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnectionKey6 {
    /// Lower address, network order.
    pub low: [u8; 16],
    /// Higher address, network order.
    pub high: [u8; 16],
    /// Port of the lower end, network order.
    pub low_port: [u8; 2],
    /// Port of the higher end, network order.
    pub high_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// [`Leg`] as u8.
    pub leg: u8,
    /// Zero.
    pub zero: [u8; 2],
}

/// The remembered verdict: one aligned u64, stored once, `generation << 16 | bits`.
///
/// Only an *allowed* verdict is remembered. It holds while its generation is the node's; otherwise policy is asked
/// again, on packets of either direction, always for the direction in which the connection was opened.
pub struct Memo;
impl Memo {
    /// The connection may pass.
    pub const ALLOWED: u64 = 1;
    /// It passes only because of audit mode.
    pub const AUDITED: u64 = 2;
    /// One of its ends is this node itself: packets from beyond that say so are forged.
    pub const HOST: u64 = 4;
    /// It depends on a mark: [`Connection::mark`], [`Connection::epoch`].
    pub const MARKED: u64 = 8;
    /// Shift of the generation.
    pub const GENERATION_SHIFT: u32 = 16;
}

/// Value of both connection maps. Writers: the programs; the agent only through the garbage-collection program.
///
/// Each `u8` is set once and never cleared while the connection lives, so that two CPUs storing at once cannot lose
/// an update; a connection that is opened anew under the same key replaces the whole value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Connection {
    /// See [`Memo`].
    pub memo: u64,
    /// Second (CLOCK_MONOTONIC_COARSE) of the latest packet.
    pub seen: u32,
    /// Endpoint id whose quota carries this entry; 0 none.
    pub charged: u32,
    /// 1 if the *higher* end of the key opened the connection.
    pub opened_by_high: u8,
    /// 1 after the first packet from the other side.
    pub replied: u8,
    /// 1 after a FIN of the opener.
    pub fin_opener: u8,
    /// 1 after a FIN of the other side.
    pub fin_other: u8,
    /// 1 after an RST of either side.
    pub reset: u8,
    /// 1 if the opener called a VIP and packets are translated: `TRANSLATIONS` has what it called.
    pub translated: u8,
    /// 1 after a packet found the mark dead: the connection stays dead, whatever becomes of the mark.
    pub ended: u8,
    /// 1 if packets of it go to the L7 proxy: on [`Leg::Pod`] the opener's, on [`Leg::Proxy`] the answers. Set when it
    /// opens, never later.
    pub proxied: u8,
    /// [`crate::Endpoint::instance`], its lower half, of the endpoints at the *lower* and the *higher* end of the key; 0
    /// for an end that is not on this node. An address passes to another endpoint, a connection does not.
    pub instances: [u32; 2],
    /// [`crate::Mark::epoch`] of the mark it depends on; 0 without one.
    pub epoch: u64,
    /// [`crate::Endpoint::id`] of the same ends; 0 for an end that is not on this node. What leads from a packet of a
    /// known connection to its endpoints without hashing their addresses.
    pub ends: [u16; 2],
    /// Number of the mark it depends on; 0: policy asks for none.
    pub mark: u32,
}
impl Connection {
    /// All zero; `Default`, where a constant is needed.
    pub const EMPTY: Self = Self {
        memo: 0,
        seen: 0,
        charged: 0,
        opened_by_high: 0,
        replied: 0,
        fin_opener: 0,
        fin_other: 0,
        reset: 0,
        translated: 0,
        ended: 0,
        proxied: 0,
        instances: [0; 2],
        epoch: 0,
        ends: [0; 2],
        mark: 0,
    };
}

/// Seconds since the latest packet after which an entry is dead.
pub mod timeout {
    /// TCP after an answer: more than the two hours of the default keep-alive.
    pub const ESTABLISHED: u32 = 8000;
    /// TCP before an answer.
    pub const OPENING: u32 = 60;
    /// TCP after both FINs or an RST.
    pub const CLOSING: u32 = 10;
    /// UDP and SCTP after an answer.
    pub const CONVERSATION: u32 = 180;
    /// Anything else.
    pub const SINGLE: u32 = 60;

    /// What the programs' clock (CLOCK_MONOTONIC_COARSE, in seconds) counts from at boot: an entry can be older than
    /// every timeout however young the machine is.
    pub const BOOT: u32 = 1 << 16;

    /// That of a connection; whether it `is_closing` is asked only of TCP.
    #[inline(always)]
    pub fn of(protocol: u8, replied: bool, is_closing: impl FnOnce() -> bool) -> u32 {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const SCTP: u8 = 132;
        match protocol {
            TCP if is_closing() => CLOSING,
            TCP if replied => ESTABLISHED,
            TCP => OPENING,
            UDP | SCTP if replied => CONVERSATION,
            _ => SINGLE,
        }
    }
}

/// What one run of the program `conntrack_gc` did. It writes this over the first bytes of the packet it is run with.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Entries left in `CONNECTIONS4`.
    pub live4: u64,
    /// Entries left in `CONNECTIONS6`.
    pub live6: u64,
    /// Entries deleted from `CONNECTIONS4`.
    pub expired4: u64,
    /// Entries deleted from `CONNECTIONS6`.
    pub expired6: u64,
    /// Entries left in `TRANSLATIONS`.
    pub translations: u64,
    /// Entries deleted from `TRANSLATIONS`.
    pub expired_translations: u64,
}
const _: () = assert!(size_of::<Collected>() == 48);
const _: () = assert!(size_of::<ConnectionKey4>() == 16 && size_of::<ConnectionKey6>() == 40);
const _: () = assert!(size_of::<Connection>() == 48);
