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
