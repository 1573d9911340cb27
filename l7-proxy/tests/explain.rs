//! What is said of a request that nobody sends, beside what becomes of the same one when it is sent.
#![allow(clippy::unwrap_used, reason = "a test file: it is how a test fails")]

mod harness;
#[path = "harness/pki.rs"]
mod pki;

use std::sync::Arc;

use harness::{Bench, CLIENT, SERVER, anybody, expression, rule};
use l7_proxy::runtime::explain;
use mesh::flow::{TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::l7::{HeaderRule, HttpRule, L7Access, L7Inspected, L7Tls, Mismatch, TlsInspection};
use node_api::proxy::{ProxyGrant, ProxySays, ProxySupposed, SupposedEnd, SupposedRequest};

fn request(method: &str, path: &str) -> SupposedRequest {
    let (method, path) = (method.to_owned(), path.to_owned());
    SupposedRequest { http2: false, method, path, host: Some("deathstar".to_owned()), headers: Vec::new() }
}

fn call(method: &str, path: &str) -> SupposedRequest {
    let headers = vec![("content-type".to_owned(), "application/grpc".to_owned())];
    SupposedRequest { http2: true, headers, ..request(method, path) }
}

fn supposed(request: SupposedRequest) -> ProxySupposed {
    let end = |address: std::net::Ipv4Addr| SupposedEnd { address: address.into(), identity: None };
    ProxySupposed { client: end(CLIENT), server: end(SERVER), port: 80, request }
}

fn ask(bench: &Bench, request: SupposedRequest) -> ProxySays {
    explain(&supposed(request), &bench.published, &bench.worker.identities)
}

/// Verdict, reason, status.
fn verdict(says: &ProxySays) -> (Verdict, Option<&str>, Option<u16>) {
    (says.verdict, says.reason.as_deref(), says.answer.as_ref().map(|answer| answer.status))
}

#[test]
fn a_rule_that_lets_it_pass_is_named_and_of_a_denial_those_that_come_near() {
    let bench = Bench::new(vec![rule("GET", "/v1/plans"), rule("POST", "/v1/request-landing")]);
    let says = ask(&bench, request("POST", "/v1/request-landing"));
    assert_eq!(verdict(&says), (Verdict::Forwarded, None, None));
    assert_eq!(says.forwarded, ["POST /v1/request-landing HTTP/1.1", "Host: deathstar"]);
    assert!(!says.changed && !says.relayed);
    assert_eq!((says.client_identity, says.server_identity), (Identity::new(300), Identity::new(256)));
    let [judge] = says.judges.as_slice() else { panic!("{says:?}") };
    assert_eq!((judge.direction, judge.grant, judge.rules), (TrafficDirection::Ingress, ProxyGrant::Http, 2));
    assert_eq!((judge.asked, judge.allowed), (true, Some(true)));
    let found = judge.readings[0].rule.as_ref().unwrap();
    assert_eq!(found.rule, rule("POST", "/v1/request-landing"));
    assert!(judge.nearest.is_empty());

    let says = ask(&bench, request("PUT", "/v1/request-landing"));
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("no rule lets it through"), Some(403)));
    assert_eq!(says.answer.as_ref().unwrap().body, "Access denied");
    assert_eq!((says.by, says.forwarded.len()), (Some(TrafficDirection::Ingress), 0));
    let near = &says.judges[0].nearest;
    assert_eq!(near[0].rule.rule, rule("POST", "/v1/request-landing"));
    assert_eq!(
        (near[0].differs.join(","), near[1].differs.join(",")),
        ("method".into(), "method,path".into())
    );
    assert!(bench.flows().is_empty(), "nothing is recorded");
}

#[test]
fn what_is_changed_is_shown_as_it_goes_out_and_every_reading_of_the_path_is_judged() {
    let header = |name: &str, value: Option<&str>, mismatch| HeaderRule {
        name: name.to_owned(),
        value: value.map(str::to_owned),
        mismatch,
    };
    let headers =
        vec![header("x-role", Some("pilot"), Mismatch::Replace), header("x-token", None, Mismatch::Deny)];
    let bench = Bench::new(vec![HttpRule { headers, ..rule("GET", "/a.*") }, rule("GET", "/public/.*")]);
    let mut asked = request("GET", "/x/../a%2Fb");
    let says = ask(&bench, asked.clone());
    assert_eq!(verdict(&says).1, Some("no rule lets it through"));
    assert_eq!(says.judges[0].nearest[0].differs, ["header x-token"]);
    asked.headers = vec![("X-Token".to_owned(), "1".to_owned()), ("X-Role".to_owned(), "guest".to_owned())];
    let says = ask(&bench, asked);
    assert_eq!(verdict(&says), (Verdict::Forwarded, None, None));
    assert!(says.changed);
    let expected = ["GET /a%2Fb HTTP/1.1", "Host: deathstar", "X-Token: 1", "x-role: pilot"];
    assert_eq!(says.forwarded, expected);
    let judge = &says.judges[0];
    assert_eq!(judge.edits, ["- x-role", "+ x-role: pilot"]);
    let readings: Vec<_> = judge.readings.iter().map(|it| (it.path.as_str(), it.rule.is_some())).collect();
    assert_eq!(readings, [("/a%2Fb", true), ("/a/b", true)]);

    let says = ask(&bench, request("GET", "/public/..%2Fadmin"));
    let reason = "path that servers read in several ways, not all of them allowed";
    assert_eq!(verdict(&says), (Verdict::Dropped, Some(reason), Some(403)));
    let readings = &says.judges[0].readings;
    let denied: Vec<_> = readings.iter().filter(|it| it.rule.is_none()).map(|it| it.path.as_str()).collect();
    assert_eq!(denied, ["/admin"]);
    assert_eq!(says.judges[0].nearest[0].differs, ["header x-token"]);
    assert_eq!(says.judges[0].nearest[1].differs, ["path"]);
}

#[test]
fn what_is_no_request_is_answered_as_one_that_came() {
    let bench = Bench::new(vec![rule("GET", "/a")]);
    for (asked, reason) in [
        (request("GET", "/%zz"), "malformed escape in the path"),
        (request("GET", "/a b"), "neither HTTP/1.1 nor HTTP/1.0"),
        (request("GET", "/a#b"), "fragment (#) in the request target"),
        (SupposedRequest { host: None, ..request("GET", "/a") }, "no Host header"),
    ] {
        let says = ask(&bench, asked);
        assert_eq!((says.verdict, says.answer.as_ref().map(|it| it.status)), (Verdict::Dropped, Some(400)));
        assert_eq!(says.reason.as_deref(), Some(reason));
    }
    let foreign = vec![("connection".to_owned(), "close".to_owned())];
    let says = ask(&bench, SupposedRequest { headers: foreign, ..call("GET", "/a") });
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("malformed HTTP/2 request"), None), "it is reset");
}

#[test]
fn calls_of_grpc_are_answered_as_such() {
    let bench = Bench::new(vec![rule("POST", "/ships.Port/Land")]);
    let says = ask(&bench, call("POST", "/ships.Port/Land"));
    assert_eq!(verdict(&says), (Verdict::Forwarded, None, None));
    assert_eq!(says.forwarded[..2], [":method: POST", ":scheme: http"]);
    assert!(!says.changed, "{:?}", says.forwarded);
    let says = ask(&bench, call("POST", "/ships.Port/Fire"));
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("no rule lets it through"), Some(200)));
    assert_eq!(says.answer.unwrap().grpc_status, Some(7));
    let plain = SupposedRequest { headers: Vec::new(), ..call("POST", "/ships.Port/Fire") };
    assert_eq!(verdict(&ask(&bench, plain)).2, Some(403));
}

#[test]
fn who_may_do_anything_is_not_looked_at_and_nobody_else_passes() {
    let only = |peer, http| vec![L7Access { peers: Some([Identity::new(peer).unwrap()].into()), http }];
    let bench = Bench::with(only(300, None), false);
    let says = ask(&bench, request("PUT", "/%zz"));
    assert!(says.relayed && verdict(&says) == (Verdict::Forwarded, None, None), "{says:?}");
    assert_eq!(says.judges[0].grant, ProxyGrant::Anything);
    let mut bench = Bench::with(only(301, Some([rule("GET", "/")].into())), false);
    let says = ask(&bench, request("GET", "/"));
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("no rule for this peer"), Some(403)));
    // Somebody of that identity, wherever he is.
    let mut asked = supposed(request("GET", "/"));
    asked.client = SupposedEnd { address: [0, 0, 0, 0].into(), identity: Identity::new(301) };
    let says = explain(&asked, &bench.published, &bench.worker.identities);
    assert_eq!(verdict(&says), (Verdict::Forwarded, None, None));
    asked.port = 81;
    let says = explain(&asked, &bench.published, &bench.worker.identities);
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("no rules for it"), None));
    assert_eq!(says.judges[0].grant, ProxyGrant::NoRules);
    let names = ["a.example".parse().unwrap()].into();
    bench.enforce_tls(Vec::new(), vec![L7Tls { peers: None, names }], false);
    let says = ask(&bench, request("GET", "/"));
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("not TLS, which alone may pass"), None));
    assert_eq!(says.judges[0].grant, ProxyGrant::Tls);
}

#[test]
fn in_audit_mode_it_passes_and_the_denial_is_said() {
    let bench = Bench::with(anybody(vec![rule("GET", "/a")]), true);
    let says = ask(&bench, request("PUT", "/a"));
    assert_eq!(verdict(&says), (Verdict::Audit, Some("no rule lets it through"), None));
    assert!(says.judges[0].audit && says.judges[0].allowed == Some(false));
    assert_eq!(says.forwarded[0], "PUT /a HTTP/1.1");
}

#[test]
fn before_rules_are_known_nothing_passes() {
    let bench = Bench::new(vec![rule("GET", "/a")]);
    let unknown = l7_proxy::runtime::Published::default();
    let says = explain(&supposed(request("GET", "/a")), &unknown, &bench.worker.identities);
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("rules not known yet"), None));
}

/// What is said of a request is what becomes of it.
#[tokio::test(start_paused = true)]
async fn it_says_what_happens() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let host = HttpRule { host: expression("deathstar"), ..rule("DELETE", "/h") };
    let bench = Bench::new(vec![rule("GET|HEAD", "/a(/.*)?"), host]);
    let mut seen = std::collections::BTreeMap::new();
    for method in ["GET", "HEAD", "PUT", "DELETE", "BREW\t"] {
        for path in ["/a", "/a/b", "/a/../h", "/h", "/a%2Fb", "/a/%2e%2e/c", "/a;x", "/a\\", "/%00", "*", "x"]
        {
            let says = ask(&bench, request(method, path));
            let sent = format!("{method} {path} HTTP/1.1\r\nHost: deathstar\r\n\r\n");
            let became = harness::run_against(&bench, sent.as_bytes(), OK).await;
            let goes = says.forwarded.iter().map(|line| format!("{line}\r\n")).collect::<String>();
            let goes = if goes.is_empty() { goes } else { format!("{goes}\r\n") };
            assert_eq!(became.received, goes, "{sent:?}");
            let answers = (says.verdict == Verdict::Forwarded).then_some(200);
            let answers = answers.or(says.answer.as_ref().map(|answer| answer.status));
            assert_eq!(became.codes().first().copied(), answers, "{sent:?}: {says:?}");
            assert_eq!(became.reason(), says.reason.as_deref().unwrap_or_default(), "{sent:?}");
            *seen.entry(answers).or_insert(0) += 1;
        }
    }
    assert!(seen.keys().eq(&[None, Some(200), Some(400), Some(403)]), "{seen:?}");
}

/// A client is supposed to begin as rules want it, in TLS where the proxy ends that.
#[test]
fn what_is_inside_tls_that_the_proxy_ends_is_explained_by_its_rules() {
    let leaf = pki::Authority::new().leaf("deathstar");
    let inspected = |names: Option<&str>| L7Inspected {
        peers: None,
        inspection: Arc::new(TlsInspection {
            names: names.map(|name| [name.parse().unwrap()].into()),
            terminating: Some(pki::context("shown")),
            originating: None,
            http: Some([rule("GET", "/a")].into()),
        }),
    };
    let mut bench = Bench::new(Vec::new());
    for names in [None, Some("deathstar")] {
        bench.enforce_inspected(Vec::new(), vec![inspected(names)], vec![pki::pair("shown", &leaf)], false);
        assert_eq!(verdict(&ask(&bench, request("GET", "/a"))), (Verdict::Forwarded, None, None));
        let says = ask(&bench, request("GET", "/b"));
        assert_eq!(verdict(&says), (Verdict::Dropped, Some("no rule lets it through"), Some(403)));
    }
    let other = vec![inspected(Some("other"))];
    bench.enforce_inspected(Vec::new(), other, vec![pki::pair("shown", &leaf)], false);
    let says = ask(&bench, request("GET", "/a"));
    assert_eq!(verdict(&says), (Verdict::Dropped, Some("not TLS, which alone may pass"), None));
}
