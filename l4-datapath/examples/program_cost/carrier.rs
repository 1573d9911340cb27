//! Runs a program a million times as if on a million packets.
//!
//! A test run repeats a program on one buffer, and ours change the packet: once delivered to a workload, it has other
//! MACs and a lower TTL, and the next repetition would be refused. So a few instructions go before each run: they put
//! the headers back and, if every packet is to be a connection of its own, count the source port up. Then they jump to
//! the program. What that costs by itself is the floor, measured with a program that returns at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::raw::{self, Instruction, Ran};

/// What a packet's source port does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Stays,
    CountsUp,
}

/// A program to be run, behind the carrier. `__sk_buff.data` and `data_end` stand at 76 and 80.
pub(crate) struct Carrier {
    loaded: OwnedFd,
    _table: OwnedFd,
}

/// Returned if the jump failed.
const NOT_RUN: i32 = 250;

impl Carrier {
    /// For packets whose first bytes, up to the source port, are `headers`.
    pub(crate) fn new(program: impl AsFd, headers: &[u8], port: Port) -> io::Result<Self> {
        let table = raw::jump_table()?;
        let loaded = raw::load("carrier", &instructions(headers, port, table.as_raw_fd()))?;
        raw::aim(&table, program.as_fd())?;
        Ok(Self { loaded, _table: table })
    }

    pub(crate) fn run(&self, frame: &[u8], context: &[u8], repeat: u32) -> Ran {
        raw::run(&self.loaded, frame, context, repeat).expect("the kernel runs the program")
    }
}

/// Returns 0 at once.
pub(crate) fn empty(name: &str) -> io::Result<OwnedFd> {
    raw::load(name, &[Instruction(0xb7, 0, 0, 0), Instruction(0x95, 0, 0, 0)])
}

fn instructions(headers: &[u8], port: Port, table: i32) -> Vec<Instruction> {
    let i = Instruction;
    let at = headers.len() as i16;
    let mut body = Vec::new();
    for (n, bytes) in headers.chunks(4).enumerate() {
        let offset = 4 * n as i16;
        match *bytes {
            [a, b, c, d] => body.push(i(0x62, 0x02, offset, i32::from_ne_bytes([a, b, c, d]))), // *(u32 *)(r2 + n)
            [a, b] => body.push(i(0x6a, 0x02, offset, i16::from_ne_bytes([a, b]).into())), // *(u16 *)(r2 + n)
            _ => panic!("headers of Ethernet and IP have an even length"),
        }
    }
    if port == Port::CountsUp {
        body.extend([
            i(0x69, 0x25, at, 0), // r5 = *(u16 *)(r2 + at)
            i(0xdc, 0x05, 0, 16), // r5 = be16
            i(0x07, 0x05, 0, 1),  // r5 += 1
            i(0xdc, 0x05, 0, 16), // r5 = be16
            i(0x6b, 0x52, at, 0), // *(u16 *)(r2 + at) = r5
        ]);
    }
    body.extend([
        i(0xbf, 0x61, 0, 0),     // r1 = r6
        i(0x18, 0x12, 0, table), // r2 = table
        i(0, 0, 0, 0),
        i(0xb7, 0x03, 0, 0), // r3 = 0
        i(0x85, 0, 0, 12),   // bpf_tail_call()
    ]);
    let mut program = vec![
        i(0xbf, 0x16, 0, 0),                 // r6 = r1
        i(0x61, 0x62, 76, 0),                // r2 = data
        i(0x61, 0x63, 80, 0),                // r3 = data_end
        i(0xbf, 0x24, 0, 0),                 // r4 = r2
        i(0x07, 0x04, 0, i32::from(at) + 2), // r4 += what is touched
        i(0x2d, 0x34, body.len() as i16, 0), // if r4 > r3 skip the body
    ];
    program.extend(body);
    program.extend([i(0xb7, 0, 0, NOT_RUN), i(0x95, 0, 0, 0)]); // r0 = …; exit
    program
}
