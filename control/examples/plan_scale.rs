//! What an edit costs the control plane: `cargo run -p control --example plan_scale -- [WORKLOADS [POLICIES [LOCAL]]]`.
//!
//! Writes a directory of one object a file (workloads of another node, policies, a few services), plans it for a node
//! with some endpoints of its own, then edits it in several ways. Prints for each edit the processor time of this
//! thread, so that a busy machine changes little: `read` is from the event to the new world (the wait for the end of
//! the burst costs no processor time), `plan` is planning, `save` is what is made durable before the kernel is told,
//! `keep` what is made durable after it.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use control::allocate::Allocator;
use control::source::files::Directory;
use control::{NodeFacts, Planned, Planner, Present, World};
use mesh::labels::LabelSet;
use mesh::plan::NodePlan;
use mesh::workload::{Endpoint, EndpointId, Mac, WorkloadName};

type Failure = Box<dyn Error>;

/// How many of each.
#[derive(Clone, Copy)]
struct Size {
    workloads: usize,
    policies: usize,
    local: usize,
    services: usize,
}

type Edit = fn(&Path, usize) -> std::io::Result<()>;

/// The edits, and what each does to the directory in its n-th round.
const EDITS: [(&str, Edit); 6] = [
    ("one selector", |path, round| {
        let (name, policy) = local(42, 7 + round);
        fs::write(path.join(name), policy)
    }),
    ("relabel, 100 rulesets", |path, round| {
        let team = if round.is_multiple_of(2) { "red" } else { "blue" };
        fs::write(path.join("workload-4242.yaml"), workload(4242, team))
    }),
    ("relabel, no ruleset", |path, round| {
        fs::write(path.join("workload-5555.yaml"), workload(5555, &format!("shade-{round}")))
    }),
    ("subject {}, one peer", |path, round| {
        let app = format!("{{app: app-{}}}", round % 7);
        fs::write(path.join("everyone.yaml"), clusterwide("everyone", "{}", &app, 8000 + round))
    }),
    ("subject {}, peer {}", |path, round| match round.is_multiple_of(2) {
        true => fs::write(path.join("all.yaml"), clusterwide("all", "{}", "{}", 9000 + round)),
        false => fs::remove_file(path.join("all.yaml")),
    }),
    ("one service", |path, round| fs::write(path.join("service-3.yaml"), service(3, 8080 + round))),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let mut number = |default: usize| numbers.next().transpose().map(|number| number.unwrap_or(default));
    let size = Size {
        workloads: number(10_000)?,
        policies: number(5_000)?,
        local: number(100)?,
        services: number(0)?,
    };
    let directory = tempfile::tempdir()?;
    let state = tempfile::tempdir()?;
    write(directory.path(), size)?;
    println!("{:<22} {:>8} {:>8} {:>8} {:>8}   ms of processor time", "edit", "read", "plan", "save", "keep");

    let before = cpu();
    let mut source = Directory::open(directory.path(), state.path(), None)?;
    let read = since(before);
    let mut node = Node::new(state.path(), size)?;
    let world = source.world();
    assert_eq!(world.invalid(), 0, "{:?}", world.statuses.iter().find(|status| !status.valid));
    let times = node.edit(&world)?;
    row("from nothing", [read, times[0], times[1], Duration::ZERO]);
    for (name, edit) in EDITS {
        let mut all = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for round in 0..6 {
            // What the last round left to be made durable.
            let before = cpu();
            let early = tokio::time::timeout(Duration::from_millis(30), source.changed()).await;
            let keep = since(before);
            if let Ok(world) = early {
                node.edit(&world)?;
            }
            edit(directory.path(), round)?;
            let before = cpu();
            let world = source.changed().await;
            let read = since(before);
            let [plan, save] = node.edit(&world)?;
            for (all, time) in all.iter_mut().zip([read, plan, save, keep]) {
                all.push(time);
            }
        }
        // The first round may meet what is not known yet.
        row(name, all.map(|times| times.into_iter().skip(1).max().unwrap_or_default()));
    }
    Ok(())
}

fn row(name: &str, times: [Duration; 4]) {
    let mut text = format!("{name:<22}");
    for time in times {
        let _ = write!(text, " {:>8.2}", time.as_secs_f64() * 1e3);
    }
    println!("{text}");
}

struct Node {
    planner: Planner,
    allocator: Allocator,
    facts: NodeFacts,
    endpoints: Vec<Endpoint>,
    planned: Option<Planned>,
}

impl Node {
    fn new(state: &Path, size: Size) -> Result<Self, Failure> {
        let facts = NodeFacts {
            name: "here".to_owned(),
            addresses: vec!["192.0.2.1/32".parse()?],
            ipv4_pool: "10.217.0.0/16".parse()?,
            ipv6_pool: "fd00:217::/64".parse()?,
            masquerade_ports: 1..=2,
        };
        let endpoints = (0..size.local).map(endpoint).collect::<Result<_, _>>()?;
        let allocator = Allocator::open(state)?;
        Ok(Self { planner: Planner::default(), allocator, facts, endpoints, planned: None })
    }

    /// Times of planning and of saving.
    fn edit(&mut self, world: &World) -> Result<[Duration; 2], Failure> {
        let earlier: Option<&NodePlan> = self.planned.as_ref().map(|planned| planned.plan.as_ref());
        let leaving = BTreeSet::new();
        let present = Present { endpoints: &self.endpoints, leaving: &leaving, plan: earlier };
        let before = cpu();
        let planned = self.planner.plan(world, present, &self.facts, &mut self.allocator)?;
        let plan = since(before);
        let before = cpu();
        self.allocator.save(SystemTime::now())?;
        let save = since(before);
        self.planned = Some(planned);
        Ok([plan, save])
    }
}

fn endpoint(number: usize) -> Result<Endpoint, Failure> {
    let id = u16::try_from(number + 1)?;
    let [high, low] = id.to_be_bytes();
    Ok(Endpoint {
        id: EndpointId::new(id).ok_or("zero")?,
        instance: u64::from(id),
        workload: WorkloadName {
            namespace: format!("namespace-{}", number % 100),
            name: format!("local-{number}"),
        },
        labels: format!("local=local-{number},app=app-{}", number % 20).parse::<LabelSet>()?,
        service_account: "default".to_owned(),
        interface: format!("veth{number}"),
        ifindex: u32::from(id),
        mac: Mac([2, 0, 0, 0, high, low]),
        gateway_mac: Mac([2, 0, 0, 1, high, low]),
        ipv4: [10, 217, high, low].into(),
        ipv6: format!("fd00:217::{id:x}").parse()?,
    })
}

fn write(path: &Path, size: Size) -> std::io::Result<()> {
    for number in 0..size.workloads {
        fs::write(path.join(format!("workload-{number}.yaml")), workload(number, "green"))?;
    }
    for number in 0..size.policies {
        let (name, policy) =
            if number < size.local { local(number, number) } else { policy(number, number * 7) };
        fs::write(path.join(name), policy)?;
    }
    for number in 0..size.services {
        fs::write(path.join(format!("service-{number}.yaml")), service(number, 8080))?;
    }
    Ok(())
}

/// A hundred namespaces of a hundred workloads, each with labels of its own.
fn workload(number: usize, team: &str) -> String {
    let (app, namespace) = (number % 20, number / 100);
    format!(
        "apiVersion: ferromesh.io/v1alpha1
kind: Workload
metadata:
  name: workload-{number}
  namespace: namespace-{namespace}
  labels:
    app: app-{app}
    app.kubernetes.io/part-of: shop
    pod: pod-{number}
    team: {team}
spec:
  node: elsewhere
  ports:
    - name: web
      port: {}
",
        8080 + number % 3
    )
}

/// About an app of its namespace, for another one.
fn policy(number: usize, peer: usize) -> (String, String) {
    let text = format!(
        "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: policy-{number}
  namespace: namespace-{}
spec:
  endpointSelector:
    matchLabels:
      app: app-{}
  ingress:
    - fromEndpoints:
        - matchLabels:
            app: app-{}
      toPorts:
        - ports:
            - port: \"{}\"
              protocol: TCP
  egress:
    - toCIDR:
        - 10.{}.{}.0/24
",
        number / 50,
        number % 20,
        peer % 20,
        80 + number % 50,
        number / 256 % 200,
        number % 256,
    );
    (format!("policy-{number}.yaml"), text)
}

/// About one endpoint of this node, for a team wherever it is.
fn local(number: usize, app: usize) -> (String, String) {
    let text = format!(
        "apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata:
  name: local-{number}
spec:
  endpointSelector:
    matchLabels:
      local: local-{number}
  ingress:
    - fromEndpoints:
        - matchLabels:
            team: red
        - matchLabels:
            app: app-{}
            io.kubernetes.pod.namespace: namespace-{}
      toPorts:
        - ports:
            - port: \"{}\"
              protocol: TCP
",
        app % 20,
        number % 100,
        1000 + number,
    );
    (format!("local-{number}.yaml"), text)
}

fn clusterwide(name: &str, subject: &str, peer: &str, port: usize) -> String {
    let peer = if peer == "{}" { "{}".to_owned() } else { format!("{{matchLabels: {peer}}}") };
    format!(
        "apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {{name: {name}}}
spec:
  endpointSelector: {subject}
  ingress:
    - fromEndpoints: [{peer}]
      toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]
"
    )
}

fn service(number: usize, port: usize) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: service-{number}, namespace: namespace-{}}}
spec:
  selector: {{app: app-{}}}
  ports: [{{port: 80, targetPort: {port}}}]
",
        number % 100,
        number % 20
    )
}

/// Processor time of this thread; where the kernel does not count it, time.
fn cpu() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let counted = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let first = counted.and_then(|text| text.split(' ').next()?.parse().ok());
    first.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

fn since(before: Duration) -> Duration {
    cpu().saturating_sub(before)
}
