//! Programs of a few instructions that an example makes itself, and runs: aya loads programs from objects only.
#![allow(unsafe_code, reason = "the system call takes a pointer to a command's attributes")]
#![allow(dead_code, reason = "each example uses a part")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const PROGRAM_ARRAY: u32 = 3;
const SCHED_CLS: u32 = 3;

/// `struct bpf_insn`; the registers are source << 4 | destination.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Instruction(pub(crate) u8, pub(crate) u8, pub(crate) i16, pub(crate) i32);

/// Head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Head of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

/// Head of `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Head of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

/// What a test run said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    /// Of the last repetition.
    pub(crate) result: u32,
    /// Nanoseconds of one, on average.
    pub(crate) nanoseconds: u32,
}

fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the given size; what the attributes point at outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn descriptor<A>(command: libc::c_long, attributes: &mut A) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the command succeeded, so the result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Loads a classifier. Its name has at most 15 bytes: letters, digits, `_`.
pub(crate) fn load(name: &str, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.bytes().take(15)).for_each(|(byte, of_name)| *byte = of_name);
    let mut load = Load {
        kind: SCHED_CLS,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: bytes,
    };
    descriptor(PROG_LOAD, &mut load)
}

/// An array with one place for a program to go on with.
pub(crate) fn jump_table() -> io::Result<OwnedFd> {
    descriptor(MAP_CREATE, &mut MapCreate { kind: PROGRAM_ARRAY, key_size: 4, value_size: 4, entries: 1 })
}

/// Puts a program there.
pub(crate) fn aim(table: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, program.as_raw_fd());
    let mut update = MapUpdate {
        map: table.as_raw_fd().cast_unsigned(),
        zero: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut update).map(drop)
}

/// Runs a program on a frame as often as told, with a `__sk_buff` or without.
pub(crate) fn run(program: impl AsFd, frame: &[u8], context: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut run = TestRun {
        program: program.as_fd().as_raw_fd().cast_unsigned(),
        size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat,
        context_size_in: context.len() as u32,
        context_in: if context.is_empty() { 0 } else { context.as_ptr() as u64 },
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut run)?;
    Ok(Ran { result: run.result, nanoseconds: run.duration })
}
