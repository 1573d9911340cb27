//! Whole exchanges on HTTP/2, in memory: what passes, what is answered by the proxy, and what is recorded of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use std::future::poll_fn;

use bytes::Bytes;
use h2::Reason;
use harness::http2::{
    Client, END_STREAM, GET, Raw, answer, ask, client, client_with, frame, origin, origin_with, read,
    request, serve_all, take,
};
use harness::{Bench, CLIENT, anybody, local, rule};
use http::{HeaderMap, HeaderValue, Request, Response};
use l7_proxy::runtime::ConnectError;
use mesh::l7::{HeaderRule, HttpRule, L7Access, Mismatch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn landing() -> Vec<HttpRule> {
    vec![rule("POST", "/v1/request-landing")]
}

fn post() -> Request<()> {
    request("POST", "/v1/request-landing")
}

/// Opens a stream and leaves it open for its body.
async fn begin(
    client: &mut Client,
    request: Request<()>,
) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
    client.send.send_request(request, false).unwrap()
}

fn reason<T: std::fmt::Debug>(result: Result<T, h2::Error>) -> Reason {
    result.unwrap_err().reason().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_rules_let_through_passes_and_the_rest_is_denied_on_the_same_connection() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, servers) = client(&bench).await;
        let received = serve_all(servers);
        let denied = client.post(request("PUT", "/v1/exhaust-port"), "abc").await.unwrap();
        assert_eq!((denied.status, denied.body.as_str()), (403, "Access denied\r\n"));
        assert_eq!(denied.headers["content-type"], "text/plain");
        assert_eq!(denied.headers["content-length"], "15");
        assert_eq!(received.take(), [""; 0], "nothing is sent to the server");
        assert_eq!(client.post(post(), "land").await.unwrap().status, 200);
        let denied = client.ask(request("HEAD", "/")).await.unwrap();
        assert_eq!((denied.status, denied.body.as_str()), (403, ""));
        assert_eq!(received.take(), ["POST http://h/v1/request-landing [land]"]);
        drop(client.send);
        client.driver.await.unwrap().unwrap();
    })
    .await;
    let protocols: Vec<_> = bench.log.take().flows().filter_map(|flow| flow.l7.http().cloned()).collect();
    assert!(protocols.iter().all(|http| http.protocol == "HTTP/2"));
    let lines: Vec<_> =
        protocols.iter().map(|http| (http.method.as_str(), http.url.as_str(), http.code)).collect();
    let (put, landing) = ("http://h/v1/exhaust-port", "http://h/v1/request-landing");
    assert_eq!(
        lines,
        [
            ("PUT", put, None),
            ("PUT", put, Some(403)),
            ("POST", landing, None),
            ("POST", landing, Some(200)),
            ("HEAD", "http://h/", None),
            ("HEAD", "http://h/", Some(403)),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_gates_say_is_recorded_as_on_http1() {
    let asked = ask(landing(), request("GET", "/v1/request-landing"), "").await;
    assert_eq!(
        asked.flows,
        [
            "request DROPPED GET http://h/v1/request-landing (no rule lets it through)",
            "response FORWARDED 403 GET http://h/v1/request-landing",
        ]
    );
}

fn call(path: &str) -> Request<()> {
    let mut call = request("POST", path);
    call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc+proto"));
    call.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    call
}

#[tokio::test(start_paused = true)]
async fn a_denied_call_of_grpc_is_answered_in_trailers_alone() {
    let bench = Bench::new(vec![rule("POST", "/empire.Landing/.*")]);
    local(async {
        let (mut client, servers) = client(&bench).await;
        let _received = serve_all(servers);
        poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
        let (denied, _body) = client.send.send_request(call("/empire.Exhaust/Port"), false).unwrap();
        let denied = denied.await.unwrap();
        assert!(denied.body().is_end_stream(), "one frame of headers");
        assert_eq!(
            (denied.status().as_u16(), &denied.headers()["grpc-status"]),
            (200, &HeaderValue::from_static("7"))
        );
        assert_eq!(denied.headers()["content-type"], "application/grpc");
        assert_eq!(denied.headers()["grpc-message"], "Access denied");
        assert_eq!(client.post(call("/empire.Landing/Request"), "\0\0\0\0\0").await.unwrap().status, 200);
        // A type that only begins alike is another.
        let mut web = call("/x");
        web.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc-web"));
        assert_eq!(client.ask(web).await.unwrap().status, 403);
    })
    .await;
    assert_eq!(
        bench.flows()[0],
        "request DROPPED POST http://h/empire.Exhaust/Port (no rule lets it through)"
    );
}

#[tokio::test(start_paused = true)]
async fn interim_answers_and_trailers_pass() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let mut request = post();
        request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        let (mut reply, mut up) = begin(&mut client, request).await;
        let mut origin = origin(&mut servers).await;
        let (request, mut respond) = origin.next().await;
        for (status, link) in [(100, None), (103, Some("</a>"))] {
            let mut interim = Response::builder().status(status);
            if let Some(link) = link {
                interim = interim.header("link", link);
            }
            respond.send_informational(interim.body(()).unwrap()).unwrap();
            let interim = poll_fn(|cx| reply.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!(interim.status().as_u16(), status);
            assert_eq!(interim.headers().get("link").map(|link| link.to_str().unwrap()), link);
        }
        up.send_data(Bytes::from_static(b"hi"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        up.send_trailers(trailers).unwrap();
        let mut body = request.into_body();
        assert_eq!(read(&mut body).await.unwrap(), "hi");
        assert_eq!(body.trailers().await.unwrap().unwrap()["x-sum"], "1");
        let mut to = respond.send_response(Response::new(()), false).unwrap();
        to.send_data(Bytes::from_static(b"a"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        to.send_trailers(trailers).unwrap();
        let answer = take(reply.await.unwrap()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "a"));
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_is_delivered_while_the_upload_goes_on() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let (reply, mut up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (request, mut respond) = origin.next().await;
        answer(&mut respond, 200, "ok");
        assert_eq!(take(reply.await.unwrap()).await.unwrap().body, "ok");
        up.send_data(Bytes::from_static(b"abcdef"), true).unwrap();
        assert_eq!(read(&mut request.into_body()).await.unwrap(), "abcdef");
        // A server that does not want the rest says so, and the client hears it.
        let (reply, mut up) = begin(&mut client, post()).await;
        let (request, mut respond) = origin.next().await;
        answer(&mut respond, 413, "");
        drop((request, respond));
        assert_eq!(take(reply.await.unwrap()).await.unwrap().status, 413);
        assert_eq!(poll_fn(|cx| up.poll_reset(cx)).await.unwrap(), Reason::NO_ERROR);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn large_bodies_pass_both_ways_at_once() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let (reply, mut up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (request, mut respond) = origin.next().await;
        const SIZE: usize = 3 << 20;
        let sent = async {
            let mut left = Bytes::from(vec![b'x'; SIZE]);
            while !left.is_empty() {
                up.reserve_capacity(left.len());
                let count = poll_fn(|cx| up.poll_capacity(cx)).await.unwrap().unwrap();
                up.send_data(left.split_to(count.min(left.len())), left.is_empty()).unwrap();
            }
        };
        let served = async {
            let (_, mut body) = request.into_parts();
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            while let Some(data) = body.data().await {
                let mut data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                while !data.is_empty() {
                    to.reserve_capacity(data.len());
                    let count = poll_fn(|cx| to.poll_capacity(cx)).await.unwrap().unwrap();
                    to.send_data(data.split_to(count.min(data.len())), false).unwrap();
                }
            }
            to.send_data(Bytes::new(), true).unwrap();
        };
        let received = async { take(reply.await.unwrap()).await.unwrap().body.len() };
        let ((), (), received) = tokio::join!(sent, served, received);
        assert_eq!(received, SIZE);
    })
    .await;
}

/// What a server can send to a stream whose client does not read is bounded by windows and buffers, and other streams go on.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_held_back_and_holds_back_no_other() {
    let bench = Bench::new(landing());
    local(async {
        let mut builder = h2::client::Builder::new();
        // A client whose own windows hold nothing back but the stream's.
        builder.initial_connection_window_size(64 << 20);
        let (mut client, mut servers) = client_with(&bench, &builder).await;
        let mut held = Vec::new();
        for _ in 0..20 {
            poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
            held.push(client.send.send_request(post(), true).unwrap().0);
        }
        let mut origin = origin(&mut servers).await;
        let mut buffered = Vec::new();
        for _ in 0..20 {
            let (_, mut respond) = origin.next().await;
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            let mut sent = 0;
            // Time stands still while anything moves: the wait ends when nothing does.
            while sent < 10 << 20 {
                to.reserve_capacity(16 << 10);
                let more = poll_fn(|cx| to.poll_capacity(cx));
                match tokio::time::timeout(std::time::Duration::from_secs(1), more).await {
                    Ok(Some(Ok(count))) => {
                        to.send_data(Bytes::from(vec![0; count]), false).unwrap();
                        sent += count;
                    }
                    _ => break,
                }
            }
            assert!(sent < 400 << 10, "{sent} bytes in flight");
            buffered.push((to, respond));
        }
        // The upload direction, too: a body that the server does not read.
        let (reply, mut up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        let mut sent = 0;
        while sent < 10 << 20 {
            up.reserve_capacity(16 << 10);
            let more = poll_fn(|cx| up.poll_capacity(cx));
            match tokio::time::timeout(std::time::Duration::from_secs(1), more).await {
                Ok(Some(Ok(count))) => {
                    up.send_data(Bytes::from(vec![0; count]), false).unwrap();
                    sent += count;
                }
                _ => break,
            }
        }
        assert!(sent < 400 << 10, "{sent} bytes in flight");
        answer(&mut respond, 200, "ok");
        assert_eq!(take(reply.await.unwrap()).await.unwrap().body, "ok");
        drop(held);
    })
    .await;
}

/// Messages of a few bytes each, as calls of gRPC have them, that the server does not take for a while.
#[tokio::test(start_paused = true)]
async fn many_small_frames_that_wait_end_nothing() {
    const FRAMES: usize = 6000;
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(1000).initial_connection_window_size(1 << 20);
        let mut calls = Vec::new();
        for _ in 0..6 {
            calls.push(begin(&mut client, post()).await);
        }
        let mut origin = origin_with(&mut servers, &builder).await;
        let mut called = Vec::new();
        for _ in 0..calls.len() {
            called.push(origin.next().await);
        }
        // A little at a time, as sockets have it.
        for number in 0..FRAMES {
            for (_, up) in &mut calls {
                up.send_data(Bytes::from_static(b"0123456789"), number + 1 == FRAMES).unwrap();
            }
            if number % 500 == 0 {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
        for ((request, mut respond), (reply, _up)) in called.into_iter().zip(calls) {
            assert_eq!(read(&mut request.into_body()).await.unwrap(), "0123456789".repeat(FRAMES));
            answer(&mut respond, 200, "ok");
            assert_eq!(take(reply.await.unwrap()).await.unwrap().body, "ok");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_head_has_one_form() {
    let header =
        |name: &str, mismatch| HeaderRule { name: name.to_owned(), value: Some("a".to_owned()), mismatch };
    let headers = vec![
        header("x-add", Mismatch::Add),
        header("x-delete", Mismatch::Delete),
        header("x-replace", Mismatch::Replace),
        header("x-log", Mismatch::Log),
    ];
    let mut asked = request("GET", "/x/../%61?q=%61");
    for (name, value) in [
        ("x-delete", "b"),
        ("x-replace", "b"),
        ("x-kept", "1"),
        ("x-kept", "2"),
        ("host", "H:80"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    ] {
        asked.headers_mut().append(name, HeaderValue::from_static(value));
    }
    let rules = vec![HttpRule { headers, ..rule("", "/a\\?.*") }];
    assert_eq!(
        ask(rules, asked, "").await.received,
        ["GET http://h/a?q=%61 cookie=a=1; b=2 x-add=a x-kept=1 x-kept=2 x-replace=a"]
    );
    // No rule looks at paths: nothing of the target is touched.
    let asked = ask(vec![rule("GET", "")], request("GET", "//a/%7E/../b%zz"), "").await;
    assert_eq!(asked.received, ["GET http://h//a/%7E/../b%zz"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_rule_is_withdrawn_is_reset_and_the_others_go_on() {
    let both = || vec![rule("POST", "/a"), rule("POST", "/b")];
    let mut bench = Bench::new(both());
    let local_set = tokio::task::LocalSet::new();
    local_set
        .run_until(async {
            let (mut client, mut servers) = client(&bench).await;
            let (first, mut to_first) = begin(&mut client, request("POST", "/a")).await;
            let (second, mut to_second) = begin(&mut client, request("POST", "/b")).await;
            let mut origin = origin(&mut servers).await;
            let (first_asked, mut respond) = origin.next().await;
            let (second_asked, mut respond_second) = origin.next().await;
            let mut from_first = respond.send_response(Response::new(()), false).unwrap();
            let first = first.await.unwrap();
            bench.enforce(anybody(vec![rule("", "/a"), rule("POST", "/b"), rule("GET", "/")]), false);
            to_first.send_data(Bytes::from_static(b"still"), false).unwrap();
            let mut body = first_asked.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "still", "allowed by another rule");
            bench.enforce(anybody(vec![rule("POST", "/b")]), false);
            assert_eq!(reason(take(first).await), Reason::CANCEL);
            assert_eq!(body.data().await.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
            assert_eq!(poll_fn(|cx| from_first.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
            to_second.send_data(Bytes::from_static(b"on"), true).unwrap();
            assert_eq!(read(&mut second_asked.into_body()).await.unwrap(), "on");
            answer(&mut respond_second, 200, "ok");
            assert_eq!(take(second.await.unwrap()).await.unwrap().body, "ok");
            assert_eq!(client.ask(request("POST", "/a")).await.unwrap().status, 403);
        })
        .await;
    let flows = bench.flows();
    assert!(
        flows.contains(&"request DROPPED POST http://h/a (not allowed any more)".to_owned()),
        "{flows:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn rules_and_identities_hold_from_the_next_request_on() {
    let peers = |number| Some([mesh::identity::Identity::new(number).unwrap()].into());
    let access = |number| vec![L7Access { peers: peers(number), http: Some(landing().into()) }];
    let mut bench = Bench::with(access(300), false);
    let local_set = tokio::task::LocalSet::new();
    local_set
        .run_until(async {
            let (mut client, servers) = client(&bench).await;
            let _received = serve_all(servers);
            assert_eq!(client.ask(post()).await.unwrap().status, 200);
            bench.identify(CLIENT, 301, None);
            assert_eq!(client.ask(post()).await.unwrap().status, 403);
            bench.enforce(access(301), false);
            assert_eq!(client.ask(post()).await.unwrap().status, 200);
            // The address is another creation's by now.
            bench.identify(harness::SERVER, 256, Some(8));
            assert!(client.ask(post()).await.is_err());
        })
        .await;
    let why = "request DROPPED (address of another workload by now)";
    assert!(bench.flows().iter().any(|flow| flow == why));
}

#[tokio::test(start_paused = true)]
async fn audit_mode_reports_and_lets_pass() {
    let bench = Bench::with(anybody(landing()), true);
    local(async {
        let (mut client, servers) = client(&bench).await;
        let _received = serve_all(servers);
        assert_eq!(client.ask(request("PUT", "/x")).await.unwrap().status, 200);
    })
    .await;
    assert_eq!(bench.flows()[0], "request AUDIT PUT http://h/x (no rule lets it through)");
}

#[tokio::test(start_paused = true)]
async fn audit_mode_leaves_paths_as_they_are() {
    let bench = Bench::with(anybody(landing()), true);
    local(async {
        let (mut client, servers) = client(&bench).await;
        let _received = serve_all(servers);
        assert_eq!(client.ask(request("PUT", "/%zz")).await.unwrap().status, 200);
    })
    .await;
    assert_eq!(bench.flows()[0], "request AUDIT PUT http://h/%zz (malformed escape in the path)");
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_open_when_the_proxy_ends_are_reset_and_told() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let (answered, _up) = begin(&mut client, post()).await;
        let (waiting, _up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (_request, mut respond) = origin.next().await;
        let _body = respond.send_response(Response::new(()), false).unwrap();
        let answered = answered.await.unwrap();
        let (_request, _respond) = origin.next().await;
        bench.published.drain();
        bench.published.end_all();
        assert_eq!(reason(take(answered).await), Reason::CANCEL);
        assert_eq!(reason(waiting.await), Reason::CANCEL);
        client.driver.await.unwrap().unwrap();
    })
    .await;
    let flows = bench.flows();
    for flow in ["response DROPPED 200", "request DROPPED"] {
        let flow = format!("{flow} POST http://h/v1/request-landing (proxy ended)");
        assert!(flows.contains(&flow), "{flow}: {flows:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_proxy_ends_idle_connections_and_finishes_streams() {
    let bench = Bench::new(landing());
    local(async {
        let (idle, _servers) = client(&bench).await;
        let (mut client, mut servers) = client(&bench).await;
        let (reply, mut up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (request, mut respond) = origin.next().await;
        bench.published.drain();
        idle.driver.await.unwrap().unwrap();
        up.send_data(Bytes::from_static(b"on"), true).unwrap();
        assert_eq!(read(&mut request.into_body()).await.unwrap(), "on");
        answer(&mut respond, 200, "ok");
        assert_eq!(take(reply.await.unwrap()).await.unwrap().body, "ok");
        client.driver.await.unwrap().unwrap();
        origin.driver.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_away_takes_the_clients_connection_with_it() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let (reply, mut up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (request, mut respond) = origin.next().await;
        origin.close();
        up.send_data(Bytes::from_static(b"on"), true).unwrap();
        assert_eq!(read(&mut request.into_body()).await.unwrap(), "on");
        answer(&mut respond, 200, "ok");
        assert_eq!(take(reply.await.unwrap()).await.unwrap().body, "ok");
        origin.none().await;
        client.driver.await.unwrap().unwrap();
        servers.none().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_told() {
    for (error, code) in [(ConnectError::Refused, 503), (ConnectError::Late, 504)] {
        let bench = Bench::new(landing());
        bench.refuses.set(Some(error));
        local(async {
            let (mut client, _servers) = client(&bench).await;
            assert_eq!(client.ask(post()).await.unwrap().status, code);
            client.driver.await.unwrap().unwrap();
            let (mut client, _servers) = harness::http2::client(&bench).await;
            let mut call = post();
            call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let answer = client.ask(call).await.unwrap();
            assert_eq!(
                (answer.status, &answer.headers["grpc-status"]),
                (200, &HeaderValue::from_static("14"))
            );
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_resets_or_dies_is_told() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        // Before an answer.
        let (reply, _up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (_request, mut respond) = origin.next().await;
        respond.send_reset(Reason::INTERNAL_ERROR);
        assert_eq!(reply.await.unwrap().status().as_u16(), 502);
        // What it has not looked at may be asked again.
        let (reply, _up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        respond.send_reset(Reason::REFUSED_STREAM);
        assert_eq!(reason(reply.await), Reason::REFUSED_STREAM);
        // Within an answer.
        let (reply, _up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        let mut to = respond.send_response(Response::new(()), false).unwrap();
        let reply = reply.await.unwrap();
        to.send_reset(Reason::ENHANCE_YOUR_CALM);
        assert_eq!(reason(take(reply).await), Reason::ENHANCE_YOUR_CALM);
        // With its connection, before and within an answer.
        let (before, _up) = begin(&mut client, post()).await;
        let (_request, _respond) = origin.next().await;
        let (within, _up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        let _to = respond.send_response(Response::new(()), false).unwrap();
        let within = within.await.unwrap();
        origin.driver.abort();
        assert_eq!(before.await.unwrap().status().as_u16(), 502);
        assert_eq!(reason(take(within).await), Reason::INTERNAL_ERROR);
        client.driver.await.unwrap().unwrap();
    })
    .await;
    let flows = bench.flows();
    for why in ["server reset the stream", "server takes no more streams", "server closed without an answer"]
    {
        assert!(flows.iter().any(|flow| flow.ends_with(&format!("({why})"))), "{why}: {flows:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_behind_the_last_stream_of_a_server_that_goes_may_be_asked_again_whatever_the_code() {
    for code in [0, 2, 11] {
        let bench = Bench::new(landing());
        local(async {
            let (mut client, mut servers) = client(&bench).await;
            let (taken, _up) = begin(&mut client, post()).await;
            let (untouched, _up) = begin(&mut client, post()).await;
            let mut server = Raw::server(&mut servers).await;
            server.write(&frame(4, 0, 0, &[])).await;
            server.until(1).await;
            assert_eq!(server.until(1).await.stream, 3);
            server.write(&frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, code])).await;
            assert_eq!(reason(untouched.await), Reason::REFUSED_STREAM);
            drop(server);
            assert_eq!(taken.await.unwrap().status().as_u16(), 502, "it may have been executed");
        })
        .await;
    }
}

/// The server may offer it before the client has acknowledged anything.
#[tokio::test(start_paused = true)]
async fn an_extended_connect_is_offered_to_a_client_that_acknowledges_late() {
    let bench = Bench::new(vec![rule("GET", "/public")]);
    local(async {
        let (mut raw, mut servers) = Raw::open(&bench).await;
        raw.headers(1, END_STREAM, &GET).await;
        let mut origin =
            origin_with(&mut servers, h2::server::Builder::new().enable_connect_protocol()).await;
        let (_, mut respond) = origin.next().await;
        answer(&mut respond, 200, "");
        raw.until(1).await;
        raw.write(&frame(4, 1, 0, &[])).await;
        assert_eq!(raw.until(4).await.payload, [0, 8, 0, 0, 0, 1]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_speak_http2_is_a_bad_gateway() {
    for says in ["HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", ""] {
        let bench = Bench::new(landing());
        local(async {
            let (mut client, mut servers) = client(&bench).await;
            let served = tokio::task::spawn_local(async move {
                let mut server = servers.next().await;
                server.write_all(says.as_bytes()).await.unwrap();
                server.shutdown().await.unwrap();
                let mut thrown = Vec::new();
                let _ = server.read_to_end(&mut thrown).await;
            });
            assert_eq!(client.ask(post()).await.unwrap().status, 502, "{says:?}");
            served.await.unwrap();
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_none_are_a_bad_gateway() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let (reply, _up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (_request, mut respond) = origin.next().await;
        let two = Response::builder().header("content-length", "1").header("content-length", "1");
        let _to = respond.send_response(two.body(()).unwrap(), false).unwrap();
        assert_eq!(reply.await.unwrap().status().as_u16(), 502);
        // An answer of another length than it says ends as far as it is right.
        let (reply, _up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        let longer = Response::builder().header("content-length", "1").body(()).unwrap();
        let mut to = respond.send_response(longer, false).unwrap();
        to.send_data(Bytes::from_static(b"two"), true).unwrap();
        assert_eq!(reason(async { take(reply.await?).await }.await), Reason::INTERNAL_ERROR);
        // So many interim answers are a flood.
        let (mut reply, _up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        for _ in 0..40 {
            let _ = respond.send_informational(Response::builder().status(103).body(()).unwrap());
        }
        while let Some(interim) = poll_fn(|cx| reply.poll_informational(cx)).await {
            assert_eq!(interim.unwrap().status().as_u16(), 103);
        }
        assert_eq!(reply.await.unwrap().status().as_u16(), 502);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_is_heard_by_the_server() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let (_reply, mut up) = begin(&mut client, post()).await;
        let mut origin = origin(&mut servers).await;
        let (_request, mut respond) = origin.next().await;
        up.send_reset(Reason::CANCEL);
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        let (reply, mut up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        let mut to = respond.send_response(Response::new(()), false).unwrap();
        let _reply = reply.await.unwrap();
        up.send_reset(Reason::CANCEL);
        assert_eq!(poll_fn(|cx| to.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        // And so is one that goes with its connection.
        let (_reply, _up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        client.driver.abort();
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        origin.driver.await.unwrap().unwrap();
    })
    .await;
}

/// The server has answered, and neither takes the rest of the upload nor says that it does not want it.
#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_behind_its_answer_is_heard() {
    for body in ["", "ok"] {
        let bench = Bench::new(landing());
        local(async {
            let (mut client, mut servers) = client(&bench).await;
            let (reply, mut up) = begin(&mut client, post()).await;
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(0);
            let mut origin = origin_with(&mut servers, &builder).await;
            let (_request, mut respond) = origin.next().await;
            up.send_data(Bytes::from_static(b"never taken"), false).unwrap();
            let mut to = respond.send_response(Response::new(()), body.is_empty()).unwrap();
            if !body.is_empty() {
                to.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
            }
            assert_eq!(take(reply.await.unwrap()).await.unwrap().body, body);
            up.send_reset(Reason::CANCEL);
            assert_eq!(poll_fn(|cx| to.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        })
        .await;
    }
}

fn tunnel() -> Vec<HttpRule> {
    vec![rule("CONNECT", ""), rule("POST", "/v1/.*")]
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_passes_where_a_rule_says_so() {
    let connect = || Request::builder().method("CONNECT").uri("h:22").body(()).unwrap();
    assert_eq!(ask(vec![HttpRule::default()], connect(), "").await.came, Ok(403));
    assert_eq!(ask(vec![rule("", "/.*")], connect(), "").await.came, Ok(403));
    let bench = Bench::new(tunnel());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let (reply, mut up) = begin(&mut client, connect()).await;
        let mut origin = origin(&mut servers).await;
        let (request, mut respond) = origin.next().await;
        assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("CONNECT", "h:22"));
        let mut to = respond.send_response(Response::new(()), false).unwrap();
        let mut down = reply.await.unwrap().into_body();
        up.send_data(Bytes::from_static(b"ping"), false).unwrap();
        let mut body = request.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "ping");
        // A tunnel may be silent for as long as it likes.
        tokio::time::sleep(std::time::Duration::from_secs(100_000)).await;
        to.send_data(Bytes::from_static(b"pong"), true).unwrap();
        assert_eq!(read(&mut down).await.unwrap(), "pong");
    })
    .await;
}

/// It is the stream's, whatever the server answers: no request can come of it.
#[tokio::test(start_paused = true)]
async fn what_is_sent_into_a_tunnel_before_the_answer_passes_as_it_came() {
    for status in [200, 403] {
        let bench = Bench::new(tunnel());
        local(async {
            let (mut client, mut servers) = client(&bench).await;
            let connect = Request::builder().method("CONNECT").uri("h:22").body(()).unwrap();
            let (reply, mut up) = begin(&mut client, connect).await;
            let early = "GET /admin HTTP/1.1\r\nHost: h\r\n\r\n";
            up.send_data(Bytes::from_static(early.as_bytes()), false).unwrap();
            let mut origin = origin(&mut servers).await;
            let (request, mut respond) = origin.next().await;
            assert_eq!(request.method(), "CONNECT");
            assert_eq!(request.into_body().data().await.unwrap().unwrap(), early);
            let head = Response::builder().status(status).body(()).unwrap();
            let _answered = respond.send_response(head, status != 200).unwrap();
            assert_eq!(reply.await.unwrap().status().as_u16(), status);
        })
        .await;
        let flows = bench.flows();
        assert_eq!(flows.iter().filter(|flow| flow.starts_with("request ")).count(), 1, "{flows:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_extended_connect_is_offered_once_the_server_takes_it() {
    let extended = |path: &str| {
        let uri = format!("http://h{path}");
        let connect = Request::builder().method("CONNECT").uri(uri);
        connect.extension(h2::ext::Protocol::from_static("websocket")).body(()).unwrap()
    };
    let bench = Bench::new(vec![rule("CONNECT", "/chat"), rule("POST", "/v1/.*")]);
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        assert!(!client.send.is_extended_connect_protocol_enabled());
        let mut builder = h2::server::Builder::new();
        builder.enable_connect_protocol();
        let (reply, _) = {
            poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
            client.send.send_request(post(), true).unwrap()
        };
        let mut origin = origin_with(&mut servers, &builder).await;
        let (_, mut respond) = origin.next().await;
        answer(&mut respond, 200, "");
        assert_eq!(reply.await.unwrap().status().as_u16(), 200);
        assert!(client.send.is_extended_connect_protocol_enabled());
        let (reply, mut up) = begin(&mut client, extended("/chat")).await;
        let (request, mut respond) = origin.next().await;
        let protocol = request.extensions().get::<h2::ext::Protocol>().unwrap();
        assert_eq!((protocol.as_str(), request.uri().path()), ("websocket", "/chat"));
        let _to = respond.send_response(Response::new(()), false).unwrap();
        assert_eq!(reply.await.unwrap().status().as_u16(), 200);
        up.send_data(Bytes::from_static(b"frame"), false).unwrap();
        assert_eq!(request.into_body().data().await.unwrap().unwrap(), "frame");
        assert_eq!(client.ask(extended("/other")).await.unwrap().status, 403);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn slow_ends_have_an_end() {
    let bench = Bench::new(landing());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        // A body that does not come.
        let (reply, mut up) = begin(&mut client, post()).await;
        up.send_data(Bytes::from_static(b"slow"), false).unwrap();
        let mut origin = origin(&mut servers).await;
        let (_request, mut respond) = origin.next().await;
        assert_eq!(reply.await.unwrap().status().as_u16(), 408);
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        // An answer that does not come.
        let answered = client.ask(post());
        let (answered, _held) = tokio::join!(answered, origin.next());
        assert_eq!(answered.unwrap().status, 504);
        // An answer that is not read.
        let (reply, _up) = begin(&mut client, post()).await;
        let (_request, mut respond) = origin.next().await;
        let mut to = respond.send_response(Response::new(()), false).unwrap();
        to.send_data(Bytes::from(vec![0; 1 << 20]), true).unwrap();
        let reply = reply.await.unwrap();
        assert_eq!(poll_fn(|cx| to.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        assert_eq!(reason(take(reply).await), Reason::CANCEL);
        // A connection that nobody uses.
        client.driver.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_may_do_anything_is_relayed_untouched() {
    let bench = Bench::with(vec![L7Access { peers: None, http: None }], false);
    local(async {
        let (mut client, servers) = client(&bench).await;
        let received = serve_all(servers);
        assert_eq!(client.ask(request("GET", "/x/../y")).await.unwrap().status, 200);
        assert_eq!(received.take(), ["GET http://h/x/../y"]);
    })
    .await;
}
