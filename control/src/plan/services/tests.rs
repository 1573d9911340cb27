mod claims;

use std::collections::BTreeMap;

use mesh::service::NamePlan;

use crate::plan::tests::Bench;
use crate::status;

/// A service of namespace default: `spec` in flow style.
fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
}

/// A slice of a service of namespace default, of the family of its first address.
fn slice(name: &str, service: &str, endpoints: &str, ports: &str) -> String {
    let kind = if endpoints.contains("::") { "IPv6" } else { "IPv4" };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {kind}\nendpoints: [{endpoints}]\nports: [{ports}]\n---\n"
    )
}

const HTTP: &str = "{port: 8080}";

/// `frontend -> backends | draining`, a line each.
fn frontends(bench: &Bench) -> Vec<String> {
    let list = |backends: &[std::net::SocketAddr]| {
        backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let row = |(frontend, plan): (&mesh::service::Frontend, &mesh::service::FrontendPlan)| {
        let draining =
            if plan.draining.is_empty() { String::new() } else { format!(" | {}", list(&plan.draining)) };
        format!("{frontend} {} -> {}{draining}", plan.service.name, list(&plan.backends))
    };
    bench.planned.plan.services.frontends.iter().map(row).collect()
}

/// What `policy list` says of objects that are no policies: name → (valid, message).
fn said(bench: &Bench) -> BTreeMap<String, String> {
    let rows = status::policies(&bench.world, &bench.planned);
    let split = |row: node_api::PolicyView| {
        let (object, message) = row.message.split_once(": ").unwrap();
        let valid = if row.valid { "" } else { "not in force: " };
        (object.to_owned(), format!("{valid}{message}"))
    };
    rows.into_iter().filter(|row| row.policy.is_none()).map(split).collect()
}

const SHIPS: [&str; 3] = [
    "default/deathstar-1=org=empire,class=deathstar",
    "default/deathstar-2=org=empire,class=deathstar",
    "team/deathstar=org=empire,class=deathstar",
];

#[test]
fn a_selector_finds_running_workloads_of_its_namespace_in_both_families() {
    let yaml = service(
        "deathstar",
        "selector: {class: deathstar}, ipFamilyPolicy: PreferDualStack, ports: [{port: 80, targetPort: 8080}]",
    );
    let bench = Bench::new(&yaml, &SHIPS);
    assert_eq!(
        frontends(&bench),
        [
            "10.218.0.1:80/TCP deathstar -> 10.217.0.1:8080 10.217.0.2:8080",
            "[fd00:218::1]:80/TCP deathstar -> [fd00:217::1]:8080 [fd00:217::2]:8080",
        ]
    );
    assert!(said(&bench).is_empty());
}

#[test]
fn a_named_target_port_is_each_workloads_own() {
    let workload = |name: &str, port: u16| {
        format!(
            "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec: {{ports: [{{name: http, port: {port}}}]}}\n---\n"
        )
    };
    let web =
        service("web", "selector: {app: web}, ports: [{port: 80, targetPort: http}, {name: x, port: 81}]")
            .replace("{port: 80", "{name: h, port: 80");
    let yaml = [workload("old", 80), workload("new", 8080), web].concat();
    let bench = Bench::new(&yaml, &["default/old=", "default/new=", "default/plain=app=web"]);
    assert_eq!(
        frontends(&bench),
        [
            "10.218.0.1:80/TCP web -> 10.217.0.1:80 10.217.0.2:8080",
            "10.218.0.1:81/TCP web -> 10.217.0.1:81 10.217.0.2:81 10.217.0.3:81",
        ]
    );
    let none = service("web", "selector: {app: web}, ports: [{port: 80, targetPort: http}]");
    let bench = Bench::new(&none, &["default/plain=app=web"]);
    assert_eq!(
        said(&bench)["Service default/web"],
        "Service is valid; spec.ports[0].targetPort: none of those who answer has a port named \"http\""
    );
}

#[test]
fn slices_and_selectors_are_united_and_ports_go_by_name() {
    let yaml = [
        service("web", "selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]"),
        slice("web-1", "web", "{addresses: [192.0.2.7]}, {addresses: [192.0.2.8]}", "{name: http, port: 3000}"),
        slice("web-2", "web", "{addresses: [192.0.2.9]}", "{name: dns, port: 5353, protocol: UDP}, {name: http, port: 9, protocol: UDP}"),
        slice("web-3", "web", "{addresses: ['2001:db8::7']}", "{name: http, port: 3000}"),
    ]
    .concat();
    let bench = Bench::new(&yaml, &["default/web=app=web"]);
    assert_eq!(
        frontends(&bench),
        [
            "10.218.0.1:53/UDP web -> 10.217.0.1:53 192.0.2.9:5353",
            "10.218.0.1:80/TCP web -> 10.217.0.1:8080 192.0.2.7:3000 192.0.2.8:3000",
        ],
        "an IPv6 slice serves no IPv4 address"
    );
}

#[test]
fn readiness_decides_as_kube_proxy_does() {
    let a = "addresses: [192.0.2.1]";
    let b = "addresses: [192.0.2.2], conditions: {ready: false, serving: true, terminating: true}";
    let c = "addresses: [192.0.2.3], conditions: {ready: false}";
    let run = |spec: &str, endpoints: &[&str]| {
        let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("{{{endpoint}}}")).collect();
        let slice = slice("web-1", "web", &endpoints.join(", "), HTTP);
        frontends(&Bench::new(&[service("web", spec), slice].concat(), &[])).remove(0)
    };
    let plain = "ports: [{port: 80}]";
    let (front, all) = ("10.218.0.1:80/TCP web -> ", [a, b, c]);
    assert_eq!(run(plain, &all), format!("{front}192.0.2.1:8080 | 192.0.2.2:8080 192.0.2.3:8080"));
    assert_eq!(run(plain, &[b, c]), format!("{front}192.0.2.2:8080 | 192.0.2.3:8080"), "none is ready");
    assert_eq!(run(plain, &[c]), format!("{front} | 192.0.2.3:8080"));
    let published = "publishNotReadyAddresses: true, ports: [{port: 80}]";
    assert_eq!(run(published, &all), format!("{front}192.0.2.1:8080 192.0.2.2:8080 192.0.2.3:8080"));
    let twice = [c, "addresses: [192.0.2.3]"];
    assert_eq!(run(plain, &twice), format!("{front}192.0.2.3:8080"), "ready in one place is ready");
}

#[test]
fn an_endpoint_that_is_leaving_gets_nobody_new_whatever_a_slice_says() {
    let yaml = [
        service("web", "selector: {app: web}, publishNotReadyAddresses: true, ports: [{port: 80}]"),
        slice("web-1", "web", "{addresses: [10.217.0.1]}", "{port: 80}"),
        service("db", "clusterIP: None, selector: {app: web}, ports: [{port: 80}]"),
    ]
    .concat();
    let endpoints = ["default/web-1=app=web", "default/web-2=app=web"];
    let bench = Bench::leaving(&yaml, &endpoints, &[1]);
    assert_eq!(frontends(&bench), ["10.218.0.1:80/TCP web -> 10.217.0.2:80 | 10.217.0.1:80"]);
    assert_eq!(headless(&bench, "db"), ["web-2 10.217.0.2 80/6"]);
    let bench = Bench::leaving(&yaml, &endpoints, &[1, 2]);
    assert_eq!(
        frontends(&bench),
        ["10.218.0.1:80/TCP web ->  | 10.217.0.1:80 10.217.0.2:80"],
        "its processes are about to end: better refused at once"
    );
    assert_eq!(bench.planned.plan.endpoints.len(), 2, "policy stays in force for it");
}

#[test]
fn local_traffic_policy_keeps_to_the_node() {
    let yaml = [
        service("web", "selector: {app: web}, internalTrafficPolicy: Local, ports: [{port: 80}]"),
        slice(
            "web-1",
            "web",
            "{addresses: [192.0.2.7], nodeName: node1}, {addresses: [192.0.2.8], nodeName: node2}, {addresses: [192.0.2.9]}, {addresses: [10.217.0.2]}",
            "{port: 80}",
        ),
    ]
    .concat();
    let bench = Bench::new(&yaml, &["default/web=app=web", "default/other=app=other"]);
    assert_eq!(frontends(&bench), ["10.218.0.1:80/TCP web -> 10.217.0.1:80 10.217.0.2:80 192.0.2.7:80"]);
}

#[test]
fn affinity_stands_in_the_plan() {
    let of = |spec: &str| {
        let bench = Bench::new(&service("web", &format!("{spec}, ports: [{{port: 80}}]")), &[]);
        bench.planned.plan.services.frontends.values().next().unwrap().affinity
    };
    assert_eq!(of("sessionAffinity: None"), None);
    assert_eq!(of("sessionAffinity: ClientIP"), Some(10_800));
    let config = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    assert_eq!(of(config), Some(60));
}

#[test]
fn sctp_is_served_on_one_port_only() {
    let yaml = [
        service("s", "ports: [{port: 9000, protocol: SCTP}]"),
        slice("s-1", "s", "{addresses: [192.0.2.7]}", "{port: 9001, protocol: SCTP}"),
        slice("s-2", "s", "{addresses: [192.0.2.8]}", "{port: 9000, protocol: SCTP}"),
    ]
    .concat();
    let bench = Bench::new(&yaml, &[]);
    assert_eq!(frontends(&bench), ["10.218.0.1:9000/SCTP s -> 192.0.2.8:9000"]);
    assert_eq!(
        said(&bench)["Service default/s"],
        "Service is valid; spec.ports[0]: SCTP is served on one port only; endpoints on 9001 are left out"
    );
}

fn headless(bench: &Bench, name: &str) -> Vec<String> {
    let service = bench.planned.plan.services.names.iter().find(|(known, _)| known.name == name);
    let Some((_, NamePlan::Headless { endpoints })) = service else { panic!("{name} is not headless") };
    let row = |endpoint: &mesh::service::HeadlessEndpoint| {
        let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
        let ports: Vec<_> =
            endpoint.ports.iter().map(|p| format!("{}{}/{}", p.name, p.port, p.protocol)).collect();
        format!("{} {} {}", endpoint.hostname.as_deref().unwrap_or("-"), addresses.join(" "), ports.join(" "))
    };
    endpoints.iter().map(row).collect()
}

#[test]
fn names_lead_to_addresses_to_endpoints_or_to_other_names() {
    let yaml = [
        service("web", "selector: {app: web}, ipFamilyPolicy: RequireDualStack, ports: [{name: http, port: 80}]"),
        service("db", "clusterIP: None, selector: {app: web}, ipFamilies: [IPv4, IPv6], ports: [{port: 80, targetPort: 8080}]"),
        service("bare", "clusterIP: None"),
        slice("bare-1", "bare", "{addresses: [192.0.2.7], hostname: one}, {addresses: [192.0.2.8], conditions: {ready: false}}", "{name: x, port: 1}"),
        slice("bare-2", "bare", "{addresses: ['2001:db8::7'], hostname: one}", "{name: x, port: 1}"),
        service("away", "type: ExternalName, externalName: Example.org.").replace("Example", "example"),
    ]
    .concat();
    let bench = Bench::new(&yaml, &["default/web-0=app=web", "default/web.1=app=web"]);
    let services = &bench.planned.plan.services;
    let name = |name: &str| {
        let found = services.names.iter().find(|(known, _)| known.name == name);
        serde_json::to_string(found.unwrap().1).unwrap()
    };
    assert_eq!(
        name("web"),
        r#"{"kind":"cluster","addresses":["10.218.0.1","fd00:218::1"],"ports":[{"name":"http","protocol":6,"port":80}]}"#
    );
    assert_eq!(name("away"), r#"{"kind":"external","name":"example.org"}"#);
    assert_eq!(
        headless(&bench, "db"),
        ["- 10.217.0.2 fd00:217::2 8080/6", "web-0 10.217.0.1 fd00:217::1 8080/6"]
    );
    assert_eq!(
        headless(&bench, "bare"),
        ["one 192.0.2.7 x1/6", "one 2001:db8::7 x1/6"],
        "without a selector both families are served"
    );
    assert_eq!(services.frontends.len(), 2, "only `web` has addresses");
    let printed = serde_json::to_value(&**services).unwrap();
    assert_eq!(printed["names"]["default/away"]["name"], "example.org");
}

#[test]
fn what_leads_nowhere_is_said() {
    let yaml = [
        service("unselected", "selector: {app: nobody}, ports: [{port: 80}]"),
        service("bare", "ports: [{port: 80}]"),
        service("away", "type: ExternalName, externalName: example.org"),
        slice("lost", "nobody", "{addresses: [192.0.2.7]}", HTTP),
        slice("away-1", "away", "{addresses: [192.0.2.7]}", HTTP),
        service("looped", "clusterIP: 10.96.0.1, ports: [{port: 80}]"),
        slice("loop", "looped", "{addresses: [192.0.2.7]}, {addresses: [10.96.0.1]}", HTTP),
    ]
    .concat();
    let bench = Bench::new(&yaml, &["default/web=app=web"]);
    let said = said(&bench);
    let expected = [
        (
            "EndpointSlice default/away-1",
            "EndpointSlice is valid; serves nobody: Service default/away is an ExternalName",
        ),
        (
            "EndpointSlice default/loop",
            "not in force: endpoints[1].addresses[0]: 10.96.0.1 is default/looped's VIP, and a VIP answers for nobody; left out",
        ),
        (
            "EndpointSlice default/lost",
            "EndpointSlice is valid; serves nobody yet: there is no Service default/nobody",
        ),
        (
            "Service default/bare",
            "Service is valid; has neither a selector nor an EndpointSlice: nobody answers",
        ),
        (
            "Service default/unselected",
            "Service is valid; spec.selector: matches no workload of this node, and no EndpointSlice names others",
        ),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
    assert_eq!(said, expected);
    assert!(frontends(&bench).contains(&"10.96.0.1:80/TCP looped -> 192.0.2.7:8080".to_owned()));
    assert_eq!(status::invalid(&bench.world, &bench.planned), 1);
}

#[test]
fn rows_of_service_list_and_ip_list() {
    let yaml = [
        service("web", "selector: {app: web}, sessionAffinity: ClientIP, ports: [{name: http, port: 80}]"),
        "apiVersion: v1\nkind: Node\nmetadata: {name: node2}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.2}]}\n---\n".to_owned(),
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: {}, egress: [{toCIDR: [198.51.100.0/24]}]}\n".to_owned(),
    ];
    let bench = Bench::new(&yaml.concat(), &["default/web=app=web"]);
    let services = serde_json::to_value(status::services(&bench.planned.plan)).unwrap();
    let expected = serde_json::json!([{
        "id": 0, "service": "default/web", "type": "ClusterIP", "frontend": "10.218.0.1:80/TCP",
        "port_name": "http", "backends": ["10.217.0.1:80"], "draining": [], "affinity": 10_800
    }]);
    assert_eq!(services, expected);
    let row = |row: node_api::AddressView| {
        let workload = row.workload.map(|workload| format!(" {workload}")).unwrap_or_default();
        format!("{} {}{workload}", row.prefix, row.source)
    };
    let addresses: Vec<_> = status::addresses(&bench.planned.plan).into_iter().map(row).collect();
    let expected = [
        "0.0.0.0/0 world",
        "10.217.0.0/16 pool",
        "10.217.0.1/32 endpoint default/web",
        "10.218.0.0/16 pool",
        "192.0.2.1/32 node",
        "192.0.2.2/32 remote-node",
        "198.51.100.0/24 policy",
        "::/0 world",
        "2001:db8::1/128 node",
        "fd00:217::/64 pool",
        "fd00:217::1/128 endpoint default/web",
        "fd00:218::/108 pool",
    ];
    assert_eq!(addresses, expected);
}

#[test]
fn services_that_did_not_change_are_the_same_value() {
    let yaml = service("web", "selector: {app: web}, ports: [{port: 80}]");
    let mut bench = Bench::new(&yaml, &["default/web=app=web"]);
    let before = std::sync::Arc::clone(&bench.planned.plan.services);
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: {}, ingress: [{}]}\n";
    bench.edit(&[yaml.as_str(), policy].concat());
    assert!(std::sync::Arc::ptr_eq(&before, &bench.planned.plan.services));
    bench.edit(&yaml.replace("80", "81"));
    assert!(!std::sync::Arc::ptr_eq(&before, &bench.planned.plan.services));
}
