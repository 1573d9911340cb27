//! TLS between two SPIFFE IDs: configurations for one handshake each, so cheap that none is kept.
//!
//! Promise: TLS 1.3 only; both sides verified by [`verify_chain`]; no resumption, tickets or early data (a resumed
//! handshake would skip the verification); no hint to a stranger which roots are trusted; no server name on the wire.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig, SignatureScheme,
};

use crate::Clock;
use crate::bundle::Bundles;
use crate::svid::Svid;
use crate::verify::{Expected, verify_chain};

/// The cryptography of every handshake: hybrid post-quantum key agreement preferred.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
        Arc::new(CryptoProvider { kx_groups, ..default_provider() })
    });
    &PROVIDER
}

/// SHA-256, by the cryptography of every handshake; `None` where that has none, and so no TLS either.
pub fn sha256(bytes: &[u8]) -> Option<[u8; 32]> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13()?;
    suite.common.hash_provider.hash(bytes).as_ref().try_into().ok()
}

/// What a client passes as the server's name. Nothing is done with it, and it is not sent.
pub fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED))
}

/// For a client that shows its own SVID.
pub fn client_config(
    own: &Svid,
    expected: Expected,
    bundles: &Arc<Bundles>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let shown = Arc::new(SingleCertAndKey::from(own.certified_key().clone()));
    client(expected, bundles, clock, |builder| builder.with_client_cert_resolver(shown))
}

/// For a client that has none yet: a node that joins.
pub fn anonymous_client_config(
    expected: Expected,
    bundles: &Arc<Bundles>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    client(expected, bundles, clock, |builder| builder.with_no_client_auth())
}

fn client(
    expected: Expected,
    bundles: &Arc<Bundles>,
    clock: &Clock,
    authenticate: impl FnOnce(
        rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    ) -> ClientConfig,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = Verifier::new(expected, bundles, true);
    let builder = ClientConfig::builder_with_details(provider().clone(), clock.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = authenticate(builder);
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// For a server whose client must show a certificate.
pub fn server_config(
    own: &Svid,
    expected: Expected,
    bundles: &Arc<Bundles>,
    clock: &Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    server(own, Verifier::new(expected, bundles, true), clock)
}

/// For a server whose client may have no certificate yet; if it shows one, it must be good.
pub fn joining_server_config(
    own: &Svid,
    expected: Expected,
    bundles: &Arc<Bundles>,
    clock: &Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    server(own, Verifier::new(expected, bundles, false), clock)
}

fn server(own: &Svid, verifier: Verifier, clock: &Clock) -> Result<Arc<ServerConfig>, rustls::Error> {
    let shown = Arc::new(SingleCertAndKey::from(own.certified_key().clone()));
    let mut config = ServerConfig::builder_with_details(provider().clone(), clock.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(shown);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// For either side: [`verify_chain`] within a handshake.
#[derive(Debug)]
struct Verifier {
    expected: Expected,
    bundles: Arc<Bundles>,
    mandatory: bool,
}

impl Verifier {
    fn new(expected: Expected, bundles: &Arc<Bundles>, mandatory: bool) -> Self {
        Self { expected, bundles: bundles.clone(), mandatory }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(intermediates).cloned().collect();
        verify_chain(&chain, &self.expected, &self.bundles.load(), now)?;
        Ok(())
    }
}

/// TLS 1.2 is not offered, so nobody asks.
fn never() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

#[cfg(test)]
mod tests;
