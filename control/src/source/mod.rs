//! Where objects come from.

mod accepted;
pub mod files;
pub(crate) mod layout;
mod notice;
pub mod published;
pub(crate) mod walk;

use std::io;
use std::path::PathBuf;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read at start.
    #[error("configuration directory {path}: {source}; give a directory that can be read")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What several nodes share cannot be read at start.
    #[error(
        "shared directory {path}: {source}; a shared directory holds admin/ and nodes/, which this node must be able to read"
    )]
    Shared {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The other nodes are not told what is on this one.
    #[error(
        "{path}: {source}; other nodes do not learn where workloads of this node are; it must be able to write there"
    )]
    Publish {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel gives no watch.
    #[error("inotify: {0}; raise fs.inotify.max_user_instances or max_user_watches")]
    Watch(io::Error),
    /// What was accepted earlier cannot be read.
    #[error(
        "{path}: {reason}; remove it to start from the files alone (last valid versions of invalid files are lost)"
    )]
    Accepted {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}
