//! Programs written by hand: a few instructions that no compiler moves, loaded and run by bpf(2) itself.
#![allow(unsafe_code, reason = "the system call takes a pointer to a command's attributes")]
#![allow(clippy::panic, reason = "clippy knows only functions marked as tests to be tests")]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const LICENCE: &CStr = c"GPL";

/// Numbers of helpers.
pub(crate) mod helper {
    pub(crate) const MAP_LOOKUP_ELEM: i32 = 1;
    pub(crate) const KTIME_GET_NS: i32 = 5;
    pub(crate) const GET_PRANDOM_U32: i32 = 7;
    pub(crate) const SKB_LOAD_BYTES: i32 = 26;
}

/// Sizes of loads and stores, as in an instruction's code.
pub(crate) mod size {
    pub(crate) const WORD: u8 = 0x00;
    pub(crate) const BYTE: u8 = 0x10;
    pub(crate) const DOUBLE: u8 = 0x18;
}

/// Operations on registers, as in an instruction's code.
pub(crate) mod operation {
    pub(crate) const ADD: u8 = 0x00;
    pub(crate) const MULTIPLY: u8 = 0x20;
    pub(crate) const SHIFT_LEFT: u8 = 0x60;
    pub(crate) const SHIFT_RIGHT: u8 = 0x70;
    pub(crate) const MOVE: u8 = 0xb0;
}

/// Conditions of jumps, as in an instruction's code.
pub(crate) mod condition {
    pub(crate) const EQUAL: u8 = 0x10;
    pub(crate) const NOT_EQUAL: u8 = 0x50;
}

/// A program as it grows.
#[derive(Default)]
pub(crate) struct Assembly {
    instructions: Vec<u64>,
    labels: BTreeMap<&'static str, usize>,
    jumps: Vec<(usize, &'static str)>,
}

impl Assembly {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, number: i32) {
        let registers = u64::from(to | from << 4) << 8;
        let offset = u64::from(offset.cast_unsigned()) << 16;
        self.instructions
            .push(u64::from(code) | registers | offset | u64::from(number.cast_unsigned()) << 32);
    }

    pub(crate) fn label(&mut self, label: &'static str) {
        self.labels.insert(label, self.instructions.len());
    }

    /// `to op= number`.
    pub(crate) fn with_number(&mut self, operation: u8, to: u8, number: i32) {
        self.push(0x07 | operation, to, 0, 0, number);
    }

    /// `to op= from`.
    pub(crate) fn with(&mut self, operation: u8, to: u8, from: u8) {
        self.push(0x0f | operation, to, from, 0, 0);
    }

    pub(crate) fn load(&mut self, size: u8, to: u8, from: u8, offset: i16) {
        self.push(0x61 | size, to, from, offset, 0);
    }

    pub(crate) fn store(&mut self, size: u8, to: u8, offset: i16, from: u8) {
        self.push(0x63 | size, to, from, offset, 0);
    }

    /// Adds one to the u64 at `to`, atomically; `one` holds one.
    pub(crate) fn count(&mut self, to: u8, one: u8) {
        self.push(0xdb, to, one, 0, 0);
    }

    pub(crate) fn call(&mut self, helper: i32) {
        self.push(0x85, 0, 0, 0, helper);
    }

    pub(crate) fn jump(&mut self, label: &'static str) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05, 0, 0, 0, 0);
    }

    pub(crate) fn jump_if_number(&mut self, condition: u8, register: u8, number: i32, label: &'static str) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05 | condition, register, 0, 0, number);
    }

    pub(crate) fn jump_if(&mut self, condition: u8, left: u8, right: u8, label: &'static str) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x0d | condition, left, right, 0, 0);
    }

    /// `to` = the map.
    pub(crate) fn map(&mut self, to: u8, map: BorrowedFd<'_>) {
        self.push(0x18, to, 1, 0, map.as_raw_fd());
        self.push(0, 0, 0, 0, 0);
    }

    pub(crate) fn exit(&mut self) {
        self.push(0x95, 0, 0, 0, 0);
    }

    /// Loads it as a classifier.
    pub(crate) fn load_program(mut self) -> Program {
        for (place, label) in std::mem::take(&mut self.jumps) {
            let distance = i16::try_from(self.labels[label] as i64 - place as i64 - 1).unwrap();
            self.instructions[place] |= u64::from(distance.cast_unsigned()) << 16;
        }
        let mut log = vec![0u8; 1 << 20];
        let attributes = Load {
            kind: BPF_PROG_TYPE_SCHED_CLS,
            count: u32::try_from(self.instructions.len()).unwrap(),
            instructions: self.instructions.as_ptr() as u64,
            licence: LICENCE.as_ptr() as u64,
            log_level: 1,
            log_size: 1 << 20,
            log: log.as_mut_ptr() as u64,
        };
        let loaded = call(BPF_PROG_LOAD, &attributes);
        let said = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
        let fd = loaded.unwrap_or_else(|error| panic!("{error}: {said}"));
        // SAFETY: the command succeeded, so the result is a new descriptor that nobody else owns.
        Program(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A loaded program.
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Runs it on a packet, again and again.
    pub(crate) fn run(&self, packet: &[u8; 64], times: u32) {
        let attributes = Run {
            program: self.0.as_raw_fd().cast_unsigned(),
            result: 0,
            in_length: 64,
            out_length: 0,
            input: packet.as_ptr() as u64,
            output: 0,
            times,
            duration: 0,
        };
        call(BPF_PROG_TEST_RUN, &attributes).unwrap();
    }
}

/// Head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The same for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct Run {
    program: u32,
    result: u32,
    in_length: u32,
    out_length: u32,
    input: u64,
    output: u64,
    times: u32,
    duration: u32,
}

fn call<A>(command: libc::c_long, attributes: &A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most `size_of::<A>()` bytes of `attributes`, takes the rest of its union for
    // zero, and what they point at outlives the call. `Run::result` and `duration` are written, and read by nobody.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
