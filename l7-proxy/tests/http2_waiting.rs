//! Streams of HTTP/2 that wait for a server which takes few at once, or reads nothing: what has not left may be taken back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use harness::http2::{Client, Frame, Origin, Raw, answer, client, frame, origin_with, request};
use harness::{Bench, anybody, rule};
use http::{HeaderValue, Request};
use l7_proxy::stage::admit::Kind;
use mesh::l7::{HeaderRule, HttpRule, Mismatch};
use tokio::task::LocalSet;

type Asked = (ResponseFuture, SendStream<Bytes>);

fn all() -> Vec<HttpRule> {
    vec![rule("", "/.*")]
}

async fn open(client: &mut Client, request: Request<()>) -> Asked {
    poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
    client.send.send_request(request, true).unwrap()
}

async fn open_all(client: &mut Client, method: &str, path: &str, count: usize) -> Vec<Asked> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(open(client, request(method, path)).await);
    }
    all
}

async fn status((answer, _up): Asked) -> Result<u16, Reason> {
    let answer = answer.await.map(|answer| answer.status().as_u16());
    answer.map_err(|error| error.reason().unwrap_or(Reason::INTERNAL_ERROR))
}

/// Time stands still while anything moves.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// A connection to a server of which it is known that it takes so many streams at once.
async fn few(bench: &Bench, most: u32) -> (Client, Origin) {
    let (mut client, mut servers) = client(bench).await;
    let first = open(&mut client, request("GET", "/first")).await;
    let mut origin = origin_with(&mut servers, h2::server::Builder::new().max_concurrent_streams(most)).await;
    let (_, mut respond) = origin.next().await;
    answer(&mut respond, 200, "");
    assert_eq!(status(first).await, Ok(200));
    (client, origin)
}

fn held_places(bench: &Bench) -> u64 {
    bench.worker.budgets.tenants().iter().map(|tenant| tenant.budgets[Kind::Streams as usize].used).sum()
}

#[tokio::test(start_paused = true)]
async fn what_waits_and_is_denied_by_an_edit_never_reaches_the_server() {
    let mut bench = Bench::new(all());
    let local = LocalSet::new();
    local
        .run_until(async {
            let (mut client, mut origin) = few(&bench, 2).await;
            let held = open_all(&mut client, "GET", "/held", 2).await;
            let mut called = [origin.next().await, origin.next().await];
            let waiting = open_all(&mut client, "DELETE", "/x", 90).await;
            let allowed = open(&mut client, request("GET", "/allowed")).await;
            settle().await;
            bench.enforce(anybody(vec![rule("GET", "/.*")]), false);
            for waits in waiting {
                assert_eq!(status(waits).await, Ok(403));
            }
            for ((_, respond), asked) in called.iter_mut().zip(held) {
                answer(respond, 200, "");
                assert_eq!(status(asked).await, Ok(200));
            }
            let (request, mut respond) = origin.next().await;
            assert_eq!(request.uri().path(), "/allowed");
            answer(&mut respond, 200, "");
            assert_eq!(status(allowed).await, Ok(200));
        })
        .await;
    let flows = bench.flows();
    let of = |flow: &&String| flow.contains("DELETE");
    assert_eq!(flows.iter().filter(of).count(), 180, "{flows:?}");
    assert!(flows.contains(&"request DROPPED DELETE http://h/x (no rule lets it through)".to_owned()));
    assert!(!flows.contains(&"request FORWARDED DELETE http://h/x".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_the_client_takes_back_while_it_waits_leaves_nothing() {
    let bench = Bench::new(all());
    harness::local(async {
        let (mut client, mut origin) = few(&bench, 1).await;
        let held = open(&mut client, request("GET", "/held")).await;
        let (_, mut respond) = origin.next().await;
        for _ in 0..5 {
            let waiting = open_all(&mut client, "DELETE", "/x", 20).await;
            settle().await;
            assert_eq!(held_places(&bench), 21);
            drop(waiting);
            settle().await;
            assert_eq!(held_places(&bench), 1);
        }
        let last = open(&mut client, request("GET", "/last")).await;
        answer(&mut respond, 200, "");
        assert_eq!(status(held).await, Ok(200));
        let (request, mut respond) = origin.next().await;
        assert_eq!(request.uri().path(), "/last");
        answer(&mut respond, 200, "");
        assert_eq!(status(last).await, Ok(200));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_sent_as_the_rules_of_then_edit_it() {
    let role = |value: &str| {
        let (name, value) = ("x-role".to_owned(), Some(value.to_owned()));
        let headers = vec![HeaderRule { name, value, mismatch: Mismatch::Replace }];
        anybody(vec![HttpRule { headers, ..HttpRule::default() }])
    };
    let mut bench = Bench::with(role("user"), false);
    let local = LocalSet::new();
    local
        .run_until(async {
            let (mut client, mut origin) = few(&bench, 1).await;
            let held = open(&mut client, request("GET", "/held")).await;
            let (_, mut respond) = origin.next().await;
            let mut asked = request("GET", "/a/../%61");
            asked.headers_mut().insert("x-role", HeaderValue::from_static("admin"));
            let waiting = open(&mut client, asked).await;
            settle().await;
            bench.enforce(role("guest"), false);
            settle().await;
            answer(&mut respond, 200, "");
            assert_eq!(status(held).await, Ok(200));
            let (called, mut respond) = origin.next().await;
            assert_eq!(called.headers()["x-role"], "guest");
            assert_eq!(called.headers().get_all("x-role").iter().count(), 1);
            answer(&mut respond, 200, "");
            assert_eq!(status(waiting).await, Ok(200));
        })
        .await;
    let forwarded = "request FORWARDED GET http://h/a/../%61";
    assert_eq!(bench.flows().iter().filter(|flow| *flow == forwarded).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_connection_is_sent_as_the_rules_of_then_edit_it() {
    let mut bench = Bench::new(all());
    bench.takes.set(Duration::from_secs(5));
    let local = LocalSet::new();
    local
        .run_until(async {
            let (mut client, servers) = client(&bench).await;
            let received = harness::http2::serve_all(servers);
            let waiting = open(&mut client, request("GET", "/a")).await;
            let denied = open(&mut client, request("DELETE", "/a")).await;
            settle().await;
            let (name, value) = ("x-added".to_owned(), Some("1".to_owned()));
            let headers = vec![HeaderRule { name, value, mismatch: Mismatch::Add }];
            bench.enforce(anybody(vec![HttpRule { headers, ..rule("GET", "/.*") }]), false);
            assert_eq!((status(waiting).await, status(denied).await), (Ok(200), Ok(403)));
            assert_eq!(received.take(), ["GET http://h/a x-added=1"]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_first_come_first_served() {
    let bench = Bench::new(all());
    harness::local(async {
        let (mut client, mut origin) = few(&bench, 2).await;
        let mut asked = Vec::new();
        for number in 0..60 {
            asked.push(open(&mut client, request("GET", &format!("/{number}"))).await);
        }
        for (number, asked) in asked.into_iter().enumerate() {
            let (request, mut respond) = origin.next().await;
            assert_eq!(request.uri().path(), format!("/{number}"));
            answer(&mut respond, 200, "ok");
            assert_eq!(status(asked).await, Ok(200));
        }
    })
    .await;
}

/// The settings of a server that takes so many streams at once.
fn takes(most: u8) -> Vec<u8> {
    frame(4, 0, 0, &[0, 3, 0, 0, 0, most])
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_none_is_waited_for() {
    let bench = Bench::new(all());
    harness::local(async {
        let (mut client, mut servers) = client(&bench).await;
        let first = open(&mut client, request("GET", "/first")).await;
        let mut server = Raw::server(&mut servers).await;
        assert_eq!(server.until(1).await.stream, 1);
        server.write(&takes(0)).await;
        server.write(&frame(3, 0, 1, &[0, 0, 0, 7])).await;
        assert_eq!(status(first).await, Err(Reason::REFUSED_STREAM));
        let asked = open(&mut client, request("GET", "/a")).await;
        assert_eq!(status(asked).await, Ok(504));
        let asked = open(&mut client, request("GET", "/b")).await;
        settle().await;
        server.write(&takes(1)).await;
        assert_eq!(server.until(1).await.stream, 3);
        // A server that ends while streams wait for it has not looked at them.
        let waiting = open(&mut client, request("GET", "/c")).await;
        settle().await;
        server.write(&frame(7, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0])).await;
        assert_eq!(status(waiting).await, Err(Reason::REFUSED_STREAM));
        server.write(&frame(1, 5, 3, &[0x88])).await;
        assert_eq!(status(asked).await, Ok(200));
    })
    .await;
}

/// Bytes of a header's value, each of which takes seven bits on its way.
const LARGE: usize = 12 << 10;
/// Heads of that which fit into what lies between the proxy and a server that reads nothing.
const FITTING: usize = (256 << 10) / (LARGE * 7 / 8);

/// More heads than fit into what lies between the proxy and a server that reads nothing.
async fn stuffed(bench: &Bench) -> (Client, harness::Servers, Vec<Asked>) {
    let (mut client, servers) = client(bench).await;
    let mut asked = Vec::new();
    for _ in 0..90 {
        let mut large = request("DELETE", "/x");
        let value = HeaderValue::from_bytes(&[b'x'; LARGE]).unwrap();
        large.headers_mut().insert("x-large", value);
        asked.push(open(&mut client, large).await);
    }
    settle().await;
    (client, servers, asked)
}

/// Heads that the server finds, after it has read nothing so far.
async fn heads(servers: &mut harness::Servers) -> usize {
    let mut server = Raw::server(servers).await;
    let mut heads = 0;
    while let Some(Frame { kind, .. }) = server.next().await {
        heads += usize::from(kind == 1);
    }
    heads
}

#[tokio::test(start_paused = true)]
async fn what_has_not_left_when_it_is_denied_never_does() {
    for is_inherited in [false, true] {
        let mut bench = Bench::new(all());
        let local = LocalSet::new();
        local
            .run_until(async {
                let (_client, mut servers, asked) = stuffed(&bench).await;
                match is_inherited {
                    true => bench.identify(harness::SERVER, 256, Some(8)),
                    false => bench.enforce(anybody(vec![rule("GET", "/.*")]), false),
                }
                settle().await;
                let heads = heads(&mut servers).await;
                assert!((1..=FITTING).contains(&heads), "{heads} heads");
                for asked in asked {
                    assert!(matches!(status(asked).await, Ok(403) | Err(_)));
                }
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_to_a_server_that_reads_nothing_and_taken_back_is_bounded() {
    let bench = Bench::new(all());
    harness::local(async {
        let (mut client, mut servers, mut asked) = stuffed(&bench).await;
        for _ in 0..2 {
            drop(asked);
            settle().await;
            assert_eq!(held_places(&bench), 0);
            asked = open_all(&mut client, "DELETE", "/x", 40).await;
            settle().await;
        }
        drop(asked);
        settle().await;
        let counting = tokio::task::spawn_local(async move { heads(&mut servers).await });
        settle().await;
        drop(client.send);
        let heads = counting.await.unwrap();
        assert!((1..=32).contains(&heads), "{heads} heads");
    })
    .await;
}
