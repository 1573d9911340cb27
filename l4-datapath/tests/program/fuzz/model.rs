//! What may pass, in the obvious way: a list of rules and a set of connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Hook,
    network::Piece,
    reader::{Body, Read, quoted, read},
};
use crate::{
    frame::{ICMP, ICMPV6, SCTP, TCP, UDP},
    node::Node,
    world::{A, B, FAMILIES, PEER, Pod, Ports},
};

/// Who may stand at the end of a packet that passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    Local(u32),
    Peer,
}

const HERE: Who = Who::Local(A.id);
const THERE: Who = Who::Local(B.id);

/// Opener, other end, protocol, port or ICMP type.
pub(super) type Rule = (Who, Who, u8, u16);

/// Who may open what to whom.
pub(super) const RULES: [Rule; 13] = [
    (HERE, THERE, TCP, 80),
    (HERE, THERE, UDP, 53),
    (HERE, THERE, SCTP, 5000),
    (HERE, THERE, ICMP, 8),
    (HERE, THERE, ICMPV6, 128),
    (HERE, Who::Peer, TCP, 443),
    (HERE, Who::Peer, UDP, 53),
    (HERE, Who::Peer, ICMP, 8),
    (HERE, Who::Peer, ICMPV6, 128),
    (Who::Peer, HERE, TCP, 80),
    (Who::Peer, HERE, UDP, 53),
    (Who::Peer, HERE, ICMP, 8),
    (Who::Peer, HERE, ICMPV6, 128),
];

impl Who {
    fn identity(self) -> u32 {
        match self {
            Self::Peer => PEER,
            Self::Local(id) => pod(id).identity,
        }
    }

    pub(super) fn of(address: IpAddr) -> Option<Self> {
        FAMILIES.into_iter().find_map(|family| match address {
            a if a == family.pool(A.host) => Some(HERE),
            a if a == family.pool(B.host) => Some(THERE),
            a if a == family.peer() => Some(Self::Peer),
            _ => None,
        })
    }
}

/// Writes the rules into the node's rulesets, each at both ends.
pub(super) fn obey(node: &mut Node, rules: &[Rule]) {
    for &(opener, other, protocol, port) in rules {
        for (end, peer, egress) in [(opener, other, true), (other, opener, false)] {
            let Who::Local(id) = end else { continue };
            let pod = pod(id);
            let ruleset = if egress { pod.egress } else { pod.ingress };
            node.allow(ruleset, peer.identity(), Ports::One(protocol, port));
        }
    }
}

/// Opener, other end, protocol, ports as the opener sends them.
pub(super) type Tuple = (IpAddr, IpAddr, u8, (u16, u16));

fn reversed((source, destination, protocol, ports): Tuple) -> Tuple {
    (destination, source, protocol, (ports.1, ports.0))
}

/// The pod with this endpoint id.
pub(super) fn pod(id: u32) -> Pod {
    if id == A.id { A } else { B }
}

/// What may pass now.
pub(super) struct Model {
    pub(super) rules: &'static [Rule],
    /// Whatever was ever opened: more than is open now, for some frames close a connection.
    pub(super) opened: BTreeSet<Tuple>,
    /// The latest first piece of each datagram that passed: more than is remembered now, for some pieces end it.
    pub(super) firsts: BTreeMap<Datagram, (Tuple, Piece)>,
}

/// What the pieces of a datagram share: ends, id, for IPv4 the protocol.
pub(super) type Datagram = (IpAddr, IpAddr, u32, Option<u8>);

fn datagram(read: &Read, piece: Piece) -> Datagram {
    (read.source, read.destination, piece.id, read.source.is_ipv4().then_some(read.protocol))
}

impl Model {
    /// What the reader finds in a packet that connection table and policy let pass.
    pub(super) fn allowed(&mut self, hook: Hook, frame: &[u8]) -> Result<Read, String> {
        let read = read(frame).ok_or("passed, yet no packet that can be judged")?;
        let (from, to) = (Who::of(read.source), Who::of(read.destination));
        let own = Some(Who::Local(hook.pod().id));
        let stands = match hook {
            Hook::FromPod(pod) => from == own && read.macs.0 == pod.mac,
            Hook::ToPod(_) => to == own && (from == Some(Who::Peer) || is_routers(&read)),
        };
        if !stands {
            return Err(format!("passed in another's name: {read:?}"));
        }
        if !self.permits(&read, from, to, hook.is_from_pod()) {
            return Err(format!("passed without permission: {read:?}"));
        }
        Ok(read)
    }

    /// Whether a packet that passed was allowed to, by rule or connection.
    fn permits(&mut self, read: &Read, from: Option<Who>, to: Option<Who>, from_pod: bool) -> bool {
        let ports = match &read.body {
            Body::Tcp { ports, .. } | Body::Ports(ports) => *ports,
            Body::Echo { identifier, .. } => (*identifier, *identifier),
            Body::OtherIcmp { kind, .. } => return self.allows(from, to, read.protocol, u16::from(*kind)),
            Body::Error { quoted: about, .. } => {
                let Some(about) = quoted(about) else { return false };
                let beyond = !matches!(Who::of(about.1), Some(Who::Local(_)));
                let seen = if from_pod { about.1 == read.source } else { beyond };
                return seen && about.0 == read.destination && self.knows(about);
            }
            Body::Later => {
                let Some(piece) = read.piece else { return false };
                let first = self.firsts.get(&datagram(read, piece));
                return first.is_some_and(|(tuple, first)| first.is_before(piece) && self.knows(*tuple));
            }
        };
        let tuple = (read.source, read.destination, read.protocol, ports);
        let (forth, back) = (self.opened.contains(&tuple), self.opened.contains(&reversed(tuple)));
        let (opens, answers, called) = match &read.body {
            Body::Tcp { flags, .. } if flags.contradict() => return false,
            Body::Tcp { flags, .. } => (flags.is_first(), !flags.is_first(), ports.1),
            Body::Echo { request, .. } => {
                let kind = if read.protocol == ICMP { 8 } else { 128 };
                (*request, !request, kind)
            }
            _ => (true, true, ports.1),
        };
        let opens = opens && self.allows(from, to, read.protocol, called);
        if opens && !back {
            self.opened.insert(tuple);
        }
        // An echo reply never goes the way of its request.
        let forth = forth && !matches!(read.body, Body::Echo { request: false, .. });
        if let Some(piece) = read.piece {
            self.firsts.insert(datagram(read, piece), (tuple, piece));
        }
        opens || forth || (back && answers)
    }

    fn allows(&self, from: Option<Who>, to: Option<Who>, protocol: u8, port: u16) -> bool {
        let (Some(from), Some(to)) = (from, to) else { return false };
        self.rules.contains(&(from, to, protocol, port))
    }

    fn knows(&self, tuple: Tuple) -> bool {
        self.opened.contains(&tuple) || self.opened.contains(&reversed(tuple))
    }
}

/// Any router beyond may send an error, under an address nobody knows; not under one of this node's pool.
fn is_routers(read: &Read) -> bool {
    let pool = match read.source {
        IpAddr::V4(source) => source.octets().starts_with(&[10, 0, 0]),
        IpAddr::V6(source) => source.octets().starts_with(&[0xfd, 0, 0, 0, 0, 0, 0, 0]),
    };
    matches!(read.body, Body::Error { .. }) && !pool
}
