//! `ferromesh auth-agent`: the process that proves workloads to one another and writes the kernel's marks.
//!
//! It opens the maps it was handed, then gives up every right and the file system but its directory, then reads its first
//! byte from anybody. Killed at any moment it leaves marks that end with their leases, or are adopted by the next.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use auth_agent::driver::{DriverError, Handed, Options, WallClock};
use linux::process;
use linux::user::Credentials;

use crate::confine::{Maps, confine};

/// Why the auth-agent does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(
        "found {0} inherited descriptors, expected at least six: 3, its control socket; 4, the hold device; 5, 6, 7 and 8, \
        the maps AUTH, MARKS, LEASES and TRIGGERS; and from 9 on the TCP sockets it listens on; the agent starts this process"
    )]
    Descriptors(usize),
    #[error(transparent)]
    Linux(#[from] linux::Error),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Runs until it is told to end.
pub(crate) fn run(directory: &Path, user: &str, ca: SocketAddr, node: String) -> Result<(), Failure> {
    let mut inherited = process::inherited()?;
    let listeners = inherited.split_off(inherited.len().min(6));
    let [control, hold, pairs, marks, leases, triggers] =
        <[OwnedFd; 6]>::try_from(inherited).map_err(|found| Failure::Descriptors(found.len()))?;
    let credentials = Credentials::parse(user)?;
    let opened = Handed { control, hold, pairs, marks, leases, triggers, listeners }.open()?;
    confine(directory, &credentials, &opened.descriptors(), Maps::Used)?;
    let options = Options { node, ca, directory: PathBuf::from("/"), wall: WallClock::machine() };
    // After the confinement: a thread has the rights of the one that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(opened.run(options))?)
}
