//! What a workload may do: a container runtime's usual capabilities less NET_RAW and MKNOD, and no system call that
//! makes namespaces, mounts, or reaches around the network namespace.

use linux::capability::{self, Capabilities};
use linux::process;
use linux::seccomp::{self, Refusal, When};
use linux::user::Credentials;

/// What container runtimes give, less NET_RAW (forged packets) and MKNOD (the host's disks).
const USUAL: [&str; 12] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What may be added: each ends at the workload's own namespaces or resources. All others lead out of them, directly
/// (SYS_ADMIN, NET_ADMIN, BPF, SYS_PTRACE) or by way of devices, modules, file handles or kernel memory.
const ADDABLE: [&str; 10] = [
    "BLOCK_SUSPEND",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "NET_BROADCAST",
    "NET_RAW",
    "SYS_NICE",
    "SYS_RESOURCE",
    "WAKE_ALARM",
];

/// Every flag that makes a namespace, but time's, whose bit means something else to clone(2).
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// `linux/sched.h`.
const NEW_TIME: u32 = 0x80;

/// Calls that no workload has a use for and that reach what namespaces do not cover. Most want a capability that it
/// lacks; a user namespace of its own would give it that.
const REFUSED: [libc::c_long; 35] = [
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_syslog,
    // Keyrings belong to the user, whatever the namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_lookup_dcookie,
    // Makes sockets and more by entries in memory, past every condition below.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Filters for calls that are refused by what they ask for.
const CONDITIONS: [Refusal; 9] = [
    refuse(libc::SYS_unshare, When::AnyBit(0, NAMESPACES | NEW_TIME), libc::EPERM),
    refuse(libc::SYS_clone, When::AnyBit(0, NAMESPACES), libc::EPERM),
    // Its flags lie in memory, which a filter cannot see; the C libraries fall back to clone(2).
    refuse(libc::SYS_clone3, When::Always, libc::ENOSYS),
    // To type on the terminal as if the person before it did: the shell outside would obey.
    refuse(libc::SYS_ioctl, When::Equal(1, libc::TIOCSTI as u32), libc::EPERM),
    refuse(libc::SYS_ioctl, When::Equal(1, TIOCLINUX), libc::EPERM),
    // Leads to the hypervisor and other virtual machines, past every network namespace.
    refuse(libc::SYS_socket, When::Equal(0, libc::AF_VSOCK as u32), libc::EPERM),
    // With NET_RAW a sender could say where a device must put the checksum, and so change the port or address of a
    // packet after it was judged.
    refuse(libc::SYS_socket, When::Equal(0, libc::AF_XDP as u32), libc::EPERM),
    refuse(libc::SYS_setsockopt, When::Pair(1, libc::SOL_PACKET as u32, PACKET_VNET_HDR), libc::EPERM),
    refuse(libc::SYS_setsockopt, When::Pair(1, libc::SOL_PACKET as u32, PACKET_VNET_HDR_SZ), libc::EPERM),
];
/// `linux/if_packet.h`.
const PACKET_VNET_HDR: u32 = 15;
const PACKET_VNET_HDR_SZ: u32 = 24;
/// `asm-generic/ioctls.h`: the console's selection and paste.
const TIOCLINUX: u32 = 0x541c;

const fn refuse(call: libc::c_long, when: When, errno: i32) -> Refusal {
    Refusal { call, when, errno }
}

/// A capability that `--cap-add` does not give.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum CapabilityError {
    /// No such name.
    #[error("capability {0}: unknown; accepted are {accepted}", accepted = ADDABLE.join(", "))]
    Unknown(String),
    /// It would lead out of the workload.
    #[error("capability {0}: never given to a workload, it could reach behind its policy; accepted are {accepted}",
        accepted = ADDABLE.join(", "))]
    Refused(Capabilities),
}

/// Reads the names given to `--cap-add`.
pub(crate) fn added_capabilities(names: &[String]) -> Result<Capabilities, CapabilityError> {
    let added = Capabilities::named(names.iter().map(String::as_str))
        .map_err(|name| CapabilityError::Unknown(name.to_owned()))?;
    let refused = added.without(known(&ADDABLE)).without(known(&USUAL));
    if refused.is_empty() { Ok(added) } else { Err(CapabilityError::Refused(refused)) }
}

/// The names above are known; a test holds it.
fn known(names: &[&str]) -> Capabilities {
    Capabilities::named(names.iter().copied()).unwrap_or_default()
}

/// Makes the calling process the workload's user, with these rights and no way back.
pub(super) fn reduce(credentials: &Credentials, added: Capabilities) -> linux::Result<()> {
    let bounding = known(&USUAL).union(added);
    // Root's programs hold what is permitted; others only what they inherit: what was added by name.
    let (held, inherited) = match credentials.is_root() {
        true => (bounding, Capabilities::default()),
        false => (added, added),
    };
    capability::bound(bounding)?;
    capability::keep_across_user_change()?;
    credentials.assume()?;
    capability::set(held, inherited)?;
    process::forbid_new_privileges()?;
    let refusals: Vec<_> =
        (REFUSED.iter()).map(|call| refuse(*call, When::Always, libc::EPERM)).chain(CONDITIONS).collect();
    seccomp::install(&refusals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_is_refused_by_name() {
        for name in ["SYS_ADMIN", "NET_ADMIN", "BPF", "SYS_PTRACE", "MKNOD", "DAC_READ_SEARCH", "SYS_MODULE"]
        {
            let error = added_capabilities(&[format!("CAP_{name}")]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("capability {name}: never given")), "{error}");
        }
        let error = added_capabilities(&["NET_ROW".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("capability NET_ROW: unknown; accepted are BLOCK_SUSPEND,"), "{error}");
    }

    #[test]
    fn every_name_is_the_kernels_and_can_be_added() {
        for name in USUAL.into_iter().chain(ADDABLE) {
            assert!(Capabilities::named([name]).is_ok(), "{name}");
            assert!(added_capabilities(&[name.to_lowercase()]).is_ok(), "{name}");
        }
    }
}
