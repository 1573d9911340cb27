//! The connection table: finding, opening, and how long an entry is believed.

use core::{
    mem::offset_of,
    ptr::{NonNull, read_volatile, write_volatile},
};

use abi::{Address, Connection, ConnectionKey4, ConnectionKey6, Leg, Memo, timeout};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_coarse_ns};

use crate::{
    address::{Words, words},
    auth,
    header::{protocol, tcp},
    maps::{CONNECTIONS4, CONNECTIONS6},
    parse::Packet,
};

const _: () = assert!(cfg!(target_endian = "little"), "keys are built by words in this order");

/// `EEXIST`, as map helpers return it.
pub(crate) const EXISTS: i32 = -17;

/// What finds a connection.
#[derive(Clone, Copy)]
pub(crate) struct Tuple {
    /// Of a [`ConnectionKey6`], in its order: of both families, IPv4 addresses are v4-mapped here.
    key: [u64; 5],
    v4: bool,
    /// The source of the packet is the higher end of the key.
    pub(crate) source_is_high: bool,
}

impl Tuple {
    /// Of a packet from `source` to `destination`.
    #[inline(always)]
    pub(crate) fn new(
        source: &Address,
        destination: &Address,
        ports: (u16, u16),
        protocol: u8,
        v4: bool,
    ) -> Self {
        let (source, destination) = (words(source), words(destination));
        Self::of_words(
            (source.0.to_be(), source.1.to_be()),
            (destination.0.to_be(), destination.1.to_be()),
            ports,
            protocol,
            v4,
        )
    }

    /// The same of addresses as they stand in memory; ports in machine order.
    #[inline(always)]
    pub(crate) fn of_words(
        source: Words,
        destination: Words,
        ports: (u16, u16),
        protocol: u8,
        v4: bool,
    ) -> Self {
        let source_is_high = if source.0 != destination.0 {
            u64::from_be(source.0) > u64::from_be(destination.0)
        } else if source.1 != destination.1 {
            u64::from_be(source.1) > u64::from_be(destination.1)
        } else {
            ports.0 > ports.1
        };
        let (low, high) = if source_is_high { (destination, source) } else { (source, destination) };
        let (low_port, high_port) = if source_is_high { (ports.1, ports.0) } else { (ports.0, ports.1) };
        const { assert!(Leg::Pod as u8 == 0) };
        let rest =
            u64::from(low_port.to_be()) | u64::from(high_port.to_be()) << 16 | u64::from(protocol) << 32;
        Self { key: [low.0, low.1, high.0, high.1, rest], v4, source_is_high }
    }

    /// Of a packet; the identifier of an ICMP echo stands for both ports.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet) -> Self {
        let destination_port = match packet.protocol {
            protocol::ICMP | protocol::ICMPV6 => packet.source_port,
            _ => packet.destination_port,
        };
        let ports = (packet.source_port, destination_port);
        let (source, destination) = packet.addresses();
        Self::of_words(source, destination, ports, packet.protocol, packet.is_v4())
    }

    /// Makes it one of [`Leg::Proxy`]. In place: a second one would have no room on the stack.
    #[inline(always)]
    pub(crate) fn set_proxy_leg(&mut self) {
        const { assert!(offset_of!(ConnectionKey6, leg) == 37) };
        self.key[4] |= (Leg::Proxy as u64) << 40;
    }

    /// Whether it is one of [`Leg::Proxy`].
    #[inline(always)]
    pub(crate) fn is_on_proxy_leg(&self) -> bool {
        (self.key[4] >> 40) as u8 != Leg::Pod as u8
    }

    /// [`Connection::instances`], of the source's and the destination's.
    #[inline(always)]
    pub(crate) fn instances(&self, source: u32, destination: u32) -> [u32; 2] {
        if self.source_is_high { [destination, source] } else { [source, destination] }
    }

    /// [`Connection::ends`], of the source's and the destination's.
    #[inline(always)]
    pub(crate) fn ends(&self, source: u16, destination: u16) -> [u16; 2] {
        if self.source_is_high { [destination, source] } else { [source, destination] }
    }

    /// IP protocol number.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u8 {
        (self.key[4] >> 32) as u8
    }

    /// The words of a key of `CONNECTIONS4`: of each address the last four bytes.
    #[inline(always)]
    pub(crate) fn words4(&self) -> [u64; 2] {
        [self.key[1] >> 32 | self.key[3] >> 32 << 32, self.key[4]]
    }

    /// The words of a key of `CONNECTIONS6`.
    #[inline(always)]
    pub(crate) fn words6(&self) -> &[u64; 5] {
        &self.key
    }
}

/// A key of `CONNECTIONS6`.
#[inline(always)]
pub(crate) fn key6(words: &[u64; 5]) -> &ConnectionKey6 {
    const { assert!(size_of::<ConnectionKey6>() == 40 && offset_of!(ConnectionKey6, protocol) == 36) };
    // SAFETY: its words in their order, on a little-endian machine; all of a key is plain bytes.
    unsafe { &*words.as_ptr().cast() }
}

/// A key of `CONNECTIONS4`.
#[inline(always)]
pub(crate) fn key4(words: &[u64; 2]) -> &ConnectionKey4 {
    const { assert!(size_of::<ConnectionKey4>() == 16 && offset_of!(ConnectionKey4, protocol) == 12) };
    // SAFETY: as in `key6`.
    unsafe { &*words.as_ptr().cast() }
}

/// The entry both directions share, dead or alive.
#[inline(never)]
pub(crate) fn find(tuple: &Tuple) -> Option<Entry> {
    let found = if tuple.v4 {
        CONNECTIONS4.get_ptr_mut(key4(&tuple.words4()))
    } else {
        CONNECTIONS6.get_ptr_mut(key6(tuple.words6()))
    };
    found.and_then(Entry::new)
}

/// Stores a new entry; the error is the kernel's, [`EXISTS`] if there is one.
///
/// Not a global function, and [`remove`] neither: until 6.2 what a global function was given cannot be a map's key.
#[inline(never)]
pub(crate) fn insert(tuple: &Tuple, value: &Connection) -> i32 {
    let result = if tuple.v4 {
        CONNECTIONS4.insert(key4(&tuple.words4()), value, u64::from(BPF_NOEXIST))
    } else {
        CONNECTIONS6.insert(key6(tuple.words6()), value, u64::from(BPF_NOEXIST))
    };
    result.err().unwrap_or(0)
}

/// Deletes the entry; `true` for the one caller that did, so that its charge is taken back once.
#[inline(never)]
pub(crate) fn remove(tuple: &Tuple) -> bool {
    let result = if tuple.v4 {
        CONNECTIONS4.remove(key4(&tuple.words4()))
    } else {
        CONNECTIONS6.remove(key6(tuple.words6()))
    };
    result.is_ok()
}

/// Seconds since boot, time asleep not included: while nobody can send, nothing ages.
///
/// The coarse clock, which the timer tick moves: reading the fine one costs as much as the rest of the judgement.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32 + timeout::BOOT
}

/// An entry of either table.
///
/// Other CPUs store to it meanwhile, and LRU may recycle it under us; so all access is volatile, and what we store
/// are single bytes or aligned words that are right whoever comes second.
#[derive(Clone, Copy)]
pub(crate) struct Entry(NonNull<Connection>);

/// Reads a field.
macro_rules! get {
    ($entry:expr, $field:ident) => {
        // SAFETY: elements are preallocated and live as long as the map.
        unsafe { read_volatile(&raw const (*$entry.0.as_ptr()).$field) }
    };
}

/// Writes a field, unless it says so already: a store takes the cache line from the other CPUs.
macro_rules! set {
    ($entry:expr, $field:ident, $value:expr) => {
        if get!($entry, $field) != $value {
            // SAFETY: as in `get!`.
            unsafe { write_volatile(&raw mut (*$entry.0.as_ptr()).$field, $value) }
        }
    };
}

impl Entry {
    /// The element a map look-up or a walk returned.
    #[inline(always)]
    pub(crate) fn new(value: *mut Connection) -> Option<Self> {
        NonNull::new(value).map(Self)
    }

    /// Whether these very endpoints opened it, not earlier ones with their addresses.
    #[inline(always)]
    pub(crate) fn is_between(self, instances: [u32; 2]) -> bool {
        get!(self, instances) == instances
    }

    /// [`Connection::instances`].
    #[inline(always)]
    pub(crate) fn instances(self) -> [u32; 2] {
        get!(self, instances)
    }

    #[inline(always)]
    pub(crate) fn opened_by_high(self) -> bool {
        get!(self, opened_by_high) == 1
    }

    /// Its opener called a VIP.
    #[inline(always)]
    pub(crate) fn is_translated(self) -> bool {
        get!(self, translated) == 1
    }

    /// [`Connection::proxied`].
    #[inline(always)]
    pub(crate) fn is_proxied(self) -> bool {
        get!(self, proxied) == 1
    }

    /// Over, whatever else comes: as if either end had reset it.
    #[inline(always)]
    pub(crate) fn set_reset(self) {
        set!(self, reset, 1);
    }

    /// Answered: the opener's handshake went to an end whose answers pass no hook.
    #[inline(always)]
    pub(crate) fn set_replied(self) {
        set!(self, replied, 1);
    }

    /// Endpoint id that carries the charge, 0 none.
    #[inline(always)]
    pub(crate) fn charged(self) -> u32 {
        get!(self, charged)
    }

    /// Both sides have finished, one has given up, or the proof it depended on has ended.
    #[inline(always)]
    pub(crate) fn is_closing(self) -> bool {
        get!(self, reset) == 1
            || (get!(self, fin_opener) == 1 && get!(self, fin_other) == 1)
            || self.is_ended()
    }

    /// Its mark was found dead once.
    #[inline(always)]
    pub(crate) fn is_ended(self) -> bool {
        get!(self, ended) == 1
    }

    /// Its mark was found dead.
    #[inline(always)]
    pub(crate) fn set_ended(self) {
        set!(self, ended, 1);
    }

    /// Number and epoch of the mark it depends on; 0 and 0: of none.
    #[inline(always)]
    pub(crate) fn proof(self) -> (u32, u64) {
        (get!(self, mark), get!(self, epoch))
    }

    /// Whether the mark that it depends on holds, if it depends on one.
    #[inline(always)]
    pub(crate) fn is_proven(self) -> bool {
        let (mark, epoch) = self.proof();
        mark == 0 || auth::is_live(mark, epoch)
    }

    /// Whether it depends on a mark that holds: what [`Memo::MARKED`] asks for. Where another CPU has just taken the mark
    /// away, it does not.
    #[inline(always)]
    pub(crate) fn has_proof(self) -> bool {
        let (mark, epoch) = self.proof();
        auth::is_live(mark, epoch)
    }

    /// Makes it depend on a mark, before [`Self::remember`]: whoever reads [`Memo::MARKED`] finds the mark.
    #[inline(always)]
    pub(crate) fn depend_on(self, mark: u32, epoch: u64) {
        set!(self, epoch, epoch);
        set!(self, mark, mark);
    }

    /// Makes it depend on no mark, after [`Self::remember`]. The epoch stays: whoever still reads the number reads its epoch.
    #[inline(always)]
    pub(crate) fn depend_on_none(self) {
        set!(self, mark, 0);
    }

    /// Whether the entry is still believed, whether or not anybody has collected it.
    #[inline(always)]
    pub(crate) fn is_alive(self, protocol: u8, now: u32) -> bool {
        let replied = get!(self, replied) == 1;
        let limit = timeout::of(protocol, replied, || self.is_closing());
        // Saturating: another CPU may have seen a packet in the second after our `now`.
        now.saturating_sub(get!(self, seen)) < limit
    }

    /// Endpoint id and instance of the lower end of the key (`false`) or the higher.
    #[inline(always)]
    pub(crate) fn end(self, high: bool) -> (u16, u32) {
        let (ids, instances) = (get!(self, ends), get!(self, instances));
        if high { (ids[1], instances[1]) } else { (ids[0], instances[0]) }
    }

    /// In the midst of its life: neither end has finished, nothing is translated, and a packet that is a `reply` tells
    /// nothing new.
    #[inline(always)]
    pub(crate) fn is_midway(self, reply: bool) -> bool {
        const OPENED_BY_HIGH: u64 = 0xff;
        const REPLIED: u64 = 0xff00;
        const { assert!(offset_of!(Connection, opened_by_high) % 8 == 0) };
        const { assert!(offset_of!(Connection, replied) == offset_of!(Connection, opened_by_high) + 1) };
        const { assert!(offset_of!(Connection, instances) == offset_of!(Connection, opened_by_high) + 8) };
        // SAFETY: the eight bytes between the one and the other, aligned as asserted; for the rest as in `get!`.
        let marks = unsafe { read_volatile((&raw const (*self.0.as_ptr()).opened_by_high).cast::<u64>()) };
        marks & !(OPENED_BY_HIGH | REPLIED) == 0 && (!reply || marks & REPLIED != 0)
    }

    /// The bits of [`Memo`] if the verdict was made in this generation.
    #[inline(always)]
    pub(crate) fn verdict(self, generation: u64) -> Option<u64> {
        let memo = get!(self, memo);
        (memo >> Memo::GENERATION_SHIFT == generation && memo & Memo::ALLOWED != 0).then_some(memo)
    }

    /// Remembers that policy allowed the connection in this generation.
    #[inline(always)]
    pub(crate) fn remember(self, generation: u64, bits: u64) {
        set!(self, memo, memo(generation, bits));
    }

    /// Notes what a packet that passes says of the connection's life.
    #[inline(always)]
    pub(crate) fn note(self, now: u32, reply: bool, tcp_flags: u8) {
        set!(self, seen, now);
        if reply {
            set!(self, replied, 1);
        }
        if tcp_flags & (tcp::FIN | tcp::RST) == 0 {
            return;
        }
        if tcp_flags & tcp::RST != 0 {
            set!(self, reset, 1);
        } else if reply {
            set!(self, fin_other, 1);
        } else {
            set!(self, fin_opener, 1);
        }
    }
}

/// An allowed verdict as [`Connection::memo`] holds it, with more bits of [`Memo`].
#[inline(always)]
pub(crate) fn memo(generation: u64, bits: u64) -> u64 {
    generation << Memo::GENERATION_SHIFT | Memo::ALLOWED | bits
}
