//! The kernel programs of the L4 datapath.
//!
//! Promise: a packet reaches or leaves a workload only if the source is who it says, policy of *both* ends allows it,
//! and it is a legal first packet or belongs to a connection that was allowed. Whatever cannot be told apart from
//! that (no entry, full map, unknown protocol, lying length) is dropped, counted with a reason, and reported.
//! Nothing here holds configuration: all of it is in maps, see [`maps`].
//!
//! The way of a packet: [`from_pod`] or [`to_pod`] → [`parse`] → [`identity`] → [`judge`] → [`deliver`]; most are of a
//! known connection and plain, and go the short way, [`established`].
//! What policy lets pass by way of the L7 proxy: [`proxied`], [`redirect`].
//! What policy wants a proof for that is not there yet may wait for it: [`hold`], and back by [`from_hold`].
//! The way of a socket's call: [`connect`] or [`sendmsg`] → [`call`] → [`balance`] → [`trigger`]; back by [`recvmsg`],
//! [`getpeername`].
//! Packets are read with `bpf_skb_load_bytes` into typed headers: no pointer can go stale after a helper moved the data,
//! and no bound can be forgotten. Only the short way reads them in place ([`frame`]). Each packet's scratch is its own stack.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod address;
mod answer;
mod atomic;
mod auth;
mod balance;
mod call;
mod checksum;
mod connect;
mod conntrack;
mod conntrack_gc;
mod deliver;
mod digest;
mod established;
mod extension;
mod flow;
mod fragment;
mod frame;
mod from_hold;
mod from_netdev;
mod from_pod;
mod getpeername;
mod guard;
mod header;
mod hold;
mod identity;
mod judge;
mod maps;
mod masquerade;
mod neighbour;
mod netdev;
mod node_socket;
mod parse;
mod plain;
mod policy;
mod post_bind;
mod proxied;
mod quota;
mod rate;
mod recvmsg;
mod redirect;
mod refusal;
mod related;
mod rewrite;
mod sendmsg;
mod service;
mod skb;
mod sock_ops;
mod sock_release;
mod socket;
mod space;
mod to_netdev;
mod to_pod;
mod translation;
mod translation_gc;
mod trigger;

/// GPL helpers (`bpf_ringbuf_*` is not, `bpf_skb_*` partly) load only with a GPL-compatible licence string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Required by the language; the verifier refuses a program from which it could be reached.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
