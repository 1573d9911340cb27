//! Who there is: every identity that a ruleset can name, and which of them a peer of a policy means.
//!
//! A universe is a value made whole from what the cluster knows; it never changes, and asking it changes nothing that
//! can be seen. Inside it remembers the answer for each selector, because thousands of policies repeat the same few and
//! each would otherwise be held against each of ten thousand label sets. Keep it as long as identities, prefixes and
//! named ports are the same, also while policies come and go.
//!
//! A selector is answered from an index of labels where it names a value, so even the first answer looks only at the
//! identities that carry the rarest of the values it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;

use super::{Entity, Operator, Peer, Peers, Selector};
use crate::identity::Identity;
use crate::labels::{LabelSet, Source};

/// The named ports of the workloads of one identity: (name, IP protocol number) → ports. More than one port where
/// workloads with equal labels give different ports the same name; policy then means all of them.
pub type PeerPorts = BTreeMap<(String, u8), BTreeSet<u16>>;

/// A peer's place in a universe; places ascend with identities.
pub(super) type Place = u32;

/// Every identity that a ruleset can name. See the [module](self).
pub struct Universe {
    identities: Vec<Identity>,
    /// By place.
    labels: Vec<LabelSet>,
    /// Truncated prefixes, both default routes among them.
    prefixes: BTreeMap<IpNet, Place>,
    carriers: ByLabel,
    named_ports: ByPortName,
    selected: Mutex<BTreeMap<Selector, Arc<[Place]>>>,
}

/// Label key → value → who carries it, in order, whatever the source.
type ByLabel = BTreeMap<String, BTreeMap<String, Vec<Place>>>;
/// Port name → protocol → port → who means this port by this name, in order.
type ByPortName = BTreeMap<String, BTreeMap<u8, BTreeMap<u16, Vec<Place>>>>;

/// The peers of a statement, found.
pub(super) enum Audience {
    /// Anyone, also who is not in the universe.
    Any,
    /// These, in order.
    These(Vec<Place>),
}

impl Audience {
    /// Whether it means this peer; `None` is one that the universe does not know.
    pub(super) fn holds(&self, place: Option<Place>) -> bool {
        match self {
            Self::Any => true,
            Self::These(places) => place.is_some_and(|place| places.binary_search(&place).is_ok()),
        }
    }

    /// Those of the places, which are in order, that it means. Costs what the shorter list costs.
    pub(super) fn among(&self, places: &[Place]) -> Vec<Place> {
        let Self::These(own) = self else { return places.to_vec() };
        let (short, long) =
            if own.len() < places.len() { (own.as_slice(), places) } else { (places, own.as_slice()) };
        short.iter().filter(|place| long.binary_search(place).is_ok()).copied().collect()
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
        let mut known: BTreeMap<Identity, LabelSet> =
            Identity::RESERVED.iter().map(|(identity, name)| (*identity, LabelSet::reserved(name))).collect();
        known.extend(identities.iter().map(|(identity, labels)| (*identity, labels.clone())));
        let mut prefixes: BTreeMap<IpNet, Identity> =
            prefixes.iter().map(|(prefix, identity)| (prefix.trunc(), *identity)).collect();
        prefixes.insert(Ipv4Net::default().into(), Identity::WORLD_IPV4);
        prefixes.insert(Ipv6Net::default().into(), Identity::WORLD_IPV6);
        // A selector that names either label means prefixes too.
        let [ipv4, ipv6] = ["world-ipv4", "world-ipv6"]
            .map(|family| LabelSet::reserved("world").with(Source::Reserved, family, ""));
        known.extend(prefixes.iter().map(|(prefix, identity)| match prefix {
            IpNet::V4(_) => (*identity, ipv4.clone()),
            IpNet::V6(_) => (*identity, ipv6.clone()),
        }));

        let places: BTreeMap<Identity, Place> = known.keys().copied().zip(0..).collect();
        let place_of = |identity: &Identity| places.get(identity).copied();
        Self {
            prefixes: prefixes.iter().filter_map(|(prefix, id)| Some((*prefix, place_of(id)?))).collect(),
            named_ports: index_ports(
                named_ports.iter().filter_map(|(id, ports)| Some((place_of(id)?, ports))),
            ),
            carriers: index_labels(known.values().zip(0..)),
            identities: known.keys().copied().collect(),
            labels: known.into_values().collect(),
            selected: Mutex::default(),
        }
    }

    /// The identity of an address that is no workload's and no node's: that of the longest prefix around it.
    pub fn outside(&self, address: IpAddr) -> Identity {
        let (longest, world) = match address {
            IpAddr::V4(_) => (32, Identity::WORLD_IPV4),
            IpAddr::V6(_) => (128, Identity::WORLD_IPV6),
        };
        let around = (0..=longest).rev().filter_map(|length| IpNet::new(address, length).ok());
        let place = around.into_iter().find_map(|prefix| self.prefixes.get(&prefix.trunc()));
        place.and_then(|place| self.identity(*place)).unwrap_or(world)
    }

    /// Whom a peer of a policy means, in order.
    pub fn meant(&self, peer: &Peer) -> Vec<Identity> {
        match self.audience(&Peers::Selected(vec![peer.clone()])) {
            Audience::Any => self.identities.clone(),
            Audience::These(places) => places.iter().filter_map(|place| self.identity(*place)).collect(),
        }
    }

    pub(super) fn place(&self, identity: Identity) -> Option<Place> {
        Place::try_from(self.identities.binary_search(&identity).ok()?).ok()
    }

    pub(super) fn identity(&self, place: Place) -> Option<Identity> {
        self.identities.get(place as usize).copied()
    }

    /// All identities, in the order of their places.
    pub(super) fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// The ports that peers give this name, each with these peers in order.
    pub(super) fn ports_named(&self, name: &str, protocol: u8) -> impl Iterator<Item = (u16, &[Place])> {
        let ports = self.named_ports.get(name).and_then(|protocols| protocols.get(&protocol));
        ports.into_iter().flatten().map(|(port, places)| (*port, places.as_slice()))
    }

    /// The peers a statement means.
    pub(super) fn audience(&self, peers: &Peers) -> Audience {
        let Peers::Selected(peers) = peers else { return Audience::Any };
        if peers.contains(&Peer::Entity(Entity::All)) {
            return Audience::Any;
        }
        let mut places = Vec::new();
        for peer in peers {
            match peer {
                Peer::Endpoints(selector) => places.extend_from_slice(&self.selected(selector)),
                Peer::Entity(entity) => places.extend(self.members(*entity)),
                Peer::Cidr { cidr, except } => self.within(cidr, except, &mut places),
            }
        }
        // Several sorted lists in a row: the stable sort merges them.
        places.sort();
        places.dedup();
        Audience::These(places)
    }

    /// By identity, not by label: nobody becomes the host by calling himself `reserved:host`.
    fn members(&self, entity: Entity) -> Vec<Place> {
        let those = |matches: fn(Identity) -> bool| -> Vec<Place> {
            let all = self.identities.iter().zip(0..);
            all.filter(|(identity, _)| matches(**identity)).map(|(_, place)| place).collect()
        };
        let that = |identity| self.place(identity).into_iter().collect();
        match entity {
            Entity::All => those(|_| true),
            Entity::World => those(Identity::is_world),
            Entity::WorldIpv4 => self.nested(&Ipv4Net::default().into()).collect(),
            Entity::WorldIpv6 => self.nested(&Ipv6Net::default().into()).collect(),
            Entity::Cluster => those(|identity| !identity.is_world()),
            Entity::Host => that(Identity::HOST),
            Entity::RemoteNode => that(Identity::REMOTE_NODE),
            Entity::KubeApiserver => that(Identity::KUBE_APISERVER),
            Entity::Ingress => that(Identity::INGRESS),
            Entity::Init => that(Identity::INIT),
            Entity::Health => that(Identity::HEALTH),
            Entity::Unmanaged => that(Identity::UNMANAGED),
            Entity::None => Vec::new(),
        }
    }

    /// Prefixes inside `cidr` and inside no exception. Whoever holds an address by a longer match than these is not
    /// meant, and a wider prefix never is.
    fn within(&self, cidr: &IpNet, except: &[IpNet], places: &mut Vec<Place>) {
        let left_out: BTreeSet<Place> = except.iter().flat_map(|except| self.nested(except)).collect();
        places.extend(self.nested(cidr).filter(|place| !left_out.contains(place)));
    }

    /// The prefixes inside this one, itself included: neighbours in the order of (address, length).
    fn nested(&self, prefix: &IpNet) -> impl Iterator<Item = Place> {
        let first = prefix.trunc();
        let last = IpNet::new(prefix.broadcast(), prefix.max_prefix_len()).unwrap_or(first);
        self.prefixes.range(first..=last).map(|(_, place)| *place)
    }

    fn selected(&self, selector: &Selector) -> Arc<[Place]> {
        if let Some(known) = self.selected.lock().get(selector) {
            return known.clone();
        }
        // Found without the lock: two threads at worst find the same.
        let found: Arc<[Place]> = self.find(selector).into();
        self.selected.lock().insert(selector.clone(), found.clone());
        found
    }

    fn find(&self, selector: &Selector) -> Vec<Place> {
        let anyone = selector.names_reserved();
        let fits = |place: &Place| {
            let at = *place as usize;
            self.identities.get(at).is_some_and(|identity| anyone || identity.is_workload())
                && self.labels.get(at).is_some_and(|labels| selector.matches(labels))
        };
        let candidates = selector.0.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some(self.carrying(&requirement.key, values)),
            Operator::Exists | Operator::NotIn(_) | Operator::DoesNotExist => None,
        });
        let mut places =
            match candidates.min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>()) {
                Some(lists) => lists.into_iter().flatten().copied().filter(fits).collect(),
                None => (0..).take(self.identities.len()).filter(fits).collect::<Vec<_>>(),
            };
        places.sort_unstable();
        places.dedup();
        places
    }

    fn carrying(&self, key: &str, values: &[String]) -> Vec<&Vec<Place>> {
        let by_value = self.carriers.get(key);
        values.iter().filter_map(|value| by_value?.get(value)).collect()
    }
}

fn index_labels<'a>(labels: impl Iterator<Item = (&'a LabelSet, Place)>) -> ByLabel {
    let mut index: BTreeMap<&str, BTreeMap<&str, Vec<Place>>> = BTreeMap::new();
    for (labels, place) in labels {
        for (key, value) in labels.iter() {
            index.entry(&key.key).or_default().entry(value).or_default().push(place);
        }
    }
    // Names are copied once each, not once for each of ten thousand identities.
    let values = |values: BTreeMap<&str, Vec<Place>>| {
        values.into_iter().map(|(value, at)| (value.to_owned(), at)).collect()
    };
    index.into_iter().map(|(key, of_key)| (key.to_owned(), values(of_key))).collect()
}

fn index_ports<'a>(ports: impl Iterator<Item = (Place, &'a PeerPorts)>) -> ByPortName {
    let mut index = ByPortName::new();
    for (place, ports) in ports {
        for ((name, protocol), numbers) in ports {
            let of_protocol = index.entry(name.clone()).or_default().entry(*protocol).or_default();
            for port in numbers {
                of_protocol.entry(*port).or_default().push(place);
            }
        }
    }
    index
}
