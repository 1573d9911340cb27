//! Programs that are started with certain open descriptors and nothing else, and outlive whoever started them.
//!
//! Promise: what is handed over stands at 3, 4, … in the order given; nothing else is inherited. The child leads a
//! session of its own: no terminal, no signal to a group and no end of its parent ends it.

#![allow(unsafe_code, reason = "what a child does before it executes its program has no safe interface")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Context, Result};

/// The first number of those handed over.
const FIRST: libc::c_int = 3;
/// Above every number they get in the child, so that moving one never overwrites another.
const ABOVE: libc::c_int = 256;

/// Prepares a command: descriptors, `log` as standard output and error, nothing as input, `/` as directory.
///
/// # Errors
/// There is no room for more descriptors.
pub fn hand_over(command: &mut Command, descriptors: &[BorrowedFd<'_>], log: File) -> Result<()> {
    let mut high = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        // SAFETY: takes numbers; what it makes is owned by nobody else.
        let copy = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE) };
        if copy < 0 {
            return Err(io::Error::last_os_error()).context("copy", "a descriptor");
        }
        // SAFETY: as above.
        high.push(unsafe { OwnedFd::from_raw_fd(copy) });
    }
    let error = log.try_clone().context("copy", "the descriptor of a log")?;
    command.stdin(Stdio::null()).stdout(log).stderr(error).current_dir("/");
    // SAFETY: between fork and exec; system calls alone, on numbers, without allocation.
    unsafe { command.pre_exec(move || arrange(&high)) };
    Ok(())
}

fn arrange(high: &[OwnedFd]) -> io::Result<()> {
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() })?;
    let mut number = FIRST;
    for descriptor in high {
        // SAFETY: takes numbers. What stood at `number` in this copy of the process is not used any more, but by the
        // standard library to tell of a failed exec; that, its parent sees as the end of the child.
        check(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })?;
        number += 1;
    }
    let (first, last) = (number.cast_unsigned(), u32::MAX);
    // SAFETY: takes numbers.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    if closed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A copy of a descriptor of another process, as it has it under this number.
///
/// # Errors
/// The process is not there or has none of this number; CAP_SYS_PTRACE is needed.
pub fn descriptor(pid: i32, number: i32) -> Result<OwnedFd> {
    let of = |operation, descriptor: libc::c_long| match descriptor {
        // SAFETY: what the call has made is owned by nobody else; descriptors fit an int.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) }),
        _ => Err(io::Error::last_os_error()).context(operation, pid),
    };
    // SAFETY: takes numbers.
    let process = of("refer to process", unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: takes numbers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    of("copy a descriptor of process", copy)
}

/// Processes that were started with these words in a row among their arguments, by root or by `user`; the caller is not
/// among them.
pub fn with_arguments(words: &[&str], user: u32) -> Result<Vec<i32>> {
    let own = fs::read_link("/proc/self/ns/pid").context("read", "/proc/self/ns/pid")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list", "/proc")? {
        let path: PathBuf = entry.context("list", "/proc")?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let Some(number) = number.filter(|number| u32::try_from(*number) != Ok(std::process::id())) else {
            continue;
        };
        // One that has ended meanwhile is not there.
        let Ok(text) = fs::read(path.join("cmdline")) else { continue };
        let given: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
        let same = |window: &[&[u8]]| window.iter().zip(words).all(|(one, other)| *one == other.as_bytes());
        let owner = fs::metadata(&path).map(|metadata| metadata.uid());
        // A workload may call its processes whatever it likes, but it has process ids of its own.
        let is_here = fs::read_link(path.join("ns/pid")).is_ok_and(|namespace| namespace == own);
        if is_here
            && given.windows(words.len()).any(same)
            && owner.is_ok_and(|owner| owner == 0 || owner == user)
        {
            found.push(number);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_child_has_what_it_was_handed_in_order_and_nothing_else() {
        let [mut first, mut second, mut log] = [(); 3].map(|()| tempfile());
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        for file in [&mut first, &mut second] {
            file.seek(SeekFrom::Start(0)).unwrap();
        }
        let script = "cat <&4; echo; cat <&3; echo; ls /proc/self/fd | tr '\\n' ' '; echo; cat; pwd; \
                      test $(ps -o sid= -p $$) -eq $$ && echo leader >&2";
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        hand_over(&mut command, &[first.as_fd(), second.as_fd()], log.try_clone().unwrap()).unwrap();
        assert!(command.spawn().unwrap().wait().unwrap().success());
        let mut said = String::new();
        log.seek(SeekFrom::Start(0)).unwrap();
        log.read_to_string(&mut said).unwrap();
        // 5 is the directory that `ls` reads.
        assert_eq!(said, "second\nfirst\n0 1 2 3 4 5 \n/\nleader\n");
    }

    #[test]
    fn a_descriptor_of_another_process_can_be_copied() {
        let mut file = tempfile();
        let mut command = Command::new("sh");
        command.args(["-c", "read never"]);
        hand_over(&mut command, &[file.as_fd()], tempfile()).unwrap();
        // Its input is nothing, so it would end at once.
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        let mut copy = File::from(descriptor(pid, 3).unwrap());
        copy.write_all(b"seen").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "seen");
        assert!(descriptor(pid, 200).is_err());
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn processes_are_found_by_words_in_a_row() {
        let mut child = Command::new("sh")
            .args(["-c", "read line", "one-word", "another"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        let user = fs::metadata("/proc/self").unwrap().uid();
        // Until it has executed its program it has the arguments of this one.
        while with_arguments(&["one-word", "another"], user).unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(with_arguments(&["one-word", "another"], user).unwrap(), [pid]);
        assert!(with_arguments(&["another", "one-word"], user).unwrap().is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(with_arguments(&["one-word", "another"], user).unwrap().is_empty());
    }

    fn tempfile() -> File {
        let name = format!("ferromesh-child-{}-{:?}", std::process::id(), std::time::Instant::now());
        let path = std::env::temp_dir().join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(path).unwrap();
        file
    }
}
