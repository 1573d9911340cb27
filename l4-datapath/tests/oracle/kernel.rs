//! The kernel's side: plans written by [`Datapath::apply`] into pinned maps, programs loaded against the same maps.

use abi::{Connection, ConnectionKey4, ConnectionKey6, DropReason, Event, map};
use aya::maps::{Array, HashMap, Map, MapData, RingBuf};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};
use l4_datapath::{Datapath, Options, Sizes};
use mesh::identity::Identity;
use mesh::policy::protocol;
use mesh::workload::{Endpoint, EndpointId};

use super::answer::{Refusal, Told};
use super::frame::{self, ACK, Ends, SYN};
use super::run::{self, Context, OK, REDIRECT, SHOT};
use super::scene::{Call, Scene};
use super::support::{PinRoot, endpoint};

/// Endpoints that any scene can have.
const ENDPOINTS: u16 = 24;
/// Some device that is neither a workload's nor the loopback.
const ELSEWHERE: u32 = 77;

/// Datapath and programs. Fields in the order in which they must go.
pub(crate) struct Kernel {
    pub(crate) datapath: Datapath,
    pub(crate) programs: Programs,
    _root: PinRoot,
}

/// The programs, on the maps of a datapath.
pub(crate) struct Programs {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
}

/// Which packet of a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Which {
    First,
    Later,
    Reply,
}

impl Kernel {
    /// In a network namespace of the calling thread's own, with a device for each endpoint.
    pub(crate) fn new() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
        for number in 1..=ENDPOINTS {
            let Endpoint { interface, ifindex, .. } = endpoint(number);
            let (index, peer) = (ifindex.to_string(), format!("fmpod{number}"));
            let mut add = std::process::Command::new("ip");
            add.args(["link", "add", &interface, "index", &index, "type", "veth", "peer", "name", &peer]);
            assert!(add.status().expect("ip").success(), "{interface}");
        }
        let root = PinRoot::new();
        let sizes = Sizes { rules: 1 << 18, connections: 1 << 13, ..root.options().sizes };
        let (datapath, _) = Datapath::open(&Options { sizes, ..root.options() }).unwrap();
        let mut loader = EbpfLoader::new();
        for spec in maps::specs(&sizes) {
            loader.map_max_entries(spec.name, spec.entries);
            loader.map_pin_path(spec.name, root.path().join(format!("v{}/maps/{}", abi::SCHEMA, spec.name)));
        }
        let mut ebpf = loader.load(run::OBJECT).expect("the object loads");
        for name in ["from_pod", "to_pod"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let events = RingBuf::try_from(ebpf.take_map(map::EVENTS).unwrap()).unwrap();
        Self { datapath, programs: Programs { ebpf, events }, _root: root }
    }

    /// Brings the scene into force.
    pub(crate) fn apply(&mut self, scene: &Scene) {
        self.datapath.apply(&scene.plan).unwrap();
    }

    /// Nothing is established any more, and nobody charged for it.
    pub(crate) fn forget_connections(&mut self) {
        forget::<ConnectionKey4>(self.programs.ebpf.map_mut(map::CONNECTIONS4).unwrap());
        forget::<ConnectionKey6>(self.programs.ebpf.map_mut(map::CONNECTIONS6).unwrap());
        let mut usage: Array<_, u64> = self.programs.ebpf.map_mut(map::USAGE).unwrap().try_into().unwrap();
        for number in 1..=ENDPOINTS {
            usage.set(number.into(), 0, 0).unwrap();
        }
    }

    /// Rulesets in force: ingress, egress.
    pub(crate) fn ruleset_ids(&self, endpoint: EndpointId) -> (u32, u32) {
        self.datapath.ruleset_ids(endpoint).expect("planned endpoints have rulesets")
    }

    /// Sends one packet of a call through the program that would see it: its verdict, and what it told.
    pub(crate) fn send(&mut self, scene: &Scene, call: &Call, which: Which) -> (u32, Vec<Told>) {
        let Passage { program, ifindex, context, frame } = Passage::of(scene, call, which);
        let outcome = run::run(self.programs.program(program), ifindex, context, &frame);
        let attribution = self.datapath.attribution();
        let events = run::events(&mut self.programs.events);
        (outcome.verdict, events.iter().map(|event| Told::by(event, &attribution)).collect())
    }
}

impl Programs {
    /// Sends the first packet of a call again and again, so that a program runs nearly all of the time.
    pub(crate) fn send_often(&mut self, scene: &Scene, call: &Call) -> Vec<Event> {
        let Passage { program, ifindex, context, frame } = Passage::of(scene, call, Which::First);
        let input = run::skb(ifindex, context);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.ctx_in = Some(&input);
        options.repeat = 100;
        self.program(program).test_run(options).expect("the kernel runs the program");
        run::events(&mut self.events)
    }

    fn program(&self, name: &str) -> &SchedClassifier {
        self.ebpf.program(name).unwrap().try_into().unwrap()
    }
}

/// A packet at the hook that would see it.
struct Passage {
    program: &'static str,
    ifindex: u32,
    context: Context,
    frame: Vec<u8>,
}

impl Passage {
    fn of(scene: &Scene, call: &Call, which: Which) -> Self {
        let (sender, receiver) =
            if which == Which::Reply { (call.to, call.from) } else { (call.from, call.to) };
        if let Some(own) = scene.endpoint(sender) {
            let frame = packet(call, which, (own.mac.0, own.gateway_mac.0));
            return Self { program: "from_pod", ifindex: own.ifindex, context: Context::default(), frame };
        }
        let own = scene.endpoint(receiver).expect("calls have a local end");
        // The node's address is believed only of what the node made.
        let made_here = scene.party(sender).identity == Identity::HOST;
        let ingress_ifindex = if made_here { 0 } else { ELSEWHERE };
        let context = Context { ingress_ifindex, ..Context::default() };
        let frame = packet(call, which, (own.gateway_mac.0, own.mac.0));
        Self { program: "to_pod", ifindex: own.ifindex, context, frame }
    }
}

/// The verdict of a program that lets pass (or not) this packet. Who can prove nothing is answered.
pub(crate) fn verdict(scene: &Scene, call: &Call, judged: Result<(), Refusal>) -> u32 {
    let between_pods = scene.endpoint(call.from).is_some() && scene.endpoint(call.to).is_some();
    match (judged, between_pods) {
        (Err(Refusal { reason: DropReason::NoPrincipal | DropReason::ProxyToHost, .. }), _)
        | (Ok(()), true) => REDIRECT,
        (Err(_), _) => SHOT,
        (Ok(()), false) => OK,
    }
}

fn packet(call: &Call, which: Which, macs: ([u8; 6], [u8; 6])) -> Vec<u8> {
    let (mut addresses, mut ports) = (call.addresses, (call.own_port, call.port));
    if which == Which::Reply {
        (addresses, ports) = ((addresses.1, addresses.0), (ports.1, ports.0));
    }
    let ends = Ends { macs, addresses };
    let flags = match which {
        Which::First => SYN,
        Which::Later => ACK,
        Which::Reply => SYN | ACK,
    };
    match call.protocol {
        protocol::TCP => frame::tcp(ends, ports, flags),
        protocol::UDP => frame::udp(ends, ports, b"data"),
        protocol::SCTP => frame::sctp(ends, ports),
        _ => frame::echo(ends, which != Which::Reply, call.own_port),
    }
}

fn forget<K: aya::Pod>(map: &mut Map) {
    let mut connections: HashMap<_, K, Connection> = map.try_into().unwrap();
    for key in connections.keys().map(Result::unwrap).collect::<Vec<_>>() {
        connections.remove(&key).unwrap();
    }
}
