//! What the oracle and the rulesets say of a packet, in the terms of the program's events.

use abi::{Direction, DropReason, Event, EventFlags, EventKind, RuleVerdict};
use l4_datapath::flow::Attribution;
use mesh::flow::TrafficDirection;
use mesh::policy::arbitrary::peer_ports;
use mesh::policy::oracle::{self, Packet, Reason};
use mesh::policy::{Asked, Enforcement, Outcome, Policy, PolicyName, Ruleset};
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
        self.ask(scene, call, oracle::judge)
    }

    /// Whether the oracle wants what passes here to go by the proxy.
    fn is_proxied_by_oracle(self, scene: &Scene, call: &Call) -> bool {
        self.ask(scene, call, oracle::is_proxied)
    }

    fn ask<T>(
        self,
        scene: &Scene,
        call: &Call,
        asked: impl Fn(&Packet<'_>, &[Policy], Enforcement) -> T,
    ) -> T {
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
        asked(&packet, &scene.world.policies, scene.world.enforcement)
    }

    /// The same of the compiled ruleset.
    fn is_proxied_by_ruleset(self, scene: &Scene, call: &Call) -> bool {
        let peer = scene.identity(self.peer, self.peer_address(call));
        self.side(scene).is_proxied(peer, call.protocol, call.port)
    }

    fn side(self, scene: &Scene) -> &Ruleset {
        let planned = scene.planned(self.subject).expect("ends are local");
        match self.direction {
            TrafficDirection::Ingress => &planned.ingress,
            TrafficDirection::Egress => &planned.egress,
        }
    }

    /// What the compiled ruleset says here: whether it passes, and the entry that decided.
    fn ruleset<'a>(self, scene: &'a Scene, call: &Call) -> (bool, Option<&'a Outcome>) {
        let peer = scene.identity(self.peer, self.peer_address(call));
        self.side(scene).judge(peer, call.protocol, call.port)
    }

    /// What the entry that decided asks of the peer.
    fn asked(self, scene: &Scene, call: &Call, entry: Option<&Outcome>) -> Asked {
        let peer = scene.identity(self.peer, self.peer_address(call));
        entry.map_or(Asked::Nothing, |entry| entry.authentication.of(peer, self.direction))
    }
}

/// What both ends let pass, but one of them by way of the proxy, which there is none of here: the hook says so that the packet
/// meets, which is the opener's if he is on this node.
fn passing(scene: &Scene, call: &Call, is_proxied: impl Fn(End) -> bool) -> Result<(), Refusal> {
    let ends = ends(scene, call);
    match ends.first() {
        Some(hook) if ends.iter().any(|end| is_proxied(*end)) => {
            let is_to_host = scene.identity(call.to, call.addresses.1) == mesh::identity::Identity::HOST;
            Err(hook.refuses(scene, if is_to_host { DropReason::ProxyToHost } else { DropReason::NoProxy }))
        }
        _ => Ok(()),
    }
}

/// The oracle's answer. Nobody has proven anything here.
pub(crate) fn by_oracle(scene: &Scene, call: &Call) -> Result<(), Refusal> {
    let judged = ends(scene, call).into_iter().try_for_each(|end| match end.oracle(scene, call) {
        Reason::DenyRule(_) => Err(end.refuses(scene, DropReason::PolicyDeny)),
        Reason::Authenticated(_) => Err(end.refuses(scene, DropReason::AuthenticationRequired)),
        Reason::NoPrincipal(_) => Err(end.refuses(scene, DropReason::NoPrincipal)),
        Reason::NotEnforced | Reason::Node | Reason::AllowRule(_) => Ok(()),
        Reason::Unmet(_) | Reason::Default => Err(end.refuses(scene, DropReason::PolicyDenied)),
    });
    judged.and_then(|()| passing(scene, call, |end| end.is_proxied_by_oracle(scene, call)))
}

/// The rulesets' answer.
pub(crate) fn by_rulesets(scene: &Scene, call: &Call) -> Result<(), Refusal> {
    let judged = ends(scene, call).into_iter().try_for_each(|end| match end.ruleset(scene, call) {
        (true, entry) => match end.asked(scene, call, entry) {
            Asked::Nothing => Ok(()),
            Asked::Proof => Err(end.refuses(scene, DropReason::AuthenticationRequired)),
            Asked::NoPrincipal => Err(end.refuses(scene, DropReason::NoPrincipal)),
        },
        (false, Some(entry)) if entry.verdict() == RuleVerdict::Deny => {
            Err(end.refuses(scene, DropReason::PolicyDeny))
        }
        (false, _) => Err(end.refuses(scene, DropReason::PolicyDenied)),
    });
    judged.and_then(|()| passing(scene, call, |end| end.is_proxied_by_ruleset(scene, call)))
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
        // No rule has decided that.
        let is_named =
            refused.is_none_or(|it| !matches!(it.reason, DropReason::NoProxy | DropReason::ProxyToHost));
        let ruleset = if end.direction == TrafficDirection::Ingress { ingress } else { egress };
        let by = end.ruleset(scene, call).1.map_or_else(Vec::new, |entry| names(&entry.by));
        Some(Told {
            kind: if refused.is_some() { EventKind::Drop } else { EventKind::Allowed } as u8,
            reason: refused.map_or(0, |it| it.reason as u8),
            ifindex: refusal.ifindex,
            direction: refusal.direction,
            identities: if reply { (to, from) } else { (from, to) },
            reply,
            ruleset: if is_named { ruleset } else { 0 },
            policies: if is_named { by } else { Vec::new() },
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
