//! What node and CA say to each other: a length (u32, network order, at most [`MAX_MESSAGE`]) and that many bytes of
//! postcard.

use std::io;
use std::time::Duration;

use mesh::spiffe::SpiffeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::bundle::Fingerprint;

/// How long the CA lets a node wait for another bundle before it says that there is none.
pub const HOLD: Duration = Duration::from_secs(10);
/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// From a node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A node without a certificate. → [`Response::Issued`].
    Join {
        /// The node's name.
        node: String,
        /// What it was given to show that.
        token: String,
        /// PKCS#10, DER.
        csr: Vec<u8>,
    },
    /// A certificate for a workload placed on the node, or for the node itself. → [`Response::Issued`].
    Issue {
        /// For whom.
        id: SpiffeId,
        /// PKCS#10, DER.
        csr: Vec<u8>,
    },
    /// → [`Response::Bundle`]. Of anybody: roots are public, and who is no longer trusted must learn of it.
    Bundle,
    /// A bundle that is another than this one: → [`Response::Bundle`] as soon as there is one, or
    /// [`Response::Unchanged`] after [`HOLD`]. Of a node that shows its certificate, which may ask so again and again on
    /// one connection; a later connection of the same node takes its place.
    Watch {
        /// The one that the node has.
        known: Fingerprint,
    },
}

/// From the CA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// A certificate.
    Issued {
        /// DER, leaf first, without the root.
        chain: Vec<Vec<u8>>,
        /// The roots of the trust domain, DER.
        bundle: Vec<Vec<u8>>,
    },
    /// The roots of the trust domain, DER.
    Bundle(Vec<Vec<u8>>),
    /// No.
    Denied(Denied),
    /// The bundle is the one that the node has.
    Unchanged,
}

/// Why the CA does not do what it is asked.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, thiserror::Error,
)]
pub enum Denied {
    /// There is no such token, it is another node's, was used, or is too old.
    #[error(
        "the join token is not good: unknown, another node's, used, or more than an hour old; ask for a new one"
    )]
    Token,
    /// The node is not one of the mesh.
    #[error("no such node in the mesh: is there a Node object of this name?")]
    UnknownNode,
    /// The request must be made with a node's certificate.
    #[error("only a node with a certificate may ask for that; join first")]
    NoCertificate,
    /// The ID is not one of a workload on that node.
    #[error("no workload with this ID is placed on the node that asks")]
    NotPlaced,
    /// The certificate request is not good.
    #[error("the certificate request is malformed, not signed by its own key, or not of a P-256 key")]
    Request,
    /// The CA cannot issue.
    #[error("the CA cannot issue now; its log says why")]
    Unable,
    /// The request is not understood.
    #[error("the CA does not understand the request: is it of the same version?")]
    Protocol,
}

impl Denied {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::UnknownNode => "unknown-node",
            Self::NoCertificate => "no-certificate",
            Self::NotPlaced => "not-placed",
            Self::Request => "request",
            Self::Unable => "unable",
            Self::Protocol => "protocol",
        }
    }
}

/// Reads one message.
pub(crate) async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_MESSAGE {
        let problem = format!("message of {length} bytes, more than {MAX_MESSAGE}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    match postcard::take_from_bytes(&bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "message with bytes after its end")),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// Writes one message.
pub(crate) async fn send<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long"));
    }
    stream.write_all(&[&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()).await?;
    stream.flush().await
}
