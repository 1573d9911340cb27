mod authentication;
pub(crate) mod bench;
mod l7;
mod memo;
mod remotes;

use std::fs;

use mesh::policy::protocol::{ICMP, TCP, UDP};

use super::*;
use crate::status;
pub(crate) use bench::{Bench, SHIPS};

#[test]
fn star_wars_comes_out_the_same_in_both_vocabularies() {
    for file in ["../examples/star-wars/rule1.yaml", "../examples/network-policy/rule1.yaml"] {
        let bench = Bench::new(&fs::read_to_string(file).unwrap(), &SHIPS);
        let deathstar = bench.endpoint("default/deathstar-1");
        assert!(deathstar.ingress.enforced && !deathstar.egress.enforced, "{file}");
        assert!(bench.allows("default/tiefighter", "default/deathstar-1", TCP, 80), "{file}");
        assert!(!bench.allows("default/tiefighter", "default/deathstar-1", TCP, 81), "{file}");
        assert!(!bench.allows("default/tiefighter", "default/deathstar-1", UDP, 80), "{file}");
        assert!(!bench.allows("default/xwing", "default/deathstar-2", TCP, 80), "{file}");
        assert!(bench.allows("default/xwing", "default/tiefighter", TCP, 80), "{file}");
        assert!(!bench.allows("198.51.100.1", "default/deathstar-1", TCP, 80), "{file}");
        assert!(!bench.allows("2001:db8:f::1", "default/deathstar-1", TCP, 80), "{file}");
        let other = bench.endpoint("default/deathstar-2");
        assert_eq!(deathstar.identity, other.identity);
        assert!(Arc::ptr_eq(&deathstar.ingress, &other.ingress), "equal rulesets are one");
        assert!(Arc::ptr_eq(
            &bench.endpoint("default/tiefighter").ingress,
            &bench.endpoint("default/xwing").ingress
        ));
        let rows = status::policies(&bench.world, &bench.planned);
        assert_eq!((rows[0].valid, rows[0].selected), (true, 2), "{rows:?}");
        assert_eq!(rows[0].message, "Policy validation succeeded");
    }
}

#[test]
fn labels_in_force_are_declared_ones_before_given_ones_and_derived_ones_cannot_be_set() {
    let yaml = "
apiVersion: v1
kind: Namespace
metadata: {name: fleet, labels: {team: vader}}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: xwing, namespace: fleet, labels: {org: alliance}}
spec: {serviceAccountName: luke}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: away, namespace: fleet, labels: {org: empire}}
spec: {node: node2}
";
    let forged = "fleet/forger=org=empire,io.kubernetes.pod.namespace=kube-system,io.cilium.k8s.namespace.labels.team=x,reserved:host";
    let bench = Bench::new(yaml, &["fleet/xwing=org=empire", forged, "fleet/away=org=empire"]);
    let labels = |name: &str| bench.planned.plan.identities[&bench.endpoint(name).identity].to_string();
    let derived = "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=fleet,k8s:io.cilium.k8s.namespace.labels.team=vader";
    assert_eq!(
        labels("fleet/xwing"),
        format!(
            "{derived},k8s:io.cilium.k8s.policy.serviceaccount=luke,k8s:io.kubernetes.pod.namespace=fleet,k8s:org=alliance"
        )
    );
    assert_eq!(
        labels("fleet/forger"),
        format!(
            "{derived},k8s:io.cilium.k8s.policy.serviceaccount=default,k8s:io.kubernetes.pod.namespace=fleet,k8s:org=empire"
        )
    );
    assert_eq!(bench.endpoint("fleet/away").identity, Identity::INIT, "it belongs to another node");
    let declared =
        bench.planned.plan.identities.values().filter(|labels| labels.to_string().contains("org=empire"));
    assert_eq!(declared.count(), 1, "away and forger have equal labels, though one runs elsewhere");
}

#[test]
fn only_what_is_declared_for_this_node_is_admitted() {
    let yaml = "
apiVersion: ferromesh.io/v1alpha1
kind: Configuration
spec: {workloadLabels: declared}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: here}
spec: {node: node1}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: there}
spec: {node: node2}
";
    let world = World::of(yaml);
    let say =
        |name: &str| crate::admit(&world, "node1", &name.parse().unwrap()).map_err(|error| error.to_string());
    assert_eq!(say("here"), Ok(()));
    assert_eq!(
        say("there").unwrap_err(),
        "workload default/there: its Workload object places it on node node2, this is node1"
    );
    assert_eq!(
        say("nowhere").unwrap_err(),
        "workload default/nowhere: not declared, and workloadLabels is \"declared\"; add a Workload object of that name"
    );
}

#[test]
fn ipcache_holds_everything_that_is_no_endpoint_and_prefixes_never_take_pool_or_node_addresses() {
    let yaml = "
apiVersion: v1
kind: Node
metadata: {name: node2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: InternalIP, address: '2001:db8::2'}, {type: Hostname, address: node2}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: outside}
spec:
  endpointSelector: {}
  egress:
  - toCIDRSet: [{cidr: 198.51.100.0/24, except: [198.51.100.128/25]}, {cidr: '2001:db8:f::/48'}]
  - toCIDR: [10.0.0.0/8, 10.217.3.0/24, 192.0.2.1, 'fd00:217::/80', 10.218.5.0/24, 'fd00:218::/112']
";
    let bench = Bench::new(yaml, &["default/a=app=a"]);
    let identity = |who: &str| bench.identity(who);
    assert_eq!(identity("203.0.113.1"), Identity::WORLD_IPV4);
    assert_eq!(identity("2001:db8:e::1"), Identity::WORLD_IPV6);
    assert_eq!([identity("192.0.2.1"), identity("2001:db8::1")], [Identity::HOST; 2]);
    assert_eq!([identity("192.0.2.2"), identity("2001:db8::2")], [Identity::REMOTE_NODE; 2]);
    assert_eq!([identity("10.217.3.1"), identity("fd00:217::9")], [Identity::UNMANAGED; 2]);
    assert_eq!([identity("10.218.5.1"), identity("fd00:218::9")], [Identity::UNMANAGED; 2], "of services");
    let labels = bench.planned.plan.identities[&identity("2001:db8:f::1")].to_string();
    assert_eq!(labels, "reserved:world-ipv6,cidr:2001:db8:f::/48");
    assert!(bench.allows("default/a", "198.51.100.1", TCP, 443));
    assert!(!bench.allows("default/a", "198.51.100.129", TCP, 443));
    assert!(bench.allows("default/a", "2001:db8:f::1", TCP, 443));
    assert!(bench.allows("default/a", "10.1.0.1", UDP, 53));
    assert!(!bench.allows("default/a", "10.217.3.1", TCP, 443), "the pool is no outside address");
    assert!(!bench.allows("default/a", "203.0.113.1", TCP, 443));
}

/// Namespaces `default`, `team` (purpose=production) and `other`; who reaches `default/web` (app=web) on TCP 80?
#[test]
fn recipes_of_the_kubernetes_documentation() {
    let peers = [
        "default/client=app=client",
        "team/client=app=client,role=monitoring",
        "team/plain=app=plain",
        "other/client=app=client",
    ];
    let spec = |rest: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: team, labels: {{purpose: production}}}}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\nspec: {rest}\n"
        )
    };
    // Which of the peers, and an address outside, get in.
    let cases: [(&str, &str, [bool; 5]); 9] = [
        ("deny all", "{podSelector: {}}", [false; 5]),
        ("deny all by name", "{podSelector: {matchLabels: {app: web}}, ingress: []}", [false; 5]),
        ("allow all", "{podSelector: {}, ingress: [{}]}", [true; 5]),
        (
            "from pods of the namespace",
            "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
            [true, false, false, false, false],
        ),
        (
            "from all namespaces",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
            [true, true, true, true, false],
        ),
        (
            "from a namespace",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {purpose: production}}}]}]}",
            [false, true, true, false, false],
        ),
        (
            "from some pods of a namespace (AND)",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: team}}, podSelector: {matchLabels: {role: monitoring}}}]}]}",
            [false, true, false, false, false],
        ),
        (
            "from a namespace or from pods here (OR)",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {purpose: production}}}, {podSelector: {matchLabels: {app: client}}}]}]}",
            [true, true, true, false, false],
        ),
        (
            "from outside",
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 80}]}]}",
            [false, false, false, false, true],
        ),
    ];
    for (recipe, policy, expected) in cases {
        let mut endpoints = vec!["default/web=app=web"];
        endpoints.extend(peers);
        let bench = Bench::new(&spec(policy), &endpoints);
        let names = ["default/client", "team/client", "team/plain", "other/client", "198.51.100.7"];
        let reached = names.map(|name| bench.allows(name, "default/web", TCP, 80));
        assert_eq!(reached, expected, "{recipe}");
    }
}

#[test]
fn egress_isolation_and_port_ranges() {
    let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 8000, endPort: 8099}, {port: 53, protocol: UDP}]
";
    let bench =
        Bench::new(policy, &["default/client=app=client", "default/web=app=web", "default/db=app=db"]);
    for (to, protocol, port, expected) in [
        ("default/web", TCP, 8000, true),
        ("default/web", TCP, 8099, true),
        ("default/web", TCP, 8100, false),
        ("default/web", UDP, 53, true),
        ("default/web", TCP, 53, false),
        ("default/web", ICMP, 8, false),
        ("default/db", TCP, 8000, false),
        ("203.0.113.1", TCP, 8000, false),
    ] {
        assert_eq!(bench.allows("default/client", to, protocol, port), expected, "{to} {protocol} {port}");
    }
    assert!(bench.allows("default/web", "default/client", TCP, 1), "ingress is not isolated");
}

#[test]
fn named_ports_are_those_of_the_declared_workload() {
    let yaml = "
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]
";
    let bench = Bench::new(yaml, &["default/web=", "default/client=app=client"]);
    assert!(bench.allows("default/client", "default/web", TCP, 8080));
    assert!(!bench.allows("default/client", "default/web", TCP, 80));
}

#[test]
fn cilium_selectors_reach_as_far_as_they_say() {
    let reach = |kind: &str, rule: &str| {
        let yaml = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: team, labels: {{purpose: production}}}}\n---\napiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: web}}\nspec: {{endpointSelector: {{matchLabels: {{app: web}}}}, ingress: [{rule}]}}\n"
        );
        let bench = Bench::new(
            &yaml,
            &["default/web=app=web", "default/client=app=client", "team/client=app=client"],
        );
        let names = ["default/client", "team/client", "198.51.100.7", "192.0.2.1", "10.217.9.9"];
        names.map(|name| bench.allows(name, "default/web", TCP, 80))
    };
    let (cnp, ccnp) = ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy");
    // The client here, the client in namespace team, an address outside, the host, an address of the pool that nobody
    // has. What the host sends to its own workloads passes: probes.
    let cases = [
        (cnp, "{}", [false, false, false, true, false]),
        (cnp, "{fromEndpoints: []}", [false, false, false, true, false]),
        (cnp, "{fromEndpoints: [{}]}", [true, false, false, true, false]),
        (ccnp, "{fromEndpoints: [{}]}", [true, true, false, true, false]),
        (
            cnp,
            "{fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': team}}]}",
            [false, true, false, true, false],
        ),
        (
            cnp,
            "{fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: team}}]}",
            [false, true, false, true, false],
        ),
        (
            cnp,
            "{fromEndpoints: [{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.purpose': production}}]}",
            [false, true, false, true, false],
        ),
        (
            cnp,
            "{fromEndpoints: [{matchExpressions: [{key: 'io.cilium.k8s.namespace.labels.purpose', operator: DoesNotExist}]}]}",
            [true, false, false, true, false],
        ),
        (cnp, "{fromEntities: [world]}", [false, false, true, true, false]),
        (cnp, "{fromEntities: [cluster]}", [true, true, false, true, true]),
        (cnp, "{fromEntities: [all]}", [true, true, true, true, true]),
        (
            cnp,
            "{fromEndpoints: [{matchLabels: {'reserved:unmanaged': ''}}]}",
            [false, false, false, true, true],
        ),
        (cnp, "{toPorts: [{ports: [{port: '80'}]}]}", [true, true, true, true, true]),
        (cnp, "{fromCIDR: [0.0.0.0/0]}", [false, false, true, true, false]),
        (cnp, "{fromEndpoints: [{}], authentication: {mode: required}}", [true, false, false, true, false]),
        (
            cnp,
            "{fromEndpoints: [{}], authentication: {mode: test-always-fail}}",
            [false, false, false, true, false],
        ),
        (cnp, "{fromEndpoints: [{}], authentication: {mode: disabled}}", [true, false, false, true, false]),
    ];
    for (kind, rule, expected) in cases {
        assert_eq!(reach(kind, rule), expected, "{kind} {rule}");
    }
}

#[test]
fn the_same_world_gives_the_same_plan() {
    let yaml = fs::read_to_string("../examples/star-wars/rule1.yaml").unwrap();
    assert_eq!(Bench::new(&yaml, &SHIPS).planned.plan, Bench::new(&yaml, &SHIPS).planned.plan);
}

#[test]
fn addresses_of_services_are_nobodys_so_that_no_packet_may_come_from_them() {
    let bench = Bench::new(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
         spec: {clusterIP: 203.0.113.7, selector: {app: web}, ports: [{port: 80}]}\n",
        &[],
    );
    for address in ["10.218.0.99", "fd00:218::99", "203.0.113.7"] {
        assert_eq!(bench.identity(address), Identity::UNMANAGED, "{address}");
    }
    assert_eq!(bench.identity("203.0.113.8"), Identity::WORLD_IPV4);
}
