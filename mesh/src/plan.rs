//! What one node should be doing, as a value: computed whole from resources, applied by diff.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::auth::AuthPlan;
use crate::identity::Identity;
use crate::l7::L7Plan;
use crate::labels::LabelSet;
use crate::policy::Ruleset;
use crate::service::Services;
use crate::workload::{Endpoint, EndpointId};

/// Everything the kernel datapath of one node is told.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct NodePlan {
    /// Endpoints of this node.
    pub endpoints: BTreeMap<EndpointId, EndpointPlan>,
    /// Address prefix → who is there, for everything that is not an endpoint of this node. Always holds both default
    /// routes; the longest prefix wins.
    pub ipcache: Arc<BTreeMap<IpNet, Whereabouts>>,
    /// Labels of every identity that is known, for explanation; the kernel does not see them.
    pub identities: Arc<BTreeMap<Identity, LabelSet>>,
    /// What can be called by VIP and by name.
    pub services: Arc<Services>,
    /// How workloads reach what is beyond the node.
    pub masquerade: Masquerade,
    /// Who must prove to whom who it is; `None`: no policy asks for that, and no auth-agent is needed.
    pub auth: Option<Arc<AuthPlan>>,
    /// What the L7 proxy is told; `None`: no policy with HTTP rules is about an endpoint of this node, and no proxy is
    /// needed.
    pub l7: Option<Arc<L7Plan>>,
}

/// Who is behind the addresses of a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Whereabouts {
    /// Their identity.
    pub identity: Identity,
    /// They are another node's, and who has them is told by longer prefixes: of an address that has none yet somebody may
    /// be told in a moment, and packets may wait for that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

impl From<Identity> for Whereabouts {
    /// Nobody is waited for.
    fn from(identity: Identity) -> Self {
        Self { identity, pending: false }
    }
}

/// Whose packets leave the node under its own address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Masquerade {
    /// Workloads' IPv4.
    pub ipv4: bool,
    /// Workloads' IPv6.
    pub ipv6: bool,
    /// Ports (ICMP: identifiers) that stand for workloads' own; the node's own sockets do not use them.
    pub ports: RangeInclusive<u16>,
    /// Destinations that see workloads' own addresses: the pools always, and what the configuration adds.
    pub exceptions: BTreeSet<IpNet>,
}

impl Default for Masquerade {
    /// Nobody's.
    fn default() -> Self {
        Self { ipv4: false, ipv6: false, ports: 0..=0, exceptions: BTreeSet::new() }
    }
}

/// A device that leads out of the node, and the addresses that stand for workloads' own on their way through it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// None: what would have to be masqueraded by it is dropped.
    pub ipv4: Option<Ipv4Addr>,
    /// Likewise.
    pub ipv6: Option<Ipv6Addr>,
}

/// One endpoint as policy has it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EndpointPlan {
    /// The facts.
    pub endpoint: Endpoint,
    /// Identity of its labels.
    pub identity: Identity,
    /// Who may send to it.
    pub ingress: Arc<Ruleset>,
    /// Whom it may send to.
    pub egress: Arc<Ruleset>,
    /// Denials are reported, not enforced.
    pub audit: bool,
}
