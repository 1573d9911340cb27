//! ClientHellos, of rustls and written by hand.
#![allow(clippy::unwrap_used, reason = "clippy knows only functions marked as tests to be tests")]
#![allow(dead_code, unreachable_pub, reason = "each test binary has it as a module and uses a part")]

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};

/// Whoever shows whatever is believed: these tests are about who may be called.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client as programs have it: ML-KEM first, so that its first message fills more than one segment.
pub fn client_config() -> Arc<ClientConfig> {
    client_config_with(default_provider().kx_groups)
}

/// The same with these groups, the first of which it guesses that the server takes.
pub fn client_config_with(kx_groups: Vec<&'static dyn SupportedKxGroup>) -> Arc<ClientConfig> {
    let provider = Arc::new(CryptoProvider { kx_groups, ..default_provider() });
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Credulous));
    Arc::new(builder.with_no_client_auth())
}

/// A server with a certificate of its own making.
pub fn server_config() -> Arc<ServerConfig> {
    server_config_with(default_provider().kx_groups)
}

/// The same that takes these groups.
pub fn server_config_with(kx_groups: Vec<&'static dyn SupportedKxGroup>) -> Arc<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["server.example".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(CryptoProvider { kx_groups, ..default_provider() });
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(
        builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap(),
    )
}

/// What rustls sends first to a server of this name or address.
pub fn of_rustls(name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(client_config(), name).unwrap();
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello).unwrap();
    }
    hello
}

/// An extension of a type.
pub fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

/// An entry of the list of server names.
pub fn entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind][..], &(name.len() as u16).to_be_bytes(), name].concat()
}

/// The extension with these entries.
pub fn names(entries: &[Vec<u8>]) -> Vec<u8> {
    let list = entries.concat();
    extension(0, &[&(list.len() as u16).to_be_bytes()[..], &list].concat())
}

/// The extension that names one server.
pub fn naming(name: &[u8]) -> Vec<u8> {
    names(&[entry(0, name)])
}

/// A ClientHello without the header of a message, with these extensions.
pub fn body(extensions: &[Vec<u8>]) -> Vec<u8> {
    let all = extensions.concat();
    [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &(all.len() as u16).to_be_bytes(), &all].concat()
}

/// A message of the handshake.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&[kind][..], &length[1..], body].concat()
}

/// A record.
pub fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &(payload.len() as u16).to_be_bytes(), payload].concat()
}

/// One record with one ClientHello with these extensions.
pub fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    record(22, &message(1, &body(extensions)))
}
