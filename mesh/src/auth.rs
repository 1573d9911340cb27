//! Who has to prove to whom who it is: the auth-agent's part of a node's plan.
//!
//! Everything here comes from the authority (`Workload` and `Node` objects, which no running node can write) and, of
//! remote endpoints, from the prefix of the node that owns them. Where two claim an address, neither is here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::workload::WorkloadName;

/// An endpoint instance of any node: an address passes to another, this does not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct InstanceName {
    /// The node it runs on.
    pub node: String,
    /// Its [`crate::workload::Endpoint::instance`] there.
    pub instance: u64,
}

/// An endpoint that can prove who it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuthEndpoint {
    /// The workload it carries.
    pub workload: WorkloadName,
    /// The ID that its workload has; what a proof must show.
    pub id: SpiffeId,
    /// Its identity, in the numbers of the node this plan is for.
    pub identity: Identity,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    pub ipv6: Ipv6Addr,
}

impl AuthEndpoint {
    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }
}

/// Another node of the mesh.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuthNode {
    /// Where its auth-agent listens, in order of preference.
    pub addresses: Vec<SocketAddr>,
    /// The ID its node certificate must show.
    pub id: SpiffeId,
}

/// Two identities of which a policy requires that their workloads authenticate each other; the lower number first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct IdentityPair(Identity, Identity);

impl IdentityPair {
    /// In whichever order.
    pub fn new(a: Identity, b: Identity) -> Self {
        if a <= b { Self(a, b) } else { Self(b, a) }
    }

    /// The lower number, then the higher.
    pub fn identities(self) -> (Identity, Identity) {
        (self.0, self.1)
    }
}

/// Everything the auth-agent of one node is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuthPlan {
    /// The trust domain of this mesh.
    pub trust_domain: TrustDomain,
    /// This node's name.
    pub node: String,
    /// How long marks outlive the last word of the node that vouches for them, milliseconds.
    pub grace: u64,
    /// The most pairs that are proven before anybody asks; 0: none, packets alone ask.
    pub ahead: u32,
    /// The other nodes, by name.
    pub nodes: BTreeMap<String, AuthNode>,
    /// Endpoints of this node, by instance.
    #[serde(with = "as_list")]
    pub endpoints: BTreeMap<u64, AuthEndpoint>,
    /// Endpoints of other nodes, as those nodes and the authority agree.
    #[serde(with = "as_list")]
    pub remotes: BTreeMap<InstanceName, AuthEndpoint>,
    /// Who must authenticate; nobody else gets a mark.
    pub pairs: BTreeSet<IdentityPair>,
}

impl AuthPlan {
    /// Whether policy asks two identities to authenticate each other.
    pub fn requires(&self, a: Identity, b: Identity) -> bool {
        self.pairs.contains(&IdentityPair::new(a, b))
    }
}

/// Maps whose keys are no strings, for formats that insist on those: lists of pairs.
pub mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// For `#[serde(with)]`.
    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    /// For `#[serde(with)]`.
    pub fn deserialize<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<K, V>, D::Error> {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// Which end of a pair a refusal is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The endpoint of this node whose packets are refused.
    Own,
    /// Its peer.
    Peer,
}

impl Side {
    /// Beyond the numbers of [`Refusal`].
    const fn bit(self) -> u8 {
        match self {
            Self::Own => 0x80,
            Self::Peer => 0x40,
        }
    }

    /// From the other end.
    pub fn turned(self) -> Self {
        match self {
            Self::Own => Self::Peer,
            Self::Peer => Self::Own,
        }
    }
}

/// Whose certificate a proof has failed of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blame {
    /// The ID that it had to show.
    pub expected: SpiffeId,
    /// The ID that it does show; `None`: none was shown to this node, or it has none.
    pub shown: Option<SpiffeId>,
    /// If it was the peer's node that refused it: why, as it has said.
    pub said: Option<Refusal>,
}

impl Blame {
    /// As people read it, behind what [`Refusal::text`] says.
    pub fn text(&self) -> String {
        let Self { expected, shown, said } = self;
        let shown = shown.as_ref().filter(|shown| *shown != expected);
        let shown = shown.map(|shown| format!(", it shows {shown}")).unwrap_or_default();
        let said = said.map(|why| format!(", since {}", why.text())).unwrap_or_default();
        format!("{expected}{shown}{said}")
    }
}

/// Why one workload was not proven to another: what events, `auth why` and metrics say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Refusal {
    /// The address is nobody's, or two claim it.
    UnknownPeer = 1,
    /// No policy asks these two to authenticate.
    NotRequired = 2,
    /// There is no session with the peer's node.
    NodeUnreachable = 3,
    /// The peer's node does not vouch for that instance.
    NotAttested = 4,
    /// There is no certificate for the workload of this node.
    NoCertificate = 5,
    /// There is no certificate for the workload of the peer's node.
    PeerNoCertificate = 6,
    /// A certificate shows another ID than the authority gives the workload.
    WrongId = 7,
    /// No trusted root signed it.
    Untrusted = 8,
    /// It has expired.
    Expired = 9,
    /// It is not valid yet.
    NotYetValid = 10,
    /// It is malformed, or not one for a workload.
    BadCertificate = 11,
    /// The peer's node refused ours.
    RefusedByPeer = 12,
    /// It took too long.
    TimedOut = 13,
    /// Too many at once.
    Overloaded = 14,
    /// The instance is gone, or its mark was withdrawn.
    Withdrawn = 15,
    /// The peer broke the protocol.
    Protocol = 16,
}

impl Refusal {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::UnknownPeer,
        Self::NotRequired,
        Self::NodeUnreachable,
        Self::NotAttested,
        Self::NoCertificate,
        Self::PeerNoCertificate,
        Self::WrongId,
        Self::Untrusted,
        Self::Expired,
        Self::NotYetValid,
        Self::BadCertificate,
        Self::RefusedByPeer,
        Self::TimedOut,
        Self::Overloaded,
        Self::Withdrawn,
        Self::Protocol,
    ];

    /// Its number, as the kernel's maps and events carry it.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The one with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.number() == number)
    }

    /// Its number and whose certificate it is about, in one byte: what the kernel's maps and events carry of both.
    pub fn encode(self, side: Option<Side>) -> u8 {
        self.number() | side.map_or(0, Side::bit)
    }

    /// What [`Self::encode`] has made.
    pub fn decode(byte: u8) -> Option<(Self, Option<Side>)> {
        let side = [Side::Own, Side::Peer].into_iter().find(|side| byte & side.bit() != 0);
        let number = byte & !(Side::Own.bit() | Side::Peer.bit());
        Some((Self::from_number(number)?, side))
    }

    /// The same seen from the other end, where both are on one node.
    pub fn turned(self) -> Self {
        match self {
            Self::NoCertificate => Self::PeerNoCertificate,
            Self::PeerNoCertificate => Self::NoCertificate,
            other => other,
        }
    }

    /// As people read it.
    pub fn text(self) -> &'static str {
        match self {
            Self::UnknownPeer => "the peer's address is nobody's",
            Self::NotRequired => "no policy asks these two to authenticate",
            Self::NodeUnreachable => "no session with the peer's node",
            Self::NotAttested => "the peer's node does not vouch for it",
            Self::NoCertificate => "no certificate for our workload",
            Self::PeerNoCertificate => "no certificate for the peer's workload",
            Self::WrongId => "the certificate shows another SPIFFE ID",
            Self::Untrusted => "the certificate is signed by nobody who is trusted",
            Self::Expired => "the certificate has expired",
            Self::NotYetValid => "the certificate is not valid yet",
            Self::BadCertificate => "the certificate is not a workload's",
            Self::RefusedByPeer => "the peer's node refused our certificate",
            Self::TimedOut => "it took too long",
            Self::Overloaded => "too many handshakes at once",
            Self::Withdrawn => "withdrawn",
            Self::Protocol => "the peer's node broke the protocol",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_has_a_refusal_and_whose_it_is() {
        for refusal in Refusal::ALL {
            for side in [None, Some(Side::Own), Some(Side::Peer)] {
                assert_eq!(Refusal::decode(refusal.encode(side)), Some((refusal, side)));
            }
        }
        assert_eq!([0, 17, 0x80, 0x40 | 63].map(Refusal::decode), [None; 4]);
    }

    #[test]
    fn blame_names_what_was_shown_where_it_is_another_and_what_the_peer_said() {
        let [web, db]: [SpiffeId; 2] =
            ["web", "db"].map(|name| format!("spiffe://mesh/ns/default/sa/{name}").parse().unwrap());
        let blame =
            |shown: &SpiffeId, said| Blame { expected: web.clone(), shown: Some(shown.clone()), said };
        assert_eq!(blame(&web, None).text(), web.to_string());
        assert_eq!(blame(&db, None).text(), format!("{web}, it shows {db}"));
        let said = blame(&web, Some(Refusal::Expired)).text();
        assert_eq!(said, format!("{web}, since the certificate has expired"));
    }
}
