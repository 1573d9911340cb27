//! What can go wrong here, for the person who must fix it.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mesh::workload::{EndpointId, WorkloadName};

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error(transparent)]
    System(#[from] linux::Error),
    /// A file could not be used.
    #[error("{call} {}: {source}", .path.display())]
    File {
        /// What was tried.
        call: &'static str,
        /// With which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// A pool is too small.
    #[error("pool {pool}: too small, expected a prefix length of at most {longest}")]
    PoolTooSmall {
        /// The pool.
        pool: IpNet,
        /// The longest prefix that is accepted.
        longest: u8,
    },
    /// A pool overlaps addresses that are in use on the host.
    #[error("pool {pool}: overlaps {with} of this host; choose another pool")]
    PoolOverlaps {
        /// The pool.
        pool: IpNet,
        /// `address A on DEVICE` or `route R`.
        with: String,
    },
    /// The host itself would have no ports.
    #[error(
        "masqueradePorts {}-{}: take all of net.ipv4.ip_local_port_range ({}-{}), the host itself could open no \
         connection; choose others",
        ports.start(), ports.end(), automatic.start(), automatic.end()
    )]
    NoPortsLeft {
        /// Those of the configuration.
        ports: RangeInclusive<u16>,
        /// Those that the kernel gives out.
        automatic: RangeInclusive<u16>,
    },
    /// The pool in the configuration is not the one endpoints were numbered from.
    #[error(
        "pool changed from {old} to {new} while {endpoints} endpoints have addresses from the old one; \
         restore it, or stop them first"
    )]
    PoolChanged {
        /// Pool of the live endpoints.
        old: IpNet,
        /// Pool of the configuration.
        new: IpNet,
        /// How many live.
        endpoints: usize,
    },
    /// All addresses are in use.
    #[error(
        "pool {pool}: exhausted, all of its addresses belong to the {endpoints} endpoints{}; stop some, or enlarge it",
        and_waiting(.waiting)
    )]
    PoolExhausted {
        /// The pool.
        pool: IpNet,
        /// How many live.
        endpoints: usize,
        /// Of how many that are gone the addresses wait until no node has a mark for them.
        waiting: usize,
    },
    /// Nothing of a pool is given out yet.
    #[error(
        "pool {pool}: this node did not have it before, and other nodes may still take its addresses for another node's \
         workloads; its first is given out in {} s", left.as_millis().div_ceil(1000)
    )]
    PoolRests {
        /// The pool.
        pool: IpNet,
        /// For how long.
        left: Duration,
    },
    /// All endpoint numbers are in use.
    #[error("65535 endpoints live on this node, it cannot number more; stop some")]
    TooManyEndpoints,
    /// The workload runs already.
    #[error(
        "workload {workload}: its name is in use on this node, by endpoint {id}; stop that or choose another name"
    )]
    NameInUse {
        /// The name.
        workload: WorkloadName,
        /// Who has it.
        id: EndpointId,
    },
    /// There is no such endpoint.
    #[error("endpoint {0}: not on this node")]
    Unknown(EndpointId),
    /// Its device came up but the kernel did not activate it.
    #[error("endpoint {0}: device did not become ready within {1} ms")]
    NotReady(EndpointId, u128),
}

fn and_waiting(waiting: &usize) -> String {
    match waiting {
        0 => String::new(),
        waiting => {
            format!(" and to {waiting} that ended just now (seconds, until no node takes them for those)")
        }
    }
}

/// Names call and file.
pub(crate) trait AtFile<T> {
    fn at(self, call: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> AtFile<T> for std::result::Result<T, E> {
    fn at(self, call: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { call, path: path.into(), source: source.into() })
    }
}
