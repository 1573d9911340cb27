//! Who must prove to whom who it is, and whom the CA may certify.

use std::collections::BTreeSet;

use mesh::auth::AuthPlan;

use super::*;
use crate::plan::tests::bench::{endpoint, facts};

const NODES: &str = "
apiVersion: ferromesh.io/v1alpha1
kind: Node
metadata: {name: node1}
spec: {addresses: [{address: 192.0.2.1}], podCIDRs: [10.217.0.0/16, 'fd00:217::/64']}
---
apiVersion: ferromesh.io/v1alpha1
kind: Node
metadata: {name: node2}
spec: {addresses: [{address: 192.0.2.2}, {address: '2001:db8::2'}], podCIDRs: [10.2.0.0/16, 'fd00:2::/64'], authPort: 5250}
---
";

const WORKLOADS: &str = "
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: client, labels: {app: client}}
spec: {node: node1, serviceAccountName: robot}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {node: node2, serviceAccountName: server}
---
apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata: {name: nowhere, labels: {app: nowhere}}
---
";

const REQUIRED: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    authentication: {mode: required}
";

const CLAIM: &str = "
apiVersion: ferromesh.io/v1alpha1
kind: WorkloadEndpoint
metadata: {name: instance-7}
spec: {workload: web, instance: 7, ipv4: 10.2.0.7, ipv6: 'fd00:2::7'}
";

fn auth(bench: &Bench) -> Option<&AuthPlan> {
    bench.planned.plan.auth.as_deref()
}

#[test]
fn nobody_is_asked_unless_a_policy_asks() {
    let shared = |policy: &str| {
        let admin = [NODES, WORKLOADS, policy].concat();
        World::of_shared(&[("admin/all.yaml", &admin), ("nodes/node2/7.yaml", CLAIM)])
    };
    let relaxed = REQUIRED.replace("required", "disabled");
    assert_eq!(auth(&Bench::of(shared(&relaxed), &["default/client="], &[])), None);
    let nobody = Bench::of(shared(REQUIRED), &[], &[]);
    assert!(auth(&nobody).is_some_and(|plan| plan.pairs.is_empty()), "whoever comes finds everything ready");
    assert!(auth(&Bench::of(shared(REQUIRED), &["default/client="], &[])).is_some());
}

#[test]
fn the_auth_agent_is_told_of_both_ends_by_what_the_administrator_says_of_them() {
    let admin = [NODES, WORKLOADS, REQUIRED].concat();
    let world = World::of_shared(&[("admin/all.yaml", &admin), ("nodes/node2/7.yaml", CLAIM)]);
    // The second is about to be removed, the third is not declared.
    let bench =
        Bench::of(world, &["default/client=app=x", "default/client=app=x", "default/x=app=web"], &[2]);
    let plan = auth(&bench).unwrap();
    assert_eq!(
        (plan.trust_domain.as_str(), plan.node.as_str(), plan.grace),
        ("cluster.local", "node1", 10_000)
    );
    let nodes: Vec<_> = plan.nodes.iter().collect();
    let [(name, node2)] = nodes.as_slice() else { panic!("{nodes:?}") };
    assert_eq!(
        (name.as_str(), node2.id.to_string().as_str()),
        ("node2", "spiffe://cluster.local/ferromesh/node/node2")
    );
    let addresses: Vec<_> = node2.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.2:5250", "[2001:db8::2]:5250"]);

    assert_eq!(plan.endpoints.keys().collect::<Vec<_>>(), [&1]);
    let client = &plan.endpoints[&1];
    assert_eq!(client.id.to_string(), "spiffe://cluster.local/ns/default/sa/robot");
    assert_eq!(client.identity, bench.identity("default/client"));
    assert_eq!(client.ipv4.to_string(), "10.217.0.1");
    let remotes: Vec<_> = plan.remotes.iter().collect();
    let [(instance, web)] = remotes.as_slice() else { panic!("{remotes:?}") };
    assert_eq!((instance.node.as_str(), instance.instance), ("node2", 7));
    assert_eq!(web.id.to_string(), "spiffe://cluster.local/ns/default/sa/server");
    assert_eq!(web.identity, bench.identity("10.2.0.7"));
    assert!(plan.requires(client.identity, web.identity));
    assert_eq!(plan.pairs.len(), 1);
}

#[test]
fn an_identity_is_shown_with_the_ids_of_who_has_it_wherever_they_run() {
    let admin = [NODES, WORKLOADS, REQUIRED].concat();
    let files = [("admin/all.yaml", admin.as_str()), ("nodes/node2/7.yaml", CLAIM)];
    let bench = Bench::of(World::of_shared(&files), &["default/client="], &[]);
    let rows = status::identities(&bench.planned.plan);
    let ids = |identity| {
        let row = rows.iter().find(|row| row.identity == identity).unwrap();
        row.spiffe_ids.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ids(bench.identity("default/client")), ["spiffe://cluster.local/ns/default/sa/robot"]);
    assert_eq!(ids(bench.identity("10.2.0.7")), ["spiffe://cluster.local/ns/default/sa/server"]);
    let workloads = rows.iter().filter(|row| row.identity.is_workload()).count();
    assert_eq!(rows.iter().filter(|row| !row.spiffe_ids.is_empty()).count(), workloads.min(2), "{rows:?}");
    let nobody_asks = [NODES, WORKLOADS].concat();
    let files = [("admin/all.yaml", nobody_asks.as_str()), ("nodes/node2/7.yaml", CLAIM)];
    let bench = Bench::of(World::of_shared(&files), &["default/client="], &[]);
    assert!(status::identities(&bench.planned.plan).iter().all(|row| row.spiffe_ids.is_empty()));
}

/// No value of a label, and no account, is a pattern or a prefix. What would be a path is refused before (`metadata`).
#[test]
fn who_must_prove_himself_is_compared_letter_by_letter() {
    let pairs = |selected: &str, label: &str| {
        let workloads = WORKLOADS.replace("{app: client}", &format!("{{app: {label}}}"));
        let policy = REQUIRED.replace("{app: client}", &format!("{{app: {selected}}}"));
        let admin = [NODES, &workloads, &policy].concat();
        let world = World::of_shared(&[("admin/all.yaml", &admin), ("nodes/node2/7.yaml", CLAIM)]);
        let bench = Bench::of(world, &["default/client="], &[]);
        auth(&bench).unwrap().pairs.len()
    };
    assert_eq!((pairs("client", "client"), pairs("cli.nt", "cli.nt")), (1, 1));
    let others = [("client", "cli.nt"), ("client", "Client"), ("client", "clien"), ("client", "client.x")];
    for (selected, label) in others.into_iter().chain([("cli.nt", "client"), ("client.x", "client")]) {
        assert_eq!(pairs(selected, label), 0, "{selected} {label}");
    }
    let dotted = WORKLOADS.replace("robot", "r2.d2");
    let files = [NODES, &dotted, REQUIRED].concat();
    let world = World::of_shared(&[("admin/all.yaml", &files), ("nodes/node2/7.yaml", CLAIM)]);
    let bench = Bench::of(world, &["default/client="], &[]);
    let plan = auth(&bench).unwrap();
    assert_eq!(plan.endpoints[&1].id.to_string(), "spiffe://cluster.local/ns/default/sa/r2.d2");
}

#[test]
fn settings_of_authentication_are_in_the_plan_and_an_own_port_that_is_not_declared_is_said() {
    let settings = "---\napiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {trustDomain: example.org, authenticationGrace: 2s, authenticationAhead: 7, authPort: 4300}\n";
    let yaml = [NODES, REQUIRED, settings].concat();
    let bench = Bench::new(&yaml, &["default/web=app=web", "default/client=app=client"]);
    let plan = auth(&bench).unwrap();
    assert_eq!((plan.trust_domain.as_str(), plan.grace, plan.ahead), ("example.org", 2_000, 7));
    // What was run says who it is, where no administrator does.
    assert_eq!(plan.endpoints[&1].id.to_string(), "spiffe://example.org/ns/default/sa/default");
    let rows = status::policies(&bench.world, &bench.planned);
    let message = "Node node1: spec.authPort: other nodes are told 4250, and this node listens on 4300 (authPort of its Configuration)";
    assert!(rows.iter().any(|row| row.message == message), "{rows:#?}");
}

#[test]
fn an_edit_that_does_not_concern_authentication_keeps_its_plan() {
    let admin = [NODES, WORKLOADS, REQUIRED].concat();
    let state = tempfile::tempdir().unwrap();
    let mut allocator = Allocator::open(state.path()).unwrap();
    let mut planner = Planner::default();
    let endpoints = [endpoint(1, "default/client=")];
    let leaving = BTreeSet::new();
    let mut plan = |more: &str| {
        let admin = [&admin, more].concat();
        let world = World::of_shared(&[("admin/all.yaml", &admin), ("nodes/node2/7.yaml", CLAIM)]);
        let present = Present { endpoints: &endpoints, leaving: &leaving, plan: None };
        planner.plan(&world, present, &facts(), &mut allocator).unwrap().plan.auth.clone().unwrap()
    };
    let before = plan("");
    let other = REQUIRED.replace("required", "disabled").replace("name: web", "name: other");
    assert!(Arc::ptr_eq(&before, &plan(&format!("---\n{other}"))));
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node9}\n";
    assert_eq!(plan(node).nodes.len(), 2);
}

#[test]
fn certificates_are_for_those_whom_the_administrator_has_placed() {
    let ids = |world: &World, endpoints: &[Endpoint]| -> Vec<String> {
        let placements = placements(world, &facts(), endpoints);
        let of = |(node, ids): (&String, &BTreeSet<mesh::spiffe::SpiffeId>)| {
            let ids: Vec<_> = ids.iter().map(|id| id.path().to_owned()).collect();
            format!("{node}: {}", ids.join(" "))
        };
        placements.nodes.iter().map(of).collect()
    };
    let endpoints = ["default/client=", "default/nowhere=", "default/web=", "team/run=app=x"];
    let endpoints: Vec<_> = (1..).zip(endpoints).map(|(number, text)| endpoint(number, text)).collect();
    let admin = [NODES, WORKLOADS].concat();
    let shared = World::of_shared(&[("admin/all.yaml", &admin)]);
    let expected = ["node1: /ns/default/sa/robot", "node2: /ns/default/sa/server"];
    assert_eq!(ids(&shared, &endpoints), expected, "what runs says nothing");
    // On its own, a node certifies what it runs, but for what belongs to another.
    assert_eq!(
        ids(&World::of(&admin), &endpoints),
        [
            "node1: /ns/default/sa/default /ns/default/sa/robot /ns/team/sa/default",
            "node2: /ns/default/sa/server"
        ]
    );
    assert_eq!(ids(&World::default(), &[]), ["node1: "]);
}

#[test]
fn without_a_plan_of_a_world_who_is_somebody_else_by_it_has_no_part_in_what_still_stands() {
    let world = |change: &dyn Fn(String) -> String, claim: &str| {
        let admin = change([NODES, WORKLOADS, REQUIRED].concat());
        World::of_shared(&[("admin/all.yaml", &admin), ("nodes/node2/7.yaml", claim)])
    };
    let same = |yaml: String| yaml;
    let before = Bench::of(world(&same, CLAIM), &["default/client="], &[]);
    let endpoints = [endpoint(1, "default/client=")];
    let standing = |world: &World, leaving: &[u16]| {
        let leaving = leaving.iter().filter_map(|id| EndpointId::new(*id)).collect();
        let present = Present { endpoints: &endpoints, leaving: &leaving, plan: Some(&before.planned.plan) };
        let still = still(world, &facts(), present).unwrap();
        (still.endpoints.len(), still.remotes.len(), still.nodes.len())
    };
    assert_eq!(standing(&world(&same, CLAIM), &[]), (1, 1, 1));
    assert_eq!(standing(&world(&same, CLAIM), &[1]), (0, 1, 1), "about to be removed");
    let changes: [(&str, &str, (usize, usize, usize)); 6] = [
        ("labels: {app: client}", "labels: {app: other}", (0, 1, 1)),
        ("labels: {app: web}", "labels: {app: other}", (1, 0, 1)),
        ("serviceAccountName: robot", "serviceAccountName: luke", (0, 1, 1)),
        ("serviceAccountName: server", "serviceAccountName: luke", (1, 0, 1)),
        ("spec: {node: node2, service", "spec: {node: node1, service", (1, 0, 1)),
        ("metadata: {name: node2}", "metadata: {name: node3}", (1, 0, 0)),
    ];
    for (from, to, expected) in changes {
        let changed = world(&|yaml| yaml.replace(from, to), CLAIM);
        assert_eq!(standing(&changed, &[]), expected, "{to}");
    }
    let elsewhere = CLAIM.replace("10.2.0.7", "10.2.0.8");
    assert_eq!(standing(&world(&same, &elsewhere), &[]), (1, 0, 1));
    let unasked = Bench::of(world(&|yaml| yaml.replace("required", "disabled"), CLAIM), &[], &[]);
    let present = Present { endpoints: &[], leaving: &BTreeSet::new(), plan: Some(&unasked.planned.plan) };
    assert_eq!(still(&unasked.world, &facts(), present), None);
}
