//! Nodes, their clocks and the network between them; everything happens at a time that the seed decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use abi::HoldKind;
use auth_agent::event::{Input, Packet, ProofId, Time};
use auth_agent::machine::{Machine, Settings};
use auth_agent::message::Message;
use mesh::auth::{AuthPlan, InstanceName};
use mesh::spiffe::SpiffeId;
use std::sync::Arc;

use crate::kernel::{Kernel, Memory};
use crate::random::Random;
use crate::tls::Certificate;
use crate::truth::Truth;

pub(crate) const MS: Time = 1_000_000;
/// After so long TCP sends again what has not got through.
pub(crate) const RETRANSMISSION: Time = 50 * MS;

/// True time when a world begins: late enough that a clock can be set back.
pub(crate) const BEGINNING: Time = 1_000_000 * MS;

/// What is to happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Tick(usize),
    Deliver(u64, usize),
    Plan(usize, u64, Arc<AuthPlan>),
    Connect(usize, usize, u64),
    Issue(usize, SpiffeId),
    Local(usize, u64, SpiffeId, SpiffeId),
    Handshake(usize, ProofId, Vec<u8>),
    Start(usize),
    /// Each second, for the driver of a node.
    Second(usize),
    /// A session of a node with another is broken.
    Broken(usize, u64, usize),
    /// A node loses one of its certificates.
    Revoke(usize),
    /// A node forgets all roots but the latest.
    ForgetRoots(usize),
    Arrive(InstanceName, InstanceName, [IpAddr; 2], Option<Memory>),
    Chaos,
    Traffic,
}

/// A TLS connection: two streams.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) ends: [usize; 2],
    pub(crate) open: [bool; 2],
    pub(crate) streams: [VecDeque<Option<Message>>; 2],
    pub(crate) last: [Time; 2],
}

/// What a handshake of the driver is at.
#[derive(Clone, Debug)]
pub(crate) struct Shake {
    pub(crate) local: SpiffeId,
    pub(crate) remote: SpiffeId,
    pub(crate) over: bool,
}

/// The node of the peer, if it is another, and both IDs, the local first.
pub(crate) type Proven = (Option<usize>, SpiffeId, SpiffeId);

/// What a driver keeps of a proof.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// Until when, by the node's clock since boot.
    pub(crate) until: Time,
    /// From when and until when in true time, as the certificates have it.
    pub(crate) from: Time,
    pub(crate) end: Time,
    /// Roots of the chains.
    pub(crate) roots: Vec<u32>,
}

/// A pair for which a mark was set.
#[derive(Clone, Debug)]
pub(crate) struct Meant {
    /// When it was set.
    pub(crate) since: Time,
    pub(crate) ends: [InstanceName; 2],
    pub(crate) endpoints: [mesh::auth::AuthEndpoint; 2],
}

/// A packet that waits.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) since: Time,
    pub(crate) kind: HoldKind,
    pub(crate) from: InstanceName,
    pub(crate) to: InstanceName,
    pub(crate) addresses: [IpAddr; 2],
    pub(crate) source_memory: Option<Memory>,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) machine: Option<Machine>,
    /// How often it was started; what belongs to an earlier start is nobody's.
    pub(crate) starts: u64,
    pub(crate) kernel: Kernel,
    pub(crate) skew: i64,
    pub(crate) offset: Time,
    /// The whole node sleeps until then.
    pub(crate) asleep: Time,
    /// The auth-agent is dead, or asleep, or has been, up to then.
    pub(crate) down: Time,
    pub(crate) plans: u64,
    /// The plan that its machine has.
    pub(crate) plan: Option<Arc<AuthPlan>>,
    /// Since when the authority reaches it again.
    pub(crate) fresh: Time,
    pub(crate) given: u64,
    pub(crate) last_plan: Time,
    /// What it believes of other nodes' endpoints, while the authority does not reach it.
    pub(crate) stale: Option<BTreeMap<InstanceName, mesh::auth::AuthEndpoint>>,
    pub(crate) wanted: BTreeSet<SpiffeId>,
    pub(crate) certificates: BTreeMap<SpiffeId, Certificate>,
    pub(crate) roots: Vec<u32>,
    pub(crate) shakes: BTreeMap<ProofId, Shake>,
    /// What its driver has seen proven.
    pub(crate) proven: BTreeMap<Proven, Kept>,
    /// What it has said to be proven no more, and its latest epoch by then; of this start of its auth-agent.
    pub(crate) lost: BTreeMap<Proven, u64>,
    /// The same for certificates of its workloads that were taken away.
    pub(crate) revoked: BTreeMap<SpiffeId, u64>,
    /// How far its wall clock is off, and when it was set last.
    pub(crate) wall: i64,
    pub(crate) set: Time,
    /// Its driver has not noticed that yet.
    pub(crate) is_set: bool,
    pub(crate) meant: BTreeMap<u64, Meant>,
    pub(crate) numbers: BTreeMap<u32, u64>,
    pub(crate) held: BTreeMap<Packet, Held>,
    pub(crate) tick: Time,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) truth: Truth,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: BTreeMap<u64, Link>,
    pub(crate) events: BTreeMap<(Time, u64), Event>,
    pub(crate) serial: u64,
    /// Pairs of nodes that cannot reach each other, and when they last could not.
    pub(crate) cut: BTreeSet<[usize; 2]>,
    pub(crate) disturbed: BTreeMap<[usize; 2], Time>,
    /// Longest time a message takes, and a plan.
    pub(crate) delay: Time,
    pub(crate) lag: Time,
    pub(crate) root: u32,
    pub(crate) no_ca: bool,
    /// Certificates that a node has lost: when.
    pub(crate) revoked: BTreeMap<(usize, SpiffeId), Time>,
    /// A node that lies.
    pub(crate) traitor: Option<usize>,
    pub(crate) quiet: bool,
    pub(crate) connections: Vec<Connection>,
    pub(crate) marked_pairs: BTreeSet<(usize, InstanceName, InstanceName)>,
    pub(crate) delivered: u64,
    pub(crate) released: u64,
    pub(crate) log: Vec<String>,
}

/// A connection through both kernels, and the mark it depends on at each end whose policy asks for one.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) ends: [InstanceName; 2],
    pub(crate) memory: [Option<Memory>; 2],
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ 0xfe44);
        let count = random.between(2, 5) as usize;
        let addresses = random.between(2, 5) as u8;
        let nodes = (0..count)
            .map(|_| Node {
                machine: None,
                starts: 0,
                kernel: Kernel::default(),
                skew: random.between(0, 41) as i64 - 20,
                offset: random.between(0, 1_000_000) * MS,
                asleep: 0,
                down: 0,
                plans: 0,
                plan: None,
                fresh: 0,
                given: 0,
                last_plan: 0,
                stale: None,
                wanted: BTreeSet::new(),
                certificates: BTreeMap::new(),
                roots: vec![0],
                shakes: BTreeMap::new(),
                proven: BTreeMap::new(),
                lost: BTreeMap::new(),
                revoked: BTreeMap::new(),
                wall: 0,
                set: 0,
                is_set: false,
                meant: BTreeMap::new(),
                numbers: BTreeMap::new(),
                held: BTreeMap::new(),
                tick: 0,
            })
            .collect();
        let delay = [2, 20, 120][random.between(0, 3) as usize] * MS;
        let lag = [1, 50, 300][random.between(0, 3) as usize] * MS;
        Self {
            now: BEGINNING,
            truth: Truth::new(count, addresses),
            nodes,
            links: BTreeMap::new(),
            events: BTreeMap::new(),
            serial: 0,
            cut: BTreeSet::new(),
            disturbed: BTreeMap::new(),
            delay,
            lag,
            root: 0,
            no_ca: false,
            revoked: BTreeMap::new(),
            traitor: None,
            quiet: false,
            connections: Vec::new(),
            marked_pairs: BTreeSet::new(),
            delivered: 0,
            released: 0,
            random,
            log: Vec::new(),
        }
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if std::env::var_os("SIMULATION_LOG").is_some() {
            let line = format!("{:>10.3} {}", self.now as f64 / 1e6, text());
            self.log.push(line);
        }
    }

    /// CLOCK_BOOTTIME of a node: its own beginning, and a little fast or slow.
    pub(crate) fn clock(&self, node: usize, at: Time) -> Time {
        let node = &self.nodes[node];
        node.offset + (at as i64 + at as i64 / 1_000 * node.skew) as Time
    }

    /// What the wall clock of a node shows.
    pub(crate) fn wall(&self, node: usize) -> Time {
        self.now.saturating_add_signed(self.nodes[node].wall)
    }

    /// When a certificate that ends then has ended, by its wall clock as it is set now, in time since boot.
    pub(crate) fn end(&self, node: usize, end: Time) -> Time {
        self.clock(node, end.saturating_add_signed(-self.nodes[node].wall))
    }

    pub(crate) fn later(&mut self, wait: Time, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + wait, self.serial), event);
    }

    pub(crate) fn pair(a: usize, b: usize) -> [usize; 2] {
        [a.min(b), a.max(b)]
    }

    pub(crate) fn disturb(&mut self, a: usize, b: usize) {
        let now = self.now;
        self.disturbed.insert(Self::pair(a, b), now);
    }

    /// Since when two nodes could talk to each other without a break, and what they said before has arrived; in the future
    /// if they cannot now.
    pub(crate) fn calm_since(&self, a: usize, b: usize) -> Time {
        let up = |n: usize| {
            let node = &self.nodes[n];
            if node.machine.is_none() { Time::MAX / 2 } else { node.down.max(node.asleep) }
        };
        if self.cut.contains(&Self::pair(a, b)) {
            return Time::MAX / 2;
        }
        let links = self.links.values().any(|link| {
            Self::pair(link.ends[0], link.ends[1]) == Self::pair(a, b) && link.open == [true, true]
        });
        if !links {
            return Time::MAX / 2;
        }
        let disturbed = self.disturbed.get(&Self::pair(a, b));
        // TCP sends again what was cut off, and the rest behind it.
        let caught_up = disturbed.map_or(0, |disturbed| disturbed + RETRANSMISSION + self.delay);
        up(a).max(up(b)).max(caught_up)
    }

    /// Starts a node's auth-agent on what the maps hold.
    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].machine.is_some() {
            return;
        }
        let now = self.clock(node, self.now);
        let state = &mut self.nodes[node];
        state.starts += 1;
        state.down = self.now;
        let incarnation = (node as u64 + 1) << 32 | state.starts;
        state.machine = Some(Machine::new(Settings::new(incarnation), state.kernel.leave(), now));
        self.note(|| format!("{node} starts"));
        self.later(1_000 * MS, Event::Second(node));
        self.give(node, Input::Tick);
        self.tell_plan(node);
    }

    /// Sends a node the plan as of now; it comes later.
    pub(crate) fn tell_plan(&mut self, node: usize) {
        let mut plan = self.truth.plan(node);
        if let Some(stale) = &self.nodes[node].stale {
            Arc::make_mut(&mut plan).remotes = stale.clone();
        }
        let wait = self.random.between(0, self.lag);
        let state = &mut self.nodes[node];
        state.plans += 1;
        let number = state.plans;
        // Plans come in their order.
        let at = (self.now + wait).max(state.last_plan + 1);
        state.last_plan = at;
        let wait = at - self.now;
        self.later(wait, Event::Plan(node, number, plan));
    }

    pub(crate) fn tell_plans(&mut self) {
        for node in 0..self.nodes.len() {
            self.tell_plan(node);
        }
    }

    /// The first plan after a restart: a mark that is found means whoever has been proven, under the labels of now.
    pub(crate) fn mean_anew(&mut self, node: usize, plan: &AuthPlan) {
        for meant in self.nodes[node].meant.values_mut() {
            for (name, end) in meant.ends.iter().zip(&mut meant.endpoints) {
                let own = plan.endpoints.get(&name.instance).filter(|_| name.node == plan.node);
                let now = own.or_else(|| plan.remotes.get(name));
                if let Some(now) = now.filter(|now| now.id == end.id && now.addresses() == end.addresses()) {
                    *end = now.clone();
                }
            }
        }
    }

    /// The auth-agent of a node dies; the maps stay.
    pub(crate) fn kill(&mut self, node: usize) {
        let now = self.now;
        let state = &mut self.nodes[node];
        if state.machine.take().is_none() {
            return;
        }
        state.down = now;
        state.shakes.clear();
        state.certificates.clear();
        state.wanted.clear();
        state.proven.clear();
        state.lost.clear();
        state.revoked.clear();
        state.plan = None;
        state.held.clear();
        self.note(|| format!("{node} dies"));
        let links: Vec<u64> =
            self.links.iter().filter(|(_, link)| link.ends.contains(&node)).map(|(id, _)| *id).collect();
        for link in links {
            self.end_link(link, node);
        }
    }

    /// One side closes a session.
    pub(crate) fn end_link(&mut self, id: u64, by: usize) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let side = usize::from(link.ends[1] == by);
        if !std::mem::replace(&mut link.open[side], false) {
            return;
        }
        let [a, b] = link.ends;
        link.streams[side].push_back(None);
        self.disturb(a, b);
        self.schedule(id, side);
    }

    /// The next message of a stream comes some time after the one before it.
    pub(crate) fn schedule(&mut self, id: u64, side: usize) {
        let wait = self.random.between(MS / 10, self.delay);
        let (now, Some(link)) = (self.now, self.links.get_mut(&id)) else {
            return;
        };
        let at = (now + wait).max(link.last[side] + 1);
        link.last[side] = at;
        self.later(at - now, Event::Deliver(id, side));
    }

    /// Gives a machine an input and does what it wants.
    pub(crate) fn give(&mut self, node: usize, input: Input) {
        let now = self.clock(node, self.now);
        let Some(machine) = &mut self.nodes[node].machine else {
            return;
        };
        let outputs = machine.handle(now, input.clone());
        let wake = machine.next_wake();
        if let Input::Plan(_, plan) = &input {
            self.nodes[node].plan = Some(plan.clone());
        }
        // It may die between any two things that it does.
        let dies = !self.quiet && self.random.one_in(20_000);
        let count =
            if dies { self.random.between(0, outputs.len() as u64 + 1) as usize } else { outputs.len() };
        for output in outputs.into_iter().take(count) {
            self.act(node, &input, output);
        }
        if dies {
            self.kill(node);
            let wait = self.random.between(1, 2_000) * MS;
            return self.later(wait, Event::Start(node));
        }
        let Some(wake) = wake else {
            return;
        };
        let wait = (wake.saturating_sub(now) / 1_000 * 1_025).max(1_000);
        let at = self.now + wait;
        let tick = self.nodes[node].tick;
        if tick <= self.now || at < tick {
            self.nodes[node].tick = at;
            self.later(wait, Event::Tick(node));
        }
    }
}
