//! The Internet checksum (RFC 1071).

use core::ptr;

use abi::Address;
use aya_ebpf::helpers::bpf_csum_diff;

/// Adds the bytes of `value` to `sum`. The size must be a multiple of four.
#[inline(always)]
pub(crate) fn add<T: Copy>(sum: u32, value: &T) -> u32 {
    const { assert!(size_of::<T>().is_multiple_of(4)) };
    // SAFETY: nothing is taken out, `value` is as long as the length says. Failure is impossible for valid lengths.
    unsafe {
        bpf_csum_diff(ptr::null_mut(), 0, (&raw const *value).cast_mut().cast(), size_of::<T>() as u32, sum)
            as u32
    }
}

/// Sum of the pseudo-header. A v4-mapped prefix adds 0xffff, which is zero in one's complement: one form for both
/// families.
#[inline(always)]
pub(crate) fn pseudo(source: &Address, destination: &Address, length: u16, protocol: u8) -> u32 {
    let tail = [0, 0, length.to_be_bytes()[0], length.to_be_bytes()[1], 0, 0, 0, protocol];
    add(add(add(0, source), destination), &tail)
}

/// The checksum field for `sum`.
#[inline(always)]
pub(crate) fn finish(sum: u32) -> [u8; 2] {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    (!(twice as u16)).to_ne_bytes()
}

/// Adds to `sum` what replacing `old` by `new` adds to the sum of the packet. The size must be a multiple of four.
#[inline(always)]
pub(crate) fn difference<T: Copy>(sum: u32, old: &T, new: &T) -> u32 {
    const { assert!(size_of::<T>().is_multiple_of(4)) };
    let size = size_of::<T>() as u32;
    // SAFETY: nothing is written, both are as long as the length says.
    unsafe {
        bpf_csum_diff(
            (&raw const *old).cast_mut().cast(),
            size,
            (&raw const *new).cast_mut().cast(),
            size,
            sum,
        ) as u32
    }
}

/// A checksum field after what it covers has changed by `difference` (RFC 1624).
#[inline(always)]
pub(crate) fn adjust(field: [u8; 2], difference: u32) -> [u8; 2] {
    let once = (difference & 0xffff) + (difference >> 16);
    finish(once + u32::from(!u16::from_ne_bytes(field)))
}

/// Two differences as one.
#[inline(always)]
pub(crate) fn sum(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u32::from(carry)
}
