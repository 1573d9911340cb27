//! Handshakes in memory, as the auth-agent runs them.

use mesh::auth::Refusal;
use rustls::client::ClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::ServerConnection;
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};

use super::*;
use crate::testing::{HOUR, NOW, TestClock, World, id};
use crate::verify::{VerifyError, refusal};

const LUKE: &str = "spiffe://rebels.example/ns/default/sa/luke";
const VADER: &str = "spiffe://rebels.example/ns/default/sa/vader";

fn exactly(text: &str) -> Expected {
    Expected::Id(id(text))
}

/// Luke calls Vader: each shows his own and expects the other.
fn both(world: &World, clock: &Clock) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let bundles = world.bundles();
    let client = client_config(&world.svid(LUKE), exactly(VADER), &bundles, clock).unwrap();
    let server = server_config(&world.svid(VADER), exactly(LUKE), &bundles, clock).unwrap();
    (client, server)
}

type Outcome = (Result<(), rustls::Error>, Result<(), rustls::Error>);

/// Carries bytes to and fro until both are done or neither has anything to say; what each says of it.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Outcome {
    let (mut of_client, mut of_server) = (Ok(()), Ok(()));
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        if !bytes.is_empty() && of_server.is_ok() {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() && of_server.is_ok() {
                server.read_tls(&mut rest).unwrap();
                of_server = server.process_new_packets().map(drop);
            }
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && of_client.is_ok() {
            client.read_tls(&mut rest).unwrap();
            of_client = client.process_new_packets().map(drop);
        }
    }
    (of_client, of_server)
}

fn connect(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> (ClientConnection, ServerConnection, Outcome) {
    let mut client = ClientConnection::new(client.clone(), server_name()).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let outcome = shake(&mut client, &mut server);
    (client, server, outcome)
}

fn refusals((client, server): Outcome) -> (Option<Refusal>, Option<Refusal>) {
    (client.err().map(|error| refusal(&error)), server.err().map(|error| refusal(&error)))
}

#[test]
fn two_ids_prove_themselves_with_post_quantum_key_agreement() {
    let world = World::new("rebels.example");
    let (client, server) = both(&world, &TestClock::at(NOW).clock());
    let (client, server, outcome) = connect(&client, &server);
    assert_eq!(refusals(outcome), (None, None));
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = server.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(server.server_name(), None, "no name is on the wire");
    let mut secrets = [[0u8; 32]; 2];
    client.export_keying_material(&mut secrets[0], b"test", None).unwrap();
    server.export_keying_material(&mut secrets[1], b"test", None).unwrap();
    assert_eq!(secrets[0], secrets[1]);
}

#[test]
fn nothing_is_resumed() {
    let world = World::new("rebels.example");
    let (client, server) = both(&world, &TestClock::at(NOW).clock());
    for _ in 0..2 {
        let (client, server, outcome) = connect(&client, &server);
        assert_eq!(refusals(outcome), (None, None));
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!client.enable_early_data && !server.session_storage.can_cache());
}

#[test]
fn tls_1_2_is_not_spoken() {
    let world = World::new("rebels.example");
    let (client, _) = both(&world, &TestClock::at(NOW).clock());
    let mut client = ClientConnection::new(client, server_name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    // supported_versions (43) with the one version 0x0304.
    let only_1_3 = [0, 43, 0, 3, 2, 3, 4];
    assert!(hello.windows(only_1_3.len()).any(|window| window == only_1_3));
}

#[test]
fn the_client_tells_why_it_refuses_and_the_server_that_it_was_refused() {
    let world = World::new("rebels.example");
    let clock = TestClock::at(NOW).clock();
    let bundles = world.bundles();
    let client = client_config(&world.svid(LUKE), exactly(LUKE), &bundles, &clock).unwrap();
    let (_, server) = both(&world, &clock);
    let (_, _, (of_client, of_server)) = connect(&client, &server);
    let error = of_client.unwrap_err();
    let why = VerifyError::of(&error).unwrap();
    assert_eq!(why, &VerifyError::WrongId { found: id(VADER), expected: LUKE.to_owned() });
    assert_eq!(refusal(&error), Refusal::WrongId);
    assert_eq!(refusal(&of_server.unwrap_err()), Refusal::RefusedByPeer);
}

/// What makes an acknowledgement of the responder necessary before anything rests on a handshake.
#[test]
fn a_client_is_done_before_the_server_has_judged_it() {
    let world = World::new("rebels.example");
    let clock = TestClock::at(NOW).clock();
    let bundles = world.bundles();
    let client = client_config(&world.svid(LUKE), exactly(VADER), &bundles, &clock).unwrap();
    let server = server_config(&world.svid(VADER), exactly(VADER), &bundles, &clock).unwrap();
    let (client, _, outcome) = connect(&client, &server);
    assert!(!client.is_handshaking(), "for the client the handshake was complete");
    assert_eq!(refusals(outcome), (Some(Refusal::RefusedByPeer), Some(Refusal::WrongId)));
}

#[test]
fn each_refusal_can_be_told_from_the_error() {
    let (world, stranger) = (World::new("rebels.example"), World::new("rebels.example"));
    let clock = TestClock::at(NOW);
    let (client, server) = both(&world, &clock.clock());
    let untrusted =
        client_config(&stranger.svid(LUKE), exactly(VADER), &world.bundles(), &clock.clock()).unwrap();
    assert_eq!(refusals(connect(&untrusted, &server).2).1, Some(Refusal::Untrusted));
    clock.set(NOW + HOUR + 1);
    assert_eq!(refusals(connect(&client, &server).2).0, Some(Refusal::Expired));
    clock.set(NOW - 100);
    assert_eq!(refusals(connect(&client, &server).2).0, Some(Refusal::NotYetValid));
}

#[test]
fn a_bundle_that_changes_counts_for_the_next_handshake() {
    let (world, stranger) = (World::new("rebels.example"), World::new("rebels.example"));
    let clock = TestClock::at(NOW).clock();
    let bundles = world.bundles();
    let client = client_config(&world.svid(LUKE), exactly(VADER), &bundles, &clock).unwrap();
    let server = server_config(&world.svid(VADER), exactly(LUKE), &bundles, &clock).unwrap();
    assert_eq!(refusals(connect(&client, &server).2), (None, None));
    assert!(bundles.replace(stranger.bundle()));
    assert_eq!(refusals(connect(&client, &server).2).0, Some(Refusal::Untrusted));
}

/// A chain is public: who shows it must also have its key.
#[test]
fn a_chain_without_its_key_proves_nothing() {
    let world = World::new("rebels.example");
    let clock = TestClock::at(NOW).clock();
    let (client, server) = both(&world, &clock);
    let (luke, vader) = (world.svid(LUKE), world.svid(VADER));
    let chain: Vec<CertificateDer<'static>> = luke.chain().to_vec();
    let stolen = CertifiedKey::new(chain, vader.certified_key().key.clone());
    let mut forged = ClientConfig::clone(&client);
    forged.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
    let outcome = connect(&Arc::new(forged), &server).2;
    assert_eq!(refusals(outcome), (Some(Refusal::RefusedByPeer), Some(Refusal::BadCertificate)));
}

/// The fault by which a responder of another mesh could be anybody.
#[test]
fn an_appended_victims_certificate_does_not_make_one_the_victim() {
    let world = World::new("rebels.example");
    let clock = TestClock::at(NOW).clock();
    let (_, server) = both(&world, &clock);
    let (luke, vader) = (world.svid(LUKE), world.svid(VADER));
    let chain = vader.chain().iter().chain(luke.chain()).cloned().collect();
    let posing = CertifiedKey::new(chain, vader.certified_key().key.clone());
    let client = client_config(&vader, exactly(VADER), &world.bundles(), &clock).unwrap();
    let mut client = ClientConfig::clone(&client);
    client.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(posing));
    assert_eq!(refusals(connect(&Arc::new(client), &server).2).1, Some(Refusal::WrongId));
}

#[test]
fn a_client_without_a_certificate_is_refused_unless_it_may_join() {
    let world = World::new("rebels.example");
    let clock = TestClock::at(NOW).clock();
    let bundles = world.bundles();
    let anonymous = anonymous_client_config(exactly(VADER), &bundles, &clock).unwrap();
    let (_, server) = both(&world, &clock);
    assert_eq!(refusals(connect(&anonymous, &server).2).1, Some(Refusal::PeerNoCertificate));

    let joining = joining_server_config(&world.svid(VADER), exactly(LUKE), &bundles, &clock).unwrap();
    let (_, server, outcome) = connect(&anonymous, &joining);
    assert_eq!(refusals(outcome), (None, None));
    assert!(server.peer_certificates().is_none());
    // Yet a certificate that is shown must be good.
    let vader = client_config(&world.svid(VADER), exactly(VADER), &bundles, &clock).unwrap();
    assert_eq!(refusals(connect(&vader, &joining).2).1, Some(Refusal::WrongId));
}

#[test]
fn a_server_does_not_tell_a_stranger_whom_it_trusts() {
    let world = World::new("rebels.example");
    let verifier = Verifier::new(exactly(LUKE), &world.bundles(), true);
    assert!(ClientCertVerifier::root_hint_subjects(&verifier).is_empty());
}
