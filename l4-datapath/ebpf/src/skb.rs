//! The packet's context: the fields we use, and reading and writing by offset.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM},
    helpers::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_change_type,
        bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    programs::TcContext,
};

use crate::space::Space;

/// `LOOPBACK_IFINDEX`: only the node itself can send there.
const LOOPBACK: u32 = 1;
/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;

/// A socket buffer at a tc hook. Offsets count from the Ethernet header.
///
/// Fields are touched by volatile accesses only: LLVM would merge neighbouring ones into a wider access, which the
/// verifier refuses on a context.
#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

macro_rules! fields {
    ($( $(#[$doc:meta])* $name:ident )+) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(self) -> u32 {
            // SAFETY: the kernel hands us a valid context; the field is readable at tc hooks.
            unsafe { read_volatile(&raw const (*self.0).$name) }
        }
    )+ };
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    #[inline(always)]
    pub(crate) fn from(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    fields! {
        /// Bytes, Ethernet header included.
        len
        /// The device whose hook this is.
        ifindex
        /// The device the packet was received on; 0 if this node made it.
        ingress_ifindex
        mark
        /// What the sender's socket asks queues for.
        priority
        /// Segment size if this is several segments in one buffer, else 0.
        gso_size
        /// Nonzero if a VLAN tag was taken out of the packet into the buffer's metadata.
        vlan_present
    }

    /// Whether the packet came in by a device; else the node itself made it.
    #[inline(always)]
    pub(crate) fn is_received(self) -> bool {
        self.ingress_ifindex() > LOOPBACK
    }

    #[inline(always)]
    pub(crate) fn set_mark(self, mark: u32) {
        // SAFETY: as above; the field is writable at tc hooks.
        unsafe { write_volatile(&raw mut (*self.0).mark, mark) }
    }

    #[inline(always)]
    pub(crate) fn set_priority(self, priority: u32) {
        // SAFETY: as above; the field is writable at tc hooks.
        unsafe { write_volatile(&raw mut (*self.0).priority, priority) }
    }

    /// Copies the `T` at `offset` into `space`; `None` if the packet ends before.
    ///
    /// Into a place of the caller's, because returning a header by value costs its size in stack once more.
    #[inline(always)]
    pub(crate) fn read<T: Copy>(self, offset: u32, space: &mut Space<T>) -> Option<&mut T> {
        // SAFETY: the buffer is as long as the length says; headers are plain bytes, valid in any pattern.
        unsafe {
            match bpf_skb_load_bytes(self.0.cast(), offset, space.as_mut_ptr().cast(), size_of::<T>() as u32)
            {
                0 => Some(&mut *space.as_mut_ptr()),
                _ => None,
            }
        }
    }

    /// The byte at `offset`.
    #[inline(always)]
    pub(crate) fn byte(self, offset: u32) -> Option<u8> {
        let mut byte = Space::new();
        self.read::<u8>(offset, &mut byte).map(|byte| *byte)
    }

    /// Writes `value` into the Ethernet header. The device's checksum does not cover it at either hook.
    #[inline(always)]
    pub(crate) fn store_link<T: Copy>(self, offset: u32, value: &T) -> Option<()> {
        self.store(offset, value, 0)
    }

    /// Writes `value` at `offset`, IP header or later, and keeps the device's checksum of the packet true.
    #[inline(always)]
    pub(crate) fn store_network<T: Copy>(self, offset: u32, value: &T) -> Option<()> {
        self.store(offset, value, u64::from(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH))
    }

    /// Writes `value` at `offset`, where a checksum within the packet has been set right for it: the device's checksum
    /// of the whole packet stays what it was.
    #[inline(always)]
    pub(crate) fn store_balanced<T: Copy>(self, offset: u32, value: &T) -> Option<()> {
        self.store(offset, value, u64::from(BPF_F_INVALIDATE_HASH))
    }

    /// Sets the IPv4 header checksum at `offset` right for a difference of what it covers.
    #[inline(always)]
    pub(crate) fn adjust_header_checksum(self, offset: u32, difference: u32) -> Option<()> {
        // SAFETY: a valid context; no packet pointers are held anywhere.
        let failed = unsafe { bpf_l3_csum_replace(self.0, offset, 0, u64::from(difference), 0) };
        (failed == 0).then_some(())
    }

    /// Sets the transport checksum at `offset` right for a difference of what it covers. `flags` are the helper's: they
    /// say whether that is in the pseudo-header, which is all that a checksum left to the device covers so far.
    #[inline(always)]
    pub(crate) fn adjust_transport_checksum(self, offset: u32, difference: u32, flags: u32) -> Option<()> {
        // SAFETY: as above.
        let failed =
            unsafe { bpf_l4_csum_replace(self.0, offset, 0, u64::from(difference), u64::from(flags)) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn store<T: Copy>(self, offset: u32, value: &T, flags: u64) -> Option<()> {
        // SAFETY: the source is as long as the length says.
        let failed = unsafe {
            bpf_skb_store_bytes(self.0, offset, (&raw const *value).cast(), size_of::<T>() as u32, flags)
        };
        (failed == 0).then_some(())
    }

    /// Cuts or extends the packet to `length` bytes; segments become one packet.
    #[inline(always)]
    pub(crate) fn resize(self, length: u32) -> Option<()> {
        // SAFETY: a valid context; no packet pointers are held anywhere.
        (unsafe { bpf_skb_change_tail(self.0, length, 0) } == 0).then_some(())
    }

    /// Declares the packet addressed to whoever receives it: `redirect_peer` of older kernels keeps the type the
    /// *original* destination MAC had.
    #[inline(always)]
    pub(crate) fn address_to_receiver(self) {
        // SAFETY: a valid context. Failure leaves the type as it was, which newer kernels overwrite.
        unsafe { bpf_skb_change_type(self.0, PACKET_HOST) };
    }

    pub(crate) fn as_ptr(self) -> *mut __sk_buff {
        self.0
    }
}
