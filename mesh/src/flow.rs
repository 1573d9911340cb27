//! A flow event as people see it: made by the ring-buffer reader, or of what the L7 proxy has seen, kept and printed by
//! `observe`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::auth::Refusal;
use crate::identity::Identity;
use crate::l7::L7Flow;
use crate::labels::LabelSet;
use crate::policy::PolicyName;
use crate::spiffe::SpiffeId;
use crate::workload::WorkloadName;

/// What became of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// It passed.
    Forwarded,
    /// It was dropped.
    Dropped,
    /// Policy denies it; it passed because of audit mode.
    Audit,
}

/// Direction relative to the endpoint that judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TrafficDirection {
    /// Towards it.
    Ingress,
    /// From it.
    Egress,
}

/// One end of a flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Address in the packet; absent for what is not IP.
    pub address: Option<IpAddr>,
    /// Port in the packet; ICMP has none.
    pub port: Option<u16>,
    /// Identity at the time of the verdict.
    pub identity: Option<Identity>,
    /// The workload, if it is one that is known here.
    pub workload: Option<WorkloadName>,
    /// Labels of the identity.
    pub labels: LabelSet,
}

/// Why and by whom a packet was dropped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drop {
    /// [`abi::DropReason`] as number.
    pub reason: u8,
    /// Its text.
    pub text: String,
    /// The policies that denied: the deny rule's, or those whose default deny nothing lifted.
    pub policies: Vec<PolicyName>,
}

/// What was proven of a flow's ends, or why it was not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Authentication {
    /// Policy asks for it, and both ends have proven their SPIFFE IDs; absent where an end has gone since.
    Proven {
        /// Of who sent the packet.
        source: Option<SpiffeId>,
        /// Of whom it was for.
        destination: Option<SpiffeId>,
    },
    /// Policy asks for it, and it was refused.
    Refused {
        /// Why.
        reason: Refusal,
        /// Whose certificate or proof it was about, where that is known: the ID that it had to show.
        id: Option<SpiffeId>,
        /// The ID that it did show, where that is another and known.
        #[serde(default)]
        shown: Option<SpiffeId>,
    },
}

impl Authentication {
    /// Why it was refused, as people read it.
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Proven { .. } => None,
            Self::Refused { reason, id: None, .. } => Some(reason.text().to_owned()),
            Self::Refused { reason, id: Some(id), shown: None } => Some(format!("{}: {id}", reason.text())),
            Self::Refused { reason, id: Some(id), shown: Some(shown) } => {
                Some(format!("{}: {id}, it shows {shown}", reason.text()))
            }
        }
    }
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// Nanoseconds since 1970, UTC.
    pub time: i64,
    /// Name of the node that saw it.
    pub node: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Set where the verdict is `DROPPED` or `AUDIT`.
    pub drop: Option<Drop>,
    /// Whose view it is.
    pub direction: TrafficDirection,
    /// Who sent the packet.
    pub source: Peer,
    /// Whom it was for.
    pub destination: Peer,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags byte, 0 otherwise.
    pub tcp_flags: u8,
    /// ICMP type, where it is ICMP.
    pub icmp_type: Option<u8>,
    /// True against the direction of opening; unknown (`None`) on drops, which print `<>`.
    pub is_reply: Option<bool>,
    /// Bytes of the packet, Ethernet header included.
    pub length: u32,
    /// The endpoint's host-side interface.
    pub interface: String,
    /// Set where policy asks the ends to authenticate each other, on the first packet of a connection and on drops.
    pub authentication: Option<Authentication>,
    /// The request, the answer or the TLS connection that this is, where the L7 proxy has seen it; it is no packet then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l7: Option<L7Flow>,
    /// Trace events are every packet; others are drops and new connections.
    pub trace: bool,
}
