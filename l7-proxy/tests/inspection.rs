//! TLS that the proxy ends or begins, in memory: who is shown what, whom a server must be, what rules see of what is inside.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;
#[path = "harness/hello.rs"]
mod hello;
#[path = "harness/pki.rs"]
mod pki;

use std::sync::Arc;
use std::time::Duration;

use harness::http2::Client;
use harness::{Bench, CLIENT, anybody, expect, local, rest, rule, send};
use l7_proxy::index::Compiler;
use mesh::identity::Identity;
use mesh::l7::{
    HttpRule, L7Access, L7Endpoint, L7Inspected, L7Ports, L7Rules, L7Tls, TlsContext, TlsInspection,
    TlsSecret,
};
use pki::{Authority, Leaf, context, pair, secret};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, server};

const GET: &str = "GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// What the proxy shows, what it knows servers by, and what these show.
struct World {
    ours: Authority,
    theirs: Authority,
    shown: Leaf,
    server: Leaf,
}

impl World {
    fn new() -> Self {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let (shown, server) = (ours.leaf("a.example"), theirs.leaf("a.example"));
        Self { ours, theirs, shown, server }
    }

    fn secrets(&self) -> Vec<TlsSecret> {
        vec![pair("shown", &self.shown), secret("known", &[("ca.crt", &self.theirs.pem)])]
    }

    /// Both ways, one or the other; inside, these rules.
    fn bench(&self, terminating: bool, originating: bool, rules: Option<Vec<HttpRule>>) -> Bench {
        let mut bench = Bench::new(Vec::new());
        bench.enforce_inspected(
            Vec::new(),
            vec![inspected(terminating, originating, rules)],
            self.secrets(),
            false,
        );
        bench
    }
}

fn inspection(terminating: bool, originating: bool, rules: Option<Vec<HttpRule>>) -> TlsInspection {
    TlsInspection {
        names: None,
        terminating: terminating.then(|| context("shown")),
        originating: originating.then(|| context("known")),
        http: rules.map(Into::into),
    }
}

fn of(inspection: TlsInspection) -> L7Inspected {
    L7Inspected { peers: None, inspection: Arc::new(inspection) }
}

fn inspected(terminating: bool, originating: bool, rules: Option<Vec<HttpRule>>) -> L7Inspected {
    of(inspection(terminating, originating, rules))
}

fn called(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).unwrap()
}

async fn begin(client: DuplexStream, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<DuplexStream>> {
    TlsConnector::from(config).connect(called("a.example"), client).await
}

async fn accept(world: &World, server: DuplexStream, protocols: &[&str]) -> server::TlsStream<DuplexStream> {
    let config = world.theirs.server(&world.server, false, protocols);
    TlsAcceptor::from(config).accept(server).await.unwrap()
}

async fn say(stream: &mut (impl AsyncWriteExt + Unpin), text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

async fn hear(stream: &mut (impl AsyncReadExt + Unpin), text: &str) {
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

fn request(scheme: &str, method: &str) -> http::Request<()> {
    let uri = format!("{scheme}://a.example/a");
    http::Request::builder().method(method).uri(uri).version(http::Version::HTTP_2).body(()).unwrap()
}

fn rules() -> Option<Vec<HttpRule>> {
    Some(vec![rule("GET", "/a.*")])
}

#[tokio::test(start_paused = true)]
async fn requests_inside_tls_are_judged_and_the_server_is_spoken_tls_to() {
    let world = World::new();
    let bench = world.bench(true, true, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let mut client = begin(client, world.ours.client(None, &[])).await.unwrap();
        say(&mut client, GET).await;
        let mut server = accept(&world, servers.next().await, &[]).await;
        assert_eq!(server.get_ref().1.server_name(), Some("a.example"));
        hear(&mut server, GET).await;
        say(&mut server, OK).await;
        hear(&mut client, OK).await;
        say(&mut client, &GET.replace("GET", "PUT")).await;
        hear(&mut client, "HTTP/1.1 403 Forbidden\r\n").await;
        client.shutdown().await.unwrap();
        let mut last = Vec::new();
        client.read_to_end(&mut last).await.unwrap();
        assert!(last.ends_with(b"Access denied\r\n"), "and TLS says that it ends");
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0, "to the server, too");
    })
    .await;
    assert_eq!(
        bench.flows(),
        [
            "request FORWARDED GET https://a.example/a",
            "response FORWARDED 200 GET https://a.example/a",
            "request DROPPED PUT https://a.example/a (no rule lets it through)",
            "response FORWARDED 403 PUT https://a.example/a",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_without_tls_stands_behind_tls_that_the_proxy_ends() {
    let world = World::new();
    let bench = world.bench(true, false, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let mut client = begin(client, world.ours.client(None, &["h2", "http/1.1"])).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "what any server speaks");
        say(&mut client, GET).await;
        let mut server = servers.next().await;
        expect(&mut server, GET).await;
        // As long as the server pleases.
        send(&mut server, "HTTP/1.1 200 OK\r\n\r\nall of it").await;
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("all of it"), "{answer}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_with_tls_is_called_for_a_client_without() {
    let world = World::new();
    let bench = world.bench(false, true, rules());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, GET).await;
        let mut server = accept(&world, servers.next().await, &["http/1.1"]).await;
        assert_eq!(server.get_ref().1.server_name(), Some("a.example"), "whom the request asks for");
        hear(&mut server, GET).await;
        say(&mut server, OK).await;
        expect(&mut client, OK).await;
    })
    .await;
}

/// A body beyond all buffers, both ways.
#[tokio::test(start_paused = true)]
async fn what_is_long_comes_through_whole() {
    let world = World::new();
    let bench = world.bench(true, true, Some(vec![rule("", "")]));
    let length = 3_000_000;
    local(async {
        let (client, mut servers) = bench.open();
        let mut client = begin(client, world.ours.client(None, &[])).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n\r\n");
        say(&mut client, &head).await;
        let mut server = accept(&world, servers.next().await, &[]).await;
        hear(&mut server, &head).await;
        let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let (mut from, mut to) = tokio::io::split(client);
        let sending = async {
            to.write_all(&body).await.unwrap();
            to.flush().await.unwrap();
        };
        let echo = async {
            let mut came = vec![0; length];
            server.read_exact(&mut came).await.unwrap();
            assert!(came == body);
            say(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
            server.write_all(&came).await.unwrap();
            server.flush().await.unwrap();
        };
        let receiving = async {
            hear(&mut from, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
            let mut back = vec![0; length];
            from.read_exact(&mut back).await.unwrap();
            assert!(back == body);
        };
        tokio::join!(sending, echo, receiving);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_server_chooses_which_http_is_spoken() {
    let world = World::new();
    for (speaks, chosen) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1"), (&[], "http/1.1")]
    {
        let bench = world.bench(true, true, rules());
        local(async {
            let (client, mut servers) = bench.open();
            let begun = begin(client, world.ours.client(None, &["h2", "http/1.1"]));
            let accepted = async { accept(&world, servers.next().await, speaks).await };
            let (client, server) = tokio::join!(begun, accepted);
            let client = client.unwrap();
            assert_eq!(client.get_ref().1.alpn_protocol(), Some(chosen.as_bytes()), "{speaks:?}");
            match chosen {
                "h2" => speak_http2(client, server).await,
                _ => speak_http1(client, server).await,
            }
        })
        .await;
        assert_eq!(bench.flows()[0], "request FORWARDED GET https://a.example/a", "{speaks:?}");
    }
}

async fn speak_http1(mut client: TlsStream<DuplexStream>, mut server: server::TlsStream<DuplexStream>) {
    say(&mut client, GET).await;
    hear(&mut server, GET).await;
    say(&mut server, OK).await;
    hear(&mut client, OK).await;
}

async fn speak_http2(client: TlsStream<DuplexStream>, server: server::TlsStream<DuplexStream>) {
    let (send, connection) = h2::client::handshake(client).await.unwrap();
    let mut client = Client { send, driver: tokio::task::spawn_local(connection) };
    let serving = async {
        let mut server = h2::server::handshake(server).await.unwrap();
        while let Some(Ok((asked, mut respond))) = server.accept().await {
            assert_eq!(asked.uri().scheme_str(), Some("https"));
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data("hi".into(), true).unwrap();
        }
    };
    let asking = async {
        let answer = client.ask(request("https", "GET")).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hi"));
        let answer = client.ask(request("https", "PUT")).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (403, "Access denied\r\n"));
        drop(client);
    };
    tokio::join!(serving, asking);
}

/// What is inside TLS that the proxy has ended has the scheme that its flows have.
#[tokio::test(start_paused = true)]
async fn requests_inside_tls_are_recorded_as_such() {
    let world = World::new();
    let bench = world.bench(true, true, rules());
    let exchanges = Some(mesh::access_log::Headers::default());
    bench.log.set_record(node_api::proxy::Record { exchanges, request_id: false });
    local(async {
        for speaks in [&["http/1.1"][..], &["h2", "http/1.1"]] {
            let (client, mut servers) = bench.open();
            let begun = begin(client, world.ours.client(None, &["h2", "http/1.1"]));
            let accepted = async { accept(&world, servers.next().await, speaks).await };
            let (client, server) = tokio::join!(begun, accepted);
            match speaks {
                ["h2", ..] => speak_http2(client.unwrap(), server).await,
                _ => speak_http1(client.unwrap(), server).await,
            }
        }
        tokio::task::yield_now().await;
    })
    .await;
    let exchanges = bench.log.take_exchanges().exchanges;
    let seen: Vec<_> = exchanges.iter().map(|it| (it.protocol.as_str(), it.is_https)).collect();
    assert_eq!(seen, [("HTTP/1.1", true), ("HTTP/2", true), ("HTTP/2", true)]);
}

/// Who speaks nothing but HTTP/2 is answered in it, and so must the server be.
#[tokio::test(start_paused = true)]
async fn http2_in_tls_goes_to_a_server_without() {
    let world = World::new();
    let bench = world.bench(true, false, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let client = begin(client, world.ours.client(None, &["h2"])).await.unwrap();
        let (send, connection) = h2::client::handshake(client).await.unwrap();
        let mut client = Client { send, driver: tokio::task::spawn_local(connection) };
        let serving = async {
            let mut server = h2::server::handshake(servers.next().await).await.unwrap();
            while let Some(Ok((asked, mut respond))) = server.accept().await {
                assert_eq!(asked.uri().scheme_str(), Some("http"));
                respond.send_response(http::Response::new(()), true).unwrap();
            }
        };
        let asking = async {
            assert_eq!(client.ask(request("https", "GET")).await.unwrap().status, 200);
            assert_eq!(client.ask(request("https", "PUT")).await.unwrap().status, 403);
            drop(client);
        };
        tokio::join!(serving, asking);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn http2_without_tls_goes_to_a_server_with() {
    let world = World::new();
    let bench = world.bench(false, true, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let (send, connection) = h2::client::handshake(client).await.unwrap();
        let mut client = Client { send, driver: tokio::task::spawn_local(connection) };
        let serving = async {
            let server = accept(&world, servers.next().await, &["h2"]).await;
            assert_eq!(server.get_ref().1.server_name(), Some("a.example"));
            let mut server = h2::server::handshake(server).await.unwrap();
            while let Some(Ok((asked, mut respond))) = server.accept().await {
                assert_eq!(asked.uri().scheme_str(), Some("https"));
                respond.send_response(http::Response::new(()), true).unwrap();
            }
        };
        let asking = async {
            assert_eq!(client.ask(request("http", "GET")).await.unwrap().status, 200);
            drop(client);
        };
        tokio::join!(serving, asking);
    })
    .await;
}

/// What a client is answered whose server is not who it must be.
#[tokio::test(start_paused = true)]
async fn a_server_must_be_whom_the_client_has_named() {
    let world = World::new();
    let other = Authority::new();
    let (untrusted, named) = (other.leaf("a.example"), world.theirs.leaf("b.example"));
    for (leaf, authority) in [(&untrusted, &other), (&named, &world.theirs)] {
        let bench = world.bench(true, true, rules());
        local(async {
            let (client, mut servers) = bench.open();
            let mut client = begin(client, world.ours.client(None, &[])).await.unwrap();
            say(&mut client, GET).await;
            let accepted = TlsAcceptor::from(authority.server(leaf, false, &[])).accept(servers.next().await);
            assert!(accepted.await.is_err());
            hear(&mut client, "HTTP/1.1 503 Service Unavailable\r\n").await;
        })
        .await;
        let flows = bench.flows();
        assert!(flows[1].ends_with("(certificate of the server not trusted)"), "{flows:?}");
    }
    // It speaks none at all; or no HTTP/2 to who speaks nothing else.
    let bench = world.bench(true, true, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let mut client = begin(client, world.ours.client(None, &[])).await.unwrap();
        say(&mut client, GET).await;
        let mut server = servers.next().await;
        send(&mut server, "HTTP/1.1 400 Bad Request\r\n\r\n").await;
        hear(&mut client, "HTTP/1.1 503 Service Unavailable\r\n").await;
    })
    .await;
    let flows = bench.flows();
    assert!(flows[1].ends_with("(TLS handshake with the server failed)"), "{flows:?}");
    let bench = world.bench(false, true, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let (send, connection) = h2::client::handshake(client).await.unwrap();
        let mut client = Client { send, driver: tokio::task::spawn_local(connection) };
        let config = world.theirs.server(&world.server, false, &[]);
        // The proxy may have gone before it is through.
        let serving = async { drop(TlsAcceptor::from(config).accept(servers.next().await).await) };
        let asked = async { client.ask(request("https", "GET")).await };
        assert_eq!(tokio::join!(asked, serving).0.unwrap().status, 502);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn either_end_may_have_to_show_a_certificate() {
    let mut world = World::new();
    let (own, clients) = (world.theirs.leaf("proxy.example"), Authority::new());
    let theirs = world.theirs.server(&world.server, true, &[]);
    let shown = [("tls.crt", &*world.shown.chain), ("tls.key", &*world.shown.key), ("ca.crt", &*clients.pem)];
    let known = [("tls.crt", &*own.chain), ("tls.key", &*own.key), ("ca.crt", &*world.theirs.pem)];
    let secrets = vec![secret("shown", &shown), secret("known", &known)];
    let mut bench = Bench::new(Vec::new());
    bench.enforce_inspected(Vec::new(), vec![inspected(true, true, rules())], secrets, false);
    let proven = clients.leaf("client.example");
    local(async {
        let (client, mut servers) = bench.open();
        let mut client = begin(client, world.ours.client(Some(&proven), &[])).await.unwrap();
        say(&mut client, GET).await;
        let mut server = TlsAcceptor::from(theirs).accept(servers.next().await).await.unwrap();
        assert_eq!(server.get_ref().1.peer_certificates().unwrap().len(), 1);
        hear(&mut server, GET).await;
    })
    .await;
    bench.flows();
    world.shown = world.ours.leaf("a.example");
    local(async {
        let (client, mut servers) = bench.open();
        // With TLS 1.3 a client hears of it when it reads.
        let refused = async {
            let mut client = begin(client, world.ours.client(None, &[])).await?;
            client.read_u8().await
        };
        assert!(refused.await.is_err());
        servers.none().await;
    })
    .await;
    assert_eq!(bench.flows(), ["tls DROPPED a.example (TLS handshake with the client failed)"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_inside_may_be_anything_where_no_rules_of_http_stand_beside() {
    let world = World::new();
    let bench = world.bench(true, true, None);
    local(async {
        let (client, mut servers) = bench.open();
        let begun = begin(client, world.ours.client(None, &[]));
        let accepted = async { accept(&world, servers.next().await, &[]).await };
        let (client, mut server) = tokio::join!(begun, accepted);
        let mut client = client.unwrap();
        say(&mut server, "220 speak").await;
        hear(&mut client, "220 speak").await;
        say(&mut client, "EHLO").await;
        hear(&mut server, "EHLO").await;
        // Each direction ends by itself.
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        say(&mut server, "221 bye").await;
        server.shutdown().await.unwrap();
        hear(&mut client, "221 bye").await;
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

/// By its name each goes to its own rules; what no rule names is refused, and what another rule lets pass untouched is.
#[tokio::test(start_paused = true)]
async fn names_decide_which_rules_hold_inside() {
    let world = World::new();
    let named = |name: &str, method: &str| {
        let names = Some([name.parse().unwrap()].into());
        of(TlsInspection { names, ..inspection(true, false, Some(vec![rule(method, "")])) })
    };
    let mut bench = Bench::new(Vec::new());
    let all = vec![named("a.example", "GET"), named("b.example", "PUT")];
    bench.enforce_inspected(Vec::new(), all, world.secrets(), false);
    for (method, code) in [("GET", "200 OK"), ("PUT", "403 Forbidden")] {
        local(async {
            let (client, mut servers) = bench.open();
            let mut client = begin(client, world.ours.client(None, &[])).await.unwrap();
            say(&mut client, &GET.replace("GET", method)).await;
            if code == "200 OK" {
                let mut server = servers.next().await;
                expect(&mut server, GET).await;
                send(&mut server, OK).await;
            }
            hear(&mut client, &format!("HTTP/1.1 {code}\r\n")).await;
        })
        .await;
    }
    bench.flows();
    for (begins, flow) in [
        (hello::of_rustls("c.example"), "tls DROPPED c.example (no rule names this server)"),
        (hello::of_rustls("192.0.2.1"), "tls DROPPED (no server name)"),
        (GET.into(), "tls DROPPED (not TLS, which alone may pass)"),
    ] {
        local(async {
            let (mut client, mut servers) = bench.open();
            client.write_all(&begins).await.unwrap();
            rest(&mut client).await;
            servers.none().await;
        })
        .await;
        assert_eq!(bench.flows(), [flow]);
    }
}

/// What begins without TLS is judged by what stands beside, and by what is for such clients.
#[tokio::test(start_paused = true)]
async fn clients_without_tls_are_judged_by_what_is_for_them() {
    let world = World::new();
    let mut bench = Bench::new(Vec::new());
    let beside = anybody(vec![rule("PUT", "")]);
    bench.enforce_inspected(beside, vec![inspected(true, true, rules())], world.secrets(), false);
    let asks = async |bench: &Bench, method: &str| {
        local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, &GET.replace("GET", method)).await;
            let serving = async {
                let Some(mut server) = servers.try_next().await else { return };
                send(&mut server, OK).await;
            };
            let answer = async {
                let mut code = [0; 12];
                client.read_exact(&mut code).await.unwrap();
                drop(client);
                String::from_utf8_lossy(&code).into_owned()
            };
            tokio::join!(answer, serving).0
        })
        .await
    };
    assert_eq!(asks(&bench, "PUT").await, "HTTP/1.1 200");
    assert_eq!(asks(&bench, "GET").await, "HTTP/1.1 403");
}

#[tokio::test(start_paused = true)]
async fn without_its_secret_nothing_passes_and_with_a_bad_one_it_is_refused() {
    let world = World::new();
    let mut bench = Bench::new(Vec::new());
    bench.enforce_inspected(Vec::new(), vec![inspected(true, true, rules())], Vec::new(), false);
    local(async {
        let (client, mut servers) = bench.open();
        assert!(begin(client, world.ours.client(None, &[])).await.is_err());
        servers.none().await;
    })
    .await;
    assert_eq!(bench.flows(), ["tls DROPPED a.example (TLS whose Secret is not there, or not whole)"]);
    for items in [vec![("ca.crt", "")], vec![("tls.crt", &*world.shown.chain)]] {
        bench.enforce_inspected(
            Vec::new(),
            vec![inspected(true, false, None)],
            vec![secret("shown", &items)],
            false,
        );
        local(async {
            let (client, _servers) = bench.open();
            assert!(begin(client, world.ours.client(None, &[])).await.is_err());
        })
        .await;
        assert_eq!(bench.flows(), ["tls DROPPED a.example (TLS whose Secret is not there, or not whole)"]);
    }
    let refused = |terminating: bool, secrets: Vec<TlsSecret>| {
        let inspected = [inspected(terminating, !terminating, None)].into();
        let ports = L7Ports { first: 80, last: 80, access: Arc::default(), tls: Arc::default(), inspected };
        let endpoint = L7Endpoint {
            id: mesh::workload::EndpointId::new(1).unwrap(),
            instance: 1,
            workload: "default/w".parse().unwrap(),
            ipv4: CLIENT,
            ipv6: std::net::Ipv6Addr::LOCALHOST,
            identity: Identity::new(256).unwrap(),
            ingress: Some(Arc::new(L7Rules { ports: vec![ports] })),
            egress: None,
            audit: false,
            secrets,
        };
        let refused = Compiler::default().endpoint(&endpoint).unwrap().fault.unwrap();
        (refused.field, refused.why)
    };
    let (chain, other) = (&*world.shown.chain, &*world.server.key);
    for (terminating, items, why) in [
        (
            true,
            vec![("tls.crt", chain), ("tls.key", "k")],
            "tls.key of Secret default/shown is no private key in PEM",
        ),
        (
            true,
            vec![("tls.crt", "c"), ("tls.key", other)],
            "tls.crt of Secret default/shown has no certificate in PEM",
        ),
        (
            true,
            vec![("tls.crt", chain), ("tls.key", other)],
            "Secret default/shown: keys may not be consistent: KeyMismatch",
        ),
        (false, vec![("ca.crt", "x")], "ca.crt of Secret default/known has no certificate in PEM"),
    ] {
        let (of, field) = match terminating {
            true => ("shown", "ingress.ports[0].inspected[0].terminatingTLS"),
            false => ("known", "ingress.ports[0].inspected[0].originatingTLS"),
        };
        assert_eq!(refused(terminating, vec![secret(of, &items)]), (field.to_owned(), why.to_owned()));
    }
}

/// A certificate in place of another is shown to who comes next; a rule that goes takes what it let in with it.
#[tokio::test(start_paused = true)]
async fn edits_and_other_secrets_hold_at_once() {
    let world = World::new();
    let mut bench = world.bench(true, false, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let mut first = begin(client, world.ours.client(None, &[])).await.unwrap();
        say(&mut first, GET).await;
        let mut server = servers.next().await;
        expect(&mut server, GET).await;
        send(&mut server, OK).await;
        hear(&mut first, OK).await;
        let after = Authority::new();
        let rotated = vec![pair("shown", &after.leaf("a.example"))];
        bench.enforce_inspected(Vec::new(), vec![inspected(true, false, rules())], rotated.clone(), false);
        say(&mut first, GET).await;
        expect(&mut server, GET).await;
        send(&mut server, OK).await;
        hear(&mut first, OK).await;
        let (client, _servers) = bench.open();
        assert!(begin(client, after.client(None, &[])).await.is_ok());
        let (client, _servers) = bench.open();
        assert!(begin(client, world.ours.client(None, &[])).await.is_err());
        // A key of another certificate: what was there before is shown.
        let (one, other) = (after.leaf("a.example"), after.leaf("a.example"));
        let torn = Leaf { chain: one.chain, key: other.key };
        let torn = vec![pair("shown", &torn)];
        bench.enforce_inspected(Vec::new(), vec![inspected(true, false, rules())], torn, false);
        let (client, _servers) = bench.open();
        assert!(begin(client, after.client(None, &[])).await.is_ok());
        // From now on the same may be asked without TLS only.
        bench.enforce_inspected(anybody(vec![rule("", "")]), Vec::new(), rotated, false);
        say(&mut first, GET).await;
        hear(&mut first, "HTTP/1.1 403 Forbidden\r\n").await;
    })
    .await;
}

/// A server that has been called without TLS is not sent what rules want to go in TLS, by either version.
#[tokio::test(start_paused = true)]
async fn other_secrets_in_the_rules_end_what_was_begun_by_those_before() {
    let world = World::new();
    let mut bench = world.bench(true, false, rules());
    local(async {
        let (client, mut servers) = bench.open();
        let mut client = begin(client, world.ours.client(None, &[])).await.unwrap();
        say(&mut client, GET).await;
        let mut server = servers.next().await;
        expect(&mut server, GET).await;
        send(&mut server, OK).await;
        hear(&mut client, OK).await;
        bench.enforce_inspected(Vec::new(), vec![inspected(true, true, rules())], world.secrets(), false);
        say(&mut client, GET).await;
        hear(&mut client, "HTTP/1.1 403 Forbidden\r\n").await;
    })
    .await;
    assert!(
        bench.flows().iter().any(|flow| flow.contains("DROPPED") && flow.ends_with("(not allowed any more)"))
    );
    let mut bench = world.bench(true, false, None);
    local(async {
        let (client, mut servers) = bench.open();
        let begun = begin(client, world.ours.client(None, &[]));
        let (client, mut server) = tokio::join!(begun, servers.next());
        let mut client = client.unwrap();
        say(&mut client, "EHLO").await;
        expect(&mut server, "EHLO").await;
        bench.enforce_inspected(Vec::new(), vec![inspected(true, true, None)], world.secrets(), false);
        let _ = client.write_all(b"more").await;
        let _ = client.flush().await;
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
}

/// Whoever ends without a word in TLS has said what it has said.
#[tokio::test(start_paused = true)]
async fn an_end_without_close_notify_takes_nothing_with_it() {
    let world = World::new();
    let bench = world.bench(true, false, None);
    local(async {
        let (client, mut servers) = bench.open();
        let begun = begin(client, world.ours.client(None, &[]));
        let (client, mut server) = tokio::join!(begun, servers.next());
        let mut client = client.unwrap();
        say(&mut client, "the last lines").await;
        drop(client);
        assert_eq!(rest(&mut server).await, "the last lines");
    })
    .await;
    let ended = bench.ended.take();
    assert!(ended.iter().all(|cut| *cut == harness::wire::Cut::of(false, false)), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_other_end_says_holds_beside() {
    let world = World::new();
    // The client's rules see TLS by its name, or the requests that are sent on without.
    let egress = |access: Vec<L7Access>, inspected: Vec<L7Inspected>| L7Ports {
        first: 80,
        last: 80,
        access: access.into(),
        tls: Arc::default(),
        inspected: inspected.into(),
    };
    let ask = async |bench: &Bench| {
        local(async {
            let (client, mut servers) = bench.open();
            let asked = async {
                let mut client = begin(client, world.ours.client(None, &[])).await.ok()?;
                say(&mut client, GET).await;
                let mut code = [0; 12];
                client.read_exact(&mut code).await.ok()?;
                Some(String::from_utf8_lossy(&code).into_owned())
            };
            let serving = async {
                let Some(mut server) = servers.try_next().await else { return };
                expect(&mut server, GET).await;
                send(&mut server, OK).await;
                rest(&mut server).await;
            };
            tokio::join!(asked, serving).0
        })
        .await
    };
    // The server's rules open it: the client's would see TLS, and ask for HTTP.
    let mut bench = world.bench(true, false, rules());
    bench.enforce_egress(egress(anybody(vec![rule("", "")]), Vec::new()));
    assert_eq!(ask(&bench).await, None);
    assert!(bench.flows()[0].contains("DROPPED"));
    // The client's open it: the server's see requests.
    let mut bench = Bench::new(vec![rule("", "/a")]);
    bench.enforce_inspected(anybody(vec![rule("", "/a")]), Vec::new(), world.secrets(), false);
    bench.enforce_egress(egress(Vec::new(), vec![inspected(true, false, rules())]));
    let got = ask(&bench).await;
    assert_eq!(got.as_deref(), Some("HTTP/1.1 200"), "{:?}", bench.flows());
    bench.enforce(anybody(vec![rule("", "/b")]), false);
    bench.enforce_egress(egress(Vec::new(), vec![inspected(true, false, rules())]));
    assert_eq!(ask(&bench).await.unwrap(), "HTTP/1.1 403");
    // Both would.
    let mut bench = world.bench(true, false, rules());
    bench.enforce_egress(egress(Vec::new(), vec![inspected(true, false, rules())]));
    assert_eq!(ask(&bench).await, None);
    assert_eq!(bench.flows(), ["tls DROPPED a.example (TLS that both ends would inspect)"]);
}

/// Beside rules for clients that speak no TLS, TLS by name passes as it is, and is not wrapped in another.
#[tokio::test(start_paused = true)]
async fn tls_that_is_not_opened_passes_untouched_beside_rules_that_begin_it() {
    let world = World::new();
    let mut bench = Bench::new(Vec::new());
    let tls = [L7Tls { peers: None, names: ["a.example".parse().unwrap()].into() }];
    let inspected = [inspected(false, true, rules())];
    bench.enforce_ports(tls.into(), inspected.into(), world.secrets());
    local(async {
        let (client, mut servers) = bench.open();
        let begun = begin(client, world.theirs.client(None, &[]));
        let accepted = async { accept(&world, servers.next().await, &[]).await };
        let (client, mut server) = tokio::join!(begun, accepted);
        say(&mut client.unwrap(), "PUT").await;
        hear(&mut server, "PUT").await;
    })
    .await;
    assert_eq!(bench.flows(), ["tls FORWARDED a.example"]);
}

/// Who only looks on does not open anything.
#[tokio::test(start_paused = true)]
async fn in_audit_mode_tls_passes_as_it_is() {
    let world = World::new();
    let mut bench = Bench::new(Vec::new());
    bench.enforce_inspected(Vec::new(), vec![inspected(true, true, rules())], world.secrets(), true);
    local(async {
        let (client, mut servers) = bench.open();
        let begun = begin(client, world.theirs.client(None, &[]));
        let accepted = async { accept(&world, servers.next().await, &[]).await };
        let (client, mut server) = tokio::join!(begun, accepted);
        say(&mut client.unwrap(), "PUT").await;
        hear(&mut server, "PUT").await;
    })
    .await;
    assert_eq!(bench.flows(), ["tls FORWARDED a.example"]);
}

/// A handshake that stalls ends, and its place is given back.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_ends() {
    let world = World::new();
    let bench = world.bench(true, true, rules());
    local(async {
        let (mut client, mut servers) = bench.open();
        client.write_all(&hello::of_rustls("a.example")).await.unwrap();
        let before = tokio::time::Instant::now();
        rest(&mut client).await;
        assert_eq!(before.elapsed(), Duration::from_secs(10));
        servers.none().await;
    })
    .await;
    assert_eq!(bench.flows(), ["tls DROPPED a.example (TLS handshake with the client not complete in time)"]);
    assert!(bench.worker.budgets.tenants().is_empty(), "nothing is kept of it");
}

/// Contexts alike are one: connections resume their sessions though other rules of the endpoint have changed.
#[tokio::test(start_paused = true)]
async fn sessions_are_resumed_over_edits() {
    let world = World::new();
    let mut bench = world.bench(true, false, rules());
    let config = world.ours.client(None, &[]);
    let mut kinds = Vec::new();
    for round in 0..2 {
        kinds.push(
            local(async {
                let (client, mut servers) = bench.open();
                let mut client = begin(client, Arc::clone(&config)).await.unwrap();
                say(&mut client, GET).await;
                let mut server = servers.next().await;
                expect(&mut server, GET).await;
                send(&mut server, OK).await;
                hear(&mut client, OK).await;
                client.get_ref().1.handshake_kind().unwrap()
            })
            .await,
        );
        let edited = Some(vec![rule("GET", &format!("/(a|{round})"))]);
        bench.enforce_inspected(Vec::new(), vec![inspected(true, false, edited)], world.secrets(), false);
    }
    assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
}

/// A context of items by other names.
#[tokio::test(start_paused = true)]
async fn items_may_have_other_names() {
    let world = World::new();
    let (certificate, private_key) = (Some("chain".to_owned()), Some("key".to_owned()));
    let terminating = Some(TlsContext { certificate, private_key, ..context("shown") });
    let named = of(TlsInspection { terminating, ..inspection(false, false, rules()) });
    let secrets = vec![secret("shown", &[("chain", &world.shown.chain), ("key", &world.shown.key)])];
    let mut bench = Bench::new(Vec::new());
    bench.enforce_inspected(Vec::new(), vec![named], secrets, false);
    local(async {
        let (client, _servers) = bench.open();
        assert!(begin(client, world.ours.client(None, &[])).await.is_ok());
    })
    .await;
}
