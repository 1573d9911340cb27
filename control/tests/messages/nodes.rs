use std::fs;

use control::{Severity, analyze};

use super::{say, says, strip};

fn node(spec: &str) -> String {
    format!("apiVersion: ferromesh.io/v1alpha1\nkind: Node\nmetadata: {{name: node2}}\nspec: {{{spec}}}\n")
}

#[test]
fn ranges_and_port_of_a_node() {
    for (spec, expected) in [
        ("podCIDRs: [10.2.0.0/16, 'fd00:2::/64'], authPort: 4250", None),
        ("podCIDR: [10.2.0.0/16]", Some("podCIDR: unknown, did you mean podCIDRs")),
        (
            "podCIDRs: [10.2.0.0]",
            Some(
                "podCIDRs[0]: found \"10.2.0.0\", expected an address prefix such as 10.0.0.0/8 or fd00::/8",
            ),
        ),
        (
            "podCIDRs: [0.0.0.0/0]",
            Some("podCIDRs[0]: found 0.0.0.0/0, expected a prefix of length 8 or more"),
        ),
        (
            "podCIDRs: ['2000::/3']",
            Some("podCIDRs[0]: found 2000::/3, expected a prefix of length 16 or more"),
        ),
        ("authPort: 0", Some("authPort: found \"0\", expected 1-65535")),
    ] {
        let expected = expected.map(|text| format!("rule1.yaml:4 spec.{text}"));
        assert_eq!(say(&node(spec)), Vec::from_iter(expected), "{spec}");
    }
    // Of the core object all else is Kubernetes's.
    says(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node2}\nspec: {podCIDR: 10.2.0.0/16, podCIDRs: [10.2.0.0/33], taints: []}\n",
        &[
            "rule1.yaml:4 spec.podCIDRs[0]: found \"10.2.0.0/33\", expected an address prefix such as 10.0.0.0/8 or fd00::/8",
        ],
    );
}

#[test]
fn ranges_that_overlap_are_told_at_both_nodes() {
    let other = node("podCIDRs: [10.2.8.0/24]").replace("node2", "node3");
    let text = "neither is believed about addresses in both; give each node ranges of its own";
    says(
        &format!("{}---\n{other}", node("podCIDRs: [10.2.0.0/16]")),
        &[
            &format!("rule1.yaml:1 spec.podCIDRs: 10.2.0.0/16 overlaps 10.2.8.0/24 of Node node3: {text}"),
            &format!("rule1.yaml:6 spec.podCIDRs: 10.2.8.0/24 overlaps 10.2.0.0/16 of Node node2: {text}"),
        ],
    );
}

/// What is said of a shared directory, hints left out.
fn say_shared(files: &[(&str, &str)]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    for part in ["admin", "nodes/node2"] {
        fs::create_dir_all(directory.path().join(part)).unwrap();
    }
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let analysis = analyze(&[directory.path().to_owned()]);
    let told = analysis.findings.iter().filter(|located| located.finding.severity > Severity::Hint);
    told.map(|located| strip(&located.to_string(), directory.path())).collect()
}

const CLAIM: &str = "apiVersion: ferromesh.io/v1alpha1\nkind: WorkloadEndpoint\nmetadata: {name: instance-7}\nspec: {workload: web, instance: 7, ipv4: 10.2.0.7, ipv6: 'fd00:2::7'}\n";

#[test]
fn what_a_node_says_is_complete_or_refused() {
    let at = |line: &str| vec![format!("nodes/node2/7.yaml:{line}")];
    for (from, to, expected) in [
        ("instance: 7", "instance: -7", at("4 spec.instance: found \"-7\", expected a number")),
        ("10.2.0.7", "fd00::7", at("4 spec.ipv4: found \"fd00::7\", expected an IPv4 address")),
        ("workload: web, ", "", at("4 spec.workload: missing, expected the workload's name")),
        (
            "instance: 7,",
            "instance: 7, labels: {a: b},",
            at("4 spec.labels: unknown, expected instance, ipv4, ipv6 or workload"),
        ),
        (
            "-7}",
            "-7, labels: {a: b}}",
            at("3 metadata: labels of a workload are its Workload object's; leave labels out"),
        ),
    ] {
        assert_eq!(say_shared(&[("nodes/node2/7.yaml", &CLAIM.replace(from, to))]), expected, "{to}");
    }
    assert!(say_shared(&[("nodes/node2/7.yaml", CLAIM)]).is_empty());
    let written = "rule1.yaml:1 kind: WorkloadEndpoint default/instance-7: written by nodes, each in its own nodes/NAME/ of the shared directory";
    says(CLAIM, &[written]);
}

#[test]
fn a_shared_directory_says_who_is_placed_nowhere_and_who_cannot_be_proven() {
    let workload = |name: &str, spec: &str| {
        format!("apiVersion: ferromesh.io/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n{spec}---\n")
    };
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: rule1}\nspec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}], authentication: {mode: required}}]}\n";
    let all = format!("{}{}{policy}", workload("nowhere", ""), workload("away", "spec: {node: node2}\n"));
    assert_eq!(
        say_shared(&[("admin/all.yaml", &all)]),
        [
            "admin/all.yaml:1 spec.node: missing: it is placed nowhere, may not start and gets no certificate",
            "admin/all.yaml:5 spec.node: there is no Node node2: other nodes do not know where it runs",
            "admin/all.yaml:10 asks for authentication, and there is no Node object: a workload can be proven on its own node only",
        ]
    );
    let node = node("podCIDRs: [10.2.0.0/16]");
    let told = say_shared(&[("admin/all.yaml", policy), ("admin/node.yaml", &node)]);
    assert_eq!(
        told,
        [
            "admin/node.yaml:1 spec.addresses: missing: where its auth-agent listens is not known to the other nodes"
        ]
    );
    // A directory of one node's own asks for none of that.
    says(&all, &[]);
}
