//! What servers of four kinds make of what the proxy lets through: hyper, nginx, Node.js and Go, behind the real redirect, called
//! from their own node, from another and by a service. Each says what it executes; nothing of that may be anything but what
//! policy allows, as the server itself reads it and as the most gullible of readers would. Needs root, the kernel, nginx,
//! Node.js and Go.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a scenario that cannot go on has failed")]

mod cases;
mod frames;
mod read;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use conformance::lab::{Mesh, Node, Outcome, Workload, binary, wait_until};

use self::cases::{Case, Expected};

/// Everybody may read `/public`, send to `/upload`, and what else the cases are about; nothing else.
const RULES: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: origins, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: origin}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}, {port: "81", protocol: TCP}]
      rules:
        http:
        - {method: GET, path: "/public(/.*)?(\\?.*)?"}
        - {method: POST, path: /upload}
        - {method: GET, path: /role, headers: ["X-Role: user"]}
        - {method: GET, path: /host, host: "good(:80)?"}
---
apiVersion: v1
kind: Service
metadata: {name: origins, namespace: default}
spec:
  selector: {app: origin}
  clusterIP: 10.78.1.9
  ports: [{name: one, port: 80}, {name: two, port: 81}]
"#;
/// The service's address.
const SERVICE: &str = "10.78.1.9";
/// Streams of bytes made up for each kind of server.
const MADE_UP: usize = 400;

struct Scene {
    mesh: Mesh,
    origin: Workload,
    _clients: [Workload; 2],
    marks: usize,
    /// Names of the trailers that the server has been sent.
    trailers: BTreeSet<String>,
}

/// Where a call comes from and where it goes: node of the client, and what it calls.
type Way = (usize, IpAddr);

impl Scene {
    /// With a server that this command starts.
    fn with(command: &[&str]) -> Self {
        let mesh = Mesh::up(2, "");
        mesh.place("origin", &["app=origin"], 1);
        mesh.place("far", &["app=client"], 0);
        mesh.place("near", &["app=client"], 1);
        let origin = mesh.nodes[1].start("origin", &[], command);
        let probe = binary("probe");
        let clients = [("far", 0), ("near", 1)]
            .map(|(name, node)| mesh.nodes[node].start(name, &[], &[probe.to_str().unwrap(), "ask"]));
        wait_until("the first node knows the server", || {
            let list = mesh.nodes[0].ferromesh(&["ip", "list", "-o", "json"]).stdout;
            origin.addresses.iter().all(|address| list.contains(&address.to_string()))
        });
        mesh.apply("origins.yaml", RULES);
        wait_until("the proxy has its rules", || {
            let status = mesh.nodes[1].json(&["status"]);
            status["l7"].is_object() && status["l7"]["problem"].is_null()
        });
        Self { mesh, origin, _clients: clients, marks: 0, trailers: BTreeSet::new() }
    }

    fn ways(&self) -> [Way; 3] {
        let [ipv4, ipv6] = self.origin.addresses;
        [(1, ipv4), (0, ipv6), (0, SERVICE.parse().unwrap())]
    }

    /// Says all of it to the server, and returns the answers.
    fn say(&self, (node, address): Way, port: u16, said: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let name = ["far", "near"][node];
        let node: &Node = &self.mesh.nodes[node];
        let mut probe = node.within(name, binary("probe"));
        probe.arg("speak").arg(SocketAddr::new(address, port).to_string());
        let mut child = probe.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines: String = said.iter().map(|bytes| hexadecimal(bytes) + "\n").collect();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let mut lines = output.lines();
        assert_eq!(lines.next(), Some("open"));
        let answers: Vec<Vec<u8>> = lines.map(bytes).collect();
        assert_eq!(answers.len(), said.len(), "{output}");
        answers
    }

    /// What the server has executed up to now: what is asked last comes out last.
    fn executed(&mut self, way: Way) -> Vec<read::Executed> {
        self.marks += 1;
        let mark = format!("/public/mark-{}", self.marks);
        let asked = format!("GET {mark} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let [answer] = self.say(way, 80, &[asked.into_bytes()]).try_into().unwrap();
        assert_eq!(read::status(&answer), Some(200), "what may pass passes");
        let mut executed = Vec::new();
        loop {
            let line = self.origin.session.line();
            self.trailers.extend(read::trailer(&line).map(str::to_owned));
            let Some(one) = read::Executed::of(&line) else { continue };
            if one.target == mark {
                return executed;
            }
            executed.push(one);
        }
    }

    /// Each case has its outcome, and the server has executed nothing else than policy allows.
    fn judge(&mut self, cases: &[Case], port: u16, expected: impl Fn(&Expected, &[u8]) -> bool) {
        let said: Vec<Vec<u8>> = cases.iter().map(|case| case.bytes.clone()).collect();
        for way in self.ways() {
            let answers = self.say(way, port, &said);
            for (case, answer) in cases.iter().zip(&answers) {
                let shown = answer.escape_ascii();
                assert!(
                    expected(&case.expected, answer),
                    "{} by {way:?}: {:?}: {shown}",
                    case.name,
                    case.expected
                );
            }
            self.is_allowed(way);
        }
    }

    fn is_allowed(&mut self, way: Way) {
        let executed = self.executed(way);
        assert!(!executed.is_empty(), "some of it passes");
        for one in &executed {
            assert!(one.is_allowed(), "by {way:?}: {one:?}");
        }
    }
}

/// All that has one reading passes with it, all that has none is refused, whatever the server would make of it.
fn holds(command: &[&str], trailers: Trailers) {
    let mut scene = Scene::with(command);
    scene.judge(&cases::plain(), 80, |expected, answer| match expected {
        Expected::Status(status) => read::status(answer) == Some(*status),
        Expected::Nothing => answer.is_empty(),
        Expected::Whatever => true,
        Expected::Reset | Expected::Gone => false,
    });
    scene.judge(&frames::cases(), 81, frames::is);
    let way = scene.ways()[0];
    let made_up: [Vec<Vec<u8>>; 2] =
        [cases::made_up(0x5eed).take(MADE_UP).collect(), frames::made_up(0x5eed).take(MADE_UP).collect()];
    for (port, made_up) in [80, 81].into_iter().zip(made_up) {
        scene.say(way, port, &made_up);
        scene.is_allowed(way);
    }
    let expected: &[&str] = match trailers {
        Trailers::Said => &["x-checksum"],
        Trailers::Unknown => &[],
    };
    assert!(scene.trailers.iter().eq(expected), "{:?}", scene.trailers);
}

/// Whether a server says which trailers it is sent.
enum Trailers {
    Said,
    Unknown,
}

#[test]
fn hyper_executes_only_what_policy_allows() {
    let origin = binary("examples/origin");
    holds(&[origin.to_str().unwrap(), "80", "81"], Trailers::Said);
}

/// Its configuration goes with the command: this checkout may be below `/tmp`, of which a workload has one of its own.
#[test]
fn nginx_executes_only_what_policy_allows() {
    let serve = "echo serving; printf %s \"$1\" > /tmp/nginx.conf; exec nginx -p /tmp -c /tmp/nginx.conf";
    holds(&["sh", "-c", serve, "sh", include_str!("nginx.conf")], Trailers::Unknown);
}

/// Its script likewise.
#[test]
fn node_executes_only_what_policy_allows() {
    holds(&["node", "--input-type=module", "--eval", include_str!("origin.mjs"), "80", "81"], Trailers::Said);
}

#[test]
fn go_executes_only_what_policy_allows() {
    let directory = tempfile::tempdir().unwrap();
    let built = directory.path().join("origin");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/origins/origin.go");
    Outcome::of(Command::new("go").args(["build", "-o"]).arg(&built).arg(source)).success();
    holds(&[built.to_str().unwrap(), "80", "81"], Trailers::Said);
}

/// What comes by HTTP/2 reaches it by HTTP/1.1: in front of it is nginx, behind the proxy, which speaks to servers as it is
/// spoken to. Its ports are there when its first process ends.
#[test]
fn node_behind_a_downgrade_executes_only_what_policy_allows() {
    let serve = "printf %s \"$1\" > /tmp/nginx.conf; nginx -p /tmp -c /tmp/nginx.conf; \
                 exec node --input-type=module --eval \"$2\" 80 82";
    holds(
        &["sh", "-c", serve, "sh", include_str!("downgrade.conf"), include_str!("origin.mjs")],
        Trailers::Said,
    );
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(line: &str) -> Vec<u8> {
    let pairs = line.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map_while(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
