//! Processes: a first one in namespaces and a cgroup of its own, its children, its privileges, its end.
//!
//! Promise: nothing here forks a process that has more than one thread: a lock held by another thread would stay
//! locked for ever in the child.

#![allow(
    unsafe_code,
    reason = "clone3(2), fork(2), close_range(2), setpriority(2) and inherited descriptors have no safe wrapper"
)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, pthread_sigmask, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::error::{Context, Error, Result};

/// The first process of a PID namespace, as its maker sees it.
#[derive(Debug)]
pub struct Init {
    pid: i32,
}

impl Init {
    /// Sends it a signal. That it has ended is no error.
    pub fn signal(&self, number: i32) -> Result<()> {
        send(self.pid, number)
    }

    /// Waits for its end and takes its exit status.
    pub fn wait(self) -> Result<Ended> {
        match waitpid(Pid::from_raw(self.pid), None).context("wait for process", self.pid)? {
            WaitStatus::Signaled(_, signal, _) => Ok(Ended::Signal(signal as i32)),
            WaitStatus::Exited(_, code) => Ok(Ended::Code(code)),
            other => Err(Error::Unexpected {
                object: format!("process {}", self.pid),
                found: format!("{other:?}"),
                expected: "its end",
            }),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// The code as shells have it: 128 and the number for a signal.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(number) => 128 + number,
        };
        (code & 0xff) as u8
    }
}

/// Starts the first process of new PID, mount, IPC and UTS namespaces, in a cgroup from its first instruction. It
/// calls `work` and exits with what that returns.
pub fn clone_init(cgroup: BorrowedFd<'_>, work: impl FnOnce() -> u8) -> Result<Init> {
    single_threaded()?;
    let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    // CLONE_INTO_CGROUP of `linux/sched.h`, kernel 5.7; it does not fit the libc crate's type.
    let into_cgroup = 0x2_0000_0000_u64;
    // SAFETY: all zeros is a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces as u64 | into_cgroup;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM the child is a copy, as of fork(2); there is one thread, so no lock is held by another.
    // `arguments` has the size that is given and lives through the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match pid {
        ..0 => Err(io::Error::last_os_error()).context("start", "a process in namespaces of its own"),
        0 => exit(work()),
        pid => Ok(Init { pid: pid as i32 }),
    }
}

/// Starts a child that calls `work` and exits with what that returns. Returns its number.
pub fn fork(work: impl FnOnce() -> u8) -> Result<i32> {
    single_threaded()?;
    // SAFETY: there is one thread, so no lock is held by another.
    match unsafe { nix::unistd::fork() }.context("start", "a process")? {
        ForkResult::Child => exit(work()),
        ForkResult::Parent { child } => Ok(child.as_raw()),
    }
}

/// Without destructors: they are the parent's.
fn exit(code: u8) -> ! {
    // SAFETY: takes a number, does not return.
    unsafe { libc::_exit(code.into()) }
}

/// Fails if the calling process has more than one thread: what is about to be done would reach one of them only.
pub fn single_threaded() -> Result<()> {
    let threads = fs::read_dir("/proc/self/task").context("count", "threads of this process")?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(Error::Unexpected {
        object: "this process".to_owned(),
        found: format!("{threads} threads"),
        expected: "one, for it is about to fork or to give up rights",
    })
}

/// State of the calling process's children, orphans of its PID namespace included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaped {
    /// This one has ended; there may be more.
    Child(i32, Ended),
    /// All that are left are running.
    Running,
    /// There is none.
    Childless,
}

/// Takes the exit status of a child that has ended. Does not wait.
pub fn reap() -> Result<Reaped> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Ok(Reaped::Child(pid.as_raw(), Ended::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Ok(Reaped::Child(pid.as_raw(), Ended::Signal(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) => return Ok(Reaped::Running),
            Err(nix::Error::ECHILD) => return Ok(Reaped::Childless),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("wait for", "a child"),
        }
    }
}

/// The calling process is killed when its parent ends. A change of user takes this back, so it comes after.
pub fn die_with_parent(yes: bool) -> Result<()> {
    let signal = yes.then_some(Signal::SIGKILL);
    prctl::set_pdeathsig(signal).context("tie", "this process to its parent")
}

/// No program started from here on gains privileges by being executed.
pub fn forbid_new_privileges() -> Result<()> {
    prctl::set_no_new_privs().context("set", "no_new_privs")
}

/// Nobody without SYS_PTRACE may look into this process: its memory, descriptors, program file, namespaces. Executing
/// a program or changing user takes this back.
pub fn hide() -> Result<()> {
    prctl::set_dumpable(false).context("hide", "this process")
}

/// Lets other threads go first where they want the same core: this one, and those that it starts from now on, have a tenth
/// of it then (nice 10, `sched(7)`).
pub fn stand_back() -> Result<()> {
    // SAFETY: it reads and writes no memory of ours; 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
    nix::errno::Errno::result(result).map(drop).context("lower the priority of", "this thread")
}

/// A cgroup namespace of which the current cgroup is the root.
pub fn unshare_cgroup() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare", "cgroup namespace")
}

/// Makes a directory the process's `/`, and its working directory.
pub fn change_root(directory: &Path) -> Result<()> {
    let object = directory.display();
    std::env::set_current_dir(directory).context("enter", &object)?;
    nix::unistd::chroot(".").context("make the root directory", &object)?;
    std::env::set_current_dir("/").context("enter", object)
}

/// Names the machine, within the UTS namespace of the process.
pub fn set_hostname(name: &str) -> Result<()> {
    nix::unistd::sethostname(name).context("set host name", name)
}

/// Sends a signal by number. That the process has ended is no error.
pub fn send(pid: i32, number: i32) -> Result<()> {
    // SAFETY: takes numbers.
    match unsafe { libc::kill(pid, number) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error).context("send a signal to process", pid),
        },
    }
}

/// Stops the calling process until it is continued, as a shell's job control expects of a job.
pub fn stop() -> Result<()> {
    kill(Pid::this(), Signal::SIGSTOP).context("stop", "this process")
}

/// The descriptors that this process was started with beside the standard streams: from 3 on, without a gap. They will
/// not be inherited further. To be asked once, before anything has opened a descriptor; what is asked later is empty.
pub fn inherited() -> Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let mut descriptors = Vec::new();
    for number in 3.. {
        // SAFETY: takes numbers.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EBADF) => break,
                error => return Err(error).context("take over descriptor", number),
            }
        }
        // SAFETY: it is open, and nobody else's: it was there before this process's first instruction, and this is the
        // only time that it is taken.
        descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(descriptors)
}

/// Closes every descriptor above 2 but these.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: u32) -> Result<()> {
    // SAFETY: takes numbers. Values that own one of these descriptors are never used again: their owner says so.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context("close", "descriptors") }
}

/// Replaces the calling process by a program, looked up along `PATH`; only an error returns. Descriptors above 2 are
/// closed, and SIGPIPE, which Rust programs ignore, is as usual.
pub fn execute(arguments: &[CString], environment: &[CString]) -> io::Error {
    let Some(program) = arguments.first() else { return io::ErrorKind::InvalidInput.into() };
    let replaced = close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
        .map_err(io::Error::other)
        // SAFETY: no handler is installed.
        .and_then(|()| Ok(unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?))
        .and_then(|_| Ok(nix::unistd::execvpe(program, arguments, environment)?));
    match replaced {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Lets go of what standard input, output and error are, so that who reads them sees their end.
pub fn release_standard_streams() -> Result<()> {
    let null =
        fs::OpenOptions::new().read(true).write(true).open("/dev/null").context("open", "/dev/null")?;
    nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&null))
        .and_then(|()| nix::unistd::dup2_stderr(&null))
        .context("release", "standard streams")
}

/// All signals, as values instead of interruptions.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

/// A signal that was sent to the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Its number.
    pub number: i32,
    /// By a process, not by the terminal or the kernel, which tell the whole process group.
    pub by_process: bool,
}

impl Signals {
    /// Takes them from now on, in this process and those it forks. SIGCHLD is not ignored, even if the caller did.
    pub fn take() -> Result<Self> {
        // SAFETY: no handler is installed.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.context("reset", "SIGCHLD")?;
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))
            .context("block", "signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&SigSet::all(), flags).context("receive", "signals")?;
        Ok(Self { descriptor, before })
    }

    /// The next of those that have arrived.
    pub fn next(&self) -> Result<Option<Received>> {
        let read = self.descriptor.read_signal().context("receive", "signals")?;
        Ok(read.map(|info| Received { number: info.ssi_signo as i32, by_process: info.ssi_code <= 0 }))
    }

    /// Interruptions are again as they were.
    pub fn give_back(&self) -> Result<()> {
        self.before.thread_set_mask().context("unblock", "signals")
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Waits until one of them can be read or has been closed by its other end; tells for each.
pub fn wait_any<const N: usize>(descriptors: [BorrowedFd<'_>; N]) -> Result<[bool; N]> {
    wait(descriptors, PollFlags::POLLIN, PollTimeout::NONE)
}

/// Whether nobody can read from this pipe any more.
pub fn is_unread(pipe: BorrowedFd<'_>) -> Result<bool> {
    // POLLERR is always told.
    let [over] = wait([pipe], PollFlags::empty(), PollTimeout::ZERO)?;
    Ok(over)
}

/// Waits until a kernel file (`cgroup.events`) has changed since it was read, or the time is over.
pub fn wait_change(file: BorrowedFd<'_>, milliseconds: u16) -> Result<()> {
    wait([file], PollFlags::POLLPRI, PollTimeout::from(milliseconds)).map(drop)
}

fn wait<const N: usize>(
    of: [BorrowedFd<'_>; N],
    events: PollFlags,
    timeout: PollTimeout,
) -> Result<[bool; N]> {
    let mut list = of.map(|fd| PollFd::new(fd, events));
    loop {
        match poll(&mut list, timeout) {
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("wait for", "descriptors"),
            Ok(_) => return Ok(list.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))),
        }
    }
}

/// The controlling terminal, with the calling process's group in its foreground.
#[derive(Debug)]
pub struct Foreground {
    terminal: fs::File,
}

impl Foreground {
    /// None where there is no terminal, or the group is in the background.
    pub fn now() -> Option<Self> {
        let terminal = fs::File::open("/dev/tty").ok()?;
        let owner = nix::unistd::tcgetpgrp(&terminal).ok()?;
        (owner == nix::unistd::getpgrp()).then_some(Self { terminal })
    }

    /// Brings the group back there: what ran meanwhile may have taken it. SIGTTOU must be blocked.
    pub fn restore(&self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = nix::unistd::tcsetpgrp(&self.terminal, nix::unistd::getpgrp());
    }
}
