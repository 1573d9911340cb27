//! The numbered cases of adversarial input on HTTP/2: each with the policy it tries to get round, and its outcome. What h2
//! refuses by itself is reset or ends the connection, and leaves a flow with a reason all the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use harness::http2::{
    Asked, END_HEADERS, END_STREAM, Frame, GET, Raw, answer, ask, block, client, frame, origin, request,
    serve_all,
};
use harness::{Bench, anybody, expression, local, rule};
use http::{HeaderMap, HeaderValue, Request, Response};
use mesh::l7::{HeaderRule, HttpRule, Mismatch};

/// As on HTTP/1.1: all but `/admin`, written as who has only allow rules must write it.
fn public() -> Vec<HttpRule> {
    vec![rule("GET", "/(public|a)(/.*)?"), rule("POST", "/upload")]
}

const NO_RULE: &str = "no rule lets it through";
const READINGS: &str = "path that servers read in several ways, not all of them allowed";
const MALFORMED: &str = "malformed HTTP/2 request";
/// What cannot even be decoded ends the connection.
const FRAMES: &str = "malformed HTTP/2 frames";
const BODY: &str = "body of another length than content-length, or malformed trailers";
/// Codes of RST_STREAM and GOAWAY.
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What came of a request that was written by hand.
#[derive(Debug)]
struct Came {
    /// The first that was said of its stream or of the connection.
    first: Option<Frame>,
    received: Vec<String>,
    flows: Vec<String>,
}

impl Came {
    /// Why the first that did not pass did not.
    fn reason(&self) -> &str {
        let dropped = self.flows.iter().find(|flow| flow.contains(" DROPPED"));
        dropped.and_then(|flow| flow.split_once(" (")?.1.strip_suffix(')')).unwrap_or_default()
    }

    /// Reset, or ended with the connection, for a reason.
    #[track_caller]
    fn is_malformed(&self, reason: &str) {
        let first = self.first.as_ref();
        assert!(first.is_some_and(|first| matches!(first.kind, 3 | 7)), "{self:?}");
        self.is_refused(reason);
    }

    /// Answered, for a reason.
    #[track_caller]
    fn is_answered(&self, code: u16, reason: &str) {
        assert_eq!(self.first.as_ref().map(|first| first.kind), Some(1), "{self:?}");
        assert!(self.flows.iter().any(|flow| flow.contains(&format!(" {code} "))), "{self:?}");
        self.is_refused(reason);
    }

    #[track_caller]
    fn is_refused(&self, reason: &str) {
        assert_eq!(self.reason(), reason, "{self:?}");
        assert!(!self.received.iter().any(|request| request.contains("admin")), "{self:?}");
    }
}

/// Sends these frames after the preface, and waits for what is said of it.
async fn raw(rules: Vec<HttpRule>, frames: &[u8]) -> Came {
    let bench = Bench::new(rules);
    local(async {
        let (mut raw, servers) = Raw::open(&bench).await;
        let received = serve_all(servers);
        raw.write(frames).await;
        let first = loop {
            match tokio::time::timeout(Duration::from_secs(7200), raw.next()).await.unwrap() {
                Some(frame) if matches!(frame.kind, 1 | 3 | 7) => break Some(frame),
                Some(_) => {}
                None => break None,
            }
        };
        drop(raw);
        tokio::time::sleep(Duration::from_secs(10)).await;
        Came { first, received: received.take(), flows: bench.flows() }
    })
    .await
}

/// One request of these headers.
async fn head(rules: Vec<HttpRule>, headers: &[(&str, &str)]) -> Came {
    raw(rules, &frame(1, END_HEADERS | END_STREAM, 1, &block(headers))).await
}

async fn path(path: &str) -> Came {
    head(public(), &[GET[0], GET[1], GET[2], (":path", path)]).await
}

#[track_caller]
fn passes(came: &Came, received: &str) {
    assert_eq!(came.received, [received], "{came:?}");
}

#[tokio::test(start_paused = true)]
async fn t1_escaped_letters_and_dots() {
    for denied in ["/%61dmin", "/public/%2e%2e/admin", "/public/.%2E/admin"] {
        path(denied).await.is_answered(403, NO_RULE);
    }
    path("/public/%252e%252e/admin").await.is_answered(403, READINGS);
    passes(&path("/%70ublic/x").await, "GET http://h/public/x");
}

#[tokio::test(start_paused = true)]
async fn t2_escaped_and_raw_slashes_and_backslashes() {
    path("/public/..%2fadmin").await.is_answered(403, READINGS);
    path("/public/..%5cadmin").await.is_answered(403, READINGS);
    path("/public%2f..%2fadmin").await.is_answered(403, NO_RULE);
    path("/public/..\\admin").await.is_answered(400, "backslash in the path");
    passes(&path("/public/a%2Fb").await, "GET http://h/public/a%2Fb");
}

#[tokio::test(start_paused = true)]
async fn t3_empty_and_dot_segments() {
    for target in ["//admin", "///admin", "/./admin", "/a/../admin", "/a/./../admin", "/public//../admin"] {
        path(target).await.is_answered(403, NO_RULE);
    }
    passes(&path("/a//b/../c").await, "GET http://h/a/c");
}

#[tokio::test(start_paused = true)]
async fn t4_parameters_of_segments() {
    path("/admin;x=1").await.is_answered(403, NO_RULE);
    for target in ["/public/..;/admin", "/public/.;/..;x/admin", "/public/..%3b/admin"] {
        path(target).await.is_answered(403, READINGS);
    }
    passes(&path("/public/a;jsessionid=1").await, "GET http://h/public/a;jsessionid=1");
}

#[tokio::test(start_paused = true)]
async fn t5_case() {
    path("/Public/admin").await.is_answered(403, NO_RULE);
    path("/%50ublic/admin").await.is_answered(403, NO_RULE);
}

#[tokio::test(start_paused = true)]
async fn t6_ends_of_paths() {
    for target in ["/public/", "/public?", "/public?x", "/public%20", "/public%3F"] {
        let headers = [GET[0], GET[1], GET[2], (":path", target)];
        head(vec![rule("GET", "/public")], &headers).await.is_answered(403, NO_RULE);
    }
    path("/public%00").await.is_answered(400, "escaped NUL in the path");
    path("/public /admin").await.is_malformed(MALFORMED);
    // A fragment is none of a target: it is cut off before anybody looks.
    passes(&path("/public#/admin").await, "GET http://h/public");
    path("#/admin").await.is_answered(403, NO_RULE);
    path("?admin").await.is_answered(400, "request target of no known form");
    path("").await.is_malformed(MALFORMED);
    path("*").await.is_answered(400, "request target of no known form");
}

#[tokio::test(start_paused = true)]
async fn t7_overlong_and_broken_utf8() {
    path("/public/%c0%ae%c0%ae/admin").await.is_answered(400, "escaped overlong UTF-8 in the path");
    path("/public/..%c0%afadmin").await.is_answered(400, "escaped overlong UTF-8 in the path");
    path("/public/\u{e4}").await.is_answered(400, "byte beyond ASCII in the path");
    let mut broken = block(&[GET[0], GET[1], GET[2], (":path", "/public/@")]);
    *broken.last_mut().unwrap() = 0xff;
    let came = raw(public(), &frame(1, END_HEADERS | END_STREAM, 1, &broken)).await;
    came.is_malformed(FRAMES);
}

fn of_host() -> Vec<HttpRule> {
    vec![HttpRule { host: expression("good(:80)?"), ..HttpRule::default() }]
}

async fn to(authority: &[(&str, &str)]) -> Came {
    head(of_host(), &[&[GET[0], GET[1], (":path", "/admin")], authority].concat()).await
}

#[tokio::test(start_paused = true)]
async fn t8_absolute_targets() {
    let headers = [GET[0], GET[1], (":authority", "good"), (":path", "http://evil/admin")];
    head(of_host(), &headers).await.is_malformed(MALFORMED);
    let scheme = |scheme| [GET[0], (":scheme", scheme), (":authority", "good"), GET[3]];
    passes(&head(of_host(), &scheme("https")).await, "GET https://good/public");
    head(of_host(), &scheme("ftp")).await.is_answered(400, "scheme other than http and https");
    head(of_host(), &scheme("")).await.is_answered(400, "scheme other than http and https");
    head(of_host(), &scheme("http://good/admin?")).await.is_malformed(MALFORMED);
}

#[tokio::test(start_paused = true)]
async fn t9_hosts() {
    let differs = "Host differs from :authority";
    to(&[(":authority", "evil"), ("host", "good")]).await.is_answered(400, differs);
    to(&[(":authority", "good"), ("host", "evil")]).await.is_answered(400, differs);
    to(&[(":authority", "evil"), ("host", "evil")]).await.is_answered(403, NO_RULE);
    to(&[("host", "good"), ("host", "good")]).await.is_answered(400, "more than one Host header");
    to(&[(":authority", "good"), (":authority", "good")]).await.is_malformed(MALFORMED);
    to(&[]).await.is_answered(400, "neither :authority nor Host");
    to(&[(":authority", "")]).await.is_malformed(MALFORMED);
    to(&[("host", "")]).await.is_answered(400, "malformed Host");
    to(&[(":authority", "u@good")]).await.is_answered(400, "malformed Host");
    to(&[("host", "u@good")]).await.is_answered(400, "malformed Host");
    to(&[(":authority", "good,evil")]).await.is_answered(400, "malformed Host");
    to(&[(":authority", "good:8080")]).await.is_answered(403, NO_RULE);
    to(&[(":authority", "good.")]).await.is_answered(403, NO_RULE);
    // What is forwarded says it once.
    let came = head(of_host(), &[GET[0], GET[1], GET[3], (":authority", "GOOD"), ("host", "good:80")]).await;
    passes(&came, "GET http://GOOD/public");
    passes(&head(of_host(), &[GET[0], GET[1], GET[3], ("host", "good")]).await, "GET http://good/public");
}

#[tokio::test(start_paused = true)]
async fn t10_one_connection_for_several_hosts() {
    let bench = Bench::new(of_host());
    local(async {
        let (mut client, servers) = client(&bench).await;
        let received = serve_all(servers);
        for (host, status) in [("good", 200), ("evil", 403), ("good", 200)] {
            let request = Request::builder().uri(format!("http://{host}/")).body(()).unwrap();
            assert_eq!(client.ask(request).await.unwrap().status, status);
        }
        assert_eq!(received.take(), ["GET http://good/", "GET http://good/"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn t11_methods() {
    for method in ["get", "FOO", "TRACE", "PUT"] {
        let headers = [(":method", method), GET[1], GET[2], GET[3], ("x-http-method-override", "GET")];
        head(public(), &headers).await.is_answered(403, NO_RULE);
    }
    let asterisk = [(":method", "OPTIONS"), GET[1], GET[2], (":path", "*")];
    head(public(), &asterisk).await.is_answered(403, NO_RULE);
    let long = "X".repeat(33);
    head(public(), &[(":method", &long), GET[1], GET[2], GET[3]])
        .await
        .is_answered(400, "method of more than 32 bytes");
    head(public(), &[(":method", "G T"), GET[1], GET[2], GET[3]]).await.is_malformed(FRAMES);
    let connect = [(":method", "CONNECT"), (":authority", "h:22")];
    head(vec![HttpRule::default()], &connect).await.is_answered(403, NO_RULE);
    head(vec![rule("CONNECT", "")], &[connect[0], (":authority", "h")])
        .await
        .is_answered(400, "request target of no known form");
    let with_path = [&connect[..], &[GET[3]]].concat();
    head(vec![rule("CONNECT", "")], &with_path).await.is_malformed(MALFORMED);
    // An extended CONNECT that was not offered.
    let extended = [connect[0], (":protocol", "websocket"), GET[1], GET[2], GET[3]];
    head(vec![rule("CONNECT", "")], &extended).await.is_malformed(MALFORMED);
}

fn of_role() -> Vec<HttpRule> {
    let header =
        HeaderRule { name: "x-role".to_owned(), value: Some("user".to_owned()), mismatch: Mismatch::Deny };
    vec![HttpRule { headers: vec![header], ..HttpRule::default() }]
}

async fn with(lines: &[(&str, &str)]) -> Came {
    head(of_role(), &[&GET[..], lines].concat()).await
}

#[tokio::test(start_paused = true)]
async fn t12_repeated_and_joined_headers() {
    passes(&with(&[("x-role", "user")]).await, "GET http://h/public x-role=user");
    for values in [&["user", "admin"][..], &["admin", "user"], &["user,admin"], &["", "user"], &[]] {
        let lines: Vec<_> = values.iter().map(|value| ("x-role", *value)).collect();
        with(&lines).await.is_answered(403, NO_RULE);
    }
}

#[tokio::test(start_paused = true)]
async fn t13_names_that_look_alike_and_broken_fields() {
    let alike = "header that differs from a judged one by an underscore or a dot";
    with(&[("x-role", "user"), ("x_role", "admin")]).await.is_answered(403, alike);
    for lines in [
        [("x-role", "user"), ("X-Role", "admin")],
        [("x-role", "user"), ("x-role ", "admin")],
        [("x-role", "user"), ("x role", "admin")],
        [("x-role", "user"), ("", "admin")],
        [("x-role", "user"), ("x-other", "a\0admin")],
        [("x-role", "user"), ("x-other", "a\r\nx-role: admin")],
        [("x-role", "user"), ("x-other", "a\nadmin")],
        [("x-role", "user"), (":x-role", "admin")],
        [("x-role", "user"), (":path", "/admin")],
    ] {
        let came = with(&lines).await;
        assert!(came.received.is_empty(), "{lines:?}: {came:?}");
        assert!(came.first.as_ref().is_some_and(|first| matches!(first.kind, 3 | 7)), "{lines:?}: {came:?}");
        assert!(came.reason().starts_with("malformed HTTP/2 "), "{lines:?}: {came:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn t14_what_others_say_of_a_client_passes_untouched() {
    let lines = [("forwarded", "for=1"), ("x-forwarded-client-cert", "x"), ("x-forwarded-for", "10.0.0.9")];
    let came = head(public(), &[&GET[..], &lines].concat()).await;
    passes(&came, "GET http://h/public forwarded=for=1 x-forwarded-client-cert=x x-forwarded-for=10.0.0.9");
}

#[tokio::test(start_paused = true)]
async fn t15_t19_what_is_of_a_connection_of_http1() {
    for (name, value) in [
        ("connection", "x-role"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
    ] {
        with(&[("x-role", "user"), (name, value)]).await.is_malformed(MALFORMED);
    }
    assert_eq!(with(&[("x-role", "user"), ("te", "trailers")]).await.reason(), "");
}

/// A body behind the head of an upload.
async fn upload(lines: &[(&str, &str)], body: &str) -> Came {
    let headers = [&[(":method", "POST"), GET[1], GET[2], (":path", "/upload")], lines].concat();
    let mut frames = frame(1, END_HEADERS, 1, &block(&headers));
    frames.extend(frame(0, END_STREAM, 1, body.as_bytes()));
    raw(public(), &frames).await
}

#[tokio::test(start_paused = true)]
async fn t16_t20_lengths() {
    upload(&[("content-length", "5"), ("content-length", "5")], "admin")
        .await
        .is_answered(400, "more than one Content-Length");
    upload(&[("content-length", "")], "admin").await.is_malformed("malformed Content-Length");
    for length in ["+5", "5,5", "0x5", "99999999999999999999"] {
        upload(&[("content-length", length)], "admin").await.is_malformed(MALFORMED);
    }
    let came = upload(&[("content-length", "5"), ("content-length", "9")], "admin").await;
    assert!(came.received.is_empty() && came.first.unwrap().kind != 0, "{:?}", came.flows);
    for length in ["4", "6", "0"] {
        upload(&[("content-length", length)], "admin").await.is_malformed(BODY);
    }
    passes(&upload(&[("content-length", "4")], "land").await, "POST http://h/upload content-length=4 [land]");
    let ended =
        [&[(":method", "POST"), GET[1], GET[2], (":path", "/upload")][..], &[("content-length", "5")]];
    head(public(), &ended.concat()).await.is_malformed(MALFORMED);
}

#[tokio::test(start_paused = true)]
async fn t17_t18_frames_that_lie() {
    let open =
        || frame(1, END_HEADERS, 1, &block(&[(":method", "POST"), GET[1], GET[2], (":path", "/upload")]));
    const SIZE: &str = "frame of a wrong size";
    for (bytes, reason) in [
        // More padding than there are bytes.
        (frame(0, 8, 1, b"\x09admin"), FRAMES),
        // No stream.
        (frame(0, 0, 0, b"admin"), FRAMES),
        // A stream that nobody has opened.
        (frame(0, 0, 7, b"admin"), FRAMES),
        // A stream of the server's.
        (frame(1, END_HEADERS, 2, &block(&GET)), FRAMES),
        // A push.
        (frame(5, END_HEADERS, 1, b"\0\0\0\x02"), FRAMES),
        (frame(6, 0, 0, b"admin"), SIZE),
        (frame(4, 0, 0, b"admin"), SIZE),
        (frame(3, 0, 1, b"ad"), SIZE),
        // A block that another frame interrupts.
        ([frame(1, 0, 3, &block(&GET)), frame(6, 0, 0, &[0; 8])].concat(), FRAMES),
        (frame(9, END_HEADERS, 1, b""), FRAMES),
        // Headers that no table has.
        (frame(1, END_HEADERS, 3, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), "malformed HTTP/2 headers"),
    ] {
        let came = raw(public(), &[open(), bytes.clone()].concat()).await;
        assert_eq!(came.first.as_ref().map(|first| first.kind), Some(7), "{bytes:?}: {came:?}");
        assert!(came.reason() == reason || came.reason() == FRAMES, "{bytes:?}: {came:?}");
        assert!(!came.received.iter().any(|request| request.contains("admin")), "{came:?}");
    }
    // A body of GET is passed on as it is framed.
    let asked = ask(public(), request("GET", "/public"), "GET /admin").await;
    assert_eq!(asked.received, ["GET http://h/public [GET /admin]"]);
}

#[tokio::test(start_paused = true)]
async fn t20_schemes_and_spaces() {
    let headers = [GET[0], GET[1], (":authority", "h\r\nx: y"), GET[3]];
    head(public(), &headers).await.is_malformed(MALFORMED);
    path("/public\r\nx-role: admin").await.is_malformed(MALFORMED);
    head(public(), &[GET[0], GET[2], GET[3]]).await.is_malformed(MALFORMED);
    head(public(), &[GET[1], GET[2], GET[3]]).await.is_malformed(MALFORMED);
    head(public(), &[GET[0], GET[1], GET[2]]).await.is_malformed(MALFORMED);
    head(public(), &[GET[0], GET[1], GET[2], GET[3], (":status", "200")]).await.is_malformed(MALFORMED);
    head(public(), &[GET[0], GET[1], GET[2], ("a", "b"), GET[3]]).await.is_malformed(MALFORMED);
}

#[tokio::test(start_paused = true)]
async fn t21_trailers() {
    for name in ["x-role", "content-length", "host", "authorization", "te"] {
        let bench = Bench::new(of_role());
        local(async {
            let (mut client, servers) = client(&bench).await;
            let received = serve_all(servers);
            let mut asked = request("POST", "/");
            asked.headers_mut().insert("x-role", HeaderValue::from_static("user"));
            poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
            let (reply, mut up) = client.send.send_request(asked, false).unwrap();
            up.send_data(Bytes::from_static(b"a"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert(name, HeaderValue::from_static("trailers"));
            up.send_trailers(trailers).unwrap();
            assert_eq!(reply.await.unwrap().status().as_u16(), 400, "{name}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(received.take(), ["POST http://h/ x-role=user (broken)"]);
        })
        .await;
    }
    // Pseudo-headers among trailers reach nobody.
    let mut frames =
        frame(1, END_HEADERS, 1, &block(&[(":method", "POST"), GET[1], GET[2], (":path", "/upload")]));
    frames.extend(frame(1, END_HEADERS | END_STREAM, 1, &block(&[(":path", "/admin")])));
    let came = raw(public(), &frames).await;
    assert!(!came.received.iter().any(|request| request.contains("admin")), "{came:?}");
    // Trailers that do not end the stream.
    let mut frames =
        frame(1, END_HEADERS, 1, &block(&[(":method", "POST"), GET[1], GET[2], (":path", "/upload")]));
    frames.extend(frame(1, END_HEADERS, 1, &block(&[("x", "admin")])));
    let came = raw(public(), &frames).await;
    assert!(came.first.as_ref().is_some_and(|first| matches!(first.kind, 3 | 7)), "{came:?}");
}

#[tokio::test(start_paused = true)]
async fn t22_large_heads_and_crumbs() {
    let mut asked = request("GET", "/public");
    asked.headers_mut().insert("cookie", "c".repeat(48 << 10).parse().unwrap());
    assert_eq!(ask(public(), asked, "").await.came, Ok(200));
    let mut large = request("GET", "/public");
    large.headers_mut().insert("x", "x".repeat(65 << 10).parse().unwrap());
    let asked = ask(public(), large, "").await;
    assert_eq!((asked.came, asked.reason()), (Ok(431), "head of more than 64 KB"));
    let mut many = request("GET", "/public");
    for _ in 0..200 {
        many.headers_mut().append("x", HeaderValue::from_static("1"));
    }
    let asked: Asked = ask(public(), many, "").await;
    assert_eq!((asked.came, asked.reason()), (Ok(400), "more than 128 header lines"));
    // One byte each for a large entry of the table.
    let mut bomb = block(&GET);
    let mut entry = block(&[("x", &"x".repeat(4000))]);
    entry[0] = 0x40;
    bomb.extend(entry);
    bomb.extend([0xbe; 12_000]);
    let came = raw(public(), &frame(1, END_HEADERS | END_STREAM, 1, &bomb)).await;
    assert!(came.received.is_empty(), "{came:?}");
    assert_eq!(came.first.as_ref().map(|first| (first.kind, first.code())), Some((7, ENHANCE_YOUR_CALM)));
    assert_eq!(came.reason(), "too many resets, frames of a head or empty frames");
    // Crumbs of a cookie are judged as what they make up.
    let cookie = |value: &str| {
        let header =
            HeaderRule { name: "cookie".into(), value: Some(value.into()), mismatch: Mismatch::Deny };
        vec![HttpRule { headers: vec![header], ..HttpRule::default() }]
    };
    let crumbs = [&GET[..], &[("cookie", "a=1"), ("cookie", "role=admin")]].concat();
    head(cookie("a=1"), &crumbs).await.is_answered(403, NO_RULE);
    passes(&head(cookie("a=1; role=admin"), &crumbs).await, "GET http://h/public cookie=a=1; role=admin");
}

/// Writes until the proxy has had enough, and says how it has ended.
async fn flood(bench: &Bench, mut next: impl FnMut(u32) -> Vec<u8>) -> (Option<u32>, Vec<String>) {
    local(async {
        let (mut raw, servers) = Raw::open(bench).await;
        let received = serve_all(servers);
        raw.headers(1, 0, &[(":method", "POST"), GET[1], GET[2], (":path", "/upload")]).await;
        let (mut reads, mut writes) = tokio::io::split(raw.stream);
        let writing = async {
            for round in 0..200_000 {
                if tokio::io::AsyncWriteExt::write_all(&mut writes, &next(round)).await.is_err() {
                    return true;
                }
            }
            false
        };
        let mut all = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut reads, &mut all);
        let (has_ended, _) = tokio::join!(writing, reading);
        assert!(has_ended, "the flood was borne to its end");
        assert!(!received.borrow().iter().any(|request| request.contains("admin")));
        let mut code = None;
        let mut rest = all.as_slice();
        while rest.len() >= 9 {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            if rest[3] == 7 {
                code = Some(u32::from_be_bytes(rest[13..17].try_into().unwrap()));
            }
            rest = &rest[9 + length..];
        }
        (code, bench.flows())
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn t23_floods_of_frames_that_carry_nothing() {
    for (bytes, reason) in [
        (frame(4, 0, 0, &[]), "flood of SETTINGS frames"),
        (frame(6, 0, 0, &[0; 8]), "flood of PING frames"),
        (frame(2, 0, 3, &[0, 0, 0, 1, 0]), "flood of PRIORITY frames"),
        (frame(8, 0, 1, &[0, 0, 0, 1]), "flood of WINDOW_UPDATE frames"),
        (frame(77, 0, 0, &[]), "flood of frames of no known kind"),
        (frame(0, 0, 1, &[]), "too many resets, frames of a head or empty frames"),
    ] {
        let bench = Bench::new(public());
        let (code, flows) = flood(&bench, |_| bytes.clone()).await;
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{reason}: {flows:?}");
        assert_eq!(flows.last().unwrap(), &format!("request DROPPED ({reason})"));
    }
}

#[tokio::test(start_paused = true)]
async fn t23_a_head_in_endless_pieces() {
    let bench = Bench::new(public());
    let (code, flows) = flood(&bench, |round| match round {
        0 => frame(1, 0, 3, &block(&GET)),
        _ => frame(9, 0, 3, &[]),
    })
    .await;
    assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{flows:?}");
    assert_eq!(flows.last().unwrap(), "request DROPPED (too many resets, frames of a head or empty frames)");
}

#[tokio::test(start_paused = true)]
async fn t23_rapid_resets_and_resets_that_are_provoked() {
    let head = block(&GET);
    let rapid = |round: u32| {
        let id = round * 2 + 3;
        [frame(1, END_HEADERS | END_STREAM, id, &head), frame(3, 0, id, &[0, 0, 0, 8])].concat()
    };
    // A window that is opened too far makes h2 reset the stream.
    let made = |round: u32| {
        let id = round * 2 + 3;
        [frame(1, END_HEADERS | END_STREAM, id, &head), frame(8, 0, id, &[0x7f, 0xff, 0xff, 0xff])].concat()
    };
    let malformed = block(&[GET[0], GET[1], GET[3], ("connection", "close")]);
    let refused = |round: u32| frame(1, END_HEADERS | END_STREAM, round * 2 + 3, &malformed);
    for (name, next) in
        [("rapid", &rapid as &dyn Fn(u32) -> Vec<u8>), ("made", &made), ("malformed", &refused)]
    {
        let bench = Bench::new(public());
        let (code, flows) = flood(&bench, next).await;
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{name}: {flows:?}");
        let why = flows.last().unwrap();
        let is_named = why.ends_with("(flood of streams that come to nothing)")
            || why.ends_with("(too many resets, frames of a head or empty frames)");
        assert!(is_named, "{name}: {why}");
        assert!(flows.len() < 3000, "{name}: {} flows", flows.len());
    }
}

/// What is malformed now and then ends no connection, however long that lives.
#[tokio::test(start_paused = true)]
async fn t23_resets_that_are_provoked_now_and_then_are_borne() {
    let bench = Bench::new(public());
    local(async {
        let (mut raw, servers) = Raw::open(&bench).await;
        let _received = serve_all(servers);
        for number in 0..2000 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            raw.headers(2 * number + 1, END_STREAM, &[&GET[..], &[("connection", "close")]].concat()).await;
            assert_eq!(raw.until(3).await.code(), PROTOCOL_ERROR);
        }
        raw.headers(4001, END_STREAM, &GET).await;
        assert_eq!(raw.until(1).await.stream, 4001);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn t23_more_streams_than_agreed_are_refused() {
    let bench = Bench::new(public());
    local(async {
        let (mut raw, mut servers) = Raw::open(&bench).await;
        for stream in 0..101 {
            raw.headers(stream * 2 + 1, 0, &[(":method", "POST"), GET[1], GET[2], (":path", "/upload")])
                .await;
        }
        let reset = raw.until(3).await;
        assert_eq!((reset.stream, reset.code()), (201, 7));
        let mut origin = origin(&mut servers).await;
        for _ in 0..100 {
            origin.next().await;
        }
    })
    .await;
    assert!(bench.flows().iter().any(|flow| flow.ends_with("(more streams at once than agreed)")));
}

#[tokio::test(start_paused = true)]
async fn t24_a_head_that_trickles_has_an_end() {
    for part in [&frame(1, 0, 1, &block(&GET))[..], &frame(1, END_HEADERS, 1, &block(&GET))[..20], &[0, 0]] {
        let bench = Bench::new(public());
        local(async {
            let (mut raw, mut servers) = Raw::open(&bench).await;
            raw.write(part).await;
            assert_eq!(raw.end().await, Some(ENHANCE_YOUR_CALM));
            servers.none().await;
        })
        .await;
        assert_eq!(bench.flows(), ["request DROPPED (head not complete in time)"]);
    }
}

/// A client that reads nothing at all, not even what is said of settings, is left.
#[tokio::test(start_paused = true)]
async fn t24_a_client_that_never_reads_is_left() {
    let bench = Bench::new(public());
    local(async {
        let (mut raw, mut servers) = Raw::open(&bench).await;
        raw.write(&frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])).await;
        raw.write(&frame(8, 0, 0, &[0x7f, 0, 0, 0])).await;
        raw.headers(1, END_STREAM, &GET).await;
        let mut origin = origin(&mut servers).await;
        let (_, mut respond) = origin.next().await;
        let mut to = respond.send_response(Response::new(()), false).unwrap();
        to.send_data(Bytes::from(vec![0; 4 << 20]), false).unwrap();
        assert_eq!(poll_fn(|cx| to.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        origin.driver.await.unwrap().unwrap();
    })
    .await;
    assert!(bench.flows().iter().any(|flow| flow.ends_with("(no byte for too long)")));
}

#[tokio::test(start_paused = true)]
async fn t25_a_long_call_ends_when_policy_does() {
    let mut bench = Bench::new(vec![rule("POST", "/empire.Death/Stream")]);
    let local_set = tokio::task::LocalSet::new();
    local_set
        .run_until(async {
            let (mut client, mut servers) = client(&bench).await;
            let mut call = request("POST", "/empire.Death/Stream");
            call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
            let (reply, mut up) = client.send.send_request(call, false).unwrap();
            let mut origin = origin(&mut servers).await;
            let (request, mut respond) = origin.next().await;
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            let mut down = reply.await.unwrap().into_body();
            // Silent for a day, and then still there.
            tokio::time::sleep(Duration::from_secs(86_400)).await;
            to.send_data(Bytes::from_static(b"news"), false).unwrap();
            assert_eq!(down.data().await.unwrap().unwrap(), "news");
            bench.enforce(anybody(vec![rule("POST", "/empire.Death/Other")]), false);
            assert_eq!(down.data().await.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
            assert_eq!(poll_fn(|cx| up.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
            let gone = request.into_body().data().await.unwrap().unwrap_err();
            assert_eq!(gone.reason(), Some(Reason::CANCEL));
        })
        .await;
}

/// Nothing is decoded, so that nothing can grow.
#[tokio::test(start_paused = true)]
async fn t26_what_is_compressed_or_deep_passes_as_it_came() {
    let deep = "[".repeat(10_000);
    for (line, body) in [
        (("content-encoding", "gzip"), "no gzip at all"),
        (("content-encoding", "zstd, gzip"), "two layers"),
        (("content-type", "application/json"), &*deep),
    ] {
        let (name, value) = line;
        passes(&upload(&[line], body).await, &format!("POST http://h/upload {name}={value} [{body}]"));
    }
}

/// A server that floods is given up, and the client hears of it.
#[tokio::test(start_paused = true)]
async fn t23_a_server_that_floods_is_given_up() {
    let bench = Bench::new(public());
    local(async {
        let (mut client, mut servers) = client(&bench).await;
        let flooding = tokio::task::spawn_local(async move {
            let (mut reads, mut writes) = tokio::io::split(servers.next().await);
            let thrown = tokio::task::spawn_local(async move {
                let _ = tokio::io::copy(&mut reads, &mut tokio::io::sink()).await;
            });
            let mut bytes = frame(4, 0, 0, &[]);
            while tokio::io::AsyncWriteExt::write_all(&mut writes, &bytes).await.is_ok() {
                bytes = frame(6, 0, 0, &[0; 8]);
            }
            thrown.await.unwrap();
        });
        assert_eq!(client.ask(request("GET", "/public")).await.unwrap().status, 502);
        flooding.await.unwrap();
        client.driver.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_answered_where_another_is_malformed() {
    let bench = Bench::new(public());
    local(async {
        let (mut raw, mut servers) = Raw::open(&bench).await;
        raw.headers(1, END_STREAM, &[&GET[..], &[("connection", "close")]].concat()).await;
        raw.headers(3, END_STREAM, &GET).await;
        let reset = raw.until(3).await;
        assert_eq!((reset.stream, reset.code()), (1, PROTOCOL_ERROR));
        let mut origin = origin(&mut servers).await;
        let (_, mut respond) = origin.next().await;
        answer(&mut respond, 200, "");
        assert_eq!(raw.until(1).await.stream, 3);
    })
    .await;
}
