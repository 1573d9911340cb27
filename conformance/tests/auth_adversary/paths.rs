//! The same proof, whichever rule asks for it, whichever way a call takes, and whoever it is that has none to give.

use std::net::SocketAddr;

use conformance::lab::{Outcome, Session, Workload, binary, wait_until};

use crate::scene::{
    REQUIRED, Scene, Stopped, asker, at, certified_asker, drops, is_dead, placed_on, proven, restless,
};

/// The caller's policy asks.
const EGRESS: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: caller, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: server}}]
    authentication: {mode: required}
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {app: server}
  clusterIP: 10.78.1.9
  clusterIPs: [10.78.1.9, 'fd00:78::1:9']
  ipFamilyPolicy: RequireDualStack
  ports: [{name: tcp, port: 80, targetPort: 80}, {name: udp, port: 80, targetPort: 80, protocol: UDP}]
";

/// The server, and the service in front of it, in both families.
fn targets(scene: &Scene) -> [SocketAddr; 4] {
    let [v4, v6] = ["10.78.1.9", "fd00:78::1:9"].map(|vip| at(vip.parse().unwrap(), 80));
    [scene.to(0), scene.to(1), v4, v6]
}

/// What becomes of a call over TCP and one over UDP to each target.
fn calls(scene: &Scene, from: &mut Workload) -> Vec<String> {
    let to = targets(scene).into_iter();
    let lines = to.flat_map(|to| ["tcp", "udp"].map(|how| format!("{how} {to}")));
    lines.map(|line| from.session.ask(&line)).collect()
}

/// Policies of the server, of the caller, of both; direct and through a service; from the same node and from another.
#[test]
fn whoever_asks_and_whichever_way_the_call_takes_the_proof_is_the_same() {
    let scene = Scene::required("");
    scene.mesh.apply("service.yaml", SERVICE);
    let both = [REQUIRED, EGRESS].join("---\n");
    for (what, policy) in [("both", both.as_str()), ("the caller", EGRESS), ("the server", REQUIRED)] {
        scene.mesh.apply("proven.yaml", policy);
        let [client, near] = ["client", "near"].map(|name| certified_asker(scene.node_of(name), name));
        let mut here = [client, near, asker(scene.node_of("stranger"), "stranger")];
        let [client, near, stranger] = here.each_mut().map(|workload| calls(&scene, workload));
        assert!(client.iter().all(|said| said == "answered"), "{what} asks: {client:?}");
        assert_eq!(client, near, "{what} asks: one node or two");
        // Nobody asks for a proof of whom the rule does not select.
        let expected = if what == "the caller" { "answered" } else { "silent" };
        assert!(stranger.iter().all(|said| said == expected), "{what} asks: {stranger:?}");
        let marks = [0, 1].map(|number: usize| proven(&scene.mesh.nodes[number]).len());
        assert_eq!(
            marks,
            [1, 2],
            "{what} asks: one for each caller at the server's node, and one at the caller's"
        );
        withdrawn(&scene, &mut here, what);
    }
}

/// Other accounts: what is open ends, and what opens then has been proven anew. Where both ask, their certificates do not
/// come at first, and nothing opens until they do.
fn withdrawn(scene: &Scene, here: &mut [Workload; 3], what: &str) {
    let callers = [("client", 0), ("near", 1)];
    let open = |(name, _)| {
        targets(scene).map(|to| {
            let mut probe = scene.node_of(name).within(name, binary("probe"));
            let mut session = Session::start(probe.args(["hold", &to.to_string()]));
            assert_eq!(
                (session.line(), session.ask("before")),
                ("open".to_owned(), "answered".to_owned()),
                "{to}"
            );
            (to, session)
        })
    };
    let live: Vec<_> = callers.into_iter().flat_map(open).collect();
    let mute = (what == "both").then(|| Stopped::new(&scene.mesh.nodes[0], "ca"));
    for (name, node) in callers {
        let account = format!("{name}-when-{}-asks", what.replace(' ', "-"));
        let object = placed_on(name, "app: client", &account, node);
        scene.mesh.apply(&format!("workload-{name}.yaml"), &object);
    }
    for (to, mut session) in live {
        wait_until(&format!("{what} asks: the connection to {to} is dead"), || {
            is_dead(&session.ask("after"))
        });
    }
    if mute.is_some() {
        let [client, near, _] = here.each_mut().map(|workload| calls(scene, workload));
        assert!(client.iter().chain(&near).all(|said| said != "answered"), "{client:?} {near:?}");
    }
    drop(mute);
    for workload in &mut here[..2] {
        let call = format!("tcp {}", scene.to(0));
        wait_until("there is another proof", || workload.session.ask(&call) == "answered");
    }
    for (name, node) in callers {
        scene.mesh.place(name, &["app=client"], u8::try_from(node).unwrap());
    }
}

/// Who is no workload has nothing to show: outside, another node, and the server's own, which may look after its workloads.
#[test]
fn nobody_but_a_workload_passes_where_everybody_must_prove_himself() {
    const EVERYBODY: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: proven, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEntities: [all]
    authentication: {mode: required}
";
    let scene = Scene::required("");
    scene.mesh.intrude();
    scene.mesh.apply("proven.yaml", EVERYBODY);
    let probe = binary("probe");
    let [other, own] = &scene.mesh.nodes[..] else { panic!("two nodes") };
    for which in [0, 1] {
        for how in ["tcp", "udp"] {
            let to = scene.to(which).to_string();
            let ask = |mut command: std::process::Command| Outcome::of(command.args([how, &to])).stdout;
            for (who, from) in
                [("outside", scene.mesh.underlay(&probe)), ("another node", other.inside(&probe))]
            {
                assert_ne!(ask(from), "answered", "{who}: {how} {to}");
            }
            assert_eq!(ask(own.inside(&probe)), "answered", "{how} {to}: a probe of its own node");
            assert_eq!(scene.attempt("stranger", how, which), "answered", "{how} {to}: any workload");
        }
    }
    let drops = drops(own);
    for from in ["192.0.2.110", "192.0.2.10", "2001:db8:2::110", "2001:db8:2::10"] {
        let line = drops.lines().find(|line| line.contains("Peer has no SPIFFE ID") && line.contains(from));
        assert!(line.is_some(), "{from}: {drops}");
    }
}

/// T43. Who may not call goes on calling while the agents of both nodes are killed and come back, twice.
#[test]
fn nothing_passes_while_agents_go_and_come_back() {
    let mut scene = Scene::required("");
    let mut stranger = restless(&scene, "stranger", 0);
    let mut twin = scene.stay("twin", "steady", 1);
    for _ in 0..2 {
        for number in [0, 1] {
            scene.mesh.nodes[number].kill_agent();
            scene.mesh.nodes[number].start_agent();
        }
    }
    let counts = twin.ask("");
    assert!(counts.ends_with(" good, 0 bad") && !counts.starts_with("0 "), "{counts}");
    let counts = stranger.ask("");
    assert!(counts.starts_with("0 good, ") && !counts.ends_with(" 0 bad"), "{counts}");
}
