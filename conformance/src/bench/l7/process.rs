//! Where processes run, and what they hold.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::lab::wait_until;

/// Runs `start` on one CPU: what it starts stays there, and may open as many files as the hard limit allows. Where there is
/// no such CPU, it may run anywhere: figures mean little then.
pub(super) fn on<T>(cpu: usize, start: impl FnOnce() -> T) -> T {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).expect("a thread has CPUs");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the soft limit may be the hard one");
    let mut only = CpuSet::new();
    only.set(cpu).expect("a small number");
    let _ = sched_setaffinity(this, &only);
    let result = start();
    sched_setaffinity(this, &before).expect("those of before");
    result
}

/// Moves all threads of a process to one CPU.
pub(super) fn shift(pid: i32, cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).expect("a small number");
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    for thread in threads.filter_map(Result::ok) {
        let number = thread.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
        // One that has ended meanwhile needs none; where there is no such CPU nothing is moved.
        let _ = sched_setaffinity(Pid::from_raw(number), &only);
    }
}

/// What was changed of processes that are not ours, until this is dropped or this process ends in whatever way.
pub(super) struct Changed(Child);

impl Changed {
    /// These commands of the shell put it back.
    fn until_the_end(restore: &str) -> Self {
        let script = format!("cat\n{restore}");
        let mut command = Command::new("sh");
        // Not of the group that an interrupt ends.
        command.args(["-c", &script]).process_group(0).stdin(Stdio::piped());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("a shell"))
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Keeps a CPU free of everybody who is not bound to it: others would take it for milliseconds at a time. Who is started meanwhile
/// by one that has been moved stays where that was.
pub(super) fn alone(cpu: usize) -> Changed {
    let move_away = |thread: i32| {
        let this = Pid::from_raw(thread);
        let before = sched_getaffinity(this).ok()?;
        let mut others = before;
        others.unset(cpu).ok()?;
        let is_other = before.is_set(cpu).ok()? && others != CpuSet::new();
        // The kernel keeps its own where they are.
        let is_moved = is_other && sched_setaffinity(this, &others).is_ok();
        is_moved.then(|| format!("taskset --cpu-list --pid {} {thread}\n", list(&before)))
    };
    let threads = numbers("/proc").flat_map(|process| numbers(&format!("/proc/{process}/task")));
    let restore: String = threads.filter_map(move_away).collect();
    Changed::until_the_end(&restore)
}

/// Has the kernel's thread for network work of a CPU, when there is more than it does in passing, come before all ordinary
/// processes there. Otherwise packets of who is before them wait for their time slices.
pub(super) fn network_first(cpu: usize) -> Changed {
    let name = format!("ksoftirqd/{cpu}\n");
    let is_it =
        |process: &i32| fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|found| found == name);
    // Not seen from a process namespace.
    let Some(thread) = numbers("/proc").find(is_it) else { return Changed::until_the_end("") };
    let restore = format!("chrt --other --pid 0 {thread}");
    let changed = Changed::until_the_end(&restore);
    let done = Command::new("chrt").args(["--fifo", "--pid", "5", &thread.to_string()]).status();
    assert!(done.is_ok_and(|status| status.success()), "chrt of {thread}");
    changed
}

/// CPUs by their numbers.
fn list(cpus: &CpuSet) -> String {
    let set = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap_or_default());
    set.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
}

/// What in a directory is named by a number; nothing if that has gone.
fn numbers(directory: &str) -> impl Iterator<Item = i32> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Ended when dropped.
pub(super) struct Process(Child);

impl Process {
    pub(super) fn start(cpu: usize, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = on(cpu, || command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
        Self(child)
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a process id")
    }

    /// Waits until it listens at this port of 127.0.0.1; a copy of the socket.
    pub(super) fn listener(&mut self, port: u16) -> Result<OwnedFd, String> {
        let mut found = None;
        wait_until("a proxy listens", || {
            found = listener(self.pid(), port);
            found.is_some() || self.0.try_wait().is_ok_and(|status| status.is_some())
        });
        let number = found.ok_or("it has ended, see above")?;
        linux::child::descriptor(self.pid(), number).map_err(|error| error.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Number of the socket that listens there, in the process.
fn listener(pid: i32, port: u16) -> Option<i32> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let table = fs::read_to_string(process.join("net/tcp")).ok()?;
    let at = format!("0100007F:{port:04X}");
    // sl local remote state tx:rx tr:when retransmits uid timeout inode
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&at.as_str()) && words.get(3) == Some(&"0A"))
            .then(|| words.get(9).map(|it| (*it).to_owned()))
    };
    let inode = table.lines().find_map(row)??;
    let socket = format!("socket:[{inode}]");
    fs::read_dir(process.join("fd")).ok()?.filter_map(Result::ok).find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        (target.to_str() == Some(&socket)).then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

/// Private memory of a process in KiB.
pub(super) fn private(pid: i32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
    let rows = rollup.lines().filter(|line| line.starts_with("Private_"));
    rows.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum()
}
