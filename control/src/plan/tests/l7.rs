//! What of a plan is for the L7 proxy.

use super::*;

const RULE1: &str = include_str!("../../../../examples/star-wars/rule1-l7.yaml");

fn rules(bench: &Bench, name: &str) -> Option<Arc<mesh::l7::L7Rules>> {
    let l7 = bench.planned.plan.l7.as_ref()?;
    let id = bench.endpoint(name).endpoint.id;
    l7.endpoints.get(&id)?.ingress.clone()
}

#[test]
fn the_proxy_is_told_of_endpoints_with_rules_and_of_no_others() {
    let bench = Bench::new(RULE1, &SHIPS);
    let plan = bench.planned.plan.l7.as_ref().unwrap();
    let names: Vec<_> = plan.endpoints.values().map(|endpoint| endpoint.workload.to_string()).collect();
    assert_eq!(names, ["default/deathstar-1", "default/deathstar-2"]);
    let deathstar = rules(&bench, "default/deathstar-1").unwrap();
    assert!(Arc::ptr_eq(&deathstar, &rules(&bench, "default/deathstar-2").unwrap()), "equal rules are one");
    let [ports] = deathstar.ports.as_slice() else { panic!("{deathstar:?}") };
    assert_eq!((ports.first, ports.last), (80, 80));
    let empire = bench.identity("default/tiefighter");
    let access: Vec<_> =
        ports.access.iter().filter(|it| it.peers.as_ref().unwrap().contains(&empire)).collect();
    let [access] = access.as_slice() else { panic!("{access:?}") };
    let [rule] = &access.http.as_ref().unwrap()[..] else { panic!("{access:?}") };
    assert_eq!(rule.to_string(), "POST /v1/request-landing");
    assert!(bench.endpoint("default/deathstar-1").ingress.is_proxied(empire, 6, 80));
    assert!(bench.allows("default/tiefighter", "default/deathstar-1", 6, 80));
    assert!(!bench.allows("default/xwing", "default/deathstar-1", 6, 80));
}

/// Every field, of both directions.
const EVERY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: every}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress: &rules
    - toPorts:
      - ports: [{port: "80", protocol: TCP}]
        rules:
          http:
          - method: GET|HEAD
            path: /v1/.*
            host: deathstar(:80)?
            headers: [X-Has-Pass, "X-Org: empire", X-Rank 1]
            headerMatches:
            - {name: X-Must, value: a}
            - {name: X-There}
            - {name: X-Told, value: b, mismatch: LOG}
            - {name: X-Told}
            - {name: X-More, value: c, mismatch: ADD}
            - {name: X-Less, value: d, mismatch: DELETE}
            - {name: X-Other, value: e, mismatch: REPLACE}
  egress: *rules
"#;

#[test]
fn the_proxy_is_told_of_each_field_what_the_policy_says() {
    use mesh::l7::Mismatch::{Add, Delete, Deny, Log, Replace};
    let bench = Bench::new(EVERY, &SHIPS);
    let id = bench.endpoint("default/deathstar-1").endpoint.id;
    let told = &bench.planned.plan.l7.as_ref().unwrap().endpoints[&id];
    for rules in [&told.ingress, &told.egress] {
        let rules = rules.as_ref().unwrap();
        let http = rules.ports[0].access.iter().find_map(|access| access.http.clone()).unwrap();
        let [rule] = &http[..] else { panic!("{rules:?}") };
        let text = |part: &Option<mesh::l7::Expression>| part.clone().unwrap().0;
        assert_eq!(
            [&rule.method, &rule.path, &rule.host].map(text),
            ["GET|HEAD", "/v1/.*", "deathstar(:80)?"]
        );
        let headers = rule.headers.iter().map(|it| (&*it.name, it.value.as_deref(), it.mismatch));
        assert_eq!(
            headers.collect::<Vec<_>>(),
            [
                ("x-has-pass", None, Deny),
                ("x-org", Some("empire"), Deny),
                ("x-rank", Some("1"), Deny),
                ("x-must", Some("a"), Deny),
                ("x-there", None, Deny),
                ("x-told", Some("b"), Log),
                ("x-told", None, Deny),
                ("x-more", Some("c"), Add),
                ("x-less", Some("d"), Delete),
                ("x-other", Some("e"), Replace),
            ]
        );
    }
}

#[test]
fn without_http_rules_there_is_no_plan_for_a_proxy() {
    assert_eq!(
        Bench::new(include_str!("../../../../examples/star-wars/rule1.yaml"), &SHIPS).planned.plan.l7,
        None
    );
    assert_eq!(Bench::new(RULE1, &["default/xwing=org=alliance,class=xwing"]).planned.plan.l7, None);
}

#[test]
fn the_proxy_is_told_of_names_of_servers() {
    let bench = Bench::new(include_str!("../../../../examples/star-wars/rule1-tls.yaml"), &SHIPS);
    let empire = bench.identity("default/tiefighter");
    let deathstar = rules(&bench, "default/deathstar-1").unwrap();
    let [ports] = deathstar.ports.as_slice() else { panic!("{deathstar:?}") };
    assert_eq!((ports.first, ports.last), (443, 443));
    let [tls] = &*ports.tls else { panic!("{ports:?}") };
    assert!(tls.peers.as_ref().unwrap().contains(&empire));
    assert_eq!(
        tls.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["**.deathstar.example", "deathstar.example"]
    );
    assert!(bench.endpoint("default/deathstar-1").ingress.is_proxied(empire, 6, 443));
    assert!(bench.allows("default/tiefighter", "default/deathstar-1", 6, 443));
    assert!(!bench.allows("default/xwing", "default/deathstar-1", 6, 443));
}

#[test]
fn what_an_edit_does_not_touch_is_the_same_afterwards() {
    let mut bench = Bench::new(RULE1, &SHIPS);
    let before = bench.planned.plan.l7.clone().unwrap();
    let other = "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: other}\n\
                 spec: {endpointSelector: {matchLabels: {class: xwing}}, egress: [{}]}\n";
    bench.edit(&[RULE1, other].concat());
    assert!(Arc::ptr_eq(&before, bench.planned.plan.l7.as_ref().unwrap()));
    bench.edit(&RULE1.replace("POST", "POST|HEAD"));
    let after = bench.planned.plan.l7.clone().unwrap();
    assert_ne!(before, after);
    let judged = |bench: &Bench| bench.endpoint("default/deathstar-1").ingress.clone();
    let kernel = judged(&bench);
    bench.edit(RULE1);
    assert_eq!(kernel, judged(&bench), "the kernel has nothing to learn of another method");
}

/// Demands by field: two of one object, in both directions, one of another, and one that selects nobody here.
const MANY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: many}
specs:
  - endpointSelector: {matchLabels: {class: xwing}}
    ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]}]
  - endpointSelector: {matchLabels: {class: deathstar}}
    ingress:
      - fromEndpoints: [{matchLabels: {class: xwing}}]
      - fromEndpoints: [{}]
        toPorts:
          - ports: [{port: "81", protocol: TCP}]
          - ports: [{port: "80", protocol: TCP}]
            rules: {http: [{method: GET}, {method: PUT}]}
    egress: [{toPorts: [{ports: [{port: "443", protocol: TCP}], serverNames: [a.example]}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: other}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress: [{toPorts: [{ports: [{port: "80", endPort: 90, protocol: TCP}], rules: {http: [{method: GET}]}}]}]
"#;

#[test]
fn what_the_proxy_is_told_is_found_in_the_objects_that_say_it() {
    use mesh::flow::TrafficDirection::{Egress, Ingress};
    let bench = Bench::new(MANY, &SHIPS);
    let deathstar = bench.identity("default/deathstar-1");
    let fields = |part: crate::L7Part| -> Vec<String> {
        let found = crate::l7_fields(&bench.planned, deathstar, &part);
        found.iter().flat_map(|(name, fields)| fields.iter().map(move |it| format!("{name} {it}"))).collect()
    };
    let (http, names, other) = (
        "default/many specs[1].ingress[1].toPorts[1].rules.http",
        "default/many specs[1].egress[0].toPorts[0].serverNames",
        "default/other spec.ingress[0].toPorts[0].rules.http",
    );
    let part = |direction, ports| crate::L7Part {
        direction: Some(direction),
        ports: Some(ports),
        ..Default::default()
    };
    assert_eq!(fields(crate::L7Part::default()), [http, names, other]);
    assert_eq!(fields(part(Ingress, (80, 80))), [http, other]);
    assert_eq!(fields(part(Ingress, (81, 90))), [other]);
    assert_eq!(fields(part(Egress, (443, 443))), [names]);
    assert_eq!(fields(part(Egress, (80, 80))), [""; 0]);
    // By what it consists of, as the proxy is told it.
    let rules = rules(&bench, "default/deathstar-1").unwrap();
    let lists =
        rules.ports.iter().flat_map(|ports| ports.access.iter()).filter_map(|access| access.http.clone());
    for (length, field) in [(2, http), (1, other)] {
        let list = lists.clone().find(|list| list.len() == length).unwrap();
        let demand = Some(mesh::l7::L7Demand::Http(list));
        assert_eq!(fields(crate::L7Part { demand, ..part(Ingress, (80, 80)) }), [field]);
    }
    assert!(
        crate::l7_fields(&bench.planned, bench.identity("default/tiefighter"), &Default::default())
            .is_empty()
    );
}

const INSPECTED: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: look}
spec:
  endpointSelector: {matchLabels: {class: xwing}}
  egress:
  - toPorts:
    - ports: [{port: "443", protocol: TCP}]
      serverNames: [www.example.com]
      terminatingTLS: {secret: {name: web}}
      originatingTLS: {secret: {namespace: roots, name: public}, trustedCA: roots.pem}
      rules: {http: [{method: GET}]}
"#;

/// A Secret of text.
fn secret(namespace: &str, name: &str, items: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\nstringData: {{{items}}}\n"
    )
}

/// The Secrets of an endpoint: `namespace/name item=text …`.
fn secrets(bench: &Bench, name: &str) -> Vec<String> {
    let l7 = bench.planned.plan.l7.as_ref().unwrap();
    let one = |secret: &mesh::l7::TlsSecret| {
        let items = secret.items.0.iter().map(|(item, text)| format!(" {item}={text}"));
        format!("{}{}", secret.name, items.collect::<String>())
    };
    l7.endpoints[&bench.endpoint(name).endpoint.id].secrets.iter().map(one).collect()
}

fn notes(bench: &Bench) -> Vec<&str> {
    bench.planned.notes.iter().map(|(_, _, text)| text).collect()
}

#[test]
fn the_proxy_is_told_of_the_items_that_rules_name_and_of_no_others() {
    let web = secret("default", "web", "tls.crt: chain, tls.key: key, password: hush");
    let public = secret("roots", "public", "roots.pem: roots, tls.crt: chain, tls.key: key");
    let other = secret("default", "other", "tls.crt: chain, tls.key: key");
    let mut bench = Bench::new(INSPECTED, &SHIPS);
    assert_eq!(secrets(&bench, "default/xwing"), [""; 0]);
    let refused = "connections by it are refused";
    assert_eq!(
        notes(&bench),
        [
            format!("originatingTLS: Secret roots/public is not there: {refused}"),
            format!("terminatingTLS: Secret default/web is not there: {refused}")
        ]
    );
    bench.edit(&[INSPECTED, &web, &public, &other].concat());
    let both =
        ["default/web tls.crt=chain tls.key=key", "roots/public roots.pem=roots tls.crt=chain tls.key=key"];
    assert_eq!(secrets(&bench, "default/xwing"), both);
    assert_eq!(notes(&bench), [""; 0]);
    let shown = format!("{:?} {:?}", bench.planned.plan, bench.world);
    assert!(!shown.contains("hush") && !shown.contains("=chain"), "{shown}");
    let before = bench.planned.plan.l7.clone().unwrap();
    bench.edit(&[INSPECTED, &web.replace("hush", "quiet"), &public].concat());
    assert!(Arc::ptr_eq(&before, bench.planned.plan.l7.as_ref().unwrap()), "the proxy has nothing to learn");
}

#[test]
fn another_certificate_is_another_plan_for_the_proxy_alone() {
    let (world, node) = (|of: &str| World::of(&[INSPECTED, of].concat()), bench::facts());
    let endpoints: Vec<_> = (1..).zip(SHIPS).map(|(number, text)| bench::endpoint(number, text)).collect();
    let (state, leaving) = (tempfile::tempdir().unwrap(), BTreeSet::new());
    let mut allocator = crate::allocate::Allocator::open(state.path()).unwrap();
    let mut planner = Planner::default();
    let mut world_now = world(&secret("default", "web", "tls.crt: chain, tls.key: key"));
    let mut plan = |world: &World, before: Option<&NodePlan>| {
        let present = Present { endpoints: &endpoints, leaving: &leaving, plan: before };
        planner.plan(world, present, &node, &mut allocator).unwrap()
    };
    let first = plan(&world_now, None);
    // Of the world only the Secret is another one.
    world_now.secrets = world(&secret("default", "web", "tls.crt: chain2, tls.key: key2")).secrets;
    let second = plan(&world_now, Some(&first.plan));
    let told = |planned: &Planned| {
        let l7 = planned.plan.l7.clone().unwrap();
        let endpoint = l7.endpoints.values().next().unwrap().clone();
        (endpoint.egress.unwrap(), endpoint.secrets)
    };
    let ((rules, secrets), (rules_now, secrets_now)) = (told(&first), told(&second));
    assert!(Arc::ptr_eq(&rules, &rules_now));
    assert_eq!(secrets[0].items.0["tls.key"], "key");
    assert_eq!(secrets_now[0].items.0["tls.key"], "key2");
    assert_eq!(first.plan.endpoints, second.plan.endpoints, "the kernel has nothing to learn");
    world_now.secrets = Arc::default();
    let third = plan(&world_now, Some(&second.plan));
    assert_eq!((told(&third).1.len(), third.notes.iter().count()), (0, 2));
}

#[test]
fn what_a_secret_lacks_is_said_of_the_policy_that_needs_it() {
    let say = |web: &str, public: &str| {
        let web = format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: web}}\n{web}\n");
        let public = format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: public, namespace: roots}}\n{public}\n"
        );
        let bench = Bench::new(&[INSPECTED, &web, &public].concat(), &SHIPS);
        notes(&bench).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let (terminating, originating) =
        ("terminatingTLS: Secret default/web", "originatingTLS: Secret roots/public");
    let (refused, no_text) = ("connections by it are refused", "which is no text, as PEM is");
    assert_eq!(say("stringData: {tls.crt: a, tls.key: b}", "stringData: {roots.pem: a}"), [""; 0]);
    assert_eq!(
        say("stringData: {tls.crt: a}", "stringData: {ca.crt: a}"),
        [
            format!("{originating} has no item roots.pem: {refused}"),
            format!("{terminating} has no item tls.key: {refused}")
        ]
    );
    assert_eq!(
        say("data: {tls.crt: /w==, tls.key: YQ==, ca.crt: /w==}", "stringData: {roots.pem: a, tls.crt: b}"),
        [
            format!("{originating} has no item tls.key: {refused}"),
            format!("{terminating} has ca.crt, {no_text}: it is left out"),
            format!("{terminating} has tls.crt, {no_text}: {refused}")
        ]
    );
}

#[test]
fn what_is_at_fault_of_an_inspection_is_found_in_its_fields() {
    let bench = Bench::new(INSPECTED, &SHIPS);
    let fields = |field| {
        let part = crate::L7Part { field, ..Default::default() };
        let found = crate::l7_fields(&bench.planned, bench.identity("default/xwing"), &part);
        found.into_values().flatten().collect::<Vec<_>>()
    };
    let item = "spec.egress[0].toPorts[0]";
    assert_eq!(fields(None), [format!("{item}.terminatingTLS")]);
    assert_eq!(fields(Some("originatingTLS")), [format!("{item}.originatingTLS")]);
    assert_eq!(fields(Some("rules.http")), [format!("{item}.rules.http")]);
}
