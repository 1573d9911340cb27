//! The L7 proxy: what a request costs beside other proxies, what it keeps in memory, how fast rules are live, and what one
//! tenant can do to another.
//!
//! Two places. *Transparent*: two workloads of a real node, an HTTP rule between them, and the proxy where the node's programs
//! send their connections; another proxy takes the very same place, its listening socket in the place of ours
//! ([`transparent`]). *Reverse*: on a plain listener before a server ([`reverse`]).
//!
//! Everywhere: the proxy alone on the first CPU, with one worker; client, server, agent and whoever reads logs on the second.
//! A request's cost is the time in which the proxy's CPU was not idle, by requests. Every proxy logs each request, judges
//! its method, path and source, and may keep as many connections to the server as there are clients.

mod anchor;
pub mod denied;
pub mod edit;
pub mod load;
mod many;
pub mod memory;
pub mod neighbour;
mod peers;
mod process;
mod reverse;
pub mod rps;
pub mod rules;
mod transparent;
pub mod user;

use std::cell::RefCell;
use std::process::Command;

use self::load::{Order, Sample};
use super::compare::median;
use crate::lab::Session;

/// The CPU of the proxy, and that of all others.
const PROXY: usize = 0;
const OTHERS: usize = 1;

/// A client that obeys orders.
struct Driver(RefCell<Session>);

impl Driver {
    /// `command` is `l7load`, wherever it is to run.
    fn start(command: &mut Command) -> Self {
        let session = process::on(OTHERS, || Session::start(command.arg("drive")));
        assert_eq!(session.line(), "open");
        Self(RefCell::new(session))
    }

    /// One run.
    fn run(&self, order: &Order) -> Result<Sample, String> {
        self.begin(order);
        self.end()
    }

    fn begin(&self, order: &Order) {
        self.0.borrow_mut().say(&serde_json::to_string(order).expect("an order is JSON"));
    }

    /// What came of the run that was begun.
    fn end(&self) -> Result<Sample, String> {
        let line = self.0.borrow().hear().ok_or("the client says nothing")?;
        serde_json::from_str(&line).map_err(|_| line)
    }

    /// One run in which nothing may fail.
    fn faultless(&self, order: &Order) -> Result<Sample, String> {
        let sample = self.run(order)?;
        match sample.failed {
            0 if sample.requests > 0 => Ok(sample),
            failed => Err(format!("{} requests answered, {failed} failed", sample.requests)),
        }
    }
}

impl Sample {
    /// Requests for each second of the CPU.
    fn rate(&self) -> f64 {
        self.requests as f64 / self.busy
    }

    /// Microseconds of a request: user time, and the rest. The kernel only samples who is at work, but measures how long
    /// nobody is.
    fn split(&self) -> [f64; 2] {
        let whole = self.user + self.system + self.interrupts;
        let each = self.busy * 1e6 / self.requests as f64;
        let user = if whole > 0.0 { self.user / whole } else { f64::NAN };
        [each * user, each * (1.0 - user)]
    }
}

/// The median of a figure over rounds.
fn middle(series: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    median(series.iter().map(figure).collect())
}

/// The median of each round's ratio.
fn ratio(one: &[Sample], other: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    median(one.iter().zip(other).map(|(one, other)| figure(one) / figure(other)).collect())
}
