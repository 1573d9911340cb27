//! `l7load`: clients and servers of HTTP for the benchmarks of the L7 proxy; one thread, without a runtime, so that they
//! cost less than what they measure.
//!
//! Promise: what is counted as answered is an answer of status 200 (or the one that was asked for) whose body has the length that was asked for; all else
//! is told as failed. Everything ends by itself: a run by its time, a process with its standard input.

mod client;
mod drive;
mod flood;
mod h1;
mod h2;
mod pulse;
mod serve;
mod tls;
mod watch;
mod wire;

use std::io;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

const USAGE: &str = "\
usage: l7load serve PORT…           answer at PROTOCOL:PORT:BODY (h1, h2, grpc) or sink:PORT
       l7load drive                 for each line of standard input, a run; its figures; both in JSON
       l7load pulse ADDRESS PATH    ask over and over on one connection; a line for each change of the status, and since when
       l7load flood KIND ADDRESS    be a nuisance: connections, bodies, resets, handshakes; an answer's line tells how often
A run is described in conformance/src/bench/l7/load.rs.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("l7load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    match words {
        ["serve", ports @ ..] if !ports.is_empty() => {
            let ports: Result<Vec<_>, String> = ports.iter().map(|port| port.parse()).collect();
            serve::serve(&ports.map_err(io::Error::other)?)
        }
        ["drive"] => drive::drive(),
        ["pulse", to, path] => pulse::pulse(to.parse().map_err(io::Error::other)?, path),
        ["flood", kind, to] => flood::flood(kind, to.parse().map_err(io::Error::other)?),
        _ => Err(io::Error::other(USAGE)),
    }
}

/// Ends the process with its standard input.
fn end_with_input() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}
