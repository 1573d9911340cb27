//! A command as a workload: in the network namespace and cgroup that enrolment made, and unable to reach behind its
//! policy.
//!
//! Promise: the command's first instruction runs in its cgroup, namespaces and with its privileges reduced; if any step
//! fails, it does not run. Seen from inside, the host is a read-only file system without devices, kernel interfaces or
//! sockets; seen from outside, exit status, signals and terminal are the command's own. When `run` is killed the
//! workload dies; when only the command ends, what it has left running lives on.
//!
//! Three processes: *run*, outside, waits and passes signals on ([`supervise`]); *init*, the first of the PID namespace,
//! builds the sandbox, then holds no more rights than the command does and reaps ([`init`]); the command.
//!
//! Known limits: a unix socket that lies in a visible directory can be connected to although the directory is read-only
//! (`/run` and `/tmp` are not visible); there are no limits on memory and processors.

mod filesystem;
mod init;
mod own_files;
mod privileges;
mod report;
mod supervise;

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) use own_files::OwnFile;
pub(crate) use privileges::added_capabilities;
pub(crate) use supervise::run;

use linux::capability::Capabilities;
use linux::user::Credentials;

/// What is to run, and where.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Host name inside.
    pub(crate) name: String,
    /// File that is its network namespace.
    pub(crate) network_namespace: PathBuf,
    /// Its cgroup's directory.
    pub(crate) cgroup: PathBuf,
    /// Directories that are empty inside.
    pub(crate) hidden: Vec<PathBuf>,
    /// Directories below a fresh `/tmp` that can be read all the same; filled by [`run`].
    pub(crate) kept: Vec<PathBuf>,
    /// Files and directories that are the host's own and can be changed.
    pub(crate) writable: Vec<PathBuf>,
    /// Files that are its own.
    pub(crate) files: Vec<OwnFile>,
    /// Who it runs as.
    pub(crate) credentials: Credentials,
    /// Capabilities beside the usual ones.
    pub(crate) capabilities: Capabilities,
    /// Program and arguments.
    pub(crate) command: Vec<OsString>,
}

/// The command was not started, or is not known to have ended.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    /// What `run` exits with: 125 for failures of our own, 126 and 127 for a program that cannot be executed or is
    /// not there.
    pub(crate) code: u8,
    text: String,
}

impl Failure {
    /// Exit code of failures of our own, as container tools have it.
    pub(crate) const OWN: u8 = 125;

    /// A failure of our own.
    pub(crate) fn own(error: impl ToString) -> Self {
        Self { code: Self::OWN, text: error.to_string() }
    }
}
