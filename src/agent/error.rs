//! Why an agent cannot start.

use std::io;

/// One line each: what is wrong and how it is put right is in the source's own words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The directory of YAML files.
    #[error(transparent)]
    Source(#[from] control::source::SourceError),
    /// Identity numbers.
    #[error(transparent)]
    Allocate(#[from] control::allocate::AllocateError),
    /// The first plan.
    #[error(transparent)]
    Plan(#[from] control::PlanError),
    /// Host and endpoints.
    #[error(transparent)]
    Endpoint(#[from] endpoint::Error),
    /// Port 53.
    #[error(transparent)]
    Dns(#[from] endpoint::dns::BindError),
    /// Programs and maps.
    #[error(transparent)]
    Datapath(#[from] l4_datapath::Error),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] node_api::server::BindError),
    /// `/metrics`.
    #[error(transparent)]
    Metrics(#[from] observe::serve::ServeError),
    /// The operating system.
    #[error(transparent)]
    Linux(#[from] linux::Error),
    /// A device that was made is not there.
    #[error("device {0}: made, and gone again; does something else on this host remove it?")]
    Device(String),
    /// A directory or a signal handler.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        error: io::Error,
    },
}

impl From<io::Error> for AgentError {
    fn from(error: io::Error) -> Self {
        Self::Io { what: "signal handlers".to_owned(), error }
    }
}
