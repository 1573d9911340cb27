//! What the oracle and the rulesets say of a packet, in the terms of the program's events.

use abi::{Direction, DropReason, Event, EventFlags, EventKind, RuleVerdict};
use l4_datapath::flow::Attribution;
use mesh::flow::TrafficDirection;
use mesh::policy::arbitrary::peer_ports;
use mesh::policy::oracle::{self, Packet, Reason};
use mesh::policy::{Asked, Outcome, PolicyName};
use mesh::workload::EndpointId;

use super::scene::{Call, Scene};

/// Who stops a packet, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    /// Host-side veth of the endpoint whose policy it is.
    pub(crate) ifindex: u32,
    pub(crate) direction: u8,
    pub(crate) reason: DropReason,
}

/// One event, as far as policy speaks in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    /// [`EventKind`] as u8.
    pub(crate) kind: u8,
    /// 0 unless dropped.
    pub(crate) reason: u8,
    pub(crate) ifindex: u32,
    pub(crate) direction: u8,
    /// Of the packet's source and destination.
    pub(crate) identities: (u32, u32),
    pub(crate) reply: bool,
    pub(crate) ruleset: u32,
    /// Behind the entry that decided.
    pub(crate) policies: Vec<String>,
}

impl Told {
    pub(crate) fn by(event: &Event, attribution: &Attribution) -> Self {
        Self {
            kind: event.kind,
            reason: event.reason,
            ifindex: event.ifindex,
            direction: event.direction,
            identities: (event.source_identity, event.destination_identity),
            reply: event.flags & EventFlags::REPLY != 0,
            ruleset: event.ruleset,
            policies: names(attribution.policies_of_cookie(event.cookie)),
        }
    }

    /// The same without the numbers and names that hold for one apply only.
    pub(crate) fn timeless(self) -> Self {
        Self { ruleset: 0, policies: Vec::new(), ..self }
    }

    /// The refusal it reports.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let reason = DropReason::from_number(self.reason).filter(|_| self.kind == EventKind::Drop as u8)?;
        Some(Refusal { ifindex: self.ifindex, direction: self.direction, reason })
    }
}

fn names(policies: &[PolicyName]) -> Vec<String> {
    policies.iter().map(ToString::to_string).collect()
}

/// One end of a call whose policy is asked: the opener's egress, then the other's ingress.
#[derive(Clone, Copy)]
pub(crate) struct End {
    subject: usize,
    peer: usize,
    direction: TrafficDirection,
}

/// The ends of a call that are on this node, in the order in which they are asked.
pub(crate) fn ends(scene: &Scene, call: &Call) -> Vec<End> {
    let egress = End { subject: call.from, peer: call.to, direction: TrafficDirection::Egress };
    let ingress = End { subject: call.to, peer: call.from, direction: TrafficDirection::Ingress };
    [egress, ingress].into_iter().filter(|end| scene.endpoint(end.subject).is_some()).collect()
}

impl End {
    fn refuses(self, scene: &Scene, reason: DropReason) -> Refusal {
        let endpoint = scene.endpoint(self.subject).expect("ends are local");
        Refusal { ifindex: endpoint.ifindex, direction: self.kernel_direction() as u8, reason }
    }

    fn kernel_direction(self) -> Direction {
        match self.direction {
            TrafficDirection::Ingress => Direction::Ingress,
            TrafficDirection::Egress => Direction::Egress,
        }
    }

    fn peer_address(self, call: &Call) -> std::net::IpAddr {
        if self.peer == call.to { call.addresses.1 } else { call.addresses.0 }
    }

    /// What the oracle says here.
    pub(crate) fn oracle(self, scene: &Scene, call: &Call) -> Reason {
        let (subject, peer) = (scene.party(self.subject), scene.party(self.peer));
        let packet = Packet {
            direction: self.direction,
            subject: &subject.labels,
            subject_ports: &subject.ports,
            peer: peer.identity,
            peer_labels: &peer.labels,
            peer_address: self.peer_address(call),
            peer_ports: &peer_ports(&peer.ports),
            protocol: call.protocol,
            port: call.port,
        };
        oracle::judge(&packet, &scene.world.policies, scene.world.enforcement)
    }

    /// What the compiled ruleset says here: whether it passes, and the entry that decided.
    fn ruleset<'a>(self, scene: &'a Scene, call: &Call) -> (bool, Option<&'a Outcome>) {
        let planned = scene.planned(self.subject).expect("ends are local");
        let ruleset = match self.direction {
            TrafficDirection::Ingress => &planned.ingress,
            TrafficDirection::Egress => &planned.egress,
        };
        ruleset.judge(scene.identity(self.peer, self.peer_address(call)), call.protocol, call.port)
    }

    /// What the entry that decided asks of the peer.
    fn asked(self, scene: &Scene, call: &Call, entry: Option<&Outcome>) -> Asked {
        let peer = scene.identity(self.peer, self.peer_address(call));
        entry.map_or(Asked::Nothing, |entry| entry.authentication.of(peer, self.direction))
    }
}

/// The oracle's answer. Nobody has proven anything here.
pub(crate) fn by_oracle(scene: &Scene, call: &Call) -> Result<(), Refusal> {
    ends(scene, call).into_iter().try_for_each(|end| match end.oracle(scene, call) {
        Reason::DenyRule(_) => Err(end.refuses(scene, DropReason::PolicyDeny)),
        Reason::Authenticated(_) => Err(end.refuses(scene, DropReason::AuthenticationRequired)),
        Reason::NoPrincipal(_) => Err(end.refuses(scene, DropReason::NoPrincipal)),
        Reason::NotEnforced | Reason::Node | Reason::AllowRule(_) => Ok(()),
        Reason::Unmet(_) | Reason::Default => Err(end.refuses(scene, DropReason::PolicyDenied)),
    })
}

/// The rulesets' answer.
pub(crate) fn by_rulesets(scene: &Scene, call: &Call) -> Result<(), Refusal> {
    ends(scene, call).into_iter().try_for_each(|end| match end.ruleset(scene, call) {
        (true, entry) => match end.asked(scene, call, entry) {
            Asked::Nothing => Ok(()),
            Asked::Proof => Err(end.refuses(scene, DropReason::AuthenticationRequired)),
            Asked::NoPrincipal => Err(end.refuses(scene, DropReason::NoPrincipal)),
        },
        (false, Some(entry)) if entry.verdict() == RuleVerdict::Deny => {
            Err(end.refuses(scene, DropReason::PolicyDeny))
        }
        (false, _) => Err(end.refuses(scene, DropReason::PolicyDenied)),
    })
}

/// The events of a packet of this call: of the first one, or (`reply` set) of a later one in either direction. `ids`
/// tells which rulesets of an endpoint (ingress, egress) are in force.
pub(crate) fn expected(
    scene: &Scene,
    call: &Call,
    reply: Option<bool>,
    ids: impl Fn(EndpointId) -> (u32, u32),
) -> Vec<Told> {
    let verdict = by_rulesets(scene, call);
    let told = |end: End| {
        let refusal = end.refuses(scene, DropReason::PolicyDenied);
        let (ingress, egress) = ids(scene.endpoint(end.subject)?.id);
        let refused =
            verdict.err().filter(|it| it.ifindex == refusal.ifindex && it.direction == refusal.direction);
        let from = scene.identity(call.from, call.addresses.0).number();
        let to = scene.identity(call.to, call.addresses.1).number();
        let reply = reply == Some(true);
        Some(Told {
            kind: if refused.is_some() { EventKind::Drop } else { EventKind::Allowed } as u8,
            reason: refused.map_or(0, |it| it.reason as u8),
            ifindex: refusal.ifindex,
            direction: refusal.direction,
            identities: if reply { (to, from) } else { (from, to) },
            reply,
            ruleset: if end.direction == TrafficDirection::Ingress { ingress } else { egress },
            policies: end.ruleset(scene, call).1.map_or_else(Vec::new, |entry| names(&entry.by)),
        })
    };
    let told = ends(scene, call).into_iter().filter_map(told);
    match (verdict, reply) {
        // One end's refusal is all that is said: the other's allowance opened nothing.
        (Err(_), _) => told.filter(|it| it.refusal().is_some()).collect(),
        (Ok(()), None) => told.collect(),
        // Known connections pass without a word.
        (Ok(()), Some(_)) => Vec::new(),
    }
}
