//! What rules let through, and which rules are refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows only functions marked as tests to be tests"
)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use l7_proxy::index::{Compiler, Edit, Endpoint, ExpressionError, Grant, Matcher, Subject};
use l7_proxy::stage::authorize::Judge;
use l7_proxy::stage::normalise::Path;
use mesh::flow::TrafficDirection::{Egress, Ingress};
use mesh::identity::Identity;
use mesh::l7::{Expression, HeaderRule, HttpRule, L7Access, L7Endpoint, L7Ports, L7Rules, Mismatch};
use mesh::workload::EndpointId;

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    authority: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Subject for Request<'_> {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
    }
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().map(|(name, _)| name.as_bytes())
    }
}

fn get(path: &str) -> Request<'_> {
    Request { method: "GET", path, authority: "h:80", headers: &[] }
}

fn expression(text: &str) -> Option<Expression> {
    Some(Expression(text.to_owned()))
}

fn path(text: &str) -> HttpRule {
    HttpRule { path: expression(text), ..HttpRule::default() }
}

fn header(name: &str, value: Option<&str>, mismatch: Mismatch) -> HttpRule {
    let header = HeaderRule { name: name.to_owned(), value: value.map(str::to_owned), mismatch };
    HttpRule { headers: vec![header], ..HttpRule::default() }
}

fn identity(number: u32) -> Identity {
    Identity::new(number).unwrap()
}

fn endpoint(access: Vec<L7Access>) -> L7Endpoint {
    let rules = L7Rules { ports: vec![L7Ports { first: 80, last: 90, access, tls: Vec::new() }] };
    L7Endpoint {
        id: EndpointId::new(1).unwrap(),
        instance: 1,
        workload: "default/w".parse().unwrap(),
        ipv4: Ipv4Addr::LOCALHOST,
        ipv6: Ipv6Addr::LOCALHOST,
        identity: identity(256),
        ingress: Some(Arc::new(rules)),
        egress: None,
        audit: false,
    }
}

fn anybody(rules: Vec<HttpRule>) -> Vec<L7Access> {
    vec![L7Access { peers: None, http: Some(rules.into()) }]
}

fn compiled(access: Vec<L7Access>) -> Endpoint {
    Compiler::default().endpoint(&endpoint(access)).unwrap()
}

/// The verdict for a request of peer 300 at port 80, with what is changed.
fn judged(rules: Vec<HttpRule>, request: &Request<'_>) -> Result<Vec<String>, &'static str> {
    let endpoint = compiled(anybody(rules));
    let judge = Judge::new(&endpoint, Ingress, 80, Some(identity(300))).unwrap();
    let mut path = Path::default();
    path.normalise(request.path()).unwrap();
    let rule = judge.judge(request, &path)?;
    Ok(Judge::edits(rule, request).iter().map(|edit| format!("{edit:?}")).collect())
}

fn passes(rules: Vec<HttpRule>, request: &Request<'_>) -> bool {
    judged(rules, request).is_ok()
}

#[test]
fn expressions_match_the_whole() {
    let matches = |pattern: &str, text: &str| Matcher::new(pattern, false).unwrap().is_match(text.as_bytes());
    assert!(matches("/v1/request-landing", "/v1/request-landing"));
    assert!(!matches("/v1/request-landing", "/v1/request-landing?x"));
    assert!(!matches("/v1/request-landing", "/x/v1/request-landing"));
    assert!(matches("/v1/.*", "/v1/a/b?c=d") && !matches("/v1/.*", "/v2/"));
    assert!(matches("a|ab", "ab") && matches("ab|a", "a") && !matches("a|ab", "abc"));
    assert!(matches("/[0-9]{3}/(x|y)", "/123/y") && !matches("/[0-9]{3}/(x|y)", "/1234/y"));
    assert!(matches("", "") && !matches("", "a") && matches(".*", "anything"));
    assert!(matches("^/a$", "/a"));
    assert!(!matches("/\\w", "/\u{e4}"));
    assert!(Matcher::new("EXAMPLE\\.com(:80)?", true).unwrap().is_match(b"example.COM:80"));
}

#[test]
fn expressions_that_cost_too_much_are_refused() {
    let error = |pattern: &str| Matcher::new(pattern, false).unwrap_err();
    assert_eq!(error("(a|b)*a(a|b){30}"), ExpressionError::TooLarge);
    assert_eq!(error("(((a{100}){100}){100}){100}"), ExpressionError::TooLarge);
    assert_eq!(error(&"a".repeat(10_000)), ExpressionError::TooLarge);
    assert!(matches!(error("a)|(b"), ExpressionError::Syntax(_)));
    assert!(matches!(error("(?<x"), ExpressionError::Syntax(_)));
    assert!(matches!(error("\\1"), ExpressionError::Syntax(_)));
    assert!(
        Matcher::new("/users/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{12}/.*", false).unwrap().memory() < 64 << 10
    );
}

#[test]
fn what_is_refused_is_named() {
    let refused = |rules: Vec<HttpRule>| {
        let error = Compiler::default().endpoint(&endpoint(anybody(rules))).unwrap_err();
        (error.field, error.why)
    };
    let (field, why) = refused(vec![path("/a"), path("(")]);
    assert_eq!(field, "ingress.ports[0].access[0].http[1].path");
    assert!(why.starts_with("\"(\": ") && !why.contains('\n'), "{why}");
    let (field, _) = refused(vec![header("a b", None, Mismatch::Deny)]);
    assert_eq!(field, "ingress.ports[0].access[0].http[0].headers[0].name");
    let (field, _) = refused(vec![header("x", None, Mismatch::Add)]);
    assert!(field.ends_with("value"));
    let (field, _) = refused(vec![header("content-length", Some("1"), Mismatch::Replace)]);
    assert!(field.ends_with("mismatch"));
    let (field, _) = refused(vec![header("x", Some("a\r\nb"), Mismatch::Add)]);
    assert!(field.ends_with("value"));
}

#[test]
fn every_part_of_a_rule_must_match() {
    let rule = || {
        vec![HttpRule {
            path: expression("/v1/.*"),
            method: expression("GET|HEAD"),
            host: expression("api\\.example(:80)?"),
            headers: Vec::new(),
        }]
    };
    let request = |method, path, authority| Request { method, path, authority, headers: &[] };
    assert!(passes(rule(), &request("GET", "/v1/x", "API.example:80")));
    assert!(!passes(rule(), &request("get", "/v1/x", "api.example")));
    assert!(!passes(rule(), &request("PUT", "/v1/x", "api.example")));
    assert!(!passes(rule(), &request("GET", "/v2/x", "api.example")));
    assert!(!passes(rule(), &request("GET", "/v1/x", "api.example:8080")));
    assert!(!passes(rule(), &request("GET", "/v1/x", "apixexample")));
    assert!(passes(vec![HttpRule::default()], &get("/anything")));
    assert!(!passes(Vec::new(), &get("/")));
}

#[test]
fn every_reading_of_a_path_must_match() {
    let public = || vec![path("/public/.*")];
    assert!(passes(public(), &get("/public/a%2Fb;x")));
    assert!(!passes(public(), &get("/public/..%2fadmin")));
    assert!(!passes(public(), &get("/public/..;/admin")));
    assert!(!passes(public(), &get("/public/../admin")));
    assert!(!passes(public(), &get("/public/%252e%252e/admin")));
    assert!(!passes(vec![path("/app")], &get("/app;jsessionid=1")));
    assert!(passes(vec![path("/app(;.*)?")], &get("/app;jsessionid=1")));
}

#[test]
fn connect_needs_a_rule_that_names_it() {
    let connect = Request { method: "CONNECT", path: "", authority: "h:443", headers: &[] };
    assert!(!passes(vec![HttpRule::default()], &connect));
    assert!(!passes(vec![path(".*")], &connect));
    let method = |text| vec![HttpRule { method: expression(text), ..HttpRule::default() }];
    for names in ["CONNECT", "GET|CONNECT", "(?:CONNECT|GET)", "^(CONNECT)$"] {
        assert!(passes(method(names), &connect), "{names}");
    }
    for matches in [".*", "[A-Z]+", "CONNECT|.*", "CON+ECT", "(GET)|CONNEC[T]", "(CONNECT)?"] {
        assert!(!passes(method(matches), &connect), "{matches}");
    }
}

#[test]
fn headers_must_be_there_with_no_other_value() {
    let rule = |value| vec![header("X-Role", value, Mismatch::Deny)];
    let request = |headers| Request { headers, ..get("/") };
    assert!(passes(rule(Some("user")), &request(&[("x-role", "user")])));
    assert!(passes(rule(None), &request(&[("x-role", "any")])));
    assert!(!passes(rule(None), &request(&[])));
    assert!(!passes(rule(Some("user")), &request(&[("x-role", "user"), ("X-Role", "admin")])));
    assert!(!passes(rule(Some("user")), &request(&[("x-role", "user, admin")])));
    assert!(!passes(rule(Some("user")), &request(&[("x-role", "User")])));
    assert!(!passes(rule(Some("user")), &request(&[("x-role", "user"), ("x_role", "admin")])));
}

#[test]
fn a_mismatch_does_what_the_rule_says() {
    let edits = |value, mismatch, headers| {
        judged(vec![header("x-team", value, mismatch)], &Request { headers, ..get("/") }).unwrap()
    };
    let some = Some("a");
    assert_eq!(edits(some, Mismatch::Log, &[]), [""; 0]);
    assert_eq!(edits(some, Mismatch::Add, &[("x-team", "a")]), [""; 0]);
    assert_eq!(edits(some, Mismatch::Add, &[]), [format!("{:?}", Edit::Add("x-team", "a"))]);
    assert_eq!(edits(some, Mismatch::Delete, &[("x-team", "b")]), [format!("{:?}", Edit::Delete("x-team"))]);
    assert_eq!(edits(some, Mismatch::Replace, &[("x-team", "b")]).len(), 2);
}

#[test]
fn what_several_accesses_let_a_peer_do_adds_up() {
    let peers = |numbers: &[u32]| Some(numbers.iter().map(|n| identity(*n)).collect());
    let endpoint = compiled(vec![
        L7Access { peers: peers(&[300, 301]), http: Some(vec![path("/a")].into()) },
        L7Access { peers: peers(&[302, 301]), http: Some(vec![path("/b")].into()) },
        L7Access { peers: peers(&[303]), http: None },
        L7Access { peers: peers(&[303]), http: Some(vec![].into()) },
    ]);
    let may = |number, text: &str| {
        let judge = Judge::new(&endpoint, Ingress, 85, Identity::new(number)).unwrap();
        let mut path = Path::default();
        path.normalise(text.as_bytes()).unwrap();
        judge.judge(&get(text), &path).is_ok()
    };
    assert!(may(300, "/a") && !may(300, "/b"));
    assert!(may(301, "/a") && may(301, "/b") && !may(301, "/c"));
    assert!(may(303, "/c"));
    assert!(!may(304, "/a") && !may(0, "/a"));
    let outside = Judge::new(&endpoint, Ingress, 91, None).unwrap();
    assert!(matches!(outside.grant, Grant::Open));
    assert!(Judge::new(&endpoint, Egress, 85, None).is_none());
}

#[test]
fn after_a_refused_edit_only_what_was_allowed_is() {
    let mut before = endpoint(anybody(vec![path("/a")]));
    let kept = Compiler::default().endpoint(&before).unwrap();
    let ports = |first, last| L7Ports { first, last, access: anybody(vec![path("(")]), tls: Vec::new() };
    let refused = L7Rules { ports: vec![ports(70, 85), ports(8080, 8080)] };
    (before.ingress, before.egress) = (Some(Arc::new(refused.clone())), Some(Arc::new(refused)));
    before.audit = true;
    let kept = Compiler::kept(&kept, &before);
    assert!(!kept.audit);
    let grant = |direction, port| Judge::new(&kept, direction, port, Some(identity(300))).unwrap().grant;
    for port in [80, 85, 90] {
        assert!(matches!(grant(Ingress, port), Grant::Http(_)), "{port}");
    }
    for port in [70, 79, 8080] {
        assert!(matches!(grant(Ingress, port), Grant::Nothing("rules that cannot be used")), "{port}");
    }
    assert!(matches!(grant(Ingress, 8081), Grant::Open));
    for port in [70, 80, 85, 8080] {
        assert!(matches!(grant(Egress, port), Grant::Nothing(_)), "{port}");
    }
    // An edit after it that is refused too opens nothing of that.
    before.egress = None;
    let again = Compiler::kept(&kept, &before);
    assert!(matches!(Judge::new(&again, Egress, 80, Some(identity(300))).unwrap().grant, Grant::Nothing(_)));
}

#[test]
fn rules_that_cost_too_much_together_are_refused() {
    let hard = |number| path(&format!("/{number}(a|b)*a(a|b){{9}}"));
    let one = Matcher::new(&hard(0).path.unwrap().0, false).unwrap().memory();
    let most = (16 << 20) / one;
    let mut compiler = Compiler::default();
    assert!(compiler.endpoint(&endpoint(anybody((0..most / 2).map(hard).collect()))).is_ok());
    let error = compiler.endpoint(&endpoint(anybody((0..most + 100).map(hard).collect()))).unwrap_err();
    assert!(error.why.contains("16 MiB"), "{error:?}");
    assert!(compiler.endpoint(&endpoint(anybody(vec![hard(0)]))).is_ok(), "another is not charged for it");
}

#[test]
fn alike_expressions_are_compiled_once_and_forgotten_when_unused() {
    let mut compiler = Compiler::default();
    let first = compiler.endpoint(&endpoint(anybody(vec![path("/a[0-9]"), path("/a[0-9]")]))).unwrap();
    let text = format!("{compiler:?}");
    assert_eq!(text.matches("\"/a[0-9]\"").count(), 1);
    drop(first);
    compiler.collect();
    assert!(!format!("{compiler:?}").contains("/a[0-9]"));
}
