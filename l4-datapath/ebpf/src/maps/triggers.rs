//! `TRIGGERS`: calls that want a proof which is not there.
//!
//! - Kind: ring buffer of 64 KiB, kernel 5.8.
//! - Record: [`abi::Trigger`].
//! - Writers: `connect`, `sendmsg`. Reader: the auth-agent. What finds it full is lost: the packet asks again.

use abi::{TRIGGERS as BYTES, Trigger};
use aya_ebpf::{btf_maps::RingBuf, macros::btf_map};

#[btf_map]
pub(crate) static TRIGGERS: RingBuf<Trigger, { BYTES as usize }> = RingBuf::new();
