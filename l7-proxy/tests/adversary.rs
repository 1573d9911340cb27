//! The numbered cases of adversarial input on HTTP/1.1: each with the policy it tries to get round, and its outcome. The
//! property is that no server executes what policy denies; where the proxy forwards such input, it is because every reading
//! of it is allowed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use harness::{Bench, Outcome, expect, expression, local, rest, rule, run, send};
use mesh::l7::{HeaderRule, HttpRule, Mismatch};

/// All but `/admin` and what is below it: written as who has only allow rules must write it.
fn public() -> Vec<HttpRule> {
    vec![rule("GET", "/(public|a)(/.*)?"), rule("POST", "/upload")]
}

async fn get(target: &str) -> Outcome {
    run(public(), &format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")).await
}

#[track_caller]
fn is_refused(outcome: &Outcome, code: u16, reason: &str) {
    assert_eq!(outcome.codes().first(), Some(&code), "{outcome:?}");
    assert_eq!(outcome.reason(), reason, "{outcome:?}");
    assert!(!outcome.received.contains("admin"), "{outcome:?}");
}

const NO_RULE: &str = "no rule lets it through";
const READINGS: &str = "path that servers read in several ways, not all of them allowed";

#[tokio::test(start_paused = true)]
async fn t1_escaped_letters_and_dots() {
    is_refused(&get("/%61dmin").await, 403, NO_RULE);
    is_refused(&get("/public/%2e%2e/admin").await, 403, NO_RULE);
    is_refused(&get("/public/.%2E/admin").await, 403, NO_RULE);
    is_refused(&get("/public/%252e%252e/admin").await, 403, READINGS);
    assert_eq!(get("/%70ublic/x").await.received, "GET /public/x HTTP/1.1\r\nHost: h\r\n\r\n");
}

#[tokio::test(start_paused = true)]
async fn t2_escaped_and_raw_slashes_and_backslashes() {
    is_refused(&get("/public/..%2fadmin").await, 403, READINGS);
    is_refused(&get("/public/..%5cadmin").await, 403, READINGS);
    is_refused(&get("/public%2f..%2fadmin").await, 403, NO_RULE);
    is_refused(&get("/public/..\\admin").await, 400, "backslash in the path");
    assert_eq!(get("/public/a%2Fb").await.codes(), [200]);
}

#[tokio::test(start_paused = true)]
async fn t3_empty_and_dot_segments() {
    for target in ["//admin", "///admin", "/./admin", "/a/../admin", "/a/./../admin", "/public//../admin"] {
        is_refused(&get(target).await, 403, NO_RULE);
    }
    assert_eq!(get("/a//b/../c").await.received, "GET /a/c HTTP/1.1\r\nHost: h\r\n\r\n");
}

#[tokio::test(start_paused = true)]
async fn t4_parameters_of_segments() {
    is_refused(&get("/admin;x=1").await, 403, NO_RULE);
    is_refused(&get("/public/..;/admin").await, 403, READINGS);
    is_refused(&get("/public/.;/..;x/admin").await, 403, READINGS);
    is_refused(&get("/public/..%3b/admin").await, 403, READINGS);
    assert_eq!(get("/public/a;jsessionid=1").await.codes(), [200]);
}

#[tokio::test(start_paused = true)]
async fn t5_case() {
    is_refused(&get("/Public/admin").await, 403, NO_RULE);
    is_refused(&get("/%50ublic/admin").await, 403, NO_RULE);
}

#[tokio::test(start_paused = true)]
async fn t6_ends_of_paths() {
    let exact = || vec![rule("GET", "/public")];
    for target in ["/public/", "/public?", "/public?x", "/public%20", "/public%3F"] {
        let outcome = run(exact(), &format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        is_refused(&outcome, 403, NO_RULE);
    }
    is_refused(&get("/public%00").await, 400, "escaped NUL in the path");
    is_refused(&get("/public#/admin").await, 400, "fragment (#) in the request target");
    is_refused(&get("/public /admin").await, 400, "neither HTTP/1.1 nor HTTP/1.0");
}

#[tokio::test(start_paused = true)]
async fn t7_overlong_and_broken_utf8() {
    is_refused(&get("/public/%c0%ae%c0%ae/admin").await, 400, "escaped overlong UTF-8 in the path");
    is_refused(&get("/public/..%c0%afadmin").await, 400, "escaped overlong UTF-8 in the path");
    is_refused(&get("/public/\u{e4}").await, 400, "byte beyond ASCII in the path");
    let bench = Bench::new(public());
    let outcome = harness::run_against(&bench, b"GET /public/\xff HTTP/1.1\r\nHost: h\r\n\r\n", "").await;
    assert_eq!(outcome.codes(), [400]);
}

fn of_host() -> Vec<HttpRule> {
    vec![HttpRule { host: expression("good(:80)?"), ..HttpRule::default() }]
}

async fn to(line: &str, headers: &str) -> Outcome {
    run(of_host(), &format!("{line} HTTP/1.1\r\n{headers}\r\n")).await
}

#[tokio::test(start_paused = true)]
async fn t8_absolute_targets_with_another_host() {
    let differs = "Host differs from the request target";
    is_refused(&to("GET http://evil/", "Host: good\r\n").await, 400, differs);
    is_refused(&to("GET http://good/", "Host: evil\r\n").await, 400, differs);
    is_refused(&to("GET http://evil/", "Host: evil\r\n").await, 403, NO_RULE);
    is_refused(&to("GET https://good/", "Host: good\r\n").await, 400, "request target of no known form");
    assert_eq!(to("GET http://good/", "Host: good:80\r\n").await.codes(), [200]);
}

#[tokio::test(start_paused = true)]
async fn t9_hosts() {
    is_refused(&to("GET /", "Host: good\r\nHost: evil\r\n").await, 400, "more than one Host header");
    is_refused(&to("GET /", "").await, 400, "no Host header");
    is_refused(&to("GET /", "Host:\r\n").await, 403, NO_RULE);
    is_refused(&to("GET /", "Host: u@good\r\n").await, 400, "malformed Host");
    is_refused(&to("GET /", "Host: good:8080\r\n").await, 403, NO_RULE);
    is_refused(&to("GET /", "Host: good.\r\n").await, 403, NO_RULE);
    is_refused(&to("GET /", "Host: good, evil\r\n").await, 400, "malformed Host");
    assert_eq!(to("GET /", "Host: GOOD\r\n").await.codes(), [200]);
    let old = run(of_host(), "GET / HTTP/1.0\r\n\r\n").await;
    is_refused(&old, 403, NO_RULE);
}

#[tokio::test(start_paused = true)]
async fn t11_methods() {
    let of = async |line: &str| run(public(), &format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
    is_refused(&of("get /public").await, 403, NO_RULE);
    is_refused(&of("FOO /public").await, 403, NO_RULE);
    is_refused(&of("OPTIONS *").await, 403, NO_RULE);
    is_refused(&of("TRACE /public").await, 403, NO_RULE);
    let connect = "CONNECT h:22 HTTP/1.1\r\nHost: h:22\r\n\r\n";
    is_refused(&run(public(), connect).await, 403, NO_RULE);
    is_refused(&run(vec![HttpRule::default()], connect).await, 403, NO_RULE);
    // The method that is judged is the one of the request line, whatever a framework makes of headers: who wants them
    // judged writes a rule.
    let outcome =
        run(public(), "PUT /public HTTP/1.1\r\nHost: h\r\nX-HTTP-Method-Override: GET\r\n\r\n").await;
    is_refused(&outcome, 403, NO_RULE);
}

fn of_role() -> Vec<HttpRule> {
    let header =
        HeaderRule { name: "x-role".to_owned(), value: Some("user".to_owned()), mismatch: Mismatch::Deny };
    vec![HttpRule { headers: vec![header], ..HttpRule::default() }]
}

async fn with(lines: &str) -> Outcome {
    run(of_role(), &format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n")).await
}

#[tokio::test(start_paused = true)]
async fn t12_repeated_and_joined_headers() {
    assert_eq!(with("X-Role: user\r\n").await.codes(), [200]);
    assert_eq!(with("x-rOLE:user\r\n").await.codes(), [200]);
    is_refused(&with("X-Role: user\r\nX-Role: admin\r\n").await, 403, NO_RULE);
    is_refused(&with("X-Role: admin\r\nX-Role: user\r\n").await, 403, NO_RULE);
    is_refused(&with("X-Role: user,admin\r\n").await, 403, NO_RULE);
    is_refused(&with("X-Role: \r\nX-Role: user\r\n").await, 403, NO_RULE);
}

#[tokio::test(start_paused = true)]
async fn t13_names_that_look_alike_and_broken_lines() {
    let alike = "header that differs from a judged one by an underscore or a dot";
    is_refused(&with("X-Role: user\r\nX_Role: admin\r\n").await, 403, alike);
    is_refused(&with("X-Role: user\r\nx.rOLE: admin\r\n").await, 403, alike);
    is_refused(&with("X-Role: user\r\n admin\r\n").await, 400, "header line continued on the next");
    is_refused(&with("X-Role : user\r\n").await, 400, "space before a header's colon");
    is_refused(&with("X-Role: user\0admin\r\n").await, 400, "control character in a header value");
    is_refused(&with("X-Role: user\rX-Role: admin\r\n").await, 400, "control character in a header value");
    is_refused(&with("X-Role: user\nX-Role: admin\r\n").await, 400, "line that ends with LF alone");
}

#[tokio::test(start_paused = true)]
async fn t14_what_others_say_of_a_client_passes_untouched() {
    let lines = "X-Forwarded-For: 10.0.0.9\r\nX-Forwarded-Client-Cert: x\r\nForwarded: for=1\r\n";
    let asked = format!("GET /public HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    assert_eq!(run(public(), &asked).await.received, asked);
}

#[tokio::test(start_paused = true)]
async fn t15_connection_options_that_name_headers() {
    let why = "Connection names a header that is not hop-by-hop";
    is_refused(&with("X-Role: user\r\nConnection: close, X-Role\r\n").await, 400, why);
    is_refused(&with("X-Role: user\r\nAuthorization: x\r\nConnection: authorization\r\n").await, 400, why);
    is_refused(&with("X-Role: user\r\nConnection: host\r\n").await, 400, why);
    assert_eq!(with("X-Role: user\r\nConnection: keep-alive, TE\r\nTE: trailers\r\n").await.codes(), [200]);
}

async fn upload(lines: &str, body: &str) -> Outcome {
    run(public(), &format!("POST /upload HTTP/1.1\r\nHost: h\r\n{lines}\r\n{body}")).await
}

#[tokio::test(start_paused = true)]
async fn t16_lengths_and_codings() {
    let smuggled = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n";
    for (lines, reason) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "both Content-Length and Transfer-Encoding"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "both Content-Length and Transfer-Encoding"),
        ("Content-Length: 5\r\nContent-Length: 46\r\n", "more than one Content-Length"),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "more than one Content-Length"),
        ("Content-Length: +5\r\n", "malformed Content-Length"),
        ("Transfer-Encoding: xchunked\r\n", "Transfer-Encoding other than exactly chunked"),
        ("Transfer-Encoding: ,chunked\r\n", "Transfer-Encoding other than exactly chunked"),
        ("Transfer-Encoding: \x0bchunked\r\n", "control character in a header value"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-encoding: x\r\n",
            "Transfer-Encoding other than exactly chunked",
        ),
    ] {
        let outcome = upload(lines, smuggled).await;
        is_refused(&outcome, 400, reason);
        assert_eq!(outcome.codes(), [400], "what follows is not read");
    }
}

#[tokio::test(start_paused = true)]
async fn t17_chunks() {
    for (body, reason) in [
        ("0x5\r\nhello\r\n0\r\n\r\n", "malformed chunk size"),
        ("0_2e\r\nadmin", "malformed chunk size"),
        ("\r\nadmin", "malformed chunk size"),
        ("fffffffffffffffff\r\nadmin", "malformed chunk size"),
        ("5\nadmin\r\n0\r\n\r\n", "line that ends with LF alone"),
        ("5;a\radmin\r\nhello\r\n0\r\n\r\n", "malformed or too long chunk extension"),
        ("5;a\nadmin\r\nhello\r\n0\r\n\r\n", "line that ends with LF alone"),
        ("2\r\nokadmin\r\n", "chunk longer than its size"),
    ] {
        let bench = Bench::new(public());
        let head = "POST /upload HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (answer, received) = local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, &format!("{head}{body}")).await;
            // One that answers whole requests alone: what is said of this one is the proxy's word.
            let mut server = servers.next().await;
            (rest(&mut client).await, rest(&mut server).await)
        })
        .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer:?}");
        assert!(!received.contains("admin"), "{body:?}: {received:?}");
        let flows = bench.flows();
        assert!(flows.iter().any(|flow| flow.ends_with(&format!("({reason})"))), "{body:?}: {flows:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn t18_bodies_where_none_are_expected() {
    let old =
        run(public(), "POST /upload HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            .await;
    is_refused(&old, 400, "Transfer-Encoding in HTTP/1.0");
    // A body of GET is passed on as it is framed: no server can take it for a request.
    let framed = "GET /public HTTP/1.1\r\nHost: h\r\nContent-Length: 25\r\n\r\nGET /admin HTTP/1.1\r\n\r\n..";
    assert_eq!(run(public(), framed).await.received, framed);
    for answer in ["HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nadmin"] {
        let bench = Bench::new(public());
        let outcome = harness::run_against(&bench, b"GET /public HTTP/1.1\r\nHost: h\r\n\r\n", answer).await;
        assert_eq!(outcome.codes(), [502], "{answer:?}");
    }
    // What servers send there nevertheless belongs to no answer.
    for (fields, body) in [
        ("Content-Length: 5", "admin"),
        ("Transfer-Encoding: chunked", "0\r\n\r\n"),
        ("Content-Length: 32", "HTTP/1.1 200 OK\r\nX-Admin: 1\r\n\r\n"),
    ] {
        let bench = Bench::new(public());
        let head = format!("HTTP/1.1 204 No Content\r\n{fields}\r\n\r\n");
        local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, "GET /public HTTP/1.1\r\nHost: h\r\n\r\nGET /public HTTP/1.1\r\n").await;
            let mut server = servers.next().await;
            send(&mut server, &format!("{head}{body}")).await;
            expect(&mut client, &head).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client, b"Host: h\r\n\r\n").await;
            assert_eq!(rest(&mut client).await, "", "the next request has no answer");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn t19_upgrades() {
    let upgrade = "GET /public HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let smuggled = "GET /admin HTTP/1.1\r\nHost: h\r\n\r\n";
    // Answered with 200, it is HTTP as before: what follows is judged.
    let outcome = run(public(), &format!("{upgrade}{smuggled}")).await;
    assert_eq!(outcome.codes(), [200, 403]);
    assert!(!outcome.received.contains("admin"));
    // Nothing that came before the switch was sent before it.
    let bench = Bench::new(public());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, &format!("{upgrade}{smuggled}")).await;
        let mut server = servers.next().await;
        expect(&mut server, upgrade).await;
        send(&mut server, "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
        expect(&mut client, "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\nHTTP/1.1 403").await;
        drop(client);
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
    // HTTP/2 is not spoken behind our back: the request goes on as what it is.
    let outcome = run(
        public(),
        "GET /public HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n",
    )
    .await;
    assert_eq!(outcome.received, "GET /public HTTP/1.1\r\nHost: h\r\n\r\n");
    // Nor is anything else within which requests go on.
    for token in ["TLS/1.2", "HTTP/2", "websocket, tls/1.0", "http"] {
        let asked =
            format!("GET /public HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: {token}\r\n\r\n");
        assert_eq!(
            run(public(), &asked).await.received,
            "GET /public HTTP/1.1\r\nHost: h\r\n\r\n",
            "{token}"
        );
    }
    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let bench = Bench::new(public());
    let asked = b"GET /public HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert_eq!(harness::run_against(&bench, asked, switched).await.codes(), [502]);
    // CONNECT with early data: nothing is sent before the server has agreed.
    let connect = vec![HttpRule { method: expression("CONNECT"), ..HttpRule::default() }];
    let early = run(connect, "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\nContent-Length: 5\r\n\r\nadmin").await;
    is_refused(&early, 400, "body where none may be");
}

/// Of a client without rules of its own, too.
#[tokio::test(start_paused = true)]
async fn t41_what_was_sent_by_one_is_not_judged_as_another_who_has_its_address_by_now() {
    let bench = Bench::new(public());
    bench.identify(harness::CLIENT, 300, Some(1));
    let asked = "GET /public HTTP/1.1\r\nHost: h\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    local(async {
        let (mut client, mut server) = bench.asked(asked).await;
        send(&mut server, answer).await;
        expect(&mut client, answer).await;
        bench.identify(harness::CLIENT, 300, Some(2));
        send(&mut client, asked).await;
        assert_eq!(rest(&mut client).await, "");
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
    assert_eq!(bench.flows().last().unwrap(), "request DROPPED (address of another workload by now)");
}

/// By who looks at trailers as at headers, another role.
#[tokio::test(start_paused = true)]
async fn t21_trailers_that_a_rule_looks_at() {
    let head = "POST / HTTP/1.1\r\nHost: h\r\nX-Role: user\r\nTransfer-Encoding: chunked\r\n\r\n";
    let said = async |trailer: &str| {
        let bench = Bench::new(of_role());
        let all = format!("{head}2\r\nok\r\n0\r\n{trailer}: admin\r\n\r\n");
        let (answer, received) = local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, &all).await;
            let mut server = servers.next().await;
            if trailer == "X-Checksum" {
                expect(&mut server, &all).await;
                send(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                drop(server);
                return (rest(&mut client).await, String::new());
            }
            (rest(&mut client).await, rest(&mut server).await)
        })
        .await;
        (answer, received, bench.flows())
    };
    for trailer in ["X-Role", "x_role", "X.Role", "Authorization", "Content-Length"] {
        let (answer, received, flows) = said(trailer).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{trailer}: {answer:?}");
        assert!(!received.contains("admin"), "{trailer}: {received:?}");
        let why = "(malformed or forbidden trailers)";
        assert!(flows.iter().any(|flow| flow.ends_with(why)), "{trailer}: {flows:?}");
    }
    assert!(said("X-Checksum").await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn t22_large_heads() {
    let cookie = format!("Cookie: {}\r\n", "c".repeat(48 << 10));
    let outcome = run(public(), &format!("GET /public HTTP/1.1\r\nHost: h\r\n{cookie}\r\n")).await;
    assert_eq!(outcome.codes(), [200]);
    let large = format!("X: {}\r\n", "x".repeat(64 << 10));
    let outcome = run(public(), &format!("GET /admin HTTP/1.1\r\nHost: h\r\n{large}\r\n")).await;
    is_refused(&outcome, 400, "head of more than 64 KB");
    let outcome =
        run(public(), &format!("GET /admin HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(200))).await;
    is_refused(&outcome, 400, "more than 128 header lines");
}

#[tokio::test(start_paused = true)]
async fn t24_slow_clients_and_servers_have_an_end() {
    let bench = Bench::new(public());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "GET /public HTTP/1.1\r\nHost:").await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 408 "));
        servers.none().await;
    })
    .await;
    assert_eq!(bench.flows()[0], "request DROPPED (head not complete in time)");
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nslow").await;
        let mut server = servers.next().await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 408 "));
        assert!(rest(&mut server).await.ends_with("\r\n\r\nslow"));
    })
    .await;
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "GET /public HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let _server = servers.next().await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 504 "));
    })
    .await;
    // Who does not read what he is sent is left.
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, "GET /public HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let mut server = servers.next().await;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n{}", "x".repeat(9_999_999));
        let written = tokio::io::AsyncWriteExt::write_all(&mut server, answer.as_bytes()).await;
        assert!(written.is_err());
    })
    .await;
}

/// Nothing is decoded, so that nothing can grow.
#[tokio::test(start_paused = true)]
async fn t26_what_is_compressed_or_deep_passes_as_it_came() {
    for (fields, body) in [
        ("Content-Encoding: gzip", "\u{1f}\u{8b}\u{8} no gzip at all"),
        ("Content-Encoding: zstd, gzip", "two layers"),
        ("Content-Type: application/json", &*"[".repeat(20_000)),
    ] {
        let bench = Bench::new(public());
        let length = body.len();
        let asked =
            format!("POST /upload HTTP/1.1\r\nHost: h\r\n{fields}\r\nContent-Length: {length}\r\n\r\n{body}");
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: {length}\r\n\r\n{body}");
        local(async {
            let (mut client, mut server) = bench.asked(&asked).await;
            send(&mut server, &answer).await;
            expect(&mut client, &answer).await;
        })
        .await;
    }
}
