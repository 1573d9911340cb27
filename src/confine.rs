//! What a process of ours gives up before it reads its first byte from the network: root, capabilities, the file system
//! but one directory, and the system calls it has no use for.
//!
//! For `ferromesh auth-agent`, `ferromesh ca` and `ferromesh proxy`. What they need of the rest of the machine they were handed as
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
    // Maps that were handed over: the kernel checks the descriptor's rights. Not for who was handed none.
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

/// What `ferromesh proxy` may call besides: sockets of addresses that are not its own, and threads that stand back.
const PROXY_CALLS: [libc::c_long; 2] = [libc::SYS_bind, libc::SYS_setpriority];

/// Its one capability would also let it forge packets. SOCK_DGRAM, SOCK_RAW and SOCK_PACKET have this bit, SOCK_STREAM has
/// not. And of nobody's priority but the calling thread's is decided.
const PROXY_CONDITIONS: [Refusal; 3] = [
    refuse(libc::SYS_socket, When::AnyBit(1, 2), libc::EPERM),
    refuse(libc::SYS_setpriority, When::AnyBit(0, u32::MAX), libc::EPERM),
    refuse(libc::SYS_setpriority, When::AnyBit(1, u32::MAX), libc::EPERM),
];

/// What is done with descriptors of BPF maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Maps {
    /// Elements are read and written.
    Used,
    /// There are none: bpf(2) is refused.
    None,
}

/// Confines the calling process, for good, to one directory (which becomes its `/`), one user and these descriptors
/// beside the standard streams. It must still be root and have one thread: each thread has rights of its own.
pub(crate) fn confine(
    directory: &Path,
    user: &Credentials,
    kept: &[BorrowedFd<'_>],
    maps: Maps,
) -> linux::Result<()> {
    restrict(directory, user, kept, Capabilities::default())?;
    filter(maps)
}

/// The same for the L7 proxy, which keeps NET_RAW: it calls servers in its clients' names, by TCP and nothing else.
pub(crate) fn confine_proxy(
    directory: &Path,
    user: &Credentials,
    kept: &[BorrowedFd<'_>],
) -> linux::Result<()> {
    let unknown = |name: &str| linux::Error::Unexpected {
        object: "capability".to_owned(),
        found: name.to_owned(),
        expected: "a capability of this kernel",
    };
    let held = Capabilities::named(["NET_RAW"]).map_err(unknown)?;
    restrict(directory, user, kept, held)?;
    let allowed: Vec<_> = ALLOWED.into_iter().chain(ALLOWED_OLD).chain(PROXY_CALLS).collect();
    let conditions: Vec<_> = CONDITIONS.into_iter().chain(PROXY_CONDITIONS).collect();
    seccomp::install_only(&allowed, &conditions)
}

/// All but the filter.
fn restrict(
    directory: &Path,
    user: &Credentials,
    kept: &[BorrowedFd<'_>],
    held: Capabilities,
) -> linux::Result<()> {
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
    if !held.is_empty() {
        capability::keep_across_user_change()?;
    }
    user.assume()?;
    capability::set(held, Capabilities::default())?;
    process::forbid_new_privileges()?;
    process::hide()
}

fn filter(maps: Maps) -> linux::Result<()> {
    let mut allowed: Vec<_> = ALLOWED.into_iter().chain(ALLOWED_OLD).collect();
    allowed.retain(|call| maps == Maps::Used || *call != libc::SYS_bpf);
    seccomp::install_only(&allowed, &CONDITIONS)
}

/// What the filter refuses to a thread that keeps every other right: nothing else can be the reason. What a process is left
/// with besides is seen on the processes themselves (`tests/auth_agent.rs`, `tests/ca.rs`). Needs root.
#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;

    use nix::errno::Errno;
    use nix::mount::MsFlags;
    use nix::sched::CloneFlags;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// Under the filter; it is one thread's, and who waits for that thread is not under it.
    fn filtered<T: Send + 'static>(maps: Maps, work: fn() -> T) -> T {
        let thread = std::thread::spawn(move || {
            process::forbid_new_privileges().unwrap();
            filter(maps).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// Without the filter some of these fail too, for what they ask for is not there, and others succeed; none fails with
    /// EPERM.
    fn forbidden() -> Vec<(&'static str, Option<Errno>)> {
        let kind = SockType::Raw;
        let open = |family| socket(family, kind, SockFlag::empty(), None).err();
        let nowhere = c"/nonexistent";
        vec![
            ("execve", nix::unistd::execve(nowhere, &[nowhere], &[nowhere]).err()),
            ("a user namespace", nix::sched::unshare(CloneFlags::CLONE_NEWUSER).err()),
            ("setns", nix::sched::setns(File::open("/dev/null").unwrap(), CloneFlags::empty()).err()),
            (
                "mount",
                nix::mount::mount(Some("none"), nowhere, Some("tmpfs"), MsFlags::empty(), None::<&str>).err(),
            ),
            ("chroot", nix::unistd::chroot(nowhere).err()),
            (
                "a hard link",
                nix::unistd::linkat(
                    nix::fcntl::AT_FDCWD,
                    nowhere,
                    nix::fcntl::AT_FDCWD,
                    nowhere,
                    nix::fcntl::AtFlags::empty(),
                )
                .err(),
            ),
            ("kill", nix::sys::signal::kill(nix::unistd::getpid(), None).err()),
            ("a port of its own", TcpListener::bind("127.0.0.1:0").err().and_then(errno)),
            ("netlink", open(AddressFamily::Netlink)),
            ("raw packets", open(AddressFamily::Packet)),
            ("the hypervisor", open(AddressFamily::Vsock)),
        ]
    }

    fn errno(error: std::io::Error) -> Option<Errno> {
        error.raw_os_error().map(Errno::from_raw)
    }

    /// By their numbers in `linux/bpf.h`, with no attributes: that is EINVAL or EFAULT to whoever may ask.
    fn commands() -> Vec<(u32, Option<i32>)> {
        (0..40).map(|command| (command, maps::scratch::command(command).raw_os_error())).collect()
    }

    #[test]
    fn programs_namespaces_other_files_and_sockets_are_refused_to_root_itself() {
        for maps in [Maps::Used, Maps::None] {
            for (what, refused) in filtered(maps, forbidden) {
                assert_eq!(refused, Some(Errno::EPERM), "{what}");
            }
        }
    }

    #[test]
    fn maps_are_read_written_and_walked_and_nothing_is_made_loaded_or_looked_up() {
        for (command, error) in filtered(Maps::Used, commands) {
            assert_eq!(error == Some(libc::EPERM), !(1..=4).contains(&command), "{command}: {error:?}");
        }
        for (command, error) in filtered(Maps::None, commands) {
            assert_eq!(error, Some(libc::EPERM), "{command}");
        }
        let free = std::thread::spawn(commands).join().unwrap();
        assert!(
            free.iter().all(|(_, error)| *error != Some(libc::EPERM)),
            "the filter is the reason: {free:?}"
        );
    }

    #[test]
    fn what_these_processes_live_by_is_left() {
        let left = filtered(Maps::None, || {
            let file = File::open("/proc/self/status").is_ok();
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).is_ok();
            let pair = std::os::unix::net::UnixStream::pair().is_ok();
            [file, socket, pair, std::thread::spawn(|| true).join().unwrap()]
        });
        assert_eq!(left, [true; 4]);
    }
}
