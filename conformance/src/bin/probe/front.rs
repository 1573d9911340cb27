//! TLS before a server that speaks none.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use conformance::lab::Authority;
use nix::ifaddrs::getifaddrs;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What it is called besides its addresses.
const NAME: &str = "deathstar.example";

/// Runs a server that listens at `to`, and passes on what comes to `port` in TLS, by a certificate of this authority.
pub(crate) fn serve(port: u16, to: u16, authority: [&str; 2], command: &[&str]) -> io::Result<()> {
    let [program, arguments @ ..] = command else { return Err(io::Error::other("no server")) };
    let _server = Command::new(program).args(arguments).stdout(std::process::Stdio::null()).spawn()?;
    let acceptor = TlsAcceptor::from(config(authority)?);
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await?;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("serving");
        loop {
            let (stream, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(stream).await else { return };
                let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else { return };
                // However it ends, both have.
                let _ = copy_bidirectional(&mut tls, &mut server).await;
            });
        }
    })
}

fn config([certificate, key]: [&str; 2]) -> io::Result<Arc<ServerConfig>> {
    let own = getifaddrs()?.filter_map(|it| it.address);
    let own = own.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|it| it.ip().to_string());
        v4.or_else(|| address.as_sockaddr_in6().map(|it| it.ip().to_string()))
    });
    let names: Vec<String> = own.chain([NAME.to_owned()]).collect();
    let leaf = Authority::sign(certificate, key, &names);
    let chain = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(io::Error::other)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let mut config =
        builder.with_no_client_auth().with_single_cert(vec![chain], key).map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
