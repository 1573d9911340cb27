//! A filter of system calls, for good, for a process and all it starts.
//!
//! Promise: it refuses what is asked to be refused, or all but what is asked for, and everything of another machine word
//! or calling convention (a 32-bit program could otherwise make the same calls by other numbers); it never looks at
//! memory.

#![allow(unsafe_code, reason = "prctl(2) takes the program by address")]

use std::io;

use crate::error::{Context, Result};

/// A system call that is refused with an error number, always or by an argument.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Number of the call.
    pub call: libc::c_long,
    /// When.
    pub when: When,
    /// What the caller sees.
    pub errno: i32,
}

/// Which calls of that number. Arguments are compared by their lower 32 bits, as the kernel reads these.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// All.
    Always,
    /// Those whose argument (from 0) is this value.
    Equal(u8, u32),
    /// Those whose argument (from 0) has any of these bits.
    AnyBit(u8, u32),
    /// Those whose argument (from 0) and the next are these values.
    Pair(u8, u32, u32),
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// x86-64's x32 calls have this bit.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const RETURN_ERRNO: u32 = libc::SECCOMP_RET_ERRNO;

/// Installs the filter. The process must have `no_new_privs` or SYS_ADMIN.
pub fn install(refusals: &[Refusal]) -> Result<()> {
    load_program(program(refusals))
}

fn load_program(mut program: Vec<libc::sock_filter>) -> Result<()> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u16::try_from(program.len()).map_err(too_long).context("install", "system call filter")?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the program and its description live through the call, which copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).context("install", "system call filter")
    }
}

/// Installs a filter that lets through these calls alone, less the refusals; every other is refused with EPERM. For a
/// process whose calls are known. The process must have `no_new_privs` or SYS_ADMIN.
pub fn install_only(allowed: &[libc::c_long], refusals: &[Refusal]) -> Result<()> {
    let mut program = program(refusals);
    // Its last instruction allows what has not been refused.
    program.pop();
    for call in allowed {
        program.extend([jump(libc::BPF_JEQ, *call as u32, 0, 1), give(libc::SECCOMP_RET_ALLOW)]);
    }
    program.push(give(RETURN_ERRNO | libc::EPERM as u32));
    load_program(program)
}

/// Classic BPF: each refusal is a few instructions that either return or fall through to the next.
fn program(refusals: &[Refusal]) -> Vec<libc::sock_filter> {
    let nosys = RETURN_ERRNO | libc::ENOSYS as u32;
    let mut program = vec![
        load(ARCH),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        give(nosys),
        load(NUMBER),
        jump(libc::BPF_JGE, X32, 0, 1),
        give(nosys),
    ];
    for refusal in refusals {
        let refuse = give(RETURN_ERRNO | refusal.errno as u32);
        let call = refusal.call as u32;
        match refusal.when {
            When::Always => program.extend([jump(libc::BPF_JEQ, call, 0, 1), refuse]),
            When::Equal(argument, value) => {
                program.extend(by_argument(call, argument, jump(libc::BPF_JEQ, value, 0, 1), refuse));
            }
            When::Pair(argument, first, second) => program.extend([
                jump(libc::BPF_JEQ, call, 0, 6),
                load_argument(argument),
                jump(libc::BPF_JEQ, first, 0, 3),
                load_argument(argument + 1),
                jump(libc::BPF_JEQ, second, 0, 1),
                refuse,
                load(NUMBER),
            ]),
            When::AnyBit(argument, bits) => {
                program.extend(by_argument(call, argument, jump(libc::BPF_JSET, bits, 0, 1), refuse));
            }
        }
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    program
}

fn by_argument(
    call: u32,
    argument: u8,
    test: libc::sock_filter,
    refuse: libc::sock_filter,
) -> [libc::sock_filter; 5] {
    [jump(libc::BPF_JEQ, call, 0, 4), load_argument(argument), test, refuse, load(NUMBER)]
}

/// The lower 32 bits.
fn load_argument(argument: u8) -> libc::sock_filter {
    load(ARGUMENTS + 8 * u32::from(argument) + if cfg!(target_endian = "big") { 4 } else { 0 })
}

fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn give(value: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, value)
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(condition: u32, k: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | condition | libc::BPF_K) as u16, jt: if_true, jf: if_false, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filter is one thread's; who waits for that thread is not under it.
    #[test]
    fn all_but_the_named_calls_are_refused() {
        let seen = std::thread::spawn(|| {
            crate::process::forbid_new_privileges().unwrap();
            let needed = [
                libc::SYS_write,
                libc::SYS_futex,
                libc::SYS_mmap,
                libc::SYS_munmap,
                libc::SYS_mprotect,
                libc::SYS_madvise,
                libc::SYS_sigaltstack,
                libc::SYS_rt_sigprocmask,
                libc::SYS_exit,
                libc::SYS_socket,
            ];
            let no_packets = Refusal {
                call: libc::SYS_socket,
                when: When::Equal(0, libc::AF_PACKET as u32),
                errno: libc::EAFNOSUPPORT,
            };
            install_only(&needed, &[no_packets]).unwrap();
            // SAFETY: takes numbers.
            let pid = unsafe { libc::syscall(libc::SYS_getppid) };
            let unnamed = (pid, io::Error::last_os_error().raw_os_error());
            // SAFETY: takes numbers.
            let packets = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
            let refused = (packets, io::Error::last_os_error().raw_os_error());
            // SAFETY: takes numbers. The descriptor is left to the process: close(2) is not among the calls.
            let stream = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
            (unnamed, refused, stream)
        });
        let (unnamed, refused, stream) = seen.join().unwrap();
        assert_eq!(unnamed, (-1, Some(libc::EPERM)));
        assert_eq!(refused, (-1, Some(libc::EAFNOSUPPORT)));
        assert!(stream > 2);
    }
}
