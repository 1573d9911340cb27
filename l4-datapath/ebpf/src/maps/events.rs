//! `EVENTS`: what happened, for people.
//!
//! - Kind: ring buffer of 4 MiB, kernel 5.8.
//! - Record: [`abi::Event`].
//! - Writers: every tc hook. Reader: the agent. When it is full the event is counted in `LOST`, the
//!   verdict stands.

use abi::Event;
use aya_ebpf::{btf_maps::RingBuf, macros::btf_map};

#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, 4_194_304> = RingBuf::new();
