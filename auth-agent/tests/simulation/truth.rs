//! What is so, whoever knows it: the authority's objects, who runs where, which address is whose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use auth_agent::event::Time;
use mesh::auth::{AuthEndpoint, AuthNode, AuthPlan, IdentityPair, InstanceName};
use mesh::identity::Identity;
use mesh::spiffe::{SpiffeId, TrustDomain};

/// How long marks outlive the last word of a node, in the simulation.
pub(crate) const GRACE: Time = 3_000_000_000;

/// An endpoint, and since when it is as it is.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) end: AuthEndpoint,
    pub(crate) since: Time,
}

/// Everything that is so.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) domain: TrustDomain,
    pub(crate) names: Vec<String>,
    pub(crate) endpoints: BTreeMap<InstanceName, Endpoint>,
    /// What has changed or ended, as it was until then.
    pub(crate) past: BTreeMap<InstanceName, Time>,
    pub(crate) required: BTreeSet<IdentityPair>,
    pub(crate) required_since: Time,
    /// Addresses of each node (the last octet) that are free, and those that wait: by the instance that had them.
    pub(crate) free: Vec<BTreeSet<u8>>,
    pub(crate) waiting: BTreeMap<InstanceName, (u8, Time)>,
    next: u64,
}

pub(crate) fn identity(number: u64) -> Identity {
    Identity::new(256 + number as u32).expect("not zero")
}

impl Truth {
    pub(crate) fn new(nodes: usize, addresses: u8) -> Self {
        let names = ["alpha", "beta", "gamma", "delta"].map(str::to_owned);
        Self {
            domain: "sim.test".parse().expect("a trust domain"),
            names: names[..nodes].to_vec(),
            endpoints: BTreeMap::new(),
            past: BTreeMap::new(),
            required: BTreeSet::new(),
            required_since: 0,
            free: vec![(1..=addresses).collect(); nodes],
            waiting: BTreeMap::new(),
            next: 0,
        }
    }

    pub(crate) fn index(&self, name: &str) -> usize {
        self.names.iter().position(|other| other == name).expect("a node")
    }

    pub(crate) fn id(&self, account: u64) -> SpiffeId {
        self.domain.workload("ns", &format!("account-{account}")).expect("an ID")
    }

    /// An endpoint begins, on an address that is free.
    pub(crate) fn start(&mut self, now: Time, node: usize, account: u64, label: u64) -> Option<InstanceName> {
        let octet = self.free[node].pop_first()?;
        self.next += 1;
        let name = InstanceName { node: self.names[node].clone(), instance: (1 << 33) + self.next };
        let end = AuthEndpoint {
            workload: format!("ns/w{}", self.next).parse().expect("a workload"),
            id: self.id(account),
            identity: identity(label),
            ipv4: Ipv4Addr::new(10, 0, node as u8, octet),
            ipv6: Ipv6Addr::new(0xfd00, 0, 0, node as u16, 0, 0, 0, u16::from(octet)),
        };
        self.endpoints.insert(name.clone(), Endpoint { end, since: now });
        Some(name)
    }

    /// It ends; its address waits.
    pub(crate) fn stop(&mut self, now: Time, name: &InstanceName) {
        if let Some(gone) = self.endpoints.remove(name) {
            self.past.insert(name.clone(), now);
            self.waiting.insert(name.clone(), (gone.end.ipv4.octets()[3], now));
        }
    }

    /// The allocator of a node gives addresses out again as soon as it may.
    pub(crate) fn give_out(&mut self, name: &InstanceName) {
        if let Some((octet, _)) = self.waiting.remove(name) {
            let node = self.index(&name.node);
            self.free[node].insert(octet);
        }
    }

    /// Instances whose quarantine is over, though nobody has said that they are free.
    pub(crate) fn after_quarantine(&self, now: Time) -> Vec<InstanceName> {
        let over = |(_, (_, at)): &(&InstanceName, &(u8, Time))| now >= at + GRACE / 10 * 11 + 1_000_000_000;
        self.waiting.iter().filter(over).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn change(&mut self, now: Time, name: &InstanceName, change: impl FnOnce(&mut AuthEndpoint)) {
        if let Some(endpoint) = self.endpoints.get_mut(name) {
            change(&mut endpoint.end);
            endpoint.since = now;
        }
    }

    pub(crate) fn requires(&self, a: &InstanceName, b: &InstanceName) -> bool {
        match (self.endpoints.get(a), self.endpoints.get(b)) {
            (Some(a), Some(b)) => self.required.contains(&IdentityPair::new(a.end.identity, b.end.identity)),
            _ => false,
        }
    }

    /// Which ends ask for a mark when the first calls the second: policy is written for callers, for the called, or both.
    /// The usual rule is the called one's.
    pub(crate) fn asks(&self, from: &InstanceName, to: &InstanceName) -> [bool; 2] {
        let identities =
            [from, to].map(|end| self.endpoints.get(end).map_or(0, |end| end.end.identity.number()));
        match identities.into_iter().sum::<u32>() % 4 {
            0 => [true, true],
            1 => [true, false],
            _ => [false, true],
        }
    }

    /// The plan of a node as of now.
    pub(crate) fn plan(&self, node: usize) -> Arc<AuthPlan> {
        let own = &self.names[node];
        let others = self.names.iter().filter(|name| *name != own);
        let nodes = others.map(|name| {
            let addresses = vec![SocketAddr::from(([192, 0, 2, 1], 4250))];
            (name.clone(), AuthNode { addresses, id: self.domain.node(name).expect("an ID") })
        });
        let of = |here: bool| self.endpoints.iter().filter(move |(name, _)| (name.node == *own) == here);
        Arc::new(AuthPlan {
            trust_domain: self.domain.clone(),
            node: own.clone(),
            grace: GRACE / 1_000_000,
            ahead: 20_000,
            nodes: nodes.collect(),
            endpoints: of(true).map(|(name, endpoint)| (name.instance, endpoint.end.clone())).collect(),
            remotes: of(false).map(|(name, endpoint)| (name.clone(), endpoint.end.clone())).collect(),
            pairs: self.required.clone(),
        })
    }
}
