//! A workload here: its addresses, its namespace and devices, from enrolment to removal; and what the host itself
//! needs for that.
//!
//! Promise: enrolment is three calls, of which the middle one is another crate's: [`Endpoints::prepare`], the datapath
//! attaches its programs and writes its maps, [`Endpoints::release`]. Until the last one no packet of the workload can
//! leave or reach it, for its device is down. All that is made is found again after a crash, by record or by name, and
//! either adopted or removed. No netfilter rule is ever written, and each change to the host is recorded with how it
//! was before ([`Host`]).
//!
//! Everything happens in the network namespace of the calling thread and in the directories of [`Config`]; several
//! nodes on one machine differ in these.

mod address;
mod config;
mod conflict;
mod device;
pub mod dns;
mod enrolment;
mod error;
mod host;
mod host_file;
mod outward;
mod ports;
mod quarantine;
mod record;
mod sockets;
mod wiring;

pub use config::{Config, HostResolver};
pub use enrolment::{Emptied, Endpoints, Opened, Prepared};
pub use error::{Error, Result};
pub use host::{Change, Host};
pub use outward::Outward;
pub use sockets::Departed;
