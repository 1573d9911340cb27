use std::fs;

use super::{cilium, say, says};

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n")
}

/// The first thing said of each service, if anything is.
#[track_caller]
fn service_says(cases: &[(&str, &str)]) {
    for (spec, expected) in cases {
        let told = say(&service(spec));
        let first = told.first().map(|line| line.strip_prefix("rule1.yaml:4 spec").unwrap_or(line));
        assert_eq!(first, Some(*expected).filter(|text| !text.is_empty()), "{spec}: {told:#?}");
    }
}

#[test]
fn a_service_exported_from_a_cluster_is_read_and_what_is_not_served_is_warned_of() {
    let yaml = fs::read_to_string("tests/corpus/services.yaml").unwrap();
    says(
        &yaml,
        &[
            "rule1.yaml:28 spec.type: load balancers are not served by this version; the cluster address is",
            "rule1.yaml:59 toServices: default/away leads to another name, which policy cannot follow: denies nothing by it",
        ],
    );
}

#[test]
fn ports_of_a_service() {
    service_says(&[
        ("selector: {a: b}", ".ports: missing, expected at least one port"),
        ("ports: []", ".ports: found an empty list, expected at least one port"),
        ("ports: [{port: 0}]", ".ports[0].port: found \"0\", expected 1-65535"),
        ("ports: [{port: 65536}]", ".ports[0].port: found \"65536\", expected 1-65535"),
        (
            "ports: [{port: 80, targetPort: 70000}]",
            ".ports[0].targetPort: found \"70000\", expected 1-65535 or a port name",
        ),
        (
            "ports: [{port: 80, targetPort: 80x}]",
            ".ports[0].targetPort: found \"80x\", expected 1-65535 or a port name",
        ),
        ("ports: [{port: 80, protocol: tcp}]", ".ports[0].protocol: found \"tcp\", did you mean TCP"),
        ("ports: [{port: 80, portt: 1}]", ".ports[0].portt: unknown, did you mean port"),
        (
            "ports: [{port: 80, name: Web}]",
            ".ports[0].name: found \"Web\", expected a name of lower-case letters, digits and '-', at most 63 long",
        ),
        (
            "ports: [{port: 80}, {port: 81, name: b}]",
            ".ports[0].name: missing, expected a name, for there are several ports",
        ),
        ("ports: [{port: 80, name: a}, {port: 81, name: a}]", ".ports[1]: port name \"a\" is given twice"),
        ("ports: [{port: 80, name: a}, {port: 80, name: b}]", ".ports[1]: port 80/TCP is given twice"),
        ("ports: [{port: 80, name: a}, {port: 80, name: b, protocol: UDP}]", ""),
        (
            "ports: [{port: 80, protocol: SCTP, targetPort: 81}]",
            ".ports[0].targetPort: SCTP is served on one port only: expected 80, as in port, or a headless service",
        ),
        (
            "ports: [{port: 80, protocol: SCTP, targetPort: web}]",
            ".ports[0].targetPort: SCTP is served on one port only: expected 80, as in port, or a headless service",
        ),
        ("clusterIP: None, ports: [{port: 80, protocol: SCTP, targetPort: 81}]", ""),
        ("clusterIP: None", ""),
    ]);
}

#[test]
fn addresses_of_a_service() {
    let port = "ports: [{port: 80}]";
    let cases = [
        ("clusterIP: ''", ""),
        ("clusterIP: 10.96.0.7", ""),
        (
            "clusterIP: 10.96.0.x",
            ".clusterIP: found \"10.96.0.x\", expected an IP address, or None for a headless service",
        ),
        (
            "clusterIP: 127.0.0.1",
            ".clusterIP: found 127.0.0.1, a loopback address; expected one that can be routed",
        ),
        (
            "clusterIP: 0.0.0.0",
            ".clusterIP: found 0.0.0.0, the unspecified address; expected one that can be routed",
        ),
        (
            "clusterIP: 224.0.0.1",
            ".clusterIP: found 224.0.0.1, a multicast address; expected one that can be routed",
        ),
        (
            "clusterIP: 169.254.1.1",
            ".clusterIP: found 169.254.1.1, a link-local address; expected one that can be routed",
        ),
        (
            "clusterIP: 'fe80::1'",
            ".clusterIP: found fe80::1, a link-local address; expected one that can be routed",
        ),
        ("clusterIP: '::1'", ".clusterIP: found ::1, a loopback address; expected one that can be routed"),
        (
            "clusterIP: '::ffff:10.0.0.1'",
            ".clusterIP: found ::ffff:10.0.0.1, an IPv4 address written as IPv6; expected one that can be routed",
        ),
        (
            "clusterIP: 255.255.255.255",
            ".clusterIP: found 255.255.255.255, the broadcast address; expected one that can be routed",
        ),
        ("clusterIPs: [10.96.0.7, 10.96.0.8]", ".clusterIPs: expected at most one address of each family"),
        (
            "clusterIPs: [10.96.0.7, 'fd00::7', 'fd00::8']",
            ".clusterIPs: expected at most one address of each family",
        ),
        (
            "clusterIP: 10.96.0.8, clusterIPs: [10.96.0.7]",
            ".clusterIPs: its first item is to be that of clusterIP",
        ),
        ("clusterIP: None, clusterIPs: [None, 10.96.0.7]", ".clusterIPs: None stands alone"),
        ("clusterIPs: [10.96.0.7, 'fd00::7']", ""),
        (
            "clusterIPs: [10.96.0.7, 'fd00::7'], ipFamilyPolicy: SingleStack",
            ".ipFamilyPolicy: two families or addresses are given: expected PreferDualStack or RequireDualStack",
        ),
        (
            "clusterIP: 10.96.0.7, ipFamilies: [IPv6]",
            ".ipFamilies: is to name the families of clusterIPs in their order",
        ),
        ("ipFamilies: [IPv4, IPv4]", ".ipFamilies: expected each family at most once"),
        ("ipFamilies: [ipv4]", ".ipFamilies[0]: found \"ipv4\", did you mean IPv4"),
        ("ipFamilyPolicy: DualStack", ".ipFamilyPolicy: found \"DualStack\", did you mean PreferDualStack"),
    ];
    for (spec, expected) in cases {
        service_says(&[(&format!("{spec}, {port}"), expected)]);
    }
}

#[test]
fn other_fields_of_a_service() {
    let port = "ports: [{port: 80}]";
    let cases = [
        ("type: Cluster", ".type: found \"Cluster\", did you mean ClusterIP"),
        ("type: NodePort", ".type: node ports are not opened by this version; the cluster address is served"),
        (
            "type: NodePort, clusterIP: None",
            ".type: node ports are not opened by this version; the cluster address is served",
        ),
        ("externalIPs: [192.0.2.1]", ".externalIPs: external addresses are not served by this version"),
        ("externalIPs: []", ""),
        ("loadBalancerIP: 192.0.2.1", ".loadBalancerIP: load balancers are not served by this version"),
        ("externalName: a.example", ".externalName: goes with type: ExternalName"),
        ("sessionAffinity: Client", ".sessionAffinity: found \"Client\", did you mean ClientIP"),
        (
            "sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}",
            ".sessionAffinityConfig: goes with sessionAffinity: ClientIP",
        ),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            ".sessionAffinityConfig.clientIP.timeoutSeconds: found \"86401\", expected 1-86400 seconds",
        ),
        ("internalTrafficPolicy: local", ".internalTrafficPolicy: found \"local\", did you mean Local"),
        ("trafficDistribution: PreferClose", ""),
        (
            "selector: {'a b': c}",
            ".selector.a b: found \"a b\" as a label key, expected [prefix/]name of at most 63 letters, digits, '-', '_' and '.'",
        ),
        ("selectr: {a: b}", ".selectr: unknown, did you mean selector"),
    ];
    for (spec, expected) in cases {
        service_says(&[(&format!("{spec}, {port}"), expected)]);
    }
    service_says(&[
        ("type: ExternalName", ".externalName: missing, expected the DNS name that this one stands for"),
        (
            "type: ExternalName, externalName: 'a b'",
            ".externalName: found \"a b\", expected a DNS name of lower-case letters, digits, '-' and '.'",
        ),
        (
            "type: ExternalName, externalName: a.example, clusterIP: 10.0.0.1",
            ".clusterIP: an ExternalName has no address; leave the field out",
        ),
        (
            "type: ExternalName, externalName: 192.0.2.1",
            ".externalName: is read as a name, though it looks like an address; a Service without selector and an EndpointSlice lead to an address",
        ),
    ]);
    let told = say(&service("type: NodePort, clusterIP: None, ports: [{port: 80}]"));
    assert_eq!(
        told.last().map(String::as_str),
        Some(
            "rule1.yaml:4 spec.clusterIP: a NodePort or LoadBalancer cannot be headless; choose type: ClusterIP"
        )
    );
    says(
        &service("ports: [{port: 80}]").replace("{name: web}", "{name: web.a}"),
        &[
            "rule1.yaml:3 metadata: name \"web.a\": a Service is called by it, so it is one DNS label: no dots, at most 63 long",
        ],
    );
}

#[test]
fn errors_of_slices() {
    let slice = |rest: &str| {
        format!(
            "{}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: {{kubernetes.io/service-name: web}}}}\n{rest}\n",
            service("ports: [{port: 80}]")
        )
    };
    let cases = [
        ("endpoints: []", "6 addressType: missing, expected IPv4 or IPv6"),
        ("addressType: ipv4", "9 addressType: found \"ipv4\", did you mean IPv4"),
        ("addressType: IPv4\nendpoints: [{}]", "10 endpoints[0].addresses: missing, expected one address"),
        (
            "addressType: IPv4\nendpoints: [{addresses: []}]",
            "10 endpoints[0].addresses: found an empty list, expected one address",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: ['2001:db8::1']}]",
            "10 endpoints[0].addresses[0]: found \"2001:db8::1\", expected an IPv4 address, as addressType says",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [127.0.0.1]}]",
            "10 endpoints[0].addresses[0]: found 127.0.0.1, a loopback address; expected one that can be routed",
        ),
        (
            "addressType: IPv6\nendpoints: [{addresses: ['fe80::1']}]",
            "10 endpoints[0].addresses[0]: found fe80::1, a link-local address; expected one that can be routed",
        ),
        (
            "addressType: IPv6\nendpoints: [{addresses: ['ff02::1']}]",
            "10 endpoints[0].addresses[0]: found ff02::1, a multicast address; expected one that can be routed",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [192.0.2.1, 192.0.2.2]}]",
            "10 endpoints[0].addresses: only the first is used; write an endpoint for each",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [192.0.2.1], conditions: {raedy: true}}]",
            "10 endpoints[0].conditions.raedy: unknown, did you mean ready",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [192.0.2.1], hostname: a.b}]",
            "10 endpoints[0].hostname: found \"a.b\", expected one DNS label of lower-case letters, digits and '-'",
        ),
        ("addressType: IPv4\nports: [{port: 65536}]", "10 ports[0].port: found \"65536\", expected 1-65535"),
        ("addressType: IPv4\nports: [{port: 80}, {port: 81}]", "10 ports[1]: port name \"\" is given twice"),
        ("addressType: IPv4\nendponts: []", "10 endponts: unknown, did you mean endpoints"),
    ];
    for (rest, expected) in cases {
        let told = say(&slice(rest));
        assert_eq!(
            told.first().map(String::as_str),
            Some(format!("rule1.yaml:{expected}").as_str()),
            "{told:#?}"
        );
    }
    let names = say(&slice("addressType: FQDN\nendpoints: [{addresses: [a.example]}]"));
    assert_eq!(names, [] as [&str; 0], "passed over with a hint");
    let most = (0..=1000).map(|_| "{addresses: [192.0.2.1]}").collect::<Vec<_>>().join(", ");
    let told = say(&slice(&format!("addressType: IPv4\nendpoints: [{most}]")));
    assert_eq!(
        told,
        ["rule1.yaml:10 endpoints: found 1001 endpoints, at most 1000 fit one slice; write two"]
    );
    says(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\n",
        &["rule1.yaml:3 metadata: serves nobody: the label kubernetes.io/service-name names the Service"],
    );
}

#[test]
fn objects_are_held_against_each_other() {
    let other = service("clusterIP: 10.96.0.7, ports: [{port: 80}]");
    let yaml = [
        other.replace("web", "first"),
        other,
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, labels: {kubernetes.io/service-name: wbe}}\naddressType: IPv4\n".to_owned(),
        cilium("  egress:\n  - toCIDR: [10.96.0.7, 10.218.3.0/24, 10.0.0.0/8]\n  - toServices: [{k8sService: {serviceName: wbe}}]\n"),
    ]
    .join("---\n");
    says(
        &yaml,
        &[
            "rule1.yaml:6 spec.clusterIP: 10.96.0.7 is default/first's, which keeps it; name another, or leave the field out; not served",
            "rule1.yaml:11 serves nobody yet: there is no Service default/wbe",
            "rule1.yaml:16 toServices: default/wbe names no Service: allows nothing by it",
            "rule1.yaml:16 spec: 10.96.0.7/32 is an address of services, which no prefix matches: who answers is judged; use toServices or toEndpoints",
            "rule1.yaml:16 spec: 10.218.3.0/24 is an address of services, which no prefix matches: who answers is judged; use toServices or toEndpoints",
        ],
    );
}
