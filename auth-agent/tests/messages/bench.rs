//! A machine of one node, what it is given, and how its outputs are read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use abi::{HoldKind, Mark, PairKey};
use auth_agent::event::{Input, Output, Packet, ProofId, SessionId, Time};
use auth_agent::machine::{Adopted, Machine, Settings};
use auth_agent::message::{Attestation, Message, VERSION};
use mesh::auth::{AuthEndpoint, AuthNode, AuthPlan, IdentityPair, InstanceName};
use mesh::identity::Identity;
use mesh::spiffe::{SpiffeId, TrustDomain};
use node_api::auth::FromAuthAgent;

pub(crate) const SECOND: Time = 1_000_000_000;
pub(crate) const SESSION: SessionId = SessionId(1);
pub(crate) const NEXT: SessionId = SessionId(2);

/// Milliseconds; of both nodes.
pub(crate) const GRACE: u64 = 10_000;

pub(crate) fn domain() -> TrustDomain {
    "test.example".parse().expect("a trust domain")
}

pub(crate) fn id(account: &str) -> SpiffeId {
    domain().workload("ns", account).expect("an ID")
}

pub(crate) fn endpoint(account: &str, identity: u32, node: u8, octet: u8) -> AuthEndpoint {
    AuthEndpoint {
        workload: format!("ns/{account}").parse().expect("a workload"),
        id: id(account),
        identity: Identity::new(identity).expect("not zero"),
        ipv4: [10, 0, node, octet].into(),
        ipv6: [0xfd00, 0, 0, u16::from(node), 0, 0, 0, u16::from(octet)].into(),
    }
}

/// Node `a` has `web` (instance 1), node `b` has `db` (instance 2) and `spare` (instance 3); web and db are required.
pub(crate) fn plan() -> AuthPlan {
    let node = |name: &str| AuthNode {
        addresses: vec![([192, 0, 2, 1], 4250).into()],
        id: domain().node(name).expect("an ID"),
    };
    let of_b = |instance| InstanceName { node: "b".to_owned(), instance };
    let identity = |number| Identity::new(number).expect("not zero");
    AuthPlan {
        trust_domain: domain(),
        node: "a".to_owned(),
        grace: GRACE,
        ahead: 20_000,
        nodes: BTreeMap::from([("b".to_owned(), node("b")), ("c".to_owned(), node("c"))]),
        endpoints: BTreeMap::from([(1, endpoint("web", 300, 1, 1))]),
        remotes: BTreeMap::from([
            (of_b(2), endpoint("db", 301, 2, 2)),
            (of_b(3), endpoint("spare", 302, 2, 3)),
        ]),
        pairs: [IdentityPair::new(identity(300), identity(301))].into(),
    }
}

/// A machine of node `a`, and the time.
pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) now: Time,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(plan())
    }

    pub(crate) fn with(plan: AuthPlan) -> Self {
        let now = 100 * SECOND;
        let mut bench = Self { machine: Machine::new(Settings::new(7), Adopted::default(), now), now };
        bench.give(Input::Tick);
        bench.give(Input::Plan(1, Arc::new(plan)));
        bench.give(Input::Certificate(id("web"), Ok(now + 3_600 * SECOND)));
        bench
    }

    pub(crate) fn give(&mut self, input: Input) -> Vec<Output> {
        self.now += 1_000;
        self.machine.handle(self.now, input)
    }

    pub(crate) fn hear(&mut self, message: Message) -> Vec<Output> {
        self.give(Input::Received(SESSION, message))
    }

    /// A session with `b`, which attests what is told; its lease is good.
    pub(crate) fn connect(&mut self, attested: Vec<Attestation>) {
        let expiry = self.now + 3_600 * SECOND;
        self.give(Input::Connected { session: SESSION, node: "b".to_owned(), expiry });
        self.hear(Message::Hello { version: VERSION, incarnation: 8 });
        self.hear(Message::Attest(attested));
        self.hear(Message::Complete);
    }

    /// The answer to the probe that went with the greeting.
    pub(crate) fn echo(&mut self) -> Vec<Output> {
        self.hear(Message::Echo { nonce: 1, withdrawal: 0, grace: GRACE })
    }

    /// The handshake that this node has begun comes to its end, so much later.
    pub(crate) fn prove(&mut self, after: Time) -> Vec<Output> {
        let proof = ProofId { session: SESSION, ours: true, number: 1 };
        self.now += after;
        let mut all = self.give(Input::ProofDone(proof, Ok(self.now + 3_600 * SECOND)));
        all.extend(self.hear(Message::Accept { proof: 1 }));
        all
    }

    /// `web` and `db` are proven, and marked; the mark is what comes of it.
    pub(crate) fn marked() -> (Self, u32, Mark, Vec<PairKey>) {
        let mut bench = Self::new();
        bench.connect(vec![db()]);
        bench.echo();
        bench.prove(0);
        let (number, mark, keys) = set(bench.hear(Message::Bound { bind: 1 }));
        (bench, number, mark, keys)
    }

    /// Another session with `b` takes the first one's place; the first does not end by itself.
    pub(crate) fn reconnect(&mut self) -> Vec<Output> {
        let mut all = self.give(Input::Connected { session: NEXT, node: "b".to_owned(), expiry: u64::MAX });
        for message in [
            Message::Hello { version: VERSION, incarnation: 8 },
            Message::Attest(vec![db()]),
            Message::Complete,
        ] {
            all.extend(self.give(Input::Received(NEXT, message)));
        }
        all
    }

    pub(crate) fn problem(&self) -> String {
        let nodes = self.machine.nodes();
        nodes.into_iter().find(|node| node.name == "b").and_then(|node| node.problem).unwrap_or_default()
    }

    pub(crate) fn hold(&mut self, packet: u64, kind: HoldKind, to: [u8; 4]) -> Vec<Output> {
        let (source, destination) = (IpAddr::from([10, 0, 1, 1]), IpAddr::from(to));
        self.give(Input::Held { packet: Packet(packet), kind, source, destination })
    }

    /// Passes time, tick by tick as it asks.
    pub(crate) fn pass(&mut self, time: Time) -> Vec<Output> {
        let end = self.now + time;
        let mut all = Vec::new();
        while let Some(at) = self.machine.next_wake().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            all.extend(self.machine.handle(self.now, Input::Tick));
        }
        self.now = end;
        all
    }
}

pub(crate) fn db() -> Attestation {
    let end = endpoint("db", 301, 2, 2);
    Attestation { instance: 2, addresses: end.addresses(), id: end.id }
}

pub(crate) fn closes(outputs: &[Output]) -> bool {
    outputs.contains(&Output::Close(SESSION))
}

/// The mark that is set.
pub(crate) fn set(outputs: Vec<Output>) -> (u32, Mark, Vec<PairKey>) {
    let set = outputs.into_iter().find_map(|output| match output {
        Output::SetMark { number, mark, keys } => Some((number, mark, keys)),
        _ => None,
    });
    set.expect("a mark is set")
}

pub(crate) fn clears(outputs: &[Output], wanted: u32) -> Option<usize> {
    outputs.iter().position(|output| matches!(output, Output::ClearMark { number, .. } if *number == wanted))
}

pub(crate) fn begins(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::StartProof { .. })).count()
}

pub(crate) fn settled(outputs: &[Output], number: u64) -> bool {
    outputs.contains(&Output::Tell(FromAuthAgent::Settled { number }))
}
