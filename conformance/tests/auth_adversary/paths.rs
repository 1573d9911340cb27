//! The same proof, whichever rule asks for it, whichever way a call takes, and whoever it is that has none to give.

use std::net::SocketAddr;

use conformance::lab::{Node, Outcome, REQUIRED_BY_CALLER, Session, Workload, binary, policy, wait_until};

use crate::scene::{
    REQUIRED, Scene, Stopped, asker, at, certified_asker, drops, is_dead, placed_on, proven, restless,
};

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
    let both = [REQUIRED, REQUIRED_BY_CALLER].join("---\n");
    for (what, policy) in
        [("both", both.as_str()), ("the caller", REQUIRED_BY_CALLER), ("the server", REQUIRED)]
    {
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
    let everybody = policy(
        "proven",
        "app: server",
        &["ingress: [{fromEntities: [all], authentication: {mode: required}}]"],
    );
    let scene = Scene::required("");
    scene.mesh.intrude();
    scene.mesh.apply("proven.yaml", &everybody);
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

/// What leaves under the node's address goes to somebody who has no certificate to show.
#[test]
fn what_would_leave_masqueraded_stays_where_it_must_be_proven_to_whom() {
    let node = Node::up_with_outside("");
    let outside = |port| node.outside().addresses().map(|address| at(address, port));
    let _servers = [53, 54].map(|port| node.outside().serve(&["serve", &port.to_string()]));
    let ask = |name: &str| node.start(name, &["app=client"], &[binary("probe").to_str().unwrap(), "ask"]);
    let mut client = ask("client");
    let hold = |how: &str, port| {
        outside(port).map(|to| {
            let mut probe = node.within("client", binary("probe"));
            let mut session = Session::start(probe.args([how, &to.to_string()]));
            assert_eq!((session.line(), session.ask("before")), ("open".to_owned(), "answered".to_owned()));
            session
        })
    };
    let mut live = [hold("hold", 53), hold("hold-udp", 53)];
    let mut bystanders = [hold("hold", 54), hold("hold-udp", 54)];

    let capture = node.outside().serve(&["capture"]);
    let mut words = Session::start(node.outside().run(binary("probe")).args(["last", "53"]));
    assert_eq!(words.line(), "open");
    let rule = |port: u16, authentication: &str| {
        format!(
            "- {{toCIDR: [198.51.100.2/32, '2001:db8:51::2/128'], \
             toPorts: [{{ports: [{{port: '{port}', protocol: ANY}}]}}]{authentication}}}"
        )
    };
    let rules = [rule(53, ", authentication: {mode: required}"), rule(54, "")];
    let yaml = policy("proven", "app: client", &["egress:", &rules[0], &rules[1]]);
    node.apply("proven.yaml", &yaml);
    let last = outside(54)[1];
    let heard = |client: &mut Workload| {
        assert_eq!(client.session.ask(&format!("udp {last}")), "answered");
        let answer = format!("udp {last} > ");
        let lines = std::iter::repeat_with(|| capture.line());
        lines.take_while(|line| !line.starts_with(&answer)).collect::<Vec<_>>()
    };
    for live in live.as_flattened_mut() {
        let said = live.ask("after");
        assert!(["reset", "unreachable", "prohibited"].contains(&said.as_str()), "{said}");
    }
    // Of what was open the other side may hear that it is no more, and nothing else.
    assert!(!heard(&mut client).iter().any(|line| line.starts_with("udp") && line.ends_with(":53")));
    assert_eq!(words.ask(""), "0 0");
    for (to, prohibited) in outside(53).into_iter().zip(["unreachable", "prohibited"]) {
        assert_eq!(client.session.ask(&format!("tcp {to}")), "refused", "{to}");
        assert_eq!(client.session.ask(&format!("udp {to}")), prohibited, "{to}");
    }
    assert_eq!(client.session.ask(&format!("tcp {}", outside(54)[0])), "answered");
    let left = heard(&mut client);
    assert!(left.iter().any(|line| line.ends_with(":54")), "{left:#?}");
    assert!(!left.iter().any(|line| line.ends_with(":53")), "{left:#?}");
    for bystander in bystanders.as_flattened_mut() {
        assert_eq!(bystander.ask("after"), "answered");
    }
    no_principal(&node, &outside(53));
}

/// Drops of both protocols towards each of these, with their reason.
#[track_caller]
fn no_principal(node: &Node, to: &[SocketAddr]) {
    let told = |flow: &serde_json::Value, to: &SocketAddr, protocol: u8| {
        let (drop, destination) = (&flow["drop"], &flow["destination"]);
        destination["address"] == to.ip().to_string()
            && destination["port"] == to.port()
            && flow["protocol"] == protocol
            && drop["reason"] == 237
            && drop["text"] == "Peer has no SPIFFE ID"
    };
    for (to, protocol) in to.iter().flat_map(|to| [(to, 6), (to, 17)]) {
        wait_until(&format!("the drop to {to}, protocol {protocol}, is told with its reason"), || {
            let all = ["observe", "--verdict", "DROPPED", "--last", "100", "-o", "json"];
            let flows = node.ferromesh(&all).success();
            let mut flows = flows.lines().map(|line| serde_json::from_str(line).unwrap());
            flows.any(|flow| told(&flow, to, protocol))
        });
    }
}
