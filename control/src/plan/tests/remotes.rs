//! Endpoints of other nodes: who is believed, and what of it.

use super::*;

const NODES: &str = "
apiVersion: ferromesh.io/v1alpha1
kind: Node
metadata: {name: node1}
spec: {addresses: [{address: 192.0.2.1}], podCIDRs: [10.217.0.0/16, 'fd00:217::/64']}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
spec: {podCIDR: 10.2.0.0/16, podCIDRs: [10.2.0.0/16, 'fd00:2::/64'], providerID: x}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: ferromesh.io/v1alpha1
kind: Node
metadata: {name: node3}
spec: {addresses: [{address: 192.0.2.3}], podCIDRs: [10.3.0.0/16, 'fd00:3::/64']}
";

const WORKLOADS: &str = "
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: client, labels: {app: client}}
spec: {node: node1}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {node: node2, ports: [{name: http, port: 8080}]}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: nowhere, labels: {app: web}}
";

fn claim(workload: &str, instance: u64, net: u8, host: u8) -> String {
    format!(
        "apiVersion: ferromesh.io/v1alpha1\nkind: WorkloadEndpoint\nmetadata: {{name: instance-{instance}}}\nspec: {{workload: {workload}, instance: {instance}, ipv4: 10.{net}.0.{host}, ipv6: 'fd00:{net}::{host}'}}\n"
    )
}

fn world(more: &str, claims: &[(&str, &str)]) -> World {
    let admin = format!("{NODES}{WORKLOADS}{more}");
    let mut files = vec![("admin/all.yaml", admin.as_str())];
    files.extend(claims);
    World::of_shared(&files)
}

fn bench(more: &str, claims: &[(&str, &str)]) -> Bench {
    Bench::of(world(more, claims), &["default/client="], &[])
}

/// What is said of claims, nodes and workloads that is not a success.
fn said(bench: &Bench) -> Vec<String> {
    let rows = status::policies(&bench.world, &bench.planned);
    let rows = rows.iter().filter(|row| row.policy.is_none());
    rows.map(|row| format!("{} {}", row.location.trim_start_matches("/shared/"), row.message)).collect()
}

#[test]
fn a_claim_that_its_node_is_entitled_to_has_the_workloads_identity_in_both_families() {
    let policy = "
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: web}}]
  - toCIDR: [10.0.0.0/8, 10.2.0.0/24, 10.2.0.9]
";
    let bench = bench(policy, &[("nodes/node2/7.yaml", &claim("web", 7, 2, 7))]);
    let identity = bench.identity("10.2.0.7");
    assert_eq!(identity, bench.identity("fd00:2::7"));
    let labels = bench.planned.plan.identities[&identity].to_string();
    assert!(labels.starts_with("k8s:app=web,"), "{labels}");
    assert!(bench.allows("default/client", "10.2.0.7", TCP, 80));
    // Nobody is known there yet; no prefix of a policy matches where workloads are.
    for address in ["10.2.0.9", "fd00:2::9", "10.3.0.1"] {
        assert_eq!(bench.identity(address), Identity::UNMANAGED, "{address}");
        assert!(!bench.allows("default/client", address, TCP, 80), "{address}");
    }
    assert!(bench.allows("default/client", "10.4.0.1", TCP, 80));
    let pending = |net: &str| bench.planned.plan.ipcache[&net.parse::<IpNet>().unwrap()].pending;
    assert!(pending("10.2.0.0/16") && pending("fd00:3::/64"));
    assert!(!pending("10.217.0.0/16") && !pending("10.2.0.7/32"));
    let exceptions = &bench.planned.plan.masquerade.exceptions;
    assert!(exceptions.contains(&"10.3.0.0/16".parse().unwrap()), "{exceptions:?}");
    assert_eq!(
        said(&bench),
        [
            "admin/all.yaml:29 Workload default/nowhere: Workload is valid; spec.node: missing: it is placed nowhere, may not start and gets no certificate"
        ]
    );
}

#[test]
fn a_claim_that_its_node_is_not_entitled_to_is_refused_by_name_and_harms_nobody() {
    let good = claim("web", 7, 2, 7);
    let cases: [(&str, &str, String, &str); 7] = [
        (
            "nodes/node3/1.yaml",
            "10.2.0.7",
            claim("web", 1, 2, 7),
            "spec.ipv4: 10.2.0.7 is in no podCIDR of Node node3: not believed",
        ),
        (
            "nodes/node3/1.yaml",
            "10.217.0.1",
            claim("web", 1, 217, 1),
            "spec.ipv4: 10.217.0.1 is in no podCIDR of Node node3: not believed",
        ),
        (
            "nodes/node3/1.yaml",
            "10.3.0.1",
            claim("web", 1, 3, 1),
            "spec.workload: Workload default/web is placed on node2: not believed",
        ),
        (
            "nodes/node2/1.yaml",
            "10.2.0.1",
            claim("nowhere", 1, 2, 1),
            "spec.workload: Workload default/nowhere is placed nowhere (spec.node): not believed",
        ),
        (
            "nodes/node2/1.yaml",
            "10.2.0.1",
            claim("none", 1, 2, 1),
            "spec.workload: there is no Workload default/none: not believed",
        ),
        (
            "nodes/node9/1.yaml",
            "10.2.0.1",
            claim("web", 1, 2, 1),
            "there is no Node node9: nobody believes it",
        ),
        (
            "nodes/node2/1.yaml",
            "10.2.0.1",
            claim("web", 1, 2, 1).replace("fd00:2::1", "fd00:3::1"),
            "spec.ipv6: fd00:3::1 is in no podCIDR of Node node2: not believed",
        ),
    ];
    for (file, address, yaml, expected) in cases {
        let bench = bench("", &[("nodes/node2/7.yaml", &good), (file, &yaml)]);
        let node = file.split('/').nth(1).unwrap();
        let expected = format!("{file}:1 WorkloadEndpoint default/instance-1 of {node}: {expected}");
        assert!(said(&bench).contains(&expected), "{expected}\n{:#?}", said(&bench));
        let web = bench.identity("10.2.0.7");
        assert!(web.is_workload(), "{expected}");
        if address != "10.2.0.7" {
            assert_ne!(bench.identity(address), web, "{expected}");
        }
        assert_eq!(status::invalid(&bench.world, &bench.planned), 1);
    }
}

#[test]
fn two_claims_on_one_address_or_instance_deny_both_and_name_each_other() {
    let [a, b] = [claim("web", 7, 2, 7), claim("web", 8, 2, 8)];
    let twice = b.replace("10.2.0.8", "10.2.0.7");
    let mut bench = bench("", &[("nodes/node2/a.yaml", &a), ("nodes/node2/b.yaml", &twice)]);
    assert_eq!(bench.identity("10.2.0.7"), Identity::UNMANAGED);
    assert_eq!(bench.identity("fd00:2::8"), Identity::UNMANAGED);
    let both = |other: &str| {
        format!(
            "spec.ipv4: 10.2.0.7 is claimed by /shared/nodes/node2/{other}.yaml:1 too: neither is believed"
        )
    };
    assert_eq!(
        said(&bench)[1..],
        [
            format!("nodes/node2/a.yaml:1 WorkloadEndpoint default/instance-7 of node2: {}", both("b")),
            format!("nodes/node2/b.yaml:1 WorkloadEndpoint default/instance-8 of node2: {}", both("a")),
        ]
    );
    let same_instance = b.replace("instance: 8", "instance: 7");
    bench.change(world("", &[("nodes/node2/a.yaml", &a), ("nodes/node2/b.yaml", &same_instance)]));
    assert_eq!(bench.identity("10.2.0.7"), Identity::UNMANAGED);
    assert!(
        said(&bench)[1].ends_with(
            "spec.instance: 7 is claimed by /shared/nodes/node2/b.yaml:1 too: neither is believed"
        )
    );

    // When one is gone, the other is believed.
    bench.change(world("", &[("nodes/node2/a.yaml", &a)]));
    assert!(bench.identity("10.2.0.7").is_workload());
}

#[test]
fn addresses_that_two_nodes_are_given_are_neithers() {
    let overlap = "
---
apiVersion: ferromesh.io/v1alpha1
kind: Node
metadata: {name: node4}
spec: {podCIDRs: [10.2.0.0/24, 'fd00:4::/64']}
";
    let bench = bench(overlap, &[("nodes/node2/7.yaml", &claim("web", 7, 2, 7))]);
    assert_eq!(bench.identity("10.2.0.7"), Identity::UNMANAGED);
    let said = said(&bench);
    let has = |text: &str| assert!(said.iter().any(|row| row.ends_with(text)), "{text}\n{said:#?}");
    has("spec.ipv4: 10.2.0.7 is in podCIDRs of Nodes node2 and node4: not believed");
    has(
        "Node node4: spec.podCIDRs: 10.2.0.0/24 overlaps 10.2.0.0/16 of Node node2: neither is believed about addresses in both; give each node ranges of its own",
    );
    has(
        "Node node2: spec.podCIDRs: 10.2.0.0/16 overlaps 10.2.0.0/24 of Node node4: neither is believed about addresses in both; give each node ranges of its own",
    );
}

#[test]
fn a_claim_on_an_address_of_a_node_itself_or_of_services_is_refused_and_pools_must_be_the_nodes_own() {
    let nodes = NODES.replace("192.0.2.2", "10.2.0.7").replace("10.217.0.0/16, ", "10.217.0.0/24, ");
    let admin = format!("{nodes}{WORKLOADS}");
    let files = [("admin/all.yaml", admin.as_str()), ("nodes/node2/7.yaml", &claim("web", 7, 2, 7))];
    let bench = Bench::of(World::of_shared(&files), &["default/client="], &[]);
    assert_eq!(bench.identity("10.2.0.7"), Identity::REMOTE_NODE);
    let said = said(&bench);
    assert!(
        said.iter().any(|row| row.ends_with("10.2.0.7 is an address of Node node2 itself: not believed"))
    );
    let pool = "Node node1: spec.podCIDRs: the pool 10.217.0.0/16 of this node is in none of them: other nodes do not believe it about its workloads; change ipv4Pool and ipv6Pool, or podCIDRs";
    assert!(said.iter().any(|row| row.ends_with(pool)), "{said:#?}");
    let wide = NODES.replace("10.2.0.0/16, 'fd00:2::/64'", "10.218.0.0/16, 'fd00:2::/64'");
    let admin = format!("{wide}{WORKLOADS}");
    let in_services = claim("web", 7, 2, 7).replace("10.2.", "10.218.");
    let files = [("admin/all.yaml", admin.as_str()), ("nodes/node2/7.yaml", &in_services)];
    let bench = Bench::of(World::of_shared(&files), &["default/client="], &[]);
    assert_eq!(bench.identity("10.218.0.7"), Identity::UNMANAGED);
}

#[test]
fn remote_workloads_answer_for_services_by_selector_and_their_named_ports() {
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {selector: {app: web}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: sliced}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: sliced, labels: {kubernetes.io/service-name: sliced}}
addressType: IPv4
endpoints: [{addresses: [10.2.0.7]}]
ports: [{port: 8080}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress: [{toServices: [{k8sService: {serviceName: sliced, namespace: default}}]}]
";
    let mut bench = bench(service, &[("nodes/node2/7.yaml", &claim("web", 7, 2, 7))]);
    let backends = |bench: &Bench, name: &str| -> Vec<String> {
        let plans = bench.planned.plan.services.frontends.values().filter(|it| it.service.name == name);
        plans.flat_map(|plan| plan.backends.iter().map(ToString::to_string)).collect()
    };
    assert_eq!(backends(&bench, "web"), ["10.2.0.7:8080"]);
    assert!(backends(&bench, "near").is_empty());
    assert!(bench.allows("default/client", "10.2.0.7", TCP, 8080), "a slice names the workload");
    bench.change(world(service, &[]));
    assert!(backends(&bench, "web").is_empty());
}

#[test]
fn in_a_shared_directory_only_what_is_placed_here_is_admitted() {
    let world = world("", &[]);
    let say = |name: &str| crate::admit(&world, "node1", &name.parse().unwrap()).map_err(|it| it.to_string());
    assert_eq!(say("client"), Ok(()));
    assert_eq!(
        say("web").unwrap_err(),
        "workload default/web: its Workload object places it on node node2, this is node1"
    );
    assert_eq!(
        say("nowhere").unwrap_err(),
        "workload default/nowhere: its Workload object places it on no node, this is node1; add spec.node to it"
    );
    assert_eq!(
        say("other").unwrap_err(),
        "workload default/other: not declared, and workloadLabels is \"declared\"; add a Workload object of that name"
    );
}
