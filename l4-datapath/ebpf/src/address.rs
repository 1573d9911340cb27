//! Which addresses may stand in a packet at all.

use abi::{Address, DropReason};

use crate::{parse::Packet, refusal::Refusal};

/// Refuses addresses that no packet between endpoints may carry, whoever sends it.
#[inline(always)]
pub(crate) fn check(packet: &Packet) -> Result<(), Refusal> {
    Refusal::check(address_check(packet))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn address_check(packet: *const Packet) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return Refusal::ABSURD };
    Refusal::encode(judge(&packet.source, &packet.destination, packet.is_v4()))
}

#[inline(always)]
fn judge(source: &Address, destination: &Address, v4: bool) -> Result<(), DropReason> {
    if is_multicast(source, v4) || is_forbidden(source, v4) {
        return Err(DropReason::InvalidAddress);
    }
    if is_multicast(destination, v4) {
        return Err(DropReason::Multicast);
    }
    if is_forbidden(destination, v4) || source == destination {
        return Err(DropReason::InvalidAddress);
    }
    Ok(())
}

/// Multicast; for IPv4 the limited broadcast too.
#[inline(always)]
pub(crate) fn is_multicast(address: &Address, v4: bool) -> bool {
    let a = &address.0;
    if v4 { a[12] & 0xf0 == 0xe0 || (a[12] & a[13] & a[14] & a[15]) == 0xff } else { a[0] == 0xff }
}

/// `fe80::/10`.
#[inline(always)]
pub(crate) fn is_link_local6(address: &Address) -> bool {
    address.0[0] == 0xfe && address.0[1] & 0xc0 == 0x80
}

/// `ff02::/16`: never leaves the link.
#[inline(always)]
pub(crate) fn is_link_multicast6(address: &Address) -> bool {
    address.0[0] == 0xff && address.0[1] & 0x0f == 2
}

/// An IPv4 address, as all of ours are written: `::ffff:0:0/96`.
#[inline(always)]
pub(crate) fn is_mapped4(address: &Address) -> bool {
    let (high, low) = words(address);
    high == 0 && low >> 32 == 0xffff
}

/// `::`.
#[inline(always)]
pub(crate) fn is_unspecified(address: &Address) -> bool {
    words(address) == (0, 0)
}

#[inline(always)]
fn is_forbidden(address: &Address, v4: bool) -> bool {
    let a = &address.0;
    if v4 {
        return a[12] == 0 || a[12] == 127 || (a[12] == 169 && a[13] == 254) || a[12] >= 240;
    }
    let (high, low) = words(address);
    // ::/96 is unspecified, loopback and the IPv4-compatible addresses; our own names of interfaces live there too.
    // ::ffff:0:0/96 on the wire would be taken for IPv4 by every socket and by our own maps.
    is_link_local6(address) || (high == 0 && matches!(low >> 32, 0 | 0xffff))
}

/// An address as it stands in memory.
pub(crate) type Words = (u64, u64);

/// The address as two big-endian words: the order of addresses is the order of these.
#[inline(always)]
pub(crate) fn words(address: &Address) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.0;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes([i, j, k, l, m, n, o, p]))
}
