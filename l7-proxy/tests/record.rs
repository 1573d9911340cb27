//! What is recorded of exchanges: one record each, with its flag, its bytes and the headers that were asked for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;
#[path = "harness/hello.rs"]
mod hello;

use std::time::Duration;

use harness::http2::{client, request, serve_all};
use harness::{Bench, anybody, expect, local, rest, rule, run_against, send};
use hello::of_rustls;
use http::HeaderValue;
use l7_proxy::codec::MAX_HEADERS;
use l7_proxy::runtime::ConnectError;
use mesh::access_log::Headers;
use mesh::exchange::{Exchange, details};
use mesh::l7::{HeaderRule, HttpRule, L7Access, L7Tls, Mismatch};
use node_api::proxy::{ProxyReport, Record};
use tokio::io::AsyncWriteExt;

const OK: &str = "HTTP/1.1 200 OK\r\nX-Made-By: s\r\ncontent-length: 2\r\n\r\nok";
const POST: &str = "POST /a?b HTTP/1.1\r\nHost: h\r\nUser-Agent: t\r\nContent-Length: 3\r\n\r\nabc";

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn recording(access: Vec<L7Access>) -> Bench {
    let bench = Bench::with(access, false);
    let exchanges =
        Headers { request: names(&["user-agent", "x-request-id"]), response: names(&["x-made-by"]) };
    bench.log.set_record(Record { exchanges: Some(exchanges), request_id: false });
    bench
}

fn landing() -> Vec<L7Access> {
    anybody(vec![rule("POST|GET|HEAD", "/a.*")])
}

/// `POST h/a?b 200 UF details 3/2`.
fn line(exchange: &Exchange) -> String {
    let code = exchange.code.map_or("-".to_owned(), |code| code.to_string());
    let flag = exchange.flag.map_or("-", |flag| flag.short());
    let why = exchange.reason.as_deref().map_or("-".to_owned(), details);
    let Exchange { method, authority, path, received, sent, .. } = exchange;
    format!("{method} {authority}{path} {code} {flag} {why} {received}/{sent}")
}

fn lines(report: &ProxyReport) -> Vec<String> {
    report.exchanges.iter().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn an_exchange_is_one_record_with_times_bytes_and_headers() {
    let bench = recording(landing());
    local(async {
        let (mut client, mut servers) = bench.open();
        bench.takes.set(Duration::from_millis(10));
        send(&mut client, POST).await;
        let mut server = servers.next().await;
        expect(&mut server, POST).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        send(&mut server, &OK[..OK.len() - 1]).await;
        expect(&mut client, &OK[..OK.len() - 1]).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        send(&mut server, "k").await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, "k");
    })
    .await;
    let report = bench.log.take_exchanges();
    assert_eq!(lines(&report), ["POST h/a?b 200 - - 3/2"]);
    let [exchange] = report.exchanges.as_slice() else { panic!() };
    let milliseconds = |nanoseconds: u64| nanoseconds / 1_000_000;
    assert_eq!(milliseconds(exchange.duration), 60);
    assert_eq!(exchange.answered.map(milliseconds), Some(30));
    assert_eq!(exchange.served.map(milliseconds), Some(20));
    assert_eq!(exchange.request_headers, [("user-agent".to_owned(), "t".to_owned())]);
    assert_eq!(exchange.response_headers, [("x-made-by".to_owned(), "s".to_owned())]);
    assert!(exchange.is_passed && !exchange.is_https);
}

#[tokio::test(start_paused = true)]
async fn each_way_to_fail_has_its_flag() {
    for (input, answer, expected) in [
        ("PUT /b HTTP/1.1\r\nHost: h\r\n\r\n", OK, "PUT h/b 403 - no_rule_lets_it_through 0/15"),
        (
            "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
            "garbage\r\n\r\n",
            "GET h/a 502 UPE neither_http_1_1_nor_http_1_0 0/13",
        ),
        ("GET /a HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", OK, "  400 DPE more_than_one_host_header 0/13"),
        (
            "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "GET h/a 200 - - 0/0",
        ),
        ("\x16\x03\x01 no HTTP \r\n\r\n", OK, "  - DPE tls_where_http_is_required 0/0"),
    ] {
        let bench = recording(landing());
        run_against(&bench, input.as_bytes(), answer).await;
        let report = bench.log.take_exchanges();
        assert_eq!(lines(&report), [expected]);
        let is_request = !expected.starts_with("  - ");
        assert_eq!(report.counts.is_empty(), !is_request, "{expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_reached_or_breaks_off() {
    let bench = recording(landing());
    for (error, expected) in [
        (ConnectError::Refused, "GET h/a 503 UF server_not_reached 0/21"),
        (ConnectError::Late, "GET h/a 504 UF server_not_reached_in_time 0/17"),
    ] {
        bench.refuses.set(Some(error));
        run_against(&bench, b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", OK).await;
        assert_eq!(lines(&bench.log.take_exchanges()), [expected]);
    }
    bench.refuses.set(None);
    local(async {
        for (answer, expected) in [
            ("", "GET h/a 502 UC server_closed_without_an_answer 0/13"),
            (&OK[..OK.len() - 1], "GET h/a 200 UC message_that_ends_before_its_end 0/1"),
        ] {
            let (mut client, mut servers) = bench.open();
            send(&mut client, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await;
            let mut server = servers.next().await;
            send(&mut server, answer).await;
            drop(server);
            rest(&mut client).await;
            drop(client);
            assert_eq!(lines(&bench.log.take_exchanges()), [expected]);
        }
        // A client that goes before it is answered.
        let (client, mut server) = bench.asked(&POST[..POST.len() - 1]).await;
        drop(client);
        rest(&mut server).await;
        let report = bench.log.take_exchanges();
        assert_eq!(lines(&report), ["POST h/a?b - DC downstream_remote_disconnect 2/0"]);
        // A server that says nothing.
        let (mut client, mut servers) = bench.open();
        send(&mut client, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let _server = servers.next().await;
        rest(&mut client).await;
        assert_eq!(lines(&bench.log.take_exchanges()), ["GET h/a 504 UT no_answer_in_time 0/17"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_and_a_switched_connection_are_records_at_their_end() {
    let bench = recording(vec![L7Access { peers: None, http: None }]);
    local(async {
        let (mut client, mut server) = bench.asked("hello").await;
        send(&mut server, "world!").await;
        expect(&mut client, "world!").await;
        assert!(bench.log.take_exchanges().exchanges.is_empty());
        drop((client, server));
        tokio::time::sleep(Duration::from_millis(1)).await;
    })
    .await;
    let report = bench.log.take_exchanges();
    assert_eq!(lines(&report), ["  - - - 5/6"]);
    assert!(report.counts.is_empty(), "it was no request");
    let bench = recording(landing());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "GET /a HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
        let mut server = servers.next().await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        send(&mut server, switch).await;
        expect(&mut client, switch).await;
        send(&mut client, "four").await;
        send(&mut server, "seven77").await;
        expect(&mut client, "seven77").await;
        client.shutdown().await.unwrap();
        server.shutdown().await.unwrap();
        rest(&mut client).await;
    })
    .await;
    assert_eq!(lines(&bench.log.take_exchanges()), ["GET h/a 101 - - 4/7"]);
}

#[tokio::test(start_paused = true)]
async fn streams_of_http2_are_records_of_their_own() {
    let bench = recording(landing());
    local(async {
        let (mut client, servers) = client(&bench).await;
        let _received = serve_all(servers);
        assert_eq!(client.post(request("POST", "/a?b"), "abc").await.unwrap().body, "");
        assert_eq!(client.ask(request("POST", "/b")).await.unwrap().status, 403);
    })
    .await;
    let report = bench.log.take_exchanges();
    assert_eq!(lines(&report), ["POST h/a?b 200 - - 3/0", "POST h/b 403 - no_rule_lets_it_through 0/15"]);
    assert!(report.exchanges.iter().all(|exchange| exchange.protocol == "HTTP/2"));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_number_is_given_one_where_that_is_wanted() {
    let bench = recording(landing());
    let get = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    let plain = run_against(&bench, get, OK).await;
    assert_eq!(plain.raw, get, "nothing is added unasked");
    let mut settings = Record { exchanges: Some(Headers::default()), request_id: true };
    settings.exchanges.as_mut().unwrap().request = names(&["x-request-id"]);
    bench.log.set_record(settings);
    bench.log.take_exchanges();
    let outcome = run_against(&bench, get, OK).await;
    let report = bench.log.take_exchanges();
    let (name, id) = &report.exchanges[0].request_headers[0];
    assert_eq!((name.as_str(), id.len()), ("x-request-id", 36));
    assert_eq!(outcome.received, format!("GET /a HTTP/1.1\r\nHost: h\r\nx-request-id: {id}\r\n\r\n"));
    let own = "GET /a HTTP/1.1\r\nHost: h\r\nX-Request-ID: mine\r\n\r\n";
    assert_eq!(run_against(&bench, own.as_bytes(), OK).await.received, own);
    let report = bench.log.take_exchanges();
    assert_eq!(report.exchanges[0].request_headers, [("x-request-id".to_owned(), "mine".to_owned())]);
}

/// What clients send has a bound; what is added to it has room beyond.
#[tokio::test(start_paused = true)]
async fn a_head_of_as_many_lines_as_there_may_be_is_given_a_number_too() {
    let bench = recording(landing());
    bench.log.set_record(Record { exchanges: None, request_id: true });
    for (lines, codes) in [(MAX_HEADERS, [200]), (MAX_HEADERS + 1, [400])] {
        let get = format!("GET /a HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(lines - 1));
        let outcome = run_against(&bench, get.as_bytes(), OK).await;
        assert_eq!(outcome.codes(), codes);
        let is_passed = codes == [200];
        assert_eq!(outcome.received.matches("\r\nx-request-id: ").count(), usize::from(is_passed));
        assert_eq!(outcome.received.matches("\r\nX: 1").count(), if is_passed { lines - 1 } else { 0 });
    }
    local(async {
        let (mut client, servers) = client(&bench).await;
        let received = serve_all(servers);
        let mut asked = request("GET", "/a");
        for _ in 0..MAX_HEADERS {
            asked.headers_mut().append("x", HeaderValue::from_static("1"));
        }
        assert_eq!(client.ask(asked).await.unwrap().status, 200);
        let received = received.borrow();
        assert_eq!(received[0].matches(" x=1").count(), MAX_HEADERS);
        assert_eq!(received[0].matches(" x-request-id=").count(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_head_of_as_many_lines_as_there_may_be_is_given_those_that_rules_add() {
    let header =
        HeaderRule { name: "x-add".to_owned(), value: Some("a".to_owned()), mismatch: Mismatch::Add };
    let bench = Bench::new(vec![HttpRule { headers: vec![header], ..rule("GET", "/a") }]);
    let get = format!("GET /a HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(MAX_HEADERS - 1));
    let outcome = run_against(&bench, get.as_bytes(), OK).await;
    assert_eq!(outcome.codes(), [200]);
    assert!(outcome.received.ends_with("\r\nx-add: a\r\n\r\n"));
}

#[tokio::test(start_paused = true)]
async fn traces_pass_untouched() {
    let bench = recording(landing());
    let request = "GET /a HTTP/1.1\r\nHost: h\r\n\
        traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=1,b=2\r\n\r\n";
    assert_eq!(run_against(&bench, request.as_bytes(), OK).await.received, request);
}

#[tokio::test(start_paused = true)]
async fn what_is_counted_adds_up_though_nothing_is_logged() {
    let bench = Bench::with(landing(), false);
    let get = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n".repeat(3) + "PUT /a HTTP/1.1\r\nHost: h\r\n\r\n";
    run_against(&bench, get.as_bytes(), OK).await;
    let report = bench.log.take_exchanges();
    assert!(report.exchanges.is_empty());
    let [pair] = report.counts.as_slice() else { panic!("{report:?}") };
    let mut kinds: Vec<_> =
        pair.exchanges.iter().map(|(kind, count)| (kind.method(), kind.code, *count)).collect();
    kinds.sort();
    assert_eq!(kinds, [("GET", 200, 3), ("PUT", 403, 1)]);
    assert_eq!((pair.latency.count(), pair.received.count(), pair.sent.sum), (4, 4, 21.0));
    assert_eq!(pair.ends.map(|ends| ends.map(|end| end.identity.unwrap().number())), Some([300, 256]));
}

#[tokio::test(start_paused = true)]
async fn exchanges_that_nobody_takes_have_a_bound_and_are_counted() {
    for (length, batches) in [(2000, 30), (1, 130)] {
        let bench = recording(landing());
        let request = format!("PUT /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(length));
        for _ in 0..batches {
            run_against(&bench, request.repeat(200).as_bytes(), OK).await;
            bench.flows();
        }
        let count = batches * 200;
        let report = bench.log.take_exchanges();
        assert!(report.lost > 0, "{}", report.exchanges.len());
        assert_eq!(report.exchanges.len() as u64 + report.lost, count);
        assert_eq!(report.counts[0].latency.count(), count, "none is missing here");
        let taken = allocated(&report.exchanges);
        assert!((3 << 20..=8 << 20).contains(&taken), "{taken}");
    }
}

/// What exchanges have allocated.
fn allocated(exchanges: &Vec<Exchange>) -> usize {
    let texts = |exchange: &Exchange| {
        let Exchange { method, authority, path, protocol, reason, server_name, .. } = exchange;
        let all = [method, authority, path, protocol].into_iter().chain(reason).chain(server_name);
        all.map(String::capacity).sum::<usize>()
    };
    let headers = |list: &Vec<(String, String)>| {
        let texts = list.iter().map(|(name, value)| name.capacity() + value.capacity());
        list.capacity() * size_of::<(String, String)>() + texts.sum::<usize>()
    };
    let beside = exchanges
        .iter()
        .map(|it| texts(it) + headers(&it.request_headers) + headers(&it.response_headers))
        .sum::<usize>();
    exchanges.capacity() * size_of::<Exchange>() + beside
}

#[tokio::test(start_paused = true)]
async fn tls_is_a_record_with_the_name_that_was_asked_for() {
    let mut bench = recording(anybody(Vec::new()));
    let names = vec!["deathstar.example".parse().unwrap()].into();
    bench.enforce_tls(Vec::new(), vec![L7Tls { peers: None, names }], false);
    for (name, said) in [("deathstar.example", "- - -"), ("evil.example", "- - no_rule_names_this_server")] {
        let hello = of_rustls(name);
        local(async {
            let (mut client, mut servers) = bench.open();
            client.write_all(&hello).await.unwrap();
            client.shutdown().await.unwrap();
            drop(servers.try_next().await);
            rest(&mut client).await;
        })
        .await;
        let report = bench.log.take_exchanges();
        let [exchange] = report.exchanges.as_slice() else { panic!("{report:?}") };
        assert_eq!(exchange.server_name.as_deref(), Some(name));
        assert_eq!(exchange.protocol, "TLS");
        assert!(line(exchange).starts_with(&format!("  {said}")), "{}", line(exchange));
        assert!(report.counts.is_empty());
    }
}
