//! TLS of a client that believes whoever shows whatever: what it costs the proxy is what is asked here.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;

use conformance::bench::l7::load::Protocol;
use conformance::credulous::Credulous;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection};

/// What is offered by who speaks this. No session is resumed: each handshake is whole.
pub(crate) fn config(protocol: Protocol) -> io::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = match protocol {
        Protocol::H1 => vec![b"http/1.1".to_vec()],
        Protocol::H2 | Protocol::Grpc => vec![b"h2".to_vec()],
    };
    Ok(Arc::new(config))
}

/// The whole of it, on a socket that waits.
pub(crate) fn handshake(stream: &mut TcpStream, config: &Arc<ClientConfig>) -> io::Result<ClientConnection> {
    let name = ServerName::try_from("server.example").map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(stream)?;
    }
    Ok(tls)
}

/// As of a socket that does not wait; 0 at the end.
pub(crate) fn read(
    tls: &mut ClientConnection,
    stream: &mut TcpStream,
    buffer: &mut [u8],
) -> io::Result<usize> {
    match rustls::Stream::new(tls, stream).read(buffer) {
        // Nobody says that it ends.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
        other => other,
    }
}
