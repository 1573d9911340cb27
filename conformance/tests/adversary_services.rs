//! The same adversary at a service in front of the workload: what may not be sent to a backend cannot be sent to it by
//! way of its VIP either. Each packet is dropped and counted under its reason, on the account of the interface it came
//! from, whatever its addresses say; the backend sees nothing of it. Needs root and the kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario that cannot go on has failed")]

mod service;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use conformance::forge::{CASES, Case, OVERLAP, SYN_WITH_DATA, UNSERVED};
use conformance::lab::{Node, Outcome, Session, Workload, binary, wait_until};
use serde_json::Value;
use service::{CLIENT, WEB, asker, call, service, vip, witness};

/// The node's own addresses in its pools.
const GATEWAYS: [&str; 2] = ["10.77.0.1", "fd00:77::1"];

/// Only the empire calls the backend.
const EMPIRE_ONLY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: empire-only, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {org: empire}}]
    toPorts: [{ports: [{port: '8080'}]}]
";

/// A node, a workload behind service 1, and one that forges.
struct Scene {
    node: Node,
    web: Workload,
    rebel: Workload,
    /// The rebel's host-side veth: in a flow, what cannot lie.
    interface: String,
}

impl Scene {
    fn new() -> Self {
        let node = Node::up();
        let web = witness(&node, "web", WEB);
        let rebel = asker(&node, "rebel", &["org=alliance"]);
        node.apply("web.yaml", &service("web", 1, ""));
        let view = node.json(&["endpoint", "get", "rebel"]);
        let interface = view["endpoint"]["interface"].as_str().unwrap().to_owned();
        Self { node, web, rebel, interface }
    }

    /// Drops for this reason of what came from the rebel's interface to this address.
    fn drops(&self, reason: &str, to: IpAddr) -> usize {
        let filter = ["--verdict", "DROPPED", "--last", "1000", "--drop-reason", reason, "-o", "json"];
        let lines = self.node.ferromesh(&[&["observe"], &filter[..]].concat()).success();
        let flows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        flows
            .filter(|flow| self.is_of_rebel(flow) && flow["destination"]["address"] == to.to_string())
            .count()
    }

    fn is_of_rebel(&self, flow: &Value) -> bool {
        flow["interface"] == self.interface.as_str()
    }

    /// What `/metrics` has on the rebel's account for this reason.
    fn counted(&self, reason: &str) -> u64 {
        let url = ["-sS", "http://127.0.0.1:9962/metrics"];
        let text = Outcome::of(self.node.inside("curl").args(url)).success();
        let labels = [format!("reason=\"{reason}\""), "endpoint=\"default/rebel\"".to_owned()];
        text.lines()
            .filter(|line| line.contains("_drop_total{") && labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// The rebel sends the case; it must be dropped for `reason`, as one to `seen`.
    #[track_caller]
    fn forge(&self, case: &Case, to: IpAddr, from: Option<IpAddr>, reason: &str, seen: IpAddr) {
        let before = self.drops(reason, seen);
        let mut forge = self.node.beside("rebel", binary("probe"));
        forge.args(["forge", case.name, &to.to_string()]).args(from.map(|from| from.to_string()));
        assert_eq!(Outcome::of(&mut forge).success(), "sent", "{} to {to}", case.name);
        wait_until(&format!("{} from {from:?} to {to} is dropped: {reason}", case.name), || {
            self.drops(reason, seen) > before
        });
    }

    /// Tells every packet that the backend sees.
    fn capture(&self) -> Session {
        let capture = Session::start(self.node.beside("web", binary("probe")).args(["capture", "every"]));
        assert_eq!(capture.line(), "serving");
        capture
    }

    /// Whatever the backend has seen of the rebel, and of ports that only forged packets have, up to now.
    fn seen(&mut self, capture: &Session) -> Vec<String> {
        // The last one, to know when all have been seen.
        let end = SocketAddr::new(self.web.addresses[0], 8080);
        assert!(self.rebel.session.ask(&format!("call udp {end} 5555")).contains("heard=web "));
        let of_rebel = self.rebel.addresses.map(|address| address.to_string());
        let lines = std::iter::repeat_with(|| capture.line()).take_while(|line| !line.contains(":5555"));
        lines
            .filter(|line| line.contains(":40000") || of_rebel.iter().any(|address| line.contains(address)))
            .collect()
    }
}

#[test]
fn what_is_forged_never_reaches_a_backend_by_way_of_its_service() {
    let mut scene = Scene::new();
    let capture = scene.capture();
    let mut sent = BTreeMap::new();
    for to in vip(1).map(|vip| vip.ip()) {
        for case in CASES.iter().chain(&UNSERVED).filter(|case| case.name != "spoof") {
            let reason = case.reason_at_service(to);
            scene.forge(case, to, None, reason, to);
            *sent.entry(reason).or_insert(0) += 1;
        }
    }
    for (reason, sent) in sent {
        wait_until(&format!("{reason} is counted"), || scene.counted(reason) >= sent);
    }
    assert_eq!(scene.seen(&capture), [""; 0]);
}

#[test]
fn a_spoofed_source_calls_no_service_and_is_charged_to_the_interface() {
    let mut scene = Scene::new();
    let ally = asker(&scene.node, "ally", CLIENT);
    let capture = scene.capture();
    let spoof = Case::named("spoof").unwrap();
    let invalid = "Invalid source ip";
    for (family, vip) in vip(1).map(|vip| vip.ip()).into_iter().enumerate() {
        let (backend, gateway) = (scene.web.addresses[family], GATEWAYS[family].parse().unwrap());
        for from in [ally.addresses[family], backend, gateway] {
            scene.forge(spoof, vip, Some(from), invalid, vip);
        }
        // The VIP answers nobody but who called it, and calls nobody.
        for to in [backend, ally.addresses[family]] {
            scene.forge(spoof, to, Some(vip), invalid, to);
        }
        scene.forge(spoof, vip, Some(vip), "Invalid address", vip);
    }
    assert_eq!(scene.seen(&capture), [""; 0]);
}

#[test]
fn of_a_datagram_whose_pieces_overlap_only_the_first_reaches_a_backend() {
    let mut scene = Scene::new();
    let capture = scene.capture();
    for to in vip(1).map(|vip| vip.ip()) {
        scene.forge(&OVERLAP, to, None, OVERLAP.reason(to), to);
    }
    let first =
        |family: usize| format!("ip {} > {}", scene.rebel.addresses[family], scene.web.addresses[family]);
    let expected = [first(0), first(1)];
    assert_eq!(scene.seen(&capture), expected);
}

/// T35: an error about a call that is open, from somebody it is not about.
#[test]
fn nobody_complains_about_what_another_asked_a_service() {
    let scene = Scene::new();
    let ally = asker(&scene.node, "ally", CLIENT);
    let unrelated = "ICMP error without connection";
    for (vip, to) in vip(1).into_iter().zip(ally.addresses) {
        let backend = SocketAddr::new(scene.web.addresses[usize::from(to.is_ipv6())], 8080);
        let ask = || {
            let mut ask = scene.node.beside("ally", binary("probe"));
            Outcome::of(ask.args(["call", "udp", &vip.to_string(), "40000"])).success()
        };
        assert!(ask().contains("heard=web "));
        for about in [vip, backend] {
            let before = scene.drops(unrelated, to);
            let mut complain = scene.node.beside("rebel", binary("probe"));
            complain.args(["complain", &to.to_string(), &about.to_string()]);
            assert_eq!(Outcome::of(&mut complain).success(), "sent");
            wait_until("the complaint is dropped", || scene.drops(unrelated, to) > before);
        }
        assert!(ask().contains("heard=web "));
    }
}

/// T42: by sockets and by packets, an open connection through a service is no older right.
#[test]
fn an_open_call_ends_when_policy_no_longer_allows_it() {
    let node = Node::up();
    let _web = node.serve("web", WEB, 8080);
    node.apply("web.yaml", &service("web", 1, ""));
    let _ally = asker(&node, "ally", CLIENT);
    let hold = |mut probe: Command, vip: SocketAddr| {
        let session = Session::start(probe.args(["hold", &vip.to_string()]));
        assert_eq!(session.line(), "open");
        session
    };
    let mut held = Vec::new();
    for vip in vip(1) {
        held.push(hold(node.within("ally", binary("probe")), vip));
        held.push(hold(node.beside("ally", binary("probe")), vip));
    }
    for session in &mut held {
        assert_eq!(session.ask("before"), "answered");
    }
    node.apply("policy.yaml", EMPIRE_ONLY);
    for session in &mut held {
        assert_eq!(session.ask("after"), "silent");
    }
}

#[test]
fn a_first_packet_with_data_is_judged_by_policy_as_any_other() {
    let scene = Scene::new();
    let mut friend = asker(&scene.node, "tiefighter", &["org=empire"]);
    scene.node.apply("policy.yaml", EMPIRE_ONLY);
    let capture = scene.capture();
    let send = |workload: &str, vip: SocketAddr| {
        let mut forge = scene.node.beside(workload, binary("probe"));
        forge.args(["forge", SYN_WITH_DATA.name, &vip.ip().to_string()]);
        assert_eq!(Outcome::of(&mut forge).success(), "sent");
    };
    for vip in vip(1) {
        let before = blamed(&scene.node);
        send("rebel", vip);
        wait_until("the backend's policy denies it", || blamed(&scene.node) > before);
        send("tiefighter", vip);
    }
    let end = vip(1)[0];
    assert!(friend.session.ask(&format!("call udp {end} 5555")).contains("heard=web "));
    let seen: Vec<_> = std::iter::repeat_with(|| capture.line())
        .take_while(|line| !line.contains(":5555"))
        .filter(|line| line.contains(":40000 > "))
        .map(|line| line.split(' ').nth(1).unwrap().to_owned())
        .collect();
    for address in scene.rebel.addresses {
        assert!(!seen.contains(&SocketAddr::new(address, 40_000).to_string()), "{seen:?}");
    }
    for address in friend.addresses {
        assert!(seen.contains(&SocketAddr::new(address, 40_000).to_string()), "{seen:?}");
    }
}

/// Drops by policy of what the rebel sent to the backend.
fn blamed(node: &Node) -> usize {
    let filter = ["observe", "--pod", "default/rebel", "--drop-reason", "Policy denied", "--last", "1000"];
    let lines = node.ferromesh(&filter).success();
    let ends = "default/web:8080";
    lines.lines().filter(|line| line.contains(ends)).count()
}

#[test]
fn a_flood_of_first_packets_at_a_service_hurts_only_its_sender() {
    let scene = Scene::new();
    let node = &scene.node;
    let mut ally = asker(node, "ally", CLIENT);
    for vip in vip(1) {
        let probe = binary("probe");
        let (to, before) = (vip.ip().to_string(), scene.counted("Connection quota exceeded"));
        let flood = Outcome::of(node.beside("rebel", &probe).args(["syn-flood", &to, "60000"]));
        assert_eq!(flood.success(), "flooded");
        wait_until("the quota is reported", || scene.counted("Connection quota exceeded") > before);
        for how in ["tcp", "udp", "unconnected"] {
            let said = ally.session.ask(&format!("call {how} {vip}"));
            assert!(said.contains("heard=web "), "{how} {vip}: {said}");
            let said = call(&mut node.beside("ally", &probe), how, vip);
            assert!(said.contains("heard=web "), "on its packets, {how} {vip}: {said}");
        }
    }
}
