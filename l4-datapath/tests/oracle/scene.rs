//! A random world brought to one node: who stands where, what the node is told, and who calls whom.
//!
//! Everybody's addresses lie in the prefixes that policies like to name, so that who is local, who has an identity of
//! his own and who is only part of a prefix can be confused wherever something is wrong. Equal labels occur twice
//! (replicas), and a workload without labels yet (`reserved:init`) is local half of the time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::plan::{EndpointPlan, NodePlan};
use mesh::policy::arbitrary::{Party, Random, World};
use mesh::policy::{Authentication, PeerPorts, protocol};
use mesh::workload::Endpoint;

use super::support;

/// Someone at an address or two.
#[derive(Clone, Debug)]
struct Actor {
    who: Who,
    /// At most one of each family.
    addresses: Vec<IpAddr>,
    /// Set if he is on this node.
    endpoint: Option<Endpoint>,
}

#[derive(Clone, Debug)]
enum Who {
    /// Index into [`World::workloads`].
    Workload(usize),
    Other(Party),
}

/// A world, its actors, and the plan of the node.
pub(crate) struct Scene {
    pub(crate) world: World,
    actors: Vec<Actor>,
    pub(crate) plan: NodePlan,
}

/// A connection in the making: its first packet's addresses, protocol and ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// Index of the actor who opens.
    pub(crate) from: usize,
    /// Index of the actor who is called.
    pub(crate) to: usize,
    /// Source and destination.
    pub(crate) addresses: (IpAddr, IpAddr),
    pub(crate) protocol: u8,
    /// Source port; ICMP: identifier.
    pub(crate) own_port: u16,
    /// Destination port; ICMP: type.
    pub(crate) port: u16,
}

impl Scene {
    /// The scene of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let world = World::new(seed);
        let actors = actors(&world, &mut Random::new(!seed));
        Self { plan: plan(&world, &actors), world, actors }
    }

    /// The same actors under other policies. Half of the time labels have changed hands too: a relabel of the living.
    ///
    /// The numbers of prefix identities are given out anew: one may now stand for another prefix.
    pub(crate) fn amended(&self, seed: u64) -> Self {
        let other = World::new(seed);
        let mut world = World { workloads: self.world.workloads.clone(), ..other };
        if Random::new(!seed).chance(50) {
            let mut standing: Vec<_> =
                world.workloads.iter().map(|it| (it.identity, it.labels.clone())).collect();
            standing.rotate_left(1);
            for (workload, (identity, labels)) in world.workloads.iter_mut().zip(standing) {
                (workload.identity, workload.labels) = (identity, labels);
            }
        }
        Self { plan: plan(&world, &self.actors), world, actors: self.actors.clone() }
    }

    /// The same without rules that require authentication or the L7 proxy: what those end does not go on when they are taken
    /// back.
    pub(crate) fn with_plain_rules(mut self) -> Self {
        for rule in self.world.policies.iter_mut().flat_map(|policy| &mut policy.rules) {
            for statement in rule.ingress.allow.iter_mut().chain(&mut rule.egress.allow) {
                statement.authentication = Authentication::None;
                statement.l7 = None;
            }
        }
        self.plan = plan(&self.world, &self.actors);
        self
    }

    /// A random call that this node judges: at least one end is local.
    pub(crate) fn call(&self, random: &mut Random, own_port: u16) -> Call {
        loop {
            let (from, to) = (random.below(self.actors.len()), random.below(self.actors.len()));
            let source = random.pick(&self.actors[from].addresses);
            let destination = self.actors[to].addresses.iter().find(|it| it.is_ipv4() == source.is_ipv4());
            let judged = self.endpoint(from).is_some() || self.endpoint(to).is_some();
            let Some(destination) = destination.filter(|_| judged && from != to) else { continue };
            let Some((protocol, port)) = self.called(random, (from, to), source.is_ipv4()) else { continue };
            return Call { from, to, addresses: (source, *destination), protocol, own_port, port };
        }
    }

    /// None for what opens no connection.
    fn called(&self, random: &mut Random, (from, to): (usize, usize), v4: bool) -> Option<(u8, u16)> {
        let ports = PeerPorts::new();
        let packet = self.party(from).packet(random, TrafficDirection::Egress, self.party(to), &ports);
        match packet.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => Some((packet.protocol, packet.port)),
            protocol::ICMP | protocol::ICMPV6 if v4 => Some((protocol::ICMP, 8)),
            protocol::ICMP | protocol::ICMPV6 => Some((protocol::ICMPV6, 128)),
            _ => None,
        }
    }

    /// Who an actor is under this scene's labels.
    pub(crate) fn party(&self, actor: usize) -> &Party {
        self.actors[actor].who.party(&self.world)
    }

    /// The actor's endpoint, if it is on this node.
    pub(crate) fn endpoint(&self, actor: usize) -> Option<&Endpoint> {
        self.actors[actor].endpoint.as_ref()
    }

    /// What the node is told of the actor's endpoint, if it has one.
    pub(crate) fn planned(&self, actor: usize) -> Option<&EndpointPlan> {
        self.plan.endpoints.get(&self.endpoint(actor)?.id)
    }

    /// The identity that the plan gives the actor at this address: of its endpoint, else of the longest prefix.
    pub(crate) fn identity(&self, actor: usize, address: IpAddr) -> Identity {
        if let Some(planned) = self.planned(actor) {
            return planned.identity;
        }
        let around = self.plan.ipcache.iter().filter(|(net, _)| net.contains(&address));
        around
            .max_by_key(|(net, _)| net.prefix_len())
            .expect("both default routes are in every plan")
            .1
            .identity
    }
}

impl Who {
    fn party<'a>(&'a self, world: &'a World) -> &'a Party {
        match self {
            Self::Workload(index) => &world.workloads[*index],
            Self::Other(party) => party,
        }
    }
}

fn actors(world: &World, random: &mut Random) -> Vec<Actor> {
    let mut ids = 1..;
    let mut local = |who| {
        let endpoint = endpoint(ids.next().expect("few endpoints"));
        Actor { who, addresses: vec![endpoint.ipv4.into(), endpoint.ipv6.into()], endpoint: Some(endpoint) }
    };
    let mut actors = Vec::new();
    for index in 0..world.workloads.len() {
        if index == 0 || random.chance(60) {
            actors.push(local(Who::Workload(index)));
        }
        if random.chance(30) {
            actors.push(local(Who::Workload(index)));
        }
        if random.chance(50) {
            let addresses = addresses(if random.chance(50) { 2 } else { 3 }, 128 + index as u8);
            actors.push(Actor { who: Who::Workload(index), addresses, endpoint: None });
        }
    }
    for party in world.parties(&world.universe()).split_off(world.workloads.len()) {
        match party.identity {
            // An address of the pool without a workload: refused as such, whatever policy says.
            Identity::UNMANAGED => {}
            Identity::INIT if random.chance(50) => actors.push(local(Who::Other(party))),
            identity if identity.is_world() => {
                actors.push(Actor { addresses: vec![party.address], who: Who::Other(party), endpoint: None });
            }
            identity => {
                let addresses = addresses(2, 200 + identity.number() as u8);
                actors.push(Actor { who: Who::Other(party), addresses, endpoint: None });
            }
        }
    }
    actors
}

/// A local endpoint: its addresses, too, lie in prefixes that policies name.
fn endpoint(number: u16) -> Endpoint {
    let [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] = addresses(2, 16 + number as u8)[..] else { unreachable!() };
    Endpoint { ipv4, ipv6, ..support::endpoint(number) }
}

fn addresses(subnet: u8, host: u8) -> Vec<IpAddr> {
    let ipv4 = Ipv4Addr::new(10, 1, subnet, host);
    let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, 1, subnet.into(), 0, 0, 0, host.into());
    vec![ipv4.into(), ipv6.into()]
}

/// As `control` makes it, but for the pool, which has no prefix here: policies may name prefixes around endpoints.
fn plan(world: &World, actors: &[Actor]) -> NodePlan {
    let universe = world.universe();
    let ruleset = |party, direction| Arc::new(world.ruleset(party, direction, &universe));
    let mut plan = NodePlan::default();
    for actor in actors {
        let party = actor.who.party(world);
        if let Some(endpoint) = actor.endpoint.clone() {
            let planned = EndpointPlan {
                identity: party.identity,
                ingress: ruleset(party, TrafficDirection::Ingress),
                egress: ruleset(party, TrafficDirection::Egress),
                audit: false,
                endpoint,
            };
            plan.endpoints.insert(planned.endpoint.id, planned);
        } else if !party.identity.is_world() {
            let own = actor.addresses.iter().map(|address| (IpNet::from(*address), party.identity.into()));
            Arc::make_mut(&mut plan.ipcache).extend(own);
        }
    }
    let defaults = [("0.0.0.0/0", Identity::WORLD_IPV4), ("::/0", Identity::WORLD_IPV6)]
        .map(|(text, it)| (support::net(text), it));
    let prefixes: BTreeMap<IpNet, Identity> = world.prefixes();
    let prefixes = prefixes.into_iter().chain(defaults).map(|(net, identity)| (net, identity.into()));
    Arc::make_mut(&mut plan.ipcache).extend(prefixes);
    plan
}
