//! `from_hold`: packets that have waited for a proof.
//!
//! - Hook: tc ingress of the hold device; tcx (kernel 6.6) or clsact. `bpf_loop` makes 5.17 the oldest kernel.
//! - Reads `ENDPOINTS`, `HOLD`. Writes `HELD`, `HOLD_COUNTS`, `DROPS`, `EVENTS`, `LOST`.
//! - Verdicts: REDIRECT to the hook that stopped the packet, or SHOT: nothing ever goes up the stack from here.
//!
//! Whoever has the other end of the device can send a packet on or lose it, and nothing else: what comes must be one that
//! waits, unchanged, in time, and for the first time. It is then as it was when it was stopped; the hook judges it anew,
//! and as its mark says that it has waited it does not wait again.

use core::{
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use abi::{Address, Direction, DropReason, Held, HoldCount, HoldTag, MARK_RELEASED};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_REDIRECT, TC_ACT_SHOT},
    helpers::{bpf_ktime_get_boot_ns, bpf_redirect},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    address::is_unspecified,
    atomic, digest,
    flow::{self, Flow},
    header::Ethernet,
    hold, identity,
    parse::{self, Packet},
    skb::Skb,
    space::Space,
};

/// See the module.
#[classifier]
pub(crate) fn from_hold(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    skb.set_mark(0);
    let mut space = Space::<Ethernet>::new();
    if let Some(link) = skb.read(0, &mut space)
        && skb.vlan_present() == 0
        && let Some(tag) = HoldTag::from_mac(link.destination)
        && hold_release(skb.as_ptr(), tag.id, tag.kind as u32) == 1
    {
        return TC_ACT_REDIRECT as i32;
    }
    hold_refuse(skb.as_ptr())
}

/// Counts and reports it, as far as it says anything of itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_refuse(skb: *mut __sk_buff) -> i32 {
    let skb = Skb::from(skb);
    let (mut packet, mut flow) = (Space::new(), Space::new());
    let packet = Packet::start(&mut packet, skb.len());
    let flow = Flow::start(&mut flow, skb.ifindex(), Direction::Ingress);
    let mut space = Space::<Ethernet>::new();
    if let Some(link) = skb.read(0, &mut space) {
        packet.ethertype = link.ethertype;
        if parse::network(skb, packet).is_ok() {
            let _ = parse::transport(skb, packet);
        }
    }
    flow::dropped(packet, flow, DropReason::HoldForged as u8);
    TC_ACT_SHOT
}

/// Sends the packet to where it was stopped, if it is the one with this number. Returns 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_release(skb: *mut __sk_buff, id: u32, kind: u32) -> u32 {
    release(Skb::from(skb), id, kind).map_or(0, |()| 1)
}

#[inline(always)]
fn release(skb: Skb, id: u32, kind: u32) -> Option<()> {
    let held = hold::element(id)?;
    // SAFETY: an array element lives as long as the map; another packet may take it meanwhile, hence volatile: then the
    // state is another, and what was read of it is not used.
    let (state, is_same, hash) = unsafe {
        let state = read_volatile(&raw const (*held).state);
        let is_same = read_volatile(&raw const (*held).id) == id
            && u32::from(read_volatile(&raw const (*held).kind)) == kind
            && read_volatile(&raw const (*held).length) == skb.len();
        (state, is_same, read_volatile(&raw const (*held).hash))
    };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // The lowest bit: it is being written.
    if state <= now || state & 1 != 0 || !is_same || digest::of(skb.as_ptr(), id) != hash {
        return None;
    }
    let mut space = Space::new();
    let back = Back::of(held, &mut space);
    // SAFETY: as above.
    if !unsafe { atomic::swap(&raw mut (*held).state, state, 0) } {
        return None;
    }
    back.send(skb)
}

/// Where a packet goes.
#[repr(C, align(8))]
struct Back {
    called: Address,
    macs: [[u8; 6]; 2],
    ifindex: u32,
    hook: u8,
}

impl Back {
    /// A copy by words: LLVM would copy by bytes, each of them a word of stack.
    #[inline(always)]
    fn of(held: *const Held, space: &mut Space<Self>) -> &Self {
        const { assert!(offset_of!(Held, called) % 8 == 0 && offset_of!(Held, macs) % 8 == 0) };
        let back = space.as_mut_ptr();
        // SAFETY: as in `release`; both places are aligned as asserted, and all of the copy is written.
        unsafe {
            let (from, to) =
                ((&raw const (*held).called).cast::<u64>(), (&raw mut (*back).called).cast::<u64>());
            write_volatile(to, read_volatile(from));
            write_volatile(to.add(1), read_volatile(from.add(1)));
            let (from, to) = ((&raw const (*held).macs).cast::<u64>(), (&raw mut (*back).macs).cast::<u64>());
            write_volatile(to, read_volatile(from));
            write_volatile(to.add(1).cast::<u32>(), read_volatile(from.add(1).cast::<u32>()));
            write_volatile(&raw mut (*back).ifindex, read_volatile(&raw const (*held).ifindex));
            write_volatile(&raw mut (*back).hook, read_volatile(&raw const (*held).hook));
            &*back
        }
    }

    #[inline(always)]
    fn send(&self, skb: Skb) -> Option<()> {
        // A device that is an endpoint's no more has none of our hooks either.
        identity::endpoint(&Address::interface(self.ifindex))?;
        skb.store_link(0, &self.macs)?;
        if !is_unspecified(&self.called) {
            hold::store_destination(skb, &self.called)?;
        }
        skb.set_mark(MARK_RELEASED);
        hold::count(HoldCount::RELEASED);
        let is_from_pod = self.hook == Direction::Egress as u8;
        // SAFETY: no pointers.
        unsafe { bpf_redirect(self.ifindex, if is_from_pod { u64::from(BPF_F_INGRESS) } else { 0 }) };
        Some(())
    }
}
