//! The node's side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::auth::Refusal;
use mesh::spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ca_id;
use super::message::{self, Denied, HOLD, Request, Response};
use crate::Clock;
use crate::bundle::{Bundle, BundleError, Bundles, Fingerprint};
use crate::svid::{KeyRequest, Svid, SvidError};
use crate::tls;
use crate::verify::{Expected, problem_of_io, refusal_of_io, verify_chain};

/// How long one request may take, connecting included.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The connection failed, or the CA's certificate was refused.
    #[error("CA at {address}: {problem}")]
    Connection {
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        problem: String,
        /// The same, for metrics.
        refusal: Refusal,
    },
    /// The CA refused.
    #[error("CA at {address}: {denied}")]
    Denied {
        /// Where.
        address: SocketAddr,
        /// Why.
        denied: Denied,
    },
    /// It answered something else than was asked.
    #[error("CA at {0}: it answered something else than was asked")]
    Unexpected(SocketAddr),
    /// What it issued is of no use.
    #[error("what the CA issued is of no use: {0}")]
    Svid(#[from] SvidError),
    /// The bundle it sent is of no use.
    #[error("what the CA sent is of no use: {0}")]
    Bundle(#[from] BundleError),
    /// A name that fits into no ID.
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
    /// TLS could not be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl EnrolError {
    /// As metrics and `auth list` have it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Connection { refusal, .. } => *refusal,
            _ => Refusal::NoCertificate,
        }
    }
}

/// A CA, as a node knows it.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    trust_domain: TrustDomain,
    bundles: Arc<Bundles>,
    clock: Clock,
}

impl Client {
    /// The CA's certificate is verified against `bundles`.
    pub fn new(address: SocketAddr, trust_domain: TrustDomain, bundles: Arc<Bundles>, clock: Clock) -> Self {
        Self { address, trust_domain, bundles, clock }
    }

    /// The node's own certificate and the current bundle, for a token. The token is spent, whatever comes of it after it
    /// has been sent.
    pub async fn join(&self, node: &str, token: &str) -> Result<(Svid, Bundle), EnrolError> {
        let id = self.trust_domain.node(node)?;
        let key = KeyRequest::new()?;
        let (node, token) = (node.to_owned(), token.to_owned());
        let config = tls::anonymous_client_config(self.expected()?, &self.bundles, &self.clock)?;
        let csr = key.der().to_vec();
        self.issued(config, Request::Join { node, token, csr }, key, &id).await
    }

    /// A certificate for a workload of the node, or a new one for the node itself, and the current bundle.
    pub async fn issue(&self, node: &Svid, id: &SpiffeId) -> Result<(Svid, Bundle), EnrolError> {
        let key = KeyRequest::new()?;
        let csr = key.der().to_vec();
        self.issued(self.as_node(node)?, Request::Issue { id: id.clone(), csr }, key, id).await
    }

    /// The current bundle. If the CA does not take the node's certificate, it is asked again without: the root of that
    /// certificate may be the one that was taken away, which is just what the node has to learn.
    pub async fn bundle(&self, node: &Svid) -> Result<Bundle, EnrolError> {
        match self.ask_bundle(self.as_node(node)?).await {
            Err(EnrolError::Connection {
                refusal: Refusal::RefusedByPeer | Refusal::NodeUnreachable,
                ..
            }) => {
                let anonymous = tls::anonymous_client_config(self.expected()?, &self.bundles, &self.clock)?;
                self.ask_bundle(anonymous).await
            }
            answered => answered,
        }
    }

    /// A connection on which the CA tells of another bundle as soon as it has one.
    pub async fn watch(&self, node: &Svid) -> Result<Watch, EnrolError> {
        let config = self.as_node(node)?;
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
        let stream = timeout(PATIENCE, self.connect(config)).await.unwrap_or_else(late);
        let stream = stream.map_err(|error| self.failed(&error))?;
        Ok(Watch { client: self.clone(), stream })
    }

    fn failed(&self, error: &io::Error) -> EnrolError {
        let (address, refusal) = (self.address, refusal_of_io(error));
        EnrolError::Connection { address, problem: problem_of_io(error), refusal }
    }

    async fn ask_bundle(&self, config: Arc<ClientConfig>) -> Result<Bundle, EnrolError> {
        match self.ask(config, Request::Bundle).await? {
            Response::Bundle(bundle) => self.read_bundle(bundle),
            _ => Err(EnrolError::Unexpected(self.address)),
        }
    }

    fn expected(&self) -> Result<Expected, EnrolError> {
        Ok(Expected::Id(ca_id(&self.trust_domain)?))
    }

    fn as_node(&self, node: &Svid) -> Result<Arc<ClientConfig>, EnrolError> {
        Ok(tls::client_config(node, self.expected()?, &self.bundles, &self.clock)?)
    }

    async fn issued(
        &self,
        config: Arc<ClientConfig>,
        request: Request,
        key: KeyRequest,
        id: &SpiffeId,
    ) -> Result<(Svid, Bundle), EnrolError> {
        match self.ask(config, request).await? {
            Response::Issued { chain, bundle } => {
                let chain = chain.into_iter().map(CertificateDer::from).collect();
                Ok((key.finish(id, chain)?, self.read_bundle(bundle)?))
            }
            _ => Err(EnrolError::Unexpected(self.address)),
        }
    }

    fn read_bundle(&self, certificates: Vec<Vec<u8>>) -> Result<Bundle, EnrolError> {
        let certificates = certificates.into_iter().map(CertificateDer::from);
        Ok(Bundle::new(self.trust_domain.clone(), certificates)?)
    }

    async fn ask(&self, config: Arc<ClientConfig>, request: Request) -> Result<Response, EnrolError> {
        let address = self.address;
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
        match timeout(PATIENCE, self.exchange(config, request)).await.unwrap_or_else(late) {
            Ok(Response::Denied(denied)) => Err(EnrolError::Denied { address, denied }),
            Ok(response) => Ok(response),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn exchange(&self, config: Arc<ClientConfig>, request: Request) -> io::Result<Response> {
        let mut stream = self.connect(config).await?;
        message::send(&mut stream, &request).await?;
        message::receive(&mut stream).await
    }

    async fn connect(&self, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(tls::server_name(), stream).await
    }
}

/// A connection that [`Client::watch`] has made.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    stream: TlsStream<TcpStream>,
}

impl Watch {
    /// Waits for a bundle other than this one; none: the CA has no other, and is to be asked again. That it is the CA is
    /// judged anew each time, by whom this node trusts then. After an error it is of no more use.
    pub async fn next(&mut self, known: Fingerprint) -> Result<Option<Bundle>, EnrolError> {
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
        let answer = timeout(HOLD + PATIENCE, self.exchange(known)).await.unwrap_or_else(late);
        let Self { client, .. } = self;
        match answer.map_err(|error| client.failed(&error))? {
            Response::Bundle(bundle) => client.read_bundle(bundle).map(Some),
            Response::Unchanged => Ok(None),
            Response::Denied(denied) => Err(EnrolError::Denied { address: client.address, denied }),
            Response::Issued { .. } => Err(EnrolError::Unexpected(client.address)),
        }
    }

    async fn exchange(&mut self, known: Fingerprint) -> io::Result<Response> {
        message::send(&mut self.stream, &Request::Watch { known }).await?;
        let response = message::receive(&mut self.stream).await?;
        let client = &self.client;
        let now = client.clock.current_time().ok_or_else(|| io::Error::other("the time is unknown"))?;
        let chain = self.stream.get_ref().1.peer_certificates().unwrap_or_default();
        let expected = client.expected().map_err(io::Error::other)?;
        verify_chain(chain, &expected, &client.bundles.load(), now)
            .map_err(|error| io::Error::other(rustls::Error::from(error)))?;
        Ok(response)
    }
}
