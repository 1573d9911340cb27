//! `load`: the client and the server of the benchmarks of the kernel path, each a process of its own on one CPU.
//!
//! Promise: in an open loop a latency counts from the moment when the operation was due, not from when it could begin: a
//! server that stalls delays all that were due meanwhile, and all of them tell (`conformance/tests/load.rs` stops one and
//! looks). One thread does one operation after the other, so one that is late waits here as it would in a server's
//! queue. Rejected: several connections at a time, which would measure the scheduler of a machine with two CPUs.
//!
//! A run ends by itself, and a process with its standard input: whoever measures may die at any time.

mod drive;
mod serve;

use std::io;
use std::process::ExitCode;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const USAGE: &str = "\
usage: load serve PORT PLACE   answer whatever the other asks
       load drive PLACE        for each line `MODE ADDRESS:PORT SECONDS [RATE]` of standard input, a run; its figures as JSON
modes
  rr       one byte there and back, again and again on one connection
  crr      a connection, one byte there and back, its end; again and again
  stream   as many bytes as go through
RATE is operations a second, kept whatever the server does; without it one follows the other at once.
PLACE is the CPU: the how-manieth, from 0, of those that this process may use.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    let number =
        |word: &str| word.parse().map_err(|_| io::Error::other(format!("{word:?} is no number\n{USAGE}")));
    match words {
        ["serve", port, place] => {
            settle(number(place)?)?;
            serve::serve(number(port)?)
        }
        ["drive", place] => {
            settle(number(place)?)?;
            drive::drive()
        }
        _ => Err(io::Error::other(USAGE)),
    }
}

/// Stays on one CPU; on the last one there is where there are fewer.
fn settle(place: u16) -> io::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut usable: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
    usable.truncate(usize::from(place) + 1);
    let mut only = CpuSet::new();
    if let Some(cpu) = usable.last() {
        only.set(*cpu)?;
    }
    Ok(sched_setaffinity(this, &only)?)
}
