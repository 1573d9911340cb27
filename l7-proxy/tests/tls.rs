//! TLS by the name of its server, in memory: what passes untouched, what is told an alert and closed, and why. The numbered
//! case T10 of adversarial input is here, for names; HTTP/2 has its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;
#[path = "harness/hello.rs"]
mod hello;

use std::sync::Arc;
use std::time::Duration;

use harness::{Bench, CLIENT, anybody, expect, local, rest, rule, send};
use hello::{entry, extension, hello, message, names, naming, record};
use l7_proxy::codec::MAX_HELLO;
use mesh::identity::Identity;
use mesh::l7::{L7Access, L7Ports, L7Tls};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

fn of(peers: Option<&[u32]>, servers: &[&str]) -> L7Tls {
    let peers = peers.map(|peers| peers.iter().map(|peer| Identity::new(*peer).unwrap()).collect());
    let mut names: Vec<_> = servers.iter().map(|name| name.parse().unwrap()).collect();
    names.sort();
    L7Tls { peers, names: names.into() }
}

/// Anybody may call servers of these names, and nothing else.
fn bench(servers: &[&str]) -> Bench {
    let mut bench = Bench::new(Vec::new());
    bench.enforce_tls(Vec::new(), vec![of(None, servers)], false);
    bench
}

/// What a client is told for these bytes, which reach no server; and the flow.
async fn refused(bench: &Bench, input: &[u8]) -> (Vec<u8>, String) {
    let told = local(async {
        let (mut client, mut servers) = bench.open();
        client.write_all(input).await.unwrap();
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        servers.none().await;
        told
    })
    .await;
    let flows = bench.flows();
    assert_eq!(flows.len(), 1, "{flows:?}");
    (told, flows.into_iter().next().unwrap())
}

/// What a client sends reaches the server byte by byte, and the other way round.
async fn passes(bench: &Bench, pieces: &[&[u8]]) -> Vec<String> {
    local(async {
        let (mut client, mut servers) = bench.open();
        for piece in pieces {
            client.write_all(piece).await.unwrap();
            // Each on its own.
            tokio::task::yield_now().await;
        }
        let mut server = servers.next().await;
        let mut came = vec![0; pieces.concat().len()];
        server.read_exact(&mut came).await.unwrap();
        assert_eq!(came, pieces.concat());
        send(&mut server, "\u{16}whatever").await;
        expect(&mut client, "\u{16}whatever").await;
    })
    .await;
    bench.flows()
}

#[tokio::test(start_paused = true)]
async fn a_handshake_of_a_named_server_passes_to_its_end() {
    for (rule, name, said) in [
        ("deathstar.example", "deathstar.example", "deathstar.example"),
        ("DeathStar.Example", "DEATHSTAR.example", "deathstar.example"),
        ("*.deathstar.example", "port.deathstar.example", "port.deathstar.example"),
        ("**.example", "a.b.c.example", "a.b.c.example"),
        ("*", "whatever", "whatever"),
    ] {
        let bench = bench(&["other.example", rule]);
        local(async {
            let (client, mut servers) = bench.open();
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let called = TlsConnector::from(hello::client_config()).connect(name, client);
            let answered = async {
                let server = servers.next().await;
                let mut server = TlsAcceptor::from(hello::server_config()).accept(server).await.unwrap();
                let mut word = [0; 4];
                server.read_exact(&mut word).await.unwrap();
                server.write_all(&word).await.unwrap();
                server.shutdown().await.unwrap();
                (word, server.get_ref().1.server_name().map(str::to_ascii_lowercase))
            };
            let asked = async {
                let mut client = called.await.unwrap();
                client.write_all(b"land").await.unwrap();
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).await.unwrap();
                heard
            };
            let ((word, name), heard) = tokio::join!(answered, asked);
            assert_eq!((&word, heard.as_slice(), name.as_deref()), (b"land", &b"land"[..], Some(said)));
        })
        .await;
        assert_eq!(bench.flows(), [format!("tls FORWARDED {said}")]);
    }
}

/// ML-KEM makes the first message longer than a segment; others cut it at will.
#[tokio::test(start_paused = true)]
async fn however_a_client_hello_is_cut_it_is_put_together_and_passed_on_as_it_came() {
    let whole = hello::of_rustls("a.example");
    assert!(whole.len() > 1400, "{}", whole.len());
    let cut: Vec<&[u8]> = whole.chunks(1).collect();
    assert_eq!(passes(&bench(&["a.example"]), &cut).await, ["tls FORWARDED a.example"]);
    let in_records: Vec<u8> = whole[5..].chunks(100).flat_map(|part| record(22, part)).collect();
    let halves = in_records.split_at(700);
    assert_eq!(passes(&bench(&["a.example"]), &[halves.0, halves.1]).await, ["tls FORWARDED a.example"]);
    let header_alone: Vec<u8> = whole[5..].chunks(2).take(4).flat_map(|part| record(22, part)).collect();
    let both = [&header_alone[..], &record(22, &whole[13..])].concat();
    assert_eq!(passes(&bench(&["a.example"]), &[&both]).await, ["tls FORWARDED a.example"]);
    // What follows at once is not looked at.
    let early = [&whole[..], &[23, 3, 3, 0, 1, 0]].concat();
    assert_eq!(passes(&bench(&["a.example"]), &[&early]).await, ["tls FORWARDED a.example"]);
}

#[tokio::test(start_paused = true)]
async fn t10_a_server_that_no_rule_names_is_not_reached() {
    let bench = bench(&["good.example", "*.good.example"]);
    for name in ["evil.example", "a.b.good.example", "good.example.org", "xgood.example"] {
        let (told, flow) = refused(&bench, &hello::of_rustls(name)).await;
        assert_eq!(told, UNRECOGNIZED_NAME, "{name}");
        assert_eq!(flow, format!("tls DROPPED {name} (no rule names this server)"));
    }
}

#[tokio::test(start_paused = true)]
async fn t10_without_a_server_name_nothing_passes() {
    let bench = bench(&["*"]);
    let none = hello::of_rustls("192.0.2.1");
    let without = hello(&[extension(43, &[2, 3, 4])]);
    let old = record(22, &message(1, &[&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat()));
    for input in [none, without, old] {
        let (told, flow) = refused(&bench, &input).await;
        assert_eq!((told.as_slice(), flow.as_str()), (&ACCESS_DENIED[..], "tls DROPPED (no server name)"));
    }
}

#[tokio::test(start_paused = true)]
async fn t10_a_server_name_with_two_readings_has_none() {
    let bench = bench(&["*", "a.example"]);
    let several = "more than one server name";
    let no_name = "server name that is no name of DNS";
    let long = [b"a.".repeat(127), b"aa".to_vec()].concat();
    for (what, extensions, reason) in [
        ("two names", vec![names(&[entry(0, b"a.example"), entry(0, b"evil.example")])], several),
        ("two types", vec![names(&[entry(0, b"a.example"), entry(1, b"evil")])], several),
        ("two extensions", vec![naming(b"a.example"), naming(b"evil.example")], several),
        ("another type", vec![names(&[entry(1, b"a.example")])], "server name of an unknown type"),
        ("NUL", vec![naming(b"a.example\0.evil.example")], no_name),
        ("only NUL", vec![naming(b"\0")], no_name),
        ("empty", vec![naming(b"")], no_name),
        ("a final dot", vec![naming(b"a.example.")], no_name),
        ("an empty label", vec![naming(b"a..example")], no_name),
        ("IPv4", vec![naming(b"192.0.2.1")], no_name),
        ("IPv6", vec![naming(b"2001:db8::1")], no_name),
        ("a port", vec![naming(b"a.example:443")], no_name),
        ("a star", vec![naming(b"*.example")], no_name),
        ("a blank", vec![naming(b"a.example ")], no_name),
        ("beyond ASCII", vec![naming("b\u{fc}cher.example".as_bytes())], no_name),
        ("no UTF-8", vec![naming(b"\xff\xfe.example")], no_name),
        ("over-long", vec![naming(&long)], no_name),
        ("a long label", vec![naming(&b"a".repeat(64))], no_name),
        ("no list", vec![extension(0, &[])], "malformed ClientHello"),
        ("an empty list", vec![extension(0, &[0, 0])], "malformed ClientHello"),
        ("a list that ends early", vec![extension(0, &[0, 4, 0, 0, 1, b'a', 9])], "malformed ClientHello"),
        ("a list that ends late", vec![extension(0, &[0, 9, 0, 0, 1, b'a'])], "malformed ClientHello"),
        ("a name that ends late", vec![extension(0, &[0, 4, 0, 0, 9, b'a'])], "malformed ClientHello"),
    ] {
        let (told, flow) = refused(&bench, &hello(&extensions)).await;
        assert_eq!(flow, format!("tls DROPPED ({reason})"), "{what}");
        assert_eq!(told, DECODE_ERROR, "{what}");
    }
    assert_eq!(passes(&bench, &[&hello(&[naming(b"_a-1.EXAMPLE")])]).await, ["tls FORWARDED _a-1.example"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_client_hello_is_refused() {
    let bench = bench(&["*"]);
    let good = hello(&[naming(b"a.example")]);
    let body = hello::body(&[naming(b"a.example")]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let padded = hello::body(&[naming(b"a.example"), extension(21, &[0; MAX_HELLO])]);
    let large: Vec<u8> = message(1, &padded).chunks(8000).flat_map(|part| record(22, part)).collect();
    for (what, input, reason) in [
        ("a ServerHello", record(22, &message(2, &body)), "TLS that does not begin with a ClientHello"),
        ("SSL 4", with(2, 9), "malformed TLS record"),
        ("an empty record", [&record(22, b"")[..], &good].concat(), "malformed TLS record"),
        ("a record of 17 KB", vec![22, 3, 1, 0x44, 1], "malformed TLS record"),
        ("a record of 16 KB and more", vec![22, 3, 1, 0x40, 1], "ClientHello of more than 16 KB"),
        (
            "an alert in between",
            [&record(22, &message(1, &body)[..20])[..], &record(21, &[1, 0])].concat(),
            "malformed TLS record",
        ),
        ("16 MB", record(22, &[1, 0xff, 0xff, 0xff]), "ClientHello of more than 16 KB"),
        ("17 KB", large, "ClientHello of more than 16 KB"),
        (
            "more in the same record",
            record(22, &[&message(1, &body)[..], b"x"].concat()),
            "malformed ClientHello",
        ),
        (
            "more behind the extensions",
            record(22, &message(1, &[&body[..], b"x"].concat())),
            "malformed ClientHello",
        ),
        ("a session of 33 bytes", with(5 + 4 + 34, 33), "malformed ClientHello"),
        ("an odd length of suites", with(5 + 4 + 36, 3), "malformed ClientHello"),
        ("too short", record(22, &message(1, &body[..20])), "malformed ClientHello"),
        ("empty", record(22, &message(1, b"")), "malformed ClientHello"),
    ] {
        let (told, flow) = refused(&bench, &input).await;
        assert_eq!(flow, format!("tls DROPPED ({reason})"), "{what}");
        assert_eq!(told, DECODE_ERROR, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_hello_that_does_not_come_is_not_waited_for() {
    let bench = bench(&["*"]);
    let whole = hello::of_rustls("a.example");
    for end in [2, 7, 100, whole.len() - 1] {
        let before = tokio::time::Instant::now();
        let (told, flow) = refused(&bench, &whole[..end]).await;
        assert_eq!(flow, "tls DROPPED (ClientHello not complete in time)");
        assert_eq!(told, DECODE_ERROR);
        assert!(before.elapsed() < Duration::from_secs(11), "5 s, and as many to close");
    }
    // It trickles in: the time is that of all of it.
    let (told, flow) = local(async {
        let (mut client, mut servers) = bench.open();
        let (mut reads, mut writes) = tokio::io::split(&mut client);
        let trickle = async {
            for byte in &whole {
                if writes.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let mut told = [0; 7];
        tokio::select! {
            _ = reads.read_exact(&mut told) => {}
            () = trickle => panic!("it was waited for"),
        }
        drop(client);
        servers.none().await;
        (told, bench.flows().pop().unwrap())
    })
    .await;
    assert_eq!((told, flow.as_str()), (DECODE_ERROR, "tls DROPPED (ClientHello not complete in time)"));
}

#[tokio::test(start_paused = true)]
async fn where_only_tls_may_pass_nothing_else_does() {
    let bench = bench(&["*"]);
    for (input, reason) in [
        ("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "not TLS, which alone may pass"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not TLS, which alone may pass"),
        ("SSH-2.0-OpenSSH\r\n", "not TLS, which alone may pass"),
        ("", "silent, where TLS is required"),
    ] {
        let (told, flow) = refused(&bench, input.as_bytes()).await;
        assert_eq!((told.as_slice(), flow), (&b""[..], format!("tls DROPPED ({reason})")), "{input}");
    }
}

#[tokio::test(start_paused = true)]
async fn tls_where_http_is_required_is_told_so() {
    let bench = Bench::new(vec![rule("GET", "/")]);
    let (told, flow) = refused(&bench, &hello::of_rustls("a.example")).await;
    assert_eq!(
        (told, flow.as_str()),
        (ACCESS_DENIED.to_vec(), "tls DROPPED a.example (TLS where HTTP is required)")
    );
    // It need not come whole to be refused.
    let (told, flow) = refused(&bench, b"\x16\x03\x01\x02\x00").await;
    assert_eq!((told, flow.as_str()), (ACCESS_DENIED.to_vec(), "tls DROPPED (TLS where HTTP is required)"));
}

/// The union is per peer: HTTP rules, names and leave for everything stand beside each other.
#[tokio::test(start_paused = true)]
async fn rules_names_and_plain_allows_of_a_port_add_up() {
    let get = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    let peers = |peers: &[u32]| Some(peers.iter().map(|peer| Identity::new(*peer).unwrap()).collect());
    let mut bench = Bench::new(Vec::new());
    let access = vec![
        L7Access { peers: peers(&[300, 301]), http: Some([rule("GET", "/a")].into()) },
        L7Access { peers: peers(&[303]), http: None },
    ];
    let tls = vec![of(Some(&[300, 302]), &["a.example"]), of(Some(&[300]), &["b.example"])];
    bench.enforce_tls(access, tls, false);
    for (client, http, tls) in [(300, true, true), (301, true, false), (302, false, true), (303, true, true)]
    {
        bench.identify(CLIENT, client, None);
        local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, get).await;
            client.shutdown().await.unwrap();
            assert_eq!(servers.try_next().await.is_some(), http);
            drop(client);
        })
        .await;
        bench.flows();
        let hello = hello::of_rustls("a.example");
        match tls {
            true => drop(passes(&bench, &[&hello]).await),
            false => assert_eq!(refused(&bench, &hello).await.0, ACCESS_DENIED),
        }
    }
    bench.identify(CLIENT, 300, None);
    passes(&bench, &[&hello::of_rustls("b.example")]).await;
    assert_eq!(refused(&bench, &hello::of_rustls("c.example")).await.0, UNRECOGNIZED_NAME);
    bench.identify(CLIENT, 302, None);
    assert_eq!(refused(&bench, &hello::of_rustls("b.example")).await.0, UNRECOGNIZED_NAME);
}

/// The client's rules and the server's must both let it.
#[tokio::test(start_paused = true)]
async fn both_ends_have_their_say() {
    let mut bench = bench(&["*.example"]);
    let of_client = |server: &str| {
        let tls = vec![of(Some(&[256]), &[server])];
        L7Ports { first: 80, last: 80, access: Arc::default(), tls: tls.into(), inspected: Arc::default() }
    };
    bench.enforce_egress(of_client("a.example"));
    passes(&bench, &[&hello::of_rustls("a.example")]).await;
    let (_, flow) = refused(&bench, &hello::of_rustls("b.example")).await;
    assert_eq!(flow, "tls DROPPED b.example (no rule names this server)");
    bench.enforce_egress(of_client("a.b.example"));
    assert_eq!(refused(&bench, &hello::of_rustls("a.b.example")).await.0, UNRECOGNIZED_NAME);
    // HTTP rules of one end, names of the other: nothing is both.
    let rules = L7Ports {
        first: 80,
        last: 80,
        access: anybody(vec![rule("", "")]).into(),
        tls: Arc::default(),
        inspected: Arc::default(),
    };
    bench.enforce_egress(rules);
    let (told, flow) = refused(&bench, &hello::of_rustls("a.example")).await;
    assert_eq!(
        (told.as_slice(), flow.as_str()),
        (&ACCESS_DENIED[..], "tls DROPPED a.example (TLS where HTTP is required)")
    );
    let (_, flow) = refused(&bench, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(flow, "tls DROPPED (not TLS, which alone may pass)");
}

fn server_hello(random: [u8; 32]) -> Vec<u8> {
    record(22, &message(2, &[&[3, 3][..], &random, &[0, 0x13, 1, 0, 0, 0]].concat()))
}

/// That of a HelloRetryRequest.
const RETRY: &str = "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c";

fn retry() -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&RETRY[2 * at..2 * at + 2], 16).unwrap();
    server_hello(std::array::from_fn(byte))
}

/// A server that asks for a second ClientHello must not be told another name in it, before it asks or after.
#[tokio::test(start_paused = true)]
async fn t10_a_second_client_hello_names_the_same_server() {
    let change = [20, 3, 3, 0, 1, 1];
    let early = [23, 3, 3, 0, 2, 7, 7];
    // Of an unrecognized name, which ends nothing.
    let warning = [21, 3, 3, 0, 2, 1, 112];
    for is_asked in [true, false] {
        for (second, passes) in [("a.example", true), ("b.example", false), ("evil.example", false)] {
            for comes_early in [true, false] {
                let bench = bench(&["a.example", "b.example"]);
                let (first, second) = (hello(&[naming(b"a.example")]), hello(&[naming(second.as_bytes())]));
                local(async {
                    let (mut client, mut servers) = bench.open();
                    let head = [&first[..], &early, &change].concat();
                    client.write_all(&head).await.unwrap();
                    if comes_early {
                        client.write_all(&second).await.unwrap();
                    }
                    let mut server = servers.next().await;
                    let mut came = vec![0; head.len()];
                    server.read_exact(&mut came).await.unwrap();
                    assert_eq!(came, head);
                    let said = if is_asked { retry() } else { server_hello([9; 32]) };
                    let answer = [if comes_early { &warning[..] } else { &[] }, &said].concat();
                    // However the answer is cut.
                    for byte in &answer {
                        // It is ended as soon as it is known what it must not be told.
                        let _ = server.write_all(&[*byte]).await;
                        tokio::task::yield_now().await;
                    }
                    if !comes_early {
                        let _ = client.write_all(&second).await;
                    }
                    if passes || !is_asked {
                        client.read_exact(&mut answer.clone()).await.unwrap();
                        let mut came = vec![0; second.len()];
                        server.read_exact(&mut came).await.unwrap();
                        assert_eq!(came, second);
                        send(&mut client, "anything").await;
                        expect(&mut server, "anything").await;
                    } else {
                        assert_eq!(rest(&mut server).await, "", "nothing more reaches it");
                    }
                })
                .await;
                let reason = "tls DROPPED a.example (another server name in the second ClientHello)";
                let dropped = bench.flows().iter().any(|flow| flow == reason);
                assert_eq!(dropped, is_asked && !passes, "asked {is_asked}, {passes}, early {comes_early}");
            }
        }
    }
}

/// Neither an end that goes while something waits for the other, nor one that never answers, keeps the rest for ever.
#[tokio::test(start_paused = true)]
async fn what_waits_for_an_answer_ends_with_who_should_answer() {
    let bench = bench(&["a.example"]);
    local(async {
        let first = hello(&[naming(b"a.example")]);
        let (mut client, mut servers) = bench.open();
        client.write_all(&[&first[..], &first].concat()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut server = servers.next().await;
        let mut came = vec![0; first.len()];
        server.read_exact(&mut came).await.unwrap();
        server.write_all(&[22, 3]).await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, "\u{16}\u{3}");
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
}

/// A real one: the client's first share is of a group that the server does not take.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_the_server_asks_to_begin_again_passes() {
    use rustls::crypto::aws_lc_rs::kx_group;
    let bench = bench(&["a.example"]);
    let client_config = hello::client_config_with(vec![kx_group::X25519, kx_group::SECP384R1]);
    let server_config = hello::server_config_with(vec![kx_group::SECP384R1]);
    local(async {
        let (client, mut servers) = bench.open();
        let name = ServerName::try_from("a.example").unwrap();
        let called = TlsConnector::from(client_config).connect(name, client);
        let answered = async {
            let server = servers.next().await;
            let mut server = TlsAcceptor::from(server_config).accept(server).await.unwrap();
            server.write_all(b"landed").await.unwrap();
            server.shutdown().await.unwrap();
            server.get_ref().1.handshake_kind()
        };
        let asked = async {
            let mut heard = Vec::new();
            called.await.unwrap().read_to_end(&mut heard).await.unwrap();
            heard
        };
        let (kind, heard) = tokio::join!(answered, asked);
        assert_eq!(kind, Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
        assert_eq!(heard, b"landed");
    })
    .await;
    assert_eq!(bench.flows(), ["tls FORWARDED a.example"]);
}

/// T42: an edit or another identity ends what may not be any more, and nothing else.
#[tokio::test(start_paused = true)]
async fn an_open_connection_is_judged_again_whenever_anything_changes() {
    for ends in ["an edit", "an identity", "HTTP rules"] {
        let mut bench = bench(&["a.example"]);
        local(async {
            let (mut client, mut servers) = bench.open();
            let hello = hello::of_rustls("a.example");
            client.write_all(&hello).await.unwrap();
            let mut server = servers.next().await;
            let mut came = vec![0; hello.len()];
            server.read_exact(&mut came).await.unwrap();
            server.write_all(&server_hello([9; 32])).await.unwrap();
            client.read_exact(&mut server_hello([9; 32])).await.unwrap();
            for _ in 0..100 {
                bench.enforce_tls(Vec::new(), vec![of(None, &["*.example", "b.example"])], false);
                send(&mut client, "ping").await;
                expect(&mut server, "ping").await;
                bench.enforce_tls(vec![L7Access { peers: None, http: None }], Vec::new(), false);
                send(&mut server, "pong").await;
                expect(&mut client, "pong").await;
            }
            bench.enforce_tls(Vec::new(), vec![of(Some(&[300]), &["a.example"])], false);
            send(&mut client, "ping").await;
            expect(&mut server, "ping").await;
            match ends {
                "an edit" => bench.enforce_tls(Vec::new(), vec![of(None, &["b.example"])], false),
                "an identity" => {
                    bench.identify(CLIENT, 301, None);
                    // Whoever changes an identity says so to nobody: the next byte finds it.
                    let _ = client.write_all(b"x").await;
                }
                _ => bench.enforce(anybody(vec![rule("", "")]), false),
            }
            assert_eq!(rest(&mut client).await, "", "{ends}");
            assert_eq!(rest(&mut server).await, "", "{ends}");
        })
        .await;
        let flows = bench.flows();
        assert_eq!(
            flows,
            ["tls FORWARDED a.example", "tls DROPPED a.example (not allowed any more)"],
            "{ends}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn audit_mode_reports_and_lets_pass() {
    let mut bench = Bench::new(Vec::new());
    bench.enforce_tls(Vec::new(), vec![of(None, &["a.example"])], true);
    for (input, flow) in [
        (hello::of_rustls("b.example"), "tls AUDIT b.example (no rule names this server)"),
        (hello(&[]), "tls AUDIT (no server name)"),
        (hello(&[naming(b"\0")]), "tls AUDIT (server name that is no name of DNS)"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "tls AUDIT (not TLS, which alone may pass)"),
        (hello::of_rustls("a.example"), "tls FORWARDED a.example"),
    ] {
        assert_eq!(passes(&bench, &[&input]).await, [flow]);
    }
}

/// The end that only looks on demands TLS, and the other lets requests pass.
#[tokio::test(start_paused = true)]
async fn audit_mode_of_one_end_does_not_close_what_the_other_allows() {
    let mut bench = Bench::new(Vec::new());
    bench.enforce_tls(Vec::new(), vec![of(None, &["a.example"])], true);
    let access = anybody(vec![rule("GET", "/")]);
    bench.enforce_egress(L7Ports {
        first: 80,
        last: 80,
        access: access.into(),
        tls: Arc::default(),
        inspected: Arc::default(),
    });
    let request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    local(async {
        let (mut client, mut server) = bench.asked(request).await;
        let denied = "PUT / HTTP/1.1\r\nHost: h\r\n\r\n";
        send(&mut server, "HTTP/1.1 204 No Content\r\n\r\n").await;
        expect(&mut client, "HTTP/1.1 204 No Content\r\n\r\n").await;
        send(&mut client, denied).await;
        expect(&mut client, "HTTP/1.1 403 Forbidden\r\n").await;
    })
    .await;
    let flows = bench.flows();
    assert!(flows[0].starts_with("request AUDIT GET http://h/"), "{flows:?}");
}
