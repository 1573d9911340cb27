//! Who there is: every identity that a ruleset can name, and which of them a peer of a policy means.
//!
//! Asking a universe changes nothing that can be seen. Inside it remembers the answer for each selector, because
//! thousands of policies repeat the same few and each would otherwise be held against each of ten thousand label sets.
//! One that is edited is the same as one made from nothing of what it then knows; a clone shares what is large, so that
//! whoever explains with the earlier one is not touched by the edit.
//!
//! A selector is answered from an index of labels where it names a value, so even the first answer looks only at the
//! identities that carry the rarest of the values it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;

use super::{Entity, Operator, Peer, Peers, Policy, PortMatch, Selector};
use crate::identity::Identity;
use crate::labels::{LabelSet, Source};

/// The named ports of the workloads of one identity: (name, IP protocol number) → ports. More than one port where
/// workloads with equal labels give different ports the same name; policy then means all of them.
pub type PeerPorts = BTreeMap<(String, u8), BTreeSet<u16>>;

/// Remembered answers may hold so many identities together; beyond that all are forgotten.
const REMEMBERED: usize = 1 << 22;

/// Every identity that a ruleset can name. See the [module](self).
pub struct Universe {
    labels: BTreeMap<Identity, LabelSet>,
    /// Truncated prefixes, both default routes among them.
    prefixes: BTreeMap<IpNet, Identity>,
    carriers: ByLabel,
    ports: BTreeMap<Identity, Arc<PeerPorts>>,
    named_ports: ByPortName,
    selected: Mutex<Answers>,
}

/// Identities in order.
type List = Arc<Vec<Identity>>;
/// Label key → value → who carries it, whatever the source.
type ByLabel = BTreeMap<Arc<str>, BTreeMap<Arc<str>, List>>;
/// Port name → protocol → port → who means this port by this name.
type ByPortName = BTreeMap<String, BTreeMap<u8, BTreeMap<u16, List>>>;

/// Answers for selectors.
#[derive(Clone, Default)]
struct Answers {
    by_selector: BTreeMap<Arc<Selector>, List>,
    /// How many identities they hold.
    size: usize,
}

/// The peers of a statement, found.
pub(super) enum Audience {
    /// Anyone, also who is not in the universe.
    Any,
    /// These, in order.
    These(Vec<Identity>),
}

impl Audience {
    /// Whether it means this peer.
    pub(super) fn holds(&self, peer: Identity) -> bool {
        match self {
            Self::Any => true,
            Self::These(peers) => peers.binary_search(&peer).is_ok(),
        }
    }

    /// Those of the peers, which are in order, that it means. Costs what the shorter list costs.
    pub(super) fn among(&self, peers: &[Identity]) -> Vec<Identity> {
        let Self::These(own) = self else { return peers.to_vec() };
        let (short, long) =
            if own.len() < peers.len() { (own.as_slice(), peers) } else { (peers, own.as_slice()) };
        short.iter().filter(|peer| long.binary_search(peer).is_ok()).copied().collect()
    }
}

impl Default for Universe {
    /// Reserved identities and the two default routes: what is in every universe.
    fn default() -> Self {
        let mut universe = Self {
            labels: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            carriers: ByLabel::new(),
            ports: BTreeMap::new(),
            named_ports: ByPortName::new(),
            selected: Mutex::default(),
        };
        for (identity, name) in Identity::RESERVED {
            universe.enter(identity, LabelSet::reserved(name));
        }
        universe.insert_prefix(Ipv4Net::default().into(), Identity::WORLD_IPV4);
        universe.insert_prefix(Ipv6Net::default().into(), Identity::WORLD_IPV6);
        universe
    }
}

impl Clone for Universe {
    fn clone(&self) -> Self {
        Self {
            labels: self.labels.clone(),
            prefixes: self.prefixes.clone(),
            carriers: self.carriers.clone(),
            ports: self.ports.clone(),
            named_ports: self.named_ports.clone(),
            selected: Mutex::new(self.selected.lock().clone()),
        }
    }
}

impl Universe {
    /// The universe of these workloads, prefixes (an identity for each of [`compile::prefixes`]) and named ports.
    /// Reserved identities are in it whether given or not. Prefixes and the world have the labels of the world.
    ///
    /// [`compile::prefixes`]: super::compile::prefixes
    pub fn new(
        identities: &BTreeMap<Identity, LabelSet>,
        prefixes: &BTreeMap<IpNet, Identity>,
        named_ports: &BTreeMap<Identity, PeerPorts>,
    ) -> Self {
        let mut universe = Self::default();
        let none = PeerPorts::new();
        for (identity, labels) in identities {
            universe.insert(*identity, labels, named_ports.get(identity).unwrap_or(&none));
        }
        for (prefix, identity) in prefixes {
            universe.insert_prefix(*prefix, *identity);
        }
        universe
    }

    /// Workloads of this identity exist, with these named ports; what was known of it before is replaced.
    pub fn insert(&mut self, identity: Identity, labels: &LabelSet, ports: &PeerPorts) {
        self.enter(identity, labels.clone());
        if self.ports.get(&identity).map(AsRef::as_ref) != (!ports.is_empty()).then_some(ports) {
            self.set_ports(identity, ports);
        }
    }

    /// No workload has this identity any more.
    pub fn remove(&mut self, identity: Identity) {
        self.set_ports(identity, &PeerPorts::new());
        if identity.reserved_labels().is_none() {
            self.leave(identity);
        }
    }

    /// A policy names this prefix.
    pub fn insert_prefix(&mut self, prefix: IpNet, identity: Identity) {
        let prefix = prefix.trunc();
        if let Some(former) = self.prefixes.insert(prefix, identity).filter(|former| *former != identity) {
            self.leave(former);
        }
        self.enter(identity, world_labels(&prefix));
    }

    /// No policy names this prefix any more; the default routes stay.
    pub fn remove_prefix(&mut self, prefix: IpNet) {
        let prefix = prefix.trunc();
        if prefix.prefix_len() != 0
            && let Some(identity) = self.prefixes.remove(&prefix)
        {
            self.leave(identity);
        }
    }

    fn enter(&mut self, identity: Identity, labels: LabelSet) {
        match self.labels.get(&identity) {
            Some(known) if *known == labels => return,
            Some(_) => self.leave(identity),
            None => {}
        }
        for (key, value) in labels.iter() {
            let values = match self.carriers.get_mut(key.key.as_str()) {
                Some(values) => values,
                None => self.carriers.entry(key.key.as_str().into()).or_default(),
            };
            match values.get_mut(value) {
                Some(list) => add(list, identity),
                None => drop(values.insert(value.into(), Arc::new(vec![identity]))),
            }
        }
        let answers = self.selected.get_mut();
        for (selector, list) in &mut answers.by_selector {
            if fits(selector, identity, &labels) {
                add(list, identity);
                answers.size += 1;
            }
        }
        self.labels.insert(identity, labels);
    }

    fn leave(&mut self, identity: Identity) {
        let Some(labels) = self.labels.remove(&identity) else { return };
        for (key, value) in labels.iter() {
            let Some(values) = self.carriers.get_mut(key.key.as_str()) else { continue };
            if values.get_mut(value).is_some_and(|list| take(list, identity)) {
                values.remove(value);
            }
            if values.is_empty() {
                self.carriers.remove(key.key.as_str());
            }
        }
        for (selector, list) in &mut self.selected.get_mut().by_selector {
            if fits(selector, identity, &labels) {
                take(list, identity);
            }
        }
    }

    fn set_ports(&mut self, identity: Identity, ports: &PeerPorts) {
        if let Some(former) = self.ports.remove(&identity) {
            for ((name, protocol), numbers) in former.iter() {
                let Some(protocols) = self.named_ports.get_mut(name) else { continue };
                let Some(by_number) = protocols.get_mut(protocol) else { continue };
                by_number.retain(|number, list| !(numbers.contains(number) && take(list, identity)));
                protocols.retain(|_, by_number| !by_number.is_empty());
                if protocols.is_empty() {
                    self.named_ports.remove(name);
                }
            }
        }
        if ports.is_empty() {
            return;
        }
        for ((name, protocol), numbers) in ports {
            let protocols = match self.named_ports.get_mut(name) {
                Some(protocols) => protocols,
                None => self.named_ports.entry(name.clone()).or_default(),
            };
            for number in numbers {
                add(protocols.entry(*protocol).or_default().entry(*number).or_default(), identity);
            }
        }
        self.ports.insert(identity, Arc::new(ports.clone()));
    }

    /// The identity of an address that is no workload's and no node's: that of the longest prefix around it.
    pub fn outside(&self, address: IpAddr) -> Identity {
        let (longest, world) = match address {
            IpAddr::V4(_) => (32, Identity::WORLD_IPV4),
            IpAddr::V6(_) => (128, Identity::WORLD_IPV6),
        };
        let around = (0..=longest).rev().filter_map(|length| IpNet::new(address, length).ok());
        around.into_iter().find_map(|prefix| self.prefixes.get(&prefix.trunc())).copied().unwrap_or(world)
    }

    /// The identities of workloads, in order.
    pub(super) fn workloads(&self) -> Vec<Identity> {
        self.labels.keys().copied().filter(|identity| identity.is_workload()).collect()
    }

    /// The workloads' identities among those that a selector means, in order.
    pub(super) fn workloads_selected(&self, selector: &Selector) -> Vec<Identity> {
        self.selected(selector).iter().copied().filter(|identity| identity.is_workload()).collect()
    }

    /// Whom a peer of a policy means, in order.
    pub fn meant(&self, peer: &Peer) -> Vec<Identity> {
        match self.audience(&Peers::Selected(vec![peer.clone()])) {
            Audience::Any => self.labels.keys().copied().collect(),
            Audience::These(peers) => peers,
        }
    }

    /// The ports that peers give this name, each with these peers in order.
    pub(super) fn ports_named(&self, name: &str, protocol: u8) -> impl Iterator<Item = (u16, &[Identity])> {
        let ports = self.named_ports.get(name).and_then(|protocols| protocols.get(&protocol));
        ports.into_iter().flatten().map(|(port, peers)| (*port, peers.as_slice()))
    }

    /// The peers a statement means.
    pub(super) fn audience(&self, peers: &Peers) -> Audience {
        let Peers::Selected(peers) = peers else { return Audience::Any };
        if peers.contains(&Peer::Entity(Entity::All)) {
            return Audience::Any;
        }
        let mut found = Vec::new();
        for peer in peers {
            match peer {
                Peer::Endpoints(selector) => found.extend_from_slice(&self.selected(selector)),
                Peer::Entity(entity) => self.members(*entity, &mut found),
                Peer::Cidr { cidr, except } => self.within(cidr, except, &mut found),
            }
        }
        // Several sorted lists in a row: the stable sort merges them.
        found.sort();
        found.dedup();
        Audience::These(found)
    }

    fn members(&self, entity: Entity, found: &mut Vec<Identity>) {
        match one(entity) {
            Some(identity) => found.push(identity),
            None => found.extend(self.labels.keys().filter(|identity| is_member(entity, **identity))),
        }
        // By the family of the prefix, which the number does not tell.
        match entity {
            Entity::WorldIpv4 => found.extend(self.nested(&Ipv4Net::default().into())),
            Entity::WorldIpv6 => found.extend(self.nested(&Ipv6Net::default().into())),
            _ => {}
        }
    }

    /// Prefixes inside `cidr` and inside no exception. Whoever holds an address by a longer match than these is not
    /// meant, and a wider prefix never is.
    fn within(&self, cidr: &IpNet, except: &[IpNet], found: &mut Vec<Identity>) {
        let left_out: BTreeSet<Identity> = except.iter().flat_map(|except| self.nested(except)).collect();
        found.extend(self.nested(cidr).filter(|identity| !left_out.contains(identity)));
    }

    /// The prefixes inside this one, itself included: neighbours in the order of (address, length).
    fn nested(&self, prefix: &IpNet) -> impl Iterator<Item = Identity> {
        let first = prefix.trunc();
        let last = IpNet::new(prefix.broadcast(), prefix.max_prefix_len()).unwrap_or(first);
        self.prefixes.range(first..=last).map(|(_, identity)| *identity)
    }

    fn selected(&self, selector: &Selector) -> List {
        if let Some(known) = self.selected.lock().by_selector.get(selector) {
            return known.clone();
        }
        // Found without the lock: two threads at worst find the same.
        let found: List = self.find(selector).into();
        let mut answers = self.selected.lock();
        if answers.size > REMEMBERED {
            *answers = Answers::default();
        }
        answers.size += found.len() + 1;
        answers.by_selector.insert(selector.clone().into(), found.clone());
        found
    }

    fn find(&self, selector: &Selector) -> Vec<Identity> {
        let fits = |identity: &Identity| {
            self.labels.get(identity).is_some_and(|labels| fits(selector, *identity, labels))
        };
        let candidates = selector.0.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some(self.carrying(&requirement.key, values)),
            Operator::Exists | Operator::NotIn(_) | Operator::DoesNotExist => None,
        });
        let rarest = candidates.min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>());
        let mut found: Vec<_> = match rarest {
            Some(lists) => lists.into_iter().flat_map(|list| list.iter()).copied().filter(fits).collect(),
            None => self.labels.keys().copied().filter(fits).collect(),
        };
        found.sort_unstable();
        found.dedup();
        found
    }

    fn carrying(&self, key: &str, values: &[String]) -> Vec<&List> {
        let by_value = self.carriers.get(key);
        values.iter().filter_map(|value| by_value?.get(value.as_str())).collect()
    }
}

/// Whether the rulesets that this policy is part of may change when someone of this identity comes or goes or names
/// other ports: a workload with these labels, or the addresses of this prefix. Never false where they do.
pub fn concerns(policy: &Policy, identity: Identity, labels: &LabelSet, prefix: Option<&IpNet>) -> bool {
    let sides = policy.rules.iter().flat_map(|rule| [&rule.ingress, &rule.egress]);
    let mut statements = sides.flat_map(|side| side.allow.iter().chain(&side.deny));
    statements.any(|statement| match &statement.peers {
        // Who this is, matters for what peers call their ports and for nothing else.
        Peers::Any => statement.ports.iter().any(|port| matches!(port, PortMatch::Named { .. })),
        Peers::Selected(peers) => peers.iter().any(|peer| match peer {
            Peer::Endpoints(selector) => fits(selector, identity, labels),
            Peer::Entity(Entity::All | Entity::WorldIpv4 | Entity::WorldIpv6) => true,
            Peer::Entity(entity) => one(*entity) == Some(identity) || is_member(*entity, identity),
            Peer::Cidr { cidr, .. } => prefix.is_some_and(|prefix| cidr.contains(prefix)),
        }),
    })
}

/// The labels of those whose addresses have a prefix. A selector that names either label means prefixes too.
fn world_labels(prefix: &IpNet) -> LabelSet {
    let family = if prefix.addr().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
    LabelSet::reserved("world").with(Source::Reserved, family, "")
}

fn fits(selector: &Selector, identity: Identity, labels: &LabelSet) -> bool {
    (identity.is_workload() || selector.names_reserved()) && selector.matches(labels)
}

/// The only identity of an entity, if it has just one. By identity, not by label: nobody becomes the host by calling
/// himself `reserved:host`.
fn one(entity: Entity) -> Option<Identity> {
    Some(match entity {
        Entity::Host => Identity::HOST,
        Entity::RemoteNode => Identity::REMOTE_NODE,
        Entity::KubeApiserver => Identity::KUBE_APISERVER,
        Entity::Ingress => Identity::INGRESS,
        Entity::Init => Identity::INIT,
        Entity::Health => Identity::HEALTH,
        Entity::Unmanaged => Identity::UNMANAGED,
        Entity::All
        | Entity::World
        | Entity::WorldIpv4
        | Entity::WorldIpv6
        | Entity::Cluster
        | Entity::None => return None,
    })
}

fn is_member(entity: Entity, identity: Identity) -> bool {
    match entity {
        Entity::All => true,
        Entity::World => identity.is_world(),
        Entity::Cluster => !identity.is_world(),
        _ => false,
    }
}

fn add(list: &mut List, identity: Identity) {
    let list = Arc::make_mut(list);
    if let Err(at) = list.binary_search(&identity) {
        list.insert(at, identity);
    }
}

/// Whether the list is empty then.
fn take(list: &mut List, identity: Identity) -> bool {
    let list = Arc::make_mut(list);
    if let Ok(at) = list.binary_search(&identity) {
        list.remove(at);
    }
    list.is_empty()
}
