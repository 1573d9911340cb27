//! What rules let through, and which rules are refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows only functions marked as tests to be tests"
)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use expression::{Account, Budget, Expressions};
use l7_proxy::index::{Compiler, Edit, Endpoint, Grant, MAX_WORK, Preparation, SLICE, Subject, Work};
use l7_proxy::stage::authorize::Judge;
use l7_proxy::stage::normalise::Path;
use mesh::flow::TrafficDirection::{Egress, Ingress};
use mesh::identity::Identity;
use mesh::l7::{
    Expression, HeaderRule, HttpRule, HttpRules, L7Access, L7Endpoint, L7Ports, L7Rules, L7Tls, Mismatch,
    PATTERNS, SERVER_NAMES, WORKLOAD_PARTS,
};
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
    let rules = L7Rules {
        ports: vec![L7Ports {
            first: 80,
            last: 90,
            access: access.into(),
            tls: Arc::default(),
            inspected: Arc::default(),
        }],
    };
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
        secrets: Vec::new(),
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
    assert!(field.ends_with("mismatch"));
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
    assert!(!passes(vec![path("/v1/[^:]*")], &get("/v1/x%3Aundelete")));
    assert!(!passes(vec![path("/v1/[^:]*")], &get("/v1/x%253aundelete")));
    assert!(!passes(vec![path("/v1/[^@,]*")], &get("/v1/x%40y")));
    assert!(passes(vec![path("/v1/[^@,]*")], &get("/v1/x%3Dy%2By")));
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
    let logs = |headers| {
        let endpoint = compiled(anybody(vec![header("x-team", some, Mismatch::Log)]));
        let judge = Judge::new(&endpoint, Ingress, 80, Some(identity(300))).unwrap();
        let request = Request { headers, ..get("/") };
        judge.judge(&request, &Path::default()).unwrap().unwrap().logs(&request)
    };
    assert!(logs(&[]) && logs(&[("x-team", "b")]) && !logs(&[("x-team", "a")]));
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
    let ports = |first, last| L7Ports {
        first,
        last,
        access: anybody(vec![path("(")]).into(),
        tls: Arc::default(),
        inspected: Arc::default(),
    };
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

/// Names as in policies that are made by programs.
fn resources(count: usize) -> Vec<HttpRule> {
    let shape = |number| match number % 3 {
        0 => format!("/v1/resource-{number}"),
        1 => format!("/v1/resource-{number}/.*"),
        _ => format!("/api/{number}/[0-9]+"),
    };
    (0..count).map(|number| path(&shape(number))).collect()
}

/// What the judgement of a path takes, and whether it passes.
fn work(endpoint: &Endpoint, request: &Request<'_>) -> (Work, Result<(), &'static str>) {
    let judge = Judge::new(endpoint, Ingress, 80, Some(identity(300))).unwrap();
    let (mut path, mut work) = (Path::default(), Work::default());
    path.normalise(request.path.as_bytes()).unwrap();
    let judged = judge.judge_counted(request, &path, &mut work).map(drop);
    (work, judged)
}

#[test]
fn a_request_costs_what_its_path_has_in_common_with_rules_and_not_how_many_there_are() {
    for count in [3, 1000, 5000] {
        let endpoint = compiled(anybody(resources(count)));
        let last = count - count % 3;
        for (text, expressions, passes) in [
            (format!("/v1/resource-{}", last - 3), 0, true),
            (format!("/v1/resource-{}/a/b", last - 2), 1, true),
            (format!("/api/{}/17", last - 1), 1, true),
            (format!("/api/{}/x", last - 1), 1, false),
            ("/v1/resource-".to_owned(), 0, false),
            ("/zzz".to_owned(), 0, false),
        ] {
            let (work, judged) = work(&endpoint, &get(&text));
            assert_eq!((work.expressions, judged.is_ok()), (expressions, passes), "{text} of {count}");
            assert!(work.rules <= 1 && work.bytes < 500, "{text} of {count}: {work:?}");
        }
    }
}

#[test]
fn rules_that_begin_alike_are_tried_as_far_as_their_methods_are_the_requests() {
    let rule = |number: usize| HttpRule {
        method: expression(["GET", "POST|PUT"][number % 2]),
        ..path(&format!("/a/[a-z]+/{number}"))
    };
    let endpoint = compiled(anybody((0..100).map(rule).collect()));
    let (tried, judged) = work(&endpoint, &get("/a/b/98"));
    assert_eq!((tried.expressions, judged), (50, Ok(())), "all of GET");
    assert_eq!(work(&endpoint, &Request { method: "DELETE", ..get("/a/b/98") }).0.expressions, 0);
    assert!(work(&endpoint, &Request { method: "PUT", ..get("/a/b/98") }).1.is_err());
    assert!(work(&endpoint, &Request { method: "PUT", ..get("/a/b/97") }).1.is_ok());
}

#[test]
fn the_first_rule_that_is_written_is_the_one_that_counts() {
    let adding = |expression: &str, value: &str| HttpRule {
        headers: header("x", Some(value), Mismatch::Add).headers,
        ..path(expression)
    };
    let added = |rules: Vec<HttpRule>| judged(rules, &get("/a/b")).unwrap().concat();
    let of = |value: &str| format!("{:?}", Edit::Add("x", value));
    assert_eq!(added(vec![adding("/a/[a-z]", "1"), adding("/a/b", "2"), adding("/a/.*", "3")]), of("1"));
    assert_eq!(added(vec![adding("/b", "0"), adding("/.*", "1"), adding("/a/b", "2")]), of("1"));
    let any = || HttpRule { path: None, ..adding("", "9") };
    assert_eq!(added(vec![adding("/a/b", "1"), any()]), of("1"));
    assert_eq!(added(vec![any(), adding("/a/b", "1")]), of("9"));
    let method = |it: HttpRule| HttpRule { method: expression("PUT"), ..it };
    assert_eq!(added(vec![method(adding("/a/b", "1")), adding("/a/b", "2")]), of("2"));
}

#[test]
fn a_request_that_would_cost_too_much_is_denied() {
    let rules = |count: usize| (0..count).map(|number| path(&format!("/[a-z/;]+{number}"))).collect();
    let endpoint = compiled(anybody(rules(500)));
    assert_eq!(work(&endpoint, &get(&format!("/{}499", "a/b".repeat(1000)))).1, Ok(()));
    let (work, judged) = work(&endpoint, &get(&format!("/{}499", "a/b;".repeat(4000))));
    assert_eq!(judged, Err("path that takes too long to be held against all rules"));
    assert!(work.bytes <= MAX_WORK + (64 << 10), "{work:?}");
}

#[test]
fn rules_for_the_same_peers_are_one_list_whoever_wrote_them() {
    let peers = || Some([identity(300)].into());
    let access = |number| L7Access { peers: peers(), http: Some([path(&format!("/{number}"))].into()) };
    let endpoint = compiled((0..1000).map(access).collect());
    let judge = Judge::new(&endpoint, Ingress, 80, Some(identity(300))).unwrap();
    assert!(matches!(&judge.grant, Grant::Http(sets) if sets.len() == 1));
    assert!(work(&endpoint, &get("/999")).1.is_ok() && work(&endpoint, &get("/1000")).1.is_err());
}

#[test]
fn what_one_object_may_have_the_proxy_takes() {
    let hard = |number| path(&format!("/(a|b)*a(a|b){{9}}{number}"));
    let (mut store, mut account) = (Expressions::default(), Account::new(Budget::OBJECT));
    let mut fits =
        |rule: &HttpRule| account.matcher(&rule.path.as_ref().unwrap().0, false, &mut store).is_ok();
    let rules: Vec<HttpRule> = (0..).map(hard).take_while(|rule| fits(rule)).collect();
    assert!(rules.len() > 10);
    assert!(Compiler::default().endpoint(&endpoint(anybody(rules.clone()))).is_ok());
    assert!(Compiler::default().endpoint(&endpoint(anybody(resources(Budget::OBJECT.expressions)))).is_ok());
    // Of many objects it takes more than of one, and not without end.
    let most = rules.len() * 5;
    let error = Compiler::default().endpoint(&endpoint(anybody((0..most).map(hard).collect()))).unwrap_err();
    assert_eq!(error.field, "expressions");
    assert!(
        error.why.starts_with("all policies that select it") && error.why.contains("32 MiB"),
        "{error:?}"
    );
}

#[test]
fn an_endpoint_is_prepared_in_slices() {
    let rules =
        |count: usize| (0..count).map(|number| path(&format!("/{number}/[a-z]{{{}}}x{number}", number % 40)));
    let endpoint = Box::new(endpoint(anybody(rules(400).collect())));
    let (mut compiler, mut preparation) = (Compiler::default(), Preparation::new(endpoint.clone()));
    let mut slices = 0;
    let compiled = loop {
        slices += 1;
        if let Some(compiled) = compiler.advance(&mut preparation, &mut SLICE.clone()) {
            break compiled.unwrap();
        }
        let before = compiler.count().1;
        compiler.collect();
        assert_eq!(compiler.count().1, before, "they stay while it is under way");
    };
    assert!(slices > 3, "{slices}");
    assert_eq!(compiler.count().1, 400);
    drop((preparation, compiled));
    compiler.collect();
    assert_eq!(compiler.count(), (0, 0, 0));
}

/// Rules at ranges of ports, each with its lists for the same peers.
fn at_ports(ports: impl IntoIterator<Item = (u16, Vec<L7Access>)>) -> L7Endpoint {
    let ports = ports.into_iter().map(|(port, access)| L7Ports {
        first: port,
        last: port,
        access: access.into(),
        tls: Arc::default(),
        inspected: Arc::default(),
    });
    let rules = L7Rules { ports: ports.collect() };
    L7Endpoint { ingress: Some(Arc::new(rules)), ..endpoint(Vec::new()) }
}

#[test]
fn rules_of_lists_that_come_together_at_many_ranges_have_a_bound() {
    let wide: HttpRules = resources(5000).into();
    let with = |port: u16| {
        let own = L7Access { peers: None, http: Some([path(&format!("/own/{port}"))].into()) };
        (port, vec![L7Access { peers: None, http: Some(Arc::clone(&wide)) }, own])
    };
    let fits = WORKLOAD_PARTS / 5003;
    let last = u16::try_from(fits).unwrap();
    let compiled = Compiler::default().endpoint(&at_ports((1..=last).map(with))).unwrap();
    let may = |port, text: &str| {
        let judge = Judge::new(&compiled, Ingress, port, Some(identity(300))).unwrap();
        let mut path = Path::default();
        path.normalise(text.as_bytes()).unwrap();
        judge.judge(&get(text), &path).is_ok()
    };
    assert!(may(7, "/v1/resource-3") && may(7, "/own/7") && !may(7, "/own/8") && may(8, "/own/8"));
    let refused = Compiler::default().endpoint(&at_ports((1..=last + 1).map(with))).unwrap_err();
    assert_eq!(refused.field, format!("ingress.ports[{fits}]"));
    assert!(refused.why.contains("200000 at all ranges of ports together"), "{refused:?}");
}

#[test]
fn names_that_are_tried_have_a_bound() {
    let tls = |number: usize, count: usize| L7Tls {
        peers: None,
        names: (0..count).map(|at| format!("a*{number}x{at}.b").parse().unwrap()).collect(),
    };
    let of = |lists: Vec<Vec<L7Tls>>| {
        let ports = (80..).zip(lists).map(|(port, tls)| L7Ports {
            first: port,
            last: port,
            access: Arc::default(),
            tls: tls.into(),
            inspected: Arc::default(),
        });
        let rules = L7Rules { ports: ports.collect() };
        L7Endpoint { ingress: Some(Arc::new(rules)), ..endpoint(Vec::new()) }
    };
    let full = tls(0, PATTERNS);
    let shared = of(vec![vec![full.clone()], Vec::new(), vec![full.clone()]]);
    assert!(Compiler::default().endpoint(&shared).is_ok(), "a list that ranges share counts once");
    let refused = Compiler::default().endpoint(&of(vec![vec![full.clone(), tls(1, 1)]])).unwrap_err();
    assert_eq!(refused.field, "ingress.ports[0].tls[1].names");
    let refused = Compiler::default().endpoint(&of(vec![vec![tls(0, SERVER_NAMES + 1)]])).unwrap_err();
    assert_eq!(refused.field, "ingress.ports[0].tls[0].names");
}

#[test]
fn headers_and_what_is_tried_of_hosts_and_methods_is_counted() {
    let named = |number: usize| header(&format!("x-{number}"), None, Mismatch::Deny);
    let many = |count: usize| (0..count).map(named).collect();
    let error =
        Compiler::default().endpoint(&endpoint(anybody(many(Budget::WORKLOAD.expressions + 1)))).unwrap_err();
    assert_eq!(error.field, "expressions");
    // Each header that rules look at is held against each of the request.
    let endpoint = compiled(anybody(many(8000)));
    let names: Vec<String> = (0..100).map(|number| format!("y-{number}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let (_, judged) = work(&endpoint, &Request { headers: &headers, ..get("/") });
    assert_eq!(judged, Err("path that takes too long to be held against all rules"));
    let alternatives =
        |text: &str| ('A'..='Z').map(|letter| format!("{letter}{text}")).collect::<Vec<_>>().join("|");
    let rule = HttpRule {
        host: expression(&alternatives("h")),
        method: expression(&alternatives("M")),
        ..path("/.*")
    };
    let (work, judged) = work(&compiled(anybody(vec![rule])), &get("/"));
    assert!(judged.is_err() && work.bytes > 2 * 26 * 8, "{work:?}");
}

#[test]
fn what_is_alike_is_kept_once_for_all_endpoints_and_forgotten_when_unused() {
    let mut compiler = Compiler::default();
    let first = compiler.endpoint(&endpoint(anybody(resources(300)))).unwrap();
    assert_eq!(compiler.count(), (1, 300, 1), "one list, and one automaton of [0-9]+");
    let second = compiler.endpoint(&endpoint(anybody(resources(300)))).unwrap();
    let third = compiler.endpoint(&endpoint(anybody(resources(301)))).unwrap();
    assert_eq!(compiler.count(), (2, 301, 1));
    drop((first, second));
    compiler.collect();
    assert_eq!(compiler.count(), (1, 301, 1));
    drop(third);
    compiler.collect();
    assert_eq!(compiler.count(), (0, 0, 0));
}
