//! One error for every call: what was done to which object, and what the kernel answered.

use std::fmt::Display;
use std::io;

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{call} {object}: {source}")]
    Call {
        /// What was tried, in words.
        call: &'static str,
        /// To which object.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file or name is not what it must be.
    #[error("{object}: found {found}, expected {expected}")]
    Unexpected {
        /// Which object.
        object: String,
        /// What it is.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// The kernel has been built without it.
    #[error("this kernel does not support {what}: it needs {needs}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Configuration or version that would have it.
        needs: &'static str,
    },
}

impl Error {
    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Call { source, .. } => source.raw_os_error(),
            Self::Unexpected { .. } | Self::Unsupported { .. } => None,
        }
    }

    /// The object is not there: no such file, device, address, route or process.
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }

    /// The object is there already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}

/// Names call and object of a failed system call.
pub(crate) trait Context<T> {
    fn context(self, call: &'static str, object: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, call: &'static str, object: impl Display) -> Result<T> {
        self.map_err(|source| Error::Call { call, object: object.to_string(), source: source.into() })
    }
}
