//! What the tests of this folder share: a BPF file system of their own, small maps, plans. They need root.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "clippy knows only functions marked as tests to be tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use l4_datapath::{Hook, Options, Sizes};
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::plan::{EndpointPlan, NodePlan};
use mesh::policy::{Authentication, Match, Outcome, PolicyKind, PolicyName, Ruleset};
use mesh::workload::{Endpoint, EndpointId, Mac, WorkloadName};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A bpffs mounted on a temporary directory, gone on drop with all that is pinned on it.
pub(crate) struct PinRoot(tempfile::TempDir);

impl PinRoot {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ferromesh-datapath-").tempdir().unwrap();
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&Path>).unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("pins")
    }

    pub(crate) fn options(&self) -> Options {
        let sizes = Sizes {
            endpoints: 96,
            ipcache: 512,
            rules: 2048,
            connections: 1024,
            drops: 64,
            frontends: 256,
            services: 128,
            slots: 1024,
            backends: 256,
            sockets: 256,
            translations: 256,
            events: 1 << 16,
        };
        Options { pin_root: self.path(), hook: Hook::Auto, sizes, trace: false }
    }
}

impl Drop for PinRoot {
    fn drop(&mut self) {
        // Detached at once: a child that another test starts may hold our files until it executes its program.
        let unmounted = umount2(self.0.path(), MntFlags::MNT_DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

pub(crate) fn id(number: u16) -> EndpointId {
    EndpointId::new(number).unwrap()
}

pub(crate) fn identity(number: u32) -> Identity {
    Identity::new(number).unwrap()
}

pub(crate) fn policy(name: &str) -> PolicyName {
    PolicyName {
        kind: PolicyKind::CiliumNetworkPolicy,
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
    }
}

/// A ruleset of (peer, port) pairs that TCP may use, all by one policy.
pub(crate) fn allow(by: &str, entries: &[(u32, u16)]) -> Arc<Ruleset> {
    let entry = |(peer, port): &(u32, u16)| {
        let matched = Match { identity: Identity::new(*peer), protocol: Some(6), port: *port, port_bits: 16 };
        let authentication = Authentication::None;
        (
            matched,
            Outcome { allow: true, by: [policy(by)].into(), needs: None, authentication, proxied: false },
        )
    };
    Arc::new(Ruleset {
        enforced: true,
        denied_by_default: vec![policy(by)],
        entries: entries.iter().map(entry).collect(),
    })
}

/// The ruleset of a direction that nothing restricts.
pub(crate) fn open() -> Arc<Ruleset> {
    let any = Match { identity: None, protocol: None, port: 0, port_bits: 0 };
    let authentication = Authentication::None;
    let outcome = Outcome { allow: true, by: [].into(), needs: None, authentication, proxied: false };
    Arc::new(Ruleset {
        enforced: false,
        denied_by_default: Vec::new(),
        entries: BTreeMap::from([(any, outcome)]),
    })
}

/// Facts of the endpoint with this id; its interface need not exist unless it is attached.
pub(crate) fn endpoint(number: u16) -> Endpoint {
    let [high, low] = number.to_be_bytes();
    Endpoint {
        id: id(number),
        instance: 1000 + u64::from(number),
        workload: WorkloadName { namespace: "default".to_owned(), name: format!("w{number}") },
        labels: LabelSet::new(),
        service_account: "default".to_owned(),
        interface: format!("fmtest{number}"),
        ifindex: 5000 + u32::from(number),
        mac: Mac([2, 0, 0, 0, high, low]),
        gateway_mac: Mac([2, 1, 0, 0, high, low]),
        ipv4: Ipv4Addr::new(10, 0, high, low),
        ipv6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number),
    }
}

/// A plan of both default routes and these endpoints: (id, identity, ingress, egress).
pub(crate) fn plan(endpoints: Vec<(u16, u32, Arc<Ruleset>, Arc<Ruleset>)>) -> NodePlan {
    let entry = |(number, own, ingress, egress): (u16, u32, _, _)| {
        let planned = EndpointPlan {
            endpoint: endpoint(number),
            identity: identity(own),
            ingress,
            egress,
            audit: false,
        };
        (id(number), planned)
    };
    NodePlan {
        endpoints: endpoints.into_iter().map(entry).collect(),
        ipcache: Arc::new(BTreeMap::from([
            (net("0.0.0.0/0"), Identity::WORLD_IPV4.into()),
            (net("::/0"), Identity::WORLD_IPV6.into()),
        ])),
        ..NodePlan::default()
    }
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The kernel's own maps, read from their pins by nothing but aya.
pub(crate) struct Pinned(PathBuf);

impl Pinned {
    pub(crate) fn of(root: &PinRoot) -> Self {
        Self(root.path().join(format!("v{}/maps", abi::SCHEMA)))
    }

    pub(crate) fn map(&self, name: &str) -> aya::maps::Map {
        let data = aya::maps::MapData::from_pin(self.0.join(name)).unwrap();
        aya::maps::Map::from_map_data(data).unwrap()
    }

    pub(crate) fn generation(&self) -> u64 {
        maps::Node::new(self.map(abi::map::NODE)).unwrap().get().generation
    }

    /// What is in force for an endpoint.
    pub(crate) fn assignment(&self, number: u16) -> abi::Assignment {
        let both =
            maps::Assignments::new(self.map(abi::map::ASSIGNMENTS)).unwrap().get(number.into()).unwrap();
        both.slot[usize::from(self.generation() & 1 == 1)]
    }

    /// What both slots say.
    pub(crate) fn assignments(&self, number: u16) -> abi::Assignments {
        maps::Assignments::new(self.map(abi::map::ASSIGNMENTS)).unwrap().get(number.into()).unwrap()
    }

    pub(crate) fn rules(&self) -> maps::Rules {
        maps::Rules::new(self.map(abi::map::RULES)).unwrap()
    }

    pub(crate) fn endpoints(&self) -> BTreeMap<abi::Address, abi::Endpoint> {
        let entries = maps::Endpoints::new(self.map(abi::map::ENDPOINTS)).unwrap().entries().unwrap();
        entries.into_iter().collect()
    }

    pub(crate) fn ipcache(&self) -> maps::Ipcache {
        maps::Ipcache::new(self.map(abi::map::IPCACHE)).unwrap()
    }

    /// Ruleset ids with entries.
    pub(crate) fn ruleset_ids(&self) -> BTreeSet<u32> {
        let entries = self.rules().entries().unwrap();
        entries.iter().map(|(prefix, _)| u32::from_be_bytes(prefix.data.ruleset)).collect()
    }

    /// The identity in force of an address that is no endpoint's.
    pub(crate) fn remote(&self, address: abi::Address) -> u32 {
        let slot = usize::from(self.generation() & 1 == 1);
        self.ipcache().longest(address).unwrap().map_or(0, |remote| remote.identity[slot])
    }

    /// The verdict as a program finds it (two look-ups, deny wins, then allow), and the greater requirement of those
    /// that allow.
    pub(crate) fn judge(&self, ruleset: u32, peer: u32, protocol: u8, port: u16) -> (bool, u8) {
        let rules = self.rules();
        let rule = |identity| rules.longest(abi::RuleKey::exact(ruleset, identity, protocol, port)).unwrap();
        let found: Vec<abi::RuleValue> = [peer, 0].into_iter().filter_map(rule).collect();
        let says = |verdict: abi::RuleVerdict| found.iter().filter(move |rule| rule.verdict == verdict as u8);
        let admitting = says(abi::RuleVerdict::Allow).chain(says(abi::RuleVerdict::Proxy));
        let requirement = admitting.map(|rule| rule.requirement).max();
        match says(abi::RuleVerdict::Deny).next() {
            Some(_) => (false, 0),
            None => (requirement.is_some(), requirement.unwrap_or(0)),
        }
    }
}
