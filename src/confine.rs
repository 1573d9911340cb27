//! What a process of ours gives up before it reads its first byte from the network: root, capabilities, the file system
//! but one directory, and the system calls it has no use for.
//!
//! For `ferromesh auth-agent` and `ferromesh ca`. What they need of the rest of the machine they were handed as
//! descriptors. There is no way back: neither by a program with privileges (there is none in the directory, and
//! `no_new_privs`), nor by a namespace (refused in a chroot and by the filter).

use std::os::fd::BorrowedFd;
use std::path::Path;

use linux::capability::{self, Capabilities};
use linux::process;
use linux::seccomp::{self, Refusal, When};
use linux::user::Credentials;

/// Every call that Rust's runtime, the asynchronous one and these processes make. What makes a process, executes a
/// program, mounts, traces or changes who the process is, is not among them.
const ALLOWED: [libc::c_long; 87] = [
    // Files and descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_fchmod,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_renameat2,
    libc::SYS_renameat,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    // Of changes of its own files.
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_pipe2,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads and signals of its own.
    libc::SYS_clone,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_prctl,
    // Who and where it is.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_uname,
    libc::SYS_getrandom,
    // Sockets.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_listen,
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // Maps that were handed over: the kernel checks the descriptor's rights.
    libc::SYS_bpf,
];

/// The same calls by the numbers that only older machines have; C libraries use them where they exist.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: [libc::c_long; 10] = [
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_mkdir,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: [libc::c_long; 0] = [];

/// Commands of bpf(2) (`linux/bpf.h`): 1 to 4 look up, write and walk a map; the others below 8, and all from there on,
/// are refused.
const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
/// Bits of the numbers from 8 on.
const OTHER_COMMANDS: u32 = !7;

/// Every flag of clone(2) that makes a namespace.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Of the calls above, those that are refused by what they ask for.
const CONDITIONS: [Refusal; 11] = [
    // Its flags lie in memory, which a filter cannot see; the C libraries fall back to clone(2).
    refuse(libc::SYS_clone3, When::Always, libc::ENOSYS),
    refuse(libc::SYS_clone, When::AnyBit(0, NAMESPACES), libc::EPERM),
    // To type on the terminal of who started the node.
    refuse(libc::SYS_ioctl, When::Equal(1, libc::TIOCSTI as u32), libc::EPERM),
    refuse(libc::SYS_socket, When::Equal(0, libc::AF_NETLINK as u32), libc::EPERM),
    refuse(libc::SYS_socket, When::Equal(0, libc::AF_PACKET as u32), libc::EPERM),
    refuse(libc::SYS_socket, When::Equal(0, libc::AF_VSOCK as u32), libc::EPERM),
    refuse(libc::SYS_bpf, When::AnyBit(0, OTHER_COMMANDS), libc::EPERM),
    refuse(libc::SYS_bpf, When::Equal(0, MAP_CREATE), libc::EPERM),
    refuse(libc::SYS_bpf, When::Equal(0, PROG_LOAD), libc::EPERM),
    refuse(libc::SYS_bpf, When::Equal(0, OBJ_PIN), libc::EPERM),
    refuse(libc::SYS_bpf, When::Equal(0, OBJ_GET), libc::EPERM),
];

const fn refuse(call: libc::c_long, when: When, errno: i32) -> Refusal {
    Refusal { call, when, errno }
}

/// Confines the calling process, for good, to one directory (which becomes its `/`), one user and these descriptors
/// beside the standard streams. It must still be root and have one thread: each thread has rights of its own.
pub(crate) fn confine(directory: &Path, user: &Credentials, kept: &[BorrowedFd<'_>]) -> linux::Result<()> {
    if user.is_root() {
        return Err(linux::Error::Unexpected {
            object: "--user".to_owned(),
            found: "root".to_owned(),
            expected: "a user without rights, by name or number",
        });
    }
    process::single_threaded()?;
    process::close_all_but(kept)?;
    process::change_root(directory)?;
    capability::bound(Capabilities::default())?;
    user.assume()?;
    capability::set(Capabilities::default(), Capabilities::default())?;
    process::forbid_new_privileges()?;
    process::hide()?;
    let allowed: Vec<_> = ALLOWED.into_iter().chain(ALLOWED_OLD).collect();
    seccomp::install_only(&allowed, &CONDITIONS)
}
