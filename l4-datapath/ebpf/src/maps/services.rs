//! `FRONTENDS`, `SERVICES`, `SLOTS`, `BACKENDS`, `MEMBERS`: what clients call, and who answers.
//!
//! - Kind: hash without preallocation (4.6) finds, arrays that user space can map (5.5) hold; `MEMBERS` a hash likewise.
//!   See [`abi::Service`]: a service in force changes by single stores, which an update by system call is not.
//! - Writer: the agent. Readers: the cgroup programs, `from_pod`.

use abi::{Backend, Frontend, Member, Service};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap},
    macros::btf_map,
};

#[btf_map]
pub(crate) static FRONTENDS: HashMap<Frontend, u32, 262_144, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
pub(crate) static SERVICES: Array<Service, 131_072, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static SLOTS: Array<u32, 1_048_576, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, 131_072, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static MEMBERS: HashMap<Member, u32, 131_072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
