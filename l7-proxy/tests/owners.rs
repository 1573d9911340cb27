//! An address that passes from one workload to the next: what was open with the one before ends, on both sides, and nothing
//! that was sent by it, or for it, is taken for the next one's. A workload whose labels change keeps its connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

mod harness;

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use harness::http2::{client, origin, request};
use harness::wire::Cut;
use harness::{Bench, CLIENT, SERVER, anybody, expect, local, rest, rule, send};
use http::Request;
use mesh::l7::L7Access;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

const REQUEST: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BEGIN: &str = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nbegin";
const WHY: &str = "(address of another workload by now)";
/// Until then it is noticed, though nothing moves.
const NOTICED: Duration = Duration::from_secs(31);

/// Whose address passes on, the identity that has it then, and the instance.
const NEXT: [(Ipv4Addr, u32, Option<u64>); 4] =
    [(CLIENT, 300, Some(9)), (CLIENT, 300, None), (SERVER, 256, Some(9)), (SERVER, 256, None)];

/// Both ends are of this node; only the server has rules.
fn bench(access: Vec<L7Access>) -> Bench {
    let bench = Bench::with(access, false);
    bench.identify(CLIENT, 300, Some(8));
    bench
}

fn judged() -> Bench {
    bench(anybody(vec![rule("GET|POST", "/.*")]))
}

fn plain() -> Vec<L7Access> {
    vec![L7Access { peers: None, http: None }]
}

/// Both ends see an end and no byte before it.
async fn end(client: &mut DuplexStream, server: &mut DuplexStream) {
    let both = async { (rest(client).await, rest(server).await) };
    let (client, server) = timeout(NOTICED, both).await.expect("an end");
    assert_eq!((client.as_str(), server.as_str()), ("", ""));
}

/// A connection on which a request has been answered, and which is idle.
async fn served(bench: &Bench) -> (DuplexStream, DuplexStream) {
    let (mut client, mut server) = bench.asked(REQUEST).await;
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
    (client, server)
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_for_a_request_ends() {
    for (address, identity, instance) in NEXT {
        for asks in [false, true] {
            let bench = judged();
            local(async {
                let (mut client, mut server) = served(&bench).await;
                bench.identify(address, identity, instance);
                if asks {
                    send(&mut client, REQUEST).await;
                }
                end(&mut client, &mut server).await;
            })
            .await;
            assert_eq!(bench.flows().last().unwrap(), &format!("request DROPPED {WHY}"));
            assert_eq!(*bench.ended.borrow(), [Cut::Both]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_on_its_way_breaks_off() {
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin";
    for (address, identity, instance) in NEXT {
        for (answer, goes_on) in [("", false), ("", true), (begun, false), (begun, true)] {
            let bench = judged();
            local(async {
                let (mut client, mut server) = bench.asked(BEGIN).await;
                send(&mut server, answer).await;
                expect(&mut client, answer).await;
                bench.identify(address, identity, instance);
                if goes_on {
                    send(&mut client, "more").await;
                    send(&mut server, "more").await;
                }
                end(&mut client, &mut server).await;
            })
            .await;
            assert_eq!(bench.flows().last().unwrap(), &format!("request DROPPED POST http://h/a {WHY}"));
            assert_eq!(*bench.ended.borrow(), [Cut::Both]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_the_server_to_be_reached_is_not_sent() {
    let bench = judged();
    bench.takes.set(Duration::from_secs(5));
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, REQUEST).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.identify(CLIENT, 300, Some(9));
        end(&mut client, &mut servers.next().await).await;
    })
    .await;
    assert_eq!(bench.flows(), [format!("request DROPPED GET http://h/a {WHY}")]);
}

#[tokio::test(start_paused = true)]
async fn a_relay_ends() {
    for (address, identity, instance) in NEXT {
        for goes_on in [false, true] {
            let bench = bench(plain());
            local(async {
                let (mut client, mut servers) = bench.open();
                let mut server = servers.next().await;
                send(&mut server, "hello").await;
                expect(&mut client, "hello").await;
                bench.identify(address, identity, instance);
                if goes_on {
                    send(&mut client, "more").await;
                    send(&mut server, "more").await;
                }
                end(&mut client, &mut server).await;
            })
            .await;
            assert_eq!(bench.flows(), [format!("request DROPPED {WHY}")]);
            assert_eq!(*bench.ended.borrow(), [Cut::Both]);
        }
    }
}

/// Rules may name the next identity as well as the one before.
#[tokio::test(start_paused = true)]
async fn who_is_labelled_anew_goes_on() {
    let relabel = |bench: &Bench| {
        bench.identify(CLIENT, 301, Some(8));
        bench.identify(SERVER, 257, Some(7));
    };
    let bench = judged();
    local(async {
        let (mut client, mut server) = served(&bench).await;
        relabel(&bench);
        tokio::time::sleep(2 * NOTICED).await;
        send(&mut client, BEGIN).await;
        expect(&mut server, BEGIN).await;
        bench.identify(CLIENT, 300, Some(8));
        tokio::time::sleep(2 * NOTICED).await;
        send(&mut client, "more").await;
        expect(&mut server, "more").await;
        send(&mut server, OK).await;
        expect(&mut client, OK).await;
    })
    .await;
    let bench = self::bench(plain());
    local(async {
        let (mut client, mut servers) = bench.open();
        let mut server = servers.next().await;
        relabel(&bench);
        tokio::time::sleep(2 * NOTICED).await;
        send(&mut client, "hello").await;
        expect(&mut server, "hello").await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http2_ends_with_its_streams() {
    for (address, identity, instance) in NEXT {
        for is_idle in [false, true] {
            let bench = judged();
            local(async {
                let (mut client, mut servers) = client(&bench).await;
                let asked: Request<()> = request("POST", "/a");
                let (reply, mut up) = client.send.send_request(asked, false).unwrap();
                let mut origin = origin(&mut servers).await;
                let (request, mut respond) = origin.next().await;
                if is_idle {
                    up.send_data(Bytes::new(), true).unwrap();
                    harness::http2::answer(&mut respond, 200, "");
                    assert_eq!(reply.await.unwrap().status(), 200);
                    drop((request, respond));
                    bench.identify(address, identity, instance);
                } else {
                    bench.identify(address, identity, instance);
                    assert!(reply.await.is_err());
                    assert!(harness::http2::read(&mut request.into_body()).await.is_err());
                }
                // However h2 says it.
                let _ = timeout(NOTICED + Duration::from_secs(5), client.driver).await.unwrap().unwrap();
            })
            .await;
            let flows = bench.flows();
            assert!(flows.contains(&format!("request DROPPED {WHY}")), "{flows:?}");
        }
    }
}
