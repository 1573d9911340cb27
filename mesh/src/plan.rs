//! What one node should be doing, as a value: computed whole from resources, applied by diff.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::identity::Identity;
use crate::labels::LabelSet;
use crate::policy::Ruleset;
use crate::workload::{Endpoint, EndpointId};

/// Everything the kernel datapath of one node is told.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct NodePlan {
    /// Endpoints of this node.
    pub endpoints: BTreeMap<EndpointId, EndpointPlan>,
    /// Address prefix → identity, for everything that is not an endpoint of this node. Always holds both default
    /// routes; the longest prefix wins.
    pub ipcache: BTreeMap<IpNet, Identity>,
    /// Labels of every identity that is known, for explanation; the kernel does not see them.
    pub identities: BTreeMap<Identity, LabelSet>,
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
