//! Whole exchanges in memory: what passes, what is answered by the proxy, and what is recorded of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::wire::Cut;
use harness::{Bench, anybody, expect, local, rest, rule, run, send};
use l7_proxy::runtime::{ConnectError, Snapshot};
use mesh::l7::{HeaderRule, HttpRule, L7Access, Mismatch};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

const DENIED: &str =
    "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\nAccess denied\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn landing() -> Vec<HttpRule> {
    vec![rule("POST", "/v1/request-landing")]
}

#[tokio::test(start_paused = true)]
async fn what_rules_let_through_passes_and_the_rest_is_denied_on_the_same_connection() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "PUT /v1/exhaust-port HTTP/1.1\r\nHost: deathstar\r\nContent-Length: 3\r\n\r\nabc")
            .await;
        expect(&mut client, DENIED).await;
        let request = "POST /v1/request-landing HTTP/1.1\r\nHost: deathstar\r\nContent-Length: 4\r\n\r\nland";
        send(&mut client, request).await;
        let mut server = servers.next().await;
        expect(&mut server, request).await;
        send(&mut server, OK).await;
        expect(&mut client, OK).await;
        send(&mut client, "GET / HTTP/1.1\r\nHost: deathstar\r\n\r\n").await;
        expect(&mut client, DENIED).await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, "");
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
    assert_eq!(
        bench.flows(),
        [
            "request DROPPED PUT http://deathstar/v1/exhaust-port (no rule lets it through)",
            "response FORWARDED 403 PUT http://deathstar/v1/exhaust-port",
            "request FORWARDED POST http://deathstar/v1/request-landing",
            "response FORWARDED 200 POST http://deathstar/v1/request-landing",
            "request DROPPED GET http://deathstar/ (no rule lets it through)",
            "response FORWARDED 403 GET http://deathstar/",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_does_not_change_is_forwarded_byte_by_byte() {
    let request = "GET /a?b=%7e HTTP/1.1\r\nhOsT:h\r\nX-A:  1\t\r\nx-a: 2\r\n\r\n";
    let outcome = run(vec![rule("GET", "/a.*")], request).await;
    assert_eq!(outcome.received, request);
    // No rule looks at paths: nothing of the target is touched.
    let request = "GET //a/%7E/../b\\c%zz HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(run(vec![rule("GET", "")], request).await.received, request);
}

#[tokio::test(start_paused = true)]
async fn requests_in_a_row_are_judged_one_by_one() {
    let outcome = run(
        landing(),
        "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc\
         PUT /x HTTP/1.1\r\nHost: h\r\n\r\n\
         POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    .await;
    assert_eq!(outcome.received.matches("POST").count(), 2);
    assert!(!outcome.received.contains("PUT"));
}

#[tokio::test(start_paused = true)]
async fn a_head_is_written_anew_where_a_rule_or_the_path_asks_for_it() {
    let header =
        |name: &str, mismatch| HeaderRule { name: name.to_owned(), value: Some("a".to_owned()), mismatch };
    let headers = vec![
        header("x-add", Mismatch::Add),
        header("x-delete", Mismatch::Delete),
        header("x-replace", Mismatch::Replace),
        header("x-log", Mismatch::Log),
    ];
    let outcome = run(
        vec![HttpRule { headers, ..rule("", "/a") }],
        "POST /x/../%61 HTTP/1.1\r\nHost: h\r\nX-Delete: b\r\nX-Kept:  1\r\nX-Replace: b\r\nContent-Length: 2\r\n\r\nhi",
    )
    .await;
    assert_eq!(
        outcome.received,
        "POST /a HTTP/1.1\r\nHost: h\r\nX-Kept:  1\r\nContent-Length: 2\r\nx-add: a\r\nx-replace: a\r\n\r\nhi"
    );
}

#[tokio::test(start_paused = true)]
async fn interim_responses_and_trailers_pass() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = bench.open();
        let head = "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
        send(&mut client, head).await;
        let mut server = servers.next().await;
        expect(&mut server, head).await;
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        send(&mut server, interim).await;
        expect(&mut client, interim).await;
        let body = "2;x=y\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n";
        send(&mut client, body).await;
        expect(&mut server, body).await;
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nGrpc-Status: 0\r\n\r\n";
        send(&mut server, answer).await;
        expect(&mut client, answer).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_is_delivered_while_the_upload_goes_on() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = bench.open();
        let head = "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n";
        send(&mut client, head).await;
        let mut server = servers.next().await;
        expect(&mut server, head).await;
        send(&mut server, OK).await;
        expect(&mut client, OK).await;
        send(&mut client, "abcdef").await;
        expect(&mut server, "abcdef").await;
        send(&mut client, "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n").await;
        expect(&mut server, "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n").await;
    })
    .await;
}

/// Many clients send all that they have before they read: what they were answered must wait for them.
#[tokio::test(start_paused = true)]
async fn an_answer_in_the_midst_of_a_large_upload_arrives_with_who_reads_it_last() {
    const REFUSED: &str = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let part = vec![b'x'; 128 << 10];
    for path in ["/v1/request-landing", "/denied"] {
        let bench = Bench::new(landing());
        local(async {
            let (mut client, mut servers) = bench.open();
            let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 64 << 20);
            send(&mut client, &head).await;
            if path != "/denied" {
                let mut server = servers.next().await;
                expect(&mut server, &head).await;
                send(&mut server, REFUSED).await;
            }
            for _ in 0..50 {
                sleep(Duration::from_millis(500)).await;
                client.write_all(&part).await.unwrap();
            }
            let answer = rest(&mut client).await;
            let status = if path == "/denied" { "HTTP/1.1 403 " } else { REFUSED };
            assert!(answer.starts_with(status), "{answer}");
            // There is an end to it, too.
            while client.write_all(&part).await.is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        })
        .await;
        assert_eq!(*bench.ended.borrow(), [if path == "/denied" { Cut::Neither } else { Cut::Server }]);
    }
}

/// Who neither sends nor goes is waited for a little.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_after_its_last_answer_is_left() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, _servers) = bench.open();
        send(&mut client, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 403 "));
        assert!(bench.ended.borrow().is_empty());
        sleep(Duration::from_secs(6)).await;
        assert_eq!(*bench.ended.borrow(), [Cut::Neither]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn large_bodies_pass_both_ways_at_once() {
    let bench = Bench::new(landing());
    local(async {
        let (client, mut servers) = bench.open();
        let (mut reads, mut writes) = tokio::io::split(client);
        let body = "x".repeat(3 << 20);
        let head =
            format!("POST /v1/request-landing HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let sent = async {
            writes.write_all(head.as_bytes()).await.unwrap();
            writes.write_all(body.as_bytes()).await.unwrap();
        };
        let served = async {
            let mut server = servers.next().await;
            expect(&mut server, &head).await;
            send(&mut server, &answer).await;
            let (mut from, mut to) = tokio::io::split(server);
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        };
        let received = async {
            let mut all = vec![0; answer.len() + body.len()];
            tokio::io::AsyncReadExt::read_exact(&mut reads, &mut all).await.unwrap();
            assert!(all.ends_with(body.as_bytes()));
        };
        tokio::select! {
            ((), ()) = async { tokio::join!(sent, received) } => {}
            () = served => panic!("the server has ended"),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_websocket_passes_and_ends_when_rules_change() {
    let mut bench = Bench::new(vec![rule("GET", "/chat")]);
    let local_set = tokio::task::LocalSet::new();
    local_set
        .run_until(async {
            let (mut client, mut servers) = bench.open();
            let head = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            send(&mut client, head).await;
            let mut server = servers.next().await;
            expect(&mut server, head).await;
            let answer =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            send(&mut server, answer).await;
            expect(&mut client, answer).await;
            send(&mut client, "\u{1}GET /other HTTP/1.1\r\n\r\n").await;
            expect(&mut server, "\u{1}GET /other HTTP/1.1\r\n\r\n").await;
            bench.enforce(anybody(vec![rule("GET", "/chat"), rule("GET", "/more")]), false);
            send(&mut server, "pong").await;
            expect(&mut client, "pong").await;
            bench.enforce(anybody(vec![rule("GET", "/more")]), false);
            assert_eq!(rest(&mut client).await, "");
        })
        .await;
    assert_eq!(bench.flows().last().unwrap(), "request DROPPED GET http://h/chat (not allowed any more)");
}

#[tokio::test(start_paused = true)]
async fn a_websocket_that_no_rule_lets_through_is_denied_and_what_follows_is_http() {
    let outcome = run(
        vec![rule("GET", "/chat")],
        "GET /other HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
         GET /chat HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    .await;
    assert_eq!(outcome.codes(), [403, 200]);
    assert_eq!(outcome.received, "GET /chat HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(outcome.flows[0], "request DROPPED GET http://h/other (no rule lets it through)");
}

#[tokio::test(start_paused = true)]
async fn rules_and_identities_hold_from_the_next_request_on() {
    let peers = |number| Some([mesh::identity::Identity::new(number).unwrap()].into());
    let access = |number| vec![L7Access { peers: peers(number), http: Some(landing().into()) }];
    let mut bench = Bench::with(access(300), false);
    let request = "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n";
    let local_set = tokio::task::LocalSet::new();
    local_set
        .run_until(async {
            let (mut client, mut server) = bench.asked(request).await;
            send(&mut server, OK).await;
            expect(&mut client, OK).await;
            bench.identify(harness::CLIENT, 301, None);
            send(&mut client, request).await;
            expect(&mut client, DENIED).await;
            bench.enforce(access(301), false);
            send(&mut client, request).await;
            expect(&mut server, request).await;
            send(&mut server, OK).await;
            expect(&mut client, OK).await;
            // The address is another creation's by now.
            bench.identify(harness::SERVER, 256, Some(8));
            send(&mut client, request).await;
            assert_eq!(rest(&mut client).await, "");
            let (mut client, _) = bench.open();
            assert_eq!(rest(&mut client).await, "");
        })
        .await;
    let flows = bench.flows();
    let [.., before, since] = flows.as_slice() else { panic!("{flows:?}") };
    assert_eq!(before, "request DROPPED (address of another workload by now)");
    assert_eq!(since, "request DROPPED (address of another workload than the rules are for)");
}

#[tokio::test(start_paused = true)]
async fn before_all_rules_are_known_nothing_passes() {
    let bench = Bench::new(landing());
    bench.published.set(l7_proxy::runtime::Snapshot::default());
    local(async {
        let (mut client, mut servers) = bench.open();
        assert_eq!(rest(&mut client).await, "");
        servers.none().await;
    })
    .await;
}

/// The net under mistakes in the order of changes: that there are no rules is no leave.
#[tokio::test(start_paused = true)]
async fn a_connection_that_no_rules_are_about_is_closed() {
    for told in [false, true] {
        let mut bench = Bench::new(landing());
        if told {
            bench.enforce_at(8080, anybody(landing()), false);
        } else {
            let mut snapshot = Snapshot::default();
            snapshot.is_synced = true;
            bench.published.set(snapshot);
        }
        local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
            assert_eq!(rest(&mut client).await, "");
            servers.none().await;
        })
        .await;
        let flows: &[&str] = if told { &["request DROPPED (no rules for it)"] } else { &[] };
        assert_eq!(bench.flows(), flows);
        let untold = bench.log.take_exchanges().untold;
        let counted = if told { BTreeMap::new() } else { [("no rules for it".to_owned(), 1)].into() };
        assert_eq!(untold, counted, "nobody's flow, and counted all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_do_anything_is_relayed_untouched_until_he_may_not() {
    let plain = || vec![L7Access { peers: None, http: None }];
    let mut bench = Bench::with(plain(), false);
    let local_set = tokio::task::LocalSet::new();
    local_set
        .run_until(async {
            let (mut client, mut servers) = bench.open();
            let mut server = servers.next().await;
            send(&mut server, "220 I speak first\r\n").await;
            expect(&mut client, "220 I speak first\r\n").await;
            send(&mut client, "\x16\x03 anything\0").await;
            expect(&mut server, "\x16\x03 anything\0").await;
            client.shutdown().await.unwrap();
            assert_eq!(rest(&mut server).await, "");
            send(&mut server, "late").await;
            expect(&mut client, "late").await;
            bench.enforce(anybody(landing()), false);
            assert_eq!(rest(&mut client).await, "");
        })
        .await;
    assert_eq!(bench.flows(), ["request DROPPED (not allowed any more)"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_http_is_closed_with_a_reason() {
    for (input, reason) in [
        ("SSH-2.0-OpenSSH\r\n", "not HTTP"),
        ("\0\0\0\0", "not HTTP"),
        ("INVALID CONNECTION PREFACE\r\n\r\n", "not HTTP"),
        ("", "silent, where HTTP is required"),
    ] {
        let bench = Bench::new(landing());
        local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, input).await;
            assert_eq!(rest(&mut client).await, "");
            servers.none().await;
        })
        .await;
        assert_eq!(bench.flows(), [format!("request DROPPED ({reason})")]);
    }
}

#[tokio::test(start_paused = true)]
async fn audit_mode_reports_and_lets_pass() {
    let bench = Bench::with(anybody(landing()), true);
    let outcome = harness::run_against(&bench, b"PUT /x HTTP/1.1\r\nHost: h\r\n\r\n", OK).await;
    assert_eq!(outcome.codes(), [200]);
    assert_eq!(outcome.flows[0], "request AUDIT PUT http://h/x (no rule lets it through)");
}

/// Who only reports keeps nothing away and changes nothing, whatever he cannot read. Where a message ends must be known all the
/// same.
#[tokio::test(start_paused = true)]
async fn audit_mode_leaves_paths_as_they_are() {
    for (target, reason) in [
        ("/a\\b", "backslash in the path"),
        ("/%zz", "malformed escape in the path"),
        ("//x/../y", "no rule lets it through"),
    ] {
        let bench = Bench::with(anybody(landing()), true);
        let request = format!("PUT {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let outcome = harness::run_against(&bench, request.as_bytes(), OK).await;
        assert_eq!((outcome.codes(), outcome.received), (vec![200], request));
        assert_eq!(outcome.flows[0], format!("request AUDIT PUT http://h{target} ({reason})"));
    }
    let bench = Bench::with(anybody(vec![rule("GET", "/a")]), true);
    let request = "GET /./a HTTP/1.1\r\nHost: h\r\n\r\n";
    let outcome = harness::run_against(&bench, request.as_bytes(), OK).await;
    assert_eq!(outcome.received, request);
    assert_eq!(outcome.flows[0], "request FORWARDED GET http://h/./a", "judged in its one form");
    let bench = Bench::with(anybody(landing()), true);
    let outcome =
        harness::run_against(&bench, b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", OK).await;
    assert_eq!(outcome.codes(), [400]);
}

#[tokio::test(start_paused = true)]
async fn a_header_that_a_rule_logs_is_told_of() {
    let team = HeaderRule { name: "x-team".to_owned(), value: Some("a".to_owned()), mismatch: Mismatch::Log };
    let rules = vec![HttpRule { headers: vec![team], ..HttpRule::default() }];
    let outcome =
        run(rules, "GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\nX-Team: a\r\n\r\n").await;
    assert_eq!(outcome.codes(), [200, 200]);
    assert_eq!(
        outcome.flows[0],
        "request FORWARDED GET http://h/a (header other than a rule with mismatch LOG has it)"
    );
    assert!(outcome.flows.contains(&"request FORWARDED GET http://h/b".to_owned()), "{:?}", outcome.flows);
}

/// What came when no rule looked at paths is judged by one that does as if it came now.
#[tokio::test(start_paused = true)]
async fn rules_about_paths_that_come_later_read_them_as_any() {
    for (target, later, stays) in [
        ("/public/../admin", "/public/.*", false),
        ("/public/a%2F..%2F..%2Fadmin", "/public/.*", false),
        ("/public\\admin", "/public.*", false),
        ("/public/./a", "/public/a", true),
    ] {
        let mut bench = Bench::new(vec![rule("GET", "")]);
        local(async {
            let (mut client, mut servers) = bench.open();
            let head = format!(
                "GET {target} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            );
            send(&mut client, &head).await;
            let mut server = servers.next().await;
            expect(&mut server, &head).await;
            let switch =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            send(&mut server, switch).await;
            expect(&mut client, switch).await;
            bench.enforce(anybody(vec![rule("GET", later)]), false);
            if stays {
                send(&mut client, "frames").await;
                expect(&mut server, "frames").await;
            } else {
                assert_eq!(rest(&mut client).await, "", "{target}");
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_told() {
    for (error, code) in [(ConnectError::Refused, 503), (ConnectError::Late, 504)] {
        let bench = Bench::new(landing());
        bench.refuses.set(Some(error));
        let outcome =
            harness::run_against(&bench, b"POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n", OK).await;
        assert_eq!(outcome.codes(), [code]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_is_a_bad_gateway() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "garbage\r\n\r\n",
    ] {
        let bench = Bench::new(landing());
        let outcome =
            harness::run_against(&bench, b"POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n", answer)
                .await;
        assert_eq!(outcome.codes(), [502], "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lies_about_lengths_cannot_answer_the_next_request() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let mut server = servers.next().await;
        let _ = server
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nfor the next")
            .await;
        expect(&mut client, OK).await;
        let _ = client.write_all(b"POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(rest(&mut client).await, "");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_draining_proxy_says_with_an_answer_that_the_connection_ends() {
    let bench = Bench::new(landing());
    let request = "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n";
    let put = "PUT / HTTP/1.1\r\nHost: h\r\n\r\n";
    local(async {
        let [mut silent, mut denied, mut idle] = [(); 3].map(|()| bench.open().0);
        for client in [&mut denied, &mut idle] {
            send(client, put).await;
            expect(client, DENIED).await;
        }
        let (mut client, mut servers) = bench.open();
        send(&mut client, request).await;
        let mut server = servers.next().await;
        bench.published.drain();
        // What the server has said of the connection is not for the client; what is of other headers is.
        send(
            &mut server,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\ncontent-length: 2\r\n\
             Connection: x-hop, Keep-Alive\r\nx-hop: 1\r\n\r\nok",
        )
        .await;
        let told = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: x-hop\r\n\
                    x-hop: 1\r\nconnection: close\r\n\r\nok";
        assert_eq!(rest(&mut client).await, told);
        // Minutes later they ask again, and are answered.
        tokio::time::sleep(std::time::Duration::from_secs(59)).await;
        send(&mut denied, put).await;
        let last = DENIED.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        assert_eq!(rest(&mut denied).await, last);
        bench.published.end_idle();
        assert_eq!(rest(&mut idle).await, "");
        assert_eq!(rest(&mut silent).await, "", "what it speaks was to be seen by then");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_had_begun_before_the_drain_ends_no_connection_but_the_next_does() {
    let bench = Bench::new(landing());
    let request = "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n";
    local(async {
        let (mut client, mut server) = bench.asked(request).await;
        let (head, body) = OK.split_at(OK.len() - 1);
        send(&mut server, head).await;
        expect(&mut client, head).await;
        bench.published.drain();
        send(&mut server, body).await;
        expect(&mut client, body).await;
        send(&mut client, request).await;
        expect(&mut server, request).await;
        send(&mut server, OK).await;
        let last = OK.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        assert_eq!(rest(&mut client).await, last);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_after_an_early_answer_while_the_proxy_drains() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\ncontent-length: 4\r\n\r\non")
            .await;
        let mut server = servers.next().await;
        bench.published.drain();
        expect(&mut server, "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\ncontent-length: 4\r\n\r\non")
            .await;
        send(&mut server, OK).await;
        let last = OK.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        expect(&mut client, &last).await;
        send(&mut client, "ly").await;
        expect(&mut server, "ly").await;
        assert_eq!(rest(&mut client).await, "");
    })
    .await;
}

/// An answer that breaks off does not look whole, and neither it nor one that never came is missing in the flows. (What wakes
/// the connection here is a byte; in the proxy all are woken.)
#[tokio::test(start_paused = true)]
async fn what_is_under_way_when_the_proxy_ends_is_cut_and_told() {
    let bench = Bench::new(landing());
    let request = "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n";
    local(async {
        let [(mut answered, mut first), (mut waiting, mut second)] = [bench.open(), bench.open()];
        let mut begun = bench.open().0;
        send(&mut begun, "POST /v1").await;
        send(&mut answered, request).await;
        let mut server = first.next().await;
        expect(&mut server, request).await;
        // Until its end: nobody says how long it is.
        let head = "HTTP/1.1 200 OK\r\n\r\nok";
        send(&mut server, head).await;
        expect(&mut answered, head).await;
        send(&mut waiting, request).await;
        let mut other = second.next().await;
        expect(&mut other, request).await;
        bench.published.drain();
        bench.published.end_all();
        send(&mut server, "more").await;
        assert_eq!(rest(&mut answered).await, "");
        send(&mut waiting, "P").await;
        assert_eq!(rest(&mut waiting).await, "");
        assert_eq!(rest(&mut begun).await, "", "no request yet");
    })
    .await;
    let ended = |how| bench.ended.borrow().iter().filter(|ended| **ended == how).count();
    assert_eq!((ended(Cut::Client), ended(Cut::Neither)), (2, 1));
    let flows = bench.flows();
    for flow in ["response DROPPED 200", "request DROPPED"] {
        let flow = format!("{flow} POST http://h/v1/request-landing (proxy ended)");
        assert!(flows.contains(&flow), "{flow}: {flows:?}");
    }
    let exchanges = bench.log.take_exchanges().counts;
    let counted = exchanges.iter().flat_map(|pair| &pair.exchanges);
    let mut counted: Vec<_> = counted.map(|(kind, count)| (kind.code, kind.flag, *count)).collect();
    counted.sort_by_key(|(code, ..)| *code);
    let lr = Some(mesh::exchange::Flag::Lr);
    assert_eq!(counted, [(0, lr, 1), (200, lr, 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_withdrawn_while_the_server_is_being_reached_is_not_sent() {
    let mut bench = Bench::new(landing());
    bench.takes.set(std::time::Duration::from_secs(5));
    let request = "POST /v1/request-landing HTTP/1.1\r\nHost: h\r\n\r\n";
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, request).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        bench.enforce(anybody(vec![rule("GET", "/other")]), false);
        expect(&mut client, DENIED).await;
        let mut server = servers.next().await;
        drop(client);
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
}
