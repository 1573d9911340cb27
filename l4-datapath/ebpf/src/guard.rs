//! The ports of nodes that no workload may call, whatever policy says: auth-agents and the CA listen there.

use core::ptr::read_volatile;

use abi::{DropReason, ReservedIdentity};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    header::protocol,
    identity::{self, Moment, Stranger},
    maps::NODE,
    parse::{self, Packet},
    refusal::Refusal,
    skb::Skb,
};

/// Whether a workload may not call this port of whoever has this identity.
#[inline(always)]
pub(crate) fn forbids(identity: u32, protocol: u8, port: u16) -> bool {
    matches!(identity, ReservedIdentity::HOST | ReservedIdentity::REMOTE_NODE)
        && protocol == protocol::TCP
        && guard_has(port.into()) == 1
}

/// 1 if the port is one of [`abi::Node::guarded`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_has(port: u32) -> u32 {
    let guarded = ports();
    (guarded != 0 && (port == guarded >> 16 || port == guarded & 0xffff)).into()
}

#[inline(always)]
fn ports() -> u32 {
    // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
    NODE.get_ptr(0).map_or(0, |node| unsafe { read_volatile(&raw const (*node).guarded) })
}

/// Refuses what another node's workload sends to such a port of this node. `is_sound`: its IP header could be read.
#[inline(always)]
pub(crate) fn arriving(
    skb: Skb,
    packet: &mut Packet,
    now: &Moment,
    sender: Stranger,
    is_sound: bool,
) -> Result<(), Refusal> {
    if !sender.is_workload() {
        return Ok(());
    }
    Refusal::check(guard_arriving(skb.as_ptr(), packet, now, is_sound.into()))
}

/// Who the packet is for is looked up last: hardly any gets there.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_arriving(
    skb: *mut __sk_buff,
    packet: *mut Packet,
    now: *const Moment,
    is_sound: u32,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(now)) = (unsafe { (packet.as_mut(), now.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    if ports() == 0 {
        return 0;
    }
    if is_sound == 1 {
        // Without its first fragment a later one is nothing.
        if packet.protocol != protocol::TCP || packet.is_later() {
            return 0;
        }
        if parse::transport(Skb::from(skb), packet).is_ok() && guard_has(packet.destination_port.into()) == 0
        {
            return 0;
        }
    }
    if identity::remote(&packet.destination, now.generation).identity() == ReservedIdentity::HOST {
        return DropReason::PolicyDeny as u32;
    }
    0
}
