//! What the agent and its auth-agent, and the agent and its CA, say to each other; and what `ferromesh auth` prints.
//!
//! Both are children the agent starts, each at the other end of a unix socket that the agent has listened on. What the
//! agent wants is told whole ([`AuthPlan`], [`Placements`]) with a number, and acknowledged by that number: who comes
//! back after a restart is told it again, and there is nothing else to remember.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh::auth::{AuthPlan, Blame, InstanceName, Refusal};
use mesh::spiffe::{SpiffeId, TrustDomain};
use mesh::workload::WorkloadName;
use serde::{Deserialize, Serialize};

/// From the agent to its auth-agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", content = "value", rename_all = "kebab-case")]
pub enum ToAuthAgent {
    /// What is to be proven; replaces the one before.
    Plan {
        /// Its number, higher than the one before.
        number: u64,
        /// All of it.
        plan: Arc<AuthPlan>,
    },
    /// → [`FromAuthAgent::Answer`] of the same number.
    Ask {
        /// Chosen by the asker.
        number: u64,
        /// What.
        question: AuthQuestion,
    },
    /// Whom to trust from now on, more than what the CA has said before; nothing is lost of it over a restart. After
    /// a plan, which names the trust domain.
    Bundle {
        /// The roots. One that is no bundle changes nothing.
        pem: String,
    },
    /// End; marks are left to their leases.
    Stop,
}

/// From the auth-agent to its agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", content = "value", rename_all = "kebab-case")]
pub enum FromAuthAgent {
    /// Every mark that the plan of this number no longer allows is gone from the maps.
    Applied {
        /// [`ToAuthAgent::Plan::number`].
        number: u64,
    },
    /// Of the plan of this number, every pair that both nodes have endpoints for has been proven or refused once.
    Settled {
        /// [`ToAuthAgent::Plan::number`].
        number: u64,
    },
    /// Marks have gone: what depended on them is to be ended in the workloads' own namespaces too.
    Ended(Vec<EndedPair>),
    /// Pairs that are refused, or have lost their marks for a reason that has a name: what explains drops of theirs.
    Unproven(Vec<UnprovenPair>),
    /// Every node that had a mark for this instance of ours has acknowledged that it is gone: its addresses may be
    /// another's.
    Free {
        /// [`mesh::workload::Endpoint::instance`].
        instance: u64,
    },
    /// To [`ToAuthAgent::Ask`].
    Answer {
        /// [`ToAuthAgent::Ask::number`].
        number: u64,
        /// The answer.
        answer: Box<AuthAnswer>,
    },
}

/// A pair whose mark has gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndedPair {
    /// The endpoint of this node.
    pub instance: u64,
    /// Every address of its peer.
    pub remote: Vec<IpAddr>,
    /// The mark that is no more.
    pub epoch: u64,
    /// Why.
    pub why: Refusal,
}

/// A pair that is not proven.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnprovenPair {
    /// The endpoint of this node.
    pub instance: u64,
    /// Every address of its peer.
    pub remote: Vec<IpAddr>,
    /// Why not.
    pub why: Refusal,
    /// Whose certificate it was about, if it was one.
    pub blame: Option<Blame>,
}

/// What can be asked of the auth-agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub enum AuthQuestion {
    /// → [`AuthAnswer::Certificates`].
    Certificates,
    /// → [`AuthAnswer::Pairs`].
    Pairs,
    /// → [`AuthAnswer::Nodes`].
    Nodes,
    /// → [`AuthAnswer::Counters`].
    Counters,
}

/// What the auth-agent answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", content = "value", rename_all = "kebab-case")]
pub enum AuthAnswer {
    /// Rows of `auth list`.
    Certificates(Vec<CertificateView>),
    /// Rows of `auth pairs`.
    Pairs(Vec<PairView>),
    /// Rows of `auth nodes`.
    Nodes(Vec<NodeView>),
    /// For `/metrics`.
    Counters(AuthCounters),
}

/// A certificate this node holds, or wants: a row of `auth list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CertificateView {
    /// Whose.
    pub id: SpiffeId,
    /// Its serial number in hexadecimal; `None`: there is no certificate.
    pub serial: Option<String>,
    /// When it ends, seconds since 1970.
    pub expires: Option<i64>,
    /// Workloads of this node that it stands for; the node's own certificate has none.
    pub workloads: BTreeSet<WorkloadName>,
    /// Why there is none, or why there will be none after this.
    pub problem: Option<String>,
}

/// A pair of endpoint instances: a row of `auth pairs`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairView {
    /// The endpoint of this node.
    pub local: InstanceName,
    /// Its workload.
    pub local_workload: WorkloadName,
    /// Its SPIFFE ID.
    pub local_id: SpiffeId,
    /// Its peer.
    pub remote: InstanceName,
    /// Its workload.
    pub remote_workload: WorkloadName,
    /// Its SPIFFE ID.
    pub remote_id: SpiffeId,
    /// What has come of it.
    pub state: PairState,
    /// Number of the mark, where there is one.
    pub mark: u32,
    /// Its epoch.
    pub epoch: u64,
    /// Seconds until the mark ends unless it is renewed.
    pub expires_in: Option<u64>,
    /// How long the latest handshake that this node began for it took, microseconds: from `Prove`, or from the start of
    /// one in memory, until it counted. In JSON only.
    pub proof_micros: Option<u64>,
    /// What failed last, if it is not proven now.
    pub refusal: Option<Refusal>,
    /// That, in a sentence that names the certificate or the node.
    pub detail: Option<String>,
}

/// State of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairState {
    /// Nobody has asked yet.
    Idle,
    /// Being proven.
    Proving,
    /// There is a mark.
    Proven,
    /// Tried and refused.
    Refused,
}

/// A node of the mesh as the auth-agent sees it: a row of `auth nodes`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Whether there is a session.
    pub connected: bool,
    /// Where, if there is.
    pub address: Option<std::net::SocketAddr>,
    /// Milliseconds until its lease ends; 0: it has ended.
    pub lease: u64,
    /// Marks that depend on it.
    pub marks: usize,
    /// What went wrong last.
    pub problem: Option<String>,
}

/// Counters since the auth-agent started.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AuthCounters {
    /// Handshakes of two workloads that succeeded.
    pub proven: u64,
    /// Those that failed or were not let begin, by why.
    pub refused: BTreeMap<Refusal, u64>,
    /// What else was refused, by where and why.
    pub refusals: BTreeMap<Step, BTreeMap<Refusal, u64>>,
    /// Marks there are.
    pub marks: u64,
    /// Packets that wait now.
    pub held: u64,
    /// Packets that have waited and were let go on.
    pub released: u64,
    /// Packets that have waited in vain, by why: given back to be refused, but for those whose addresses had passed to
    /// another ([`Refusal::Withdrawn`]).
    pub lost: BTreeMap<Refusal, u64>,
    /// Time from a packet's arrival to its release.
    pub waited: Times,
    /// Time until a pair had its mark, from the first packet that had to wait for it.
    pub asked: Times,
    /// The same where no packet waited: from the plan, or whatever else let it be tried.
    pub ahead: Times,
    /// Seconds until the first of the certificates ends.
    pub first_expiry: Option<u64>,
    /// Node sessions that are up.
    pub sessions: u64,
}

/// How long something took, each time.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Times {
    /// Upper bound in microseconds → how many took at most that and more than the next lower one; the last bound is
    /// `u64::MAX`.
    #[serde(with = "mesh::auth::as_list")]
    pub counts: BTreeMap<u64, u64>,
    /// Sum of all, in microseconds.
    pub sum: u64,
}

/// Where something is refused that is not a handshake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A pair could not be proven: it lacks what a handshake needs, or that has failed.
    Pair,
    /// A peer asked for a mark and got none.
    Bind,
    /// A node vouches for what is not its own.
    Attestation,
    /// A session was closed, since its node broke the protocol.
    Session,
    /// A caller at the port for nodes was turned away.
    Caller,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pair, Self::Bind, Self::Attestation, Self::Session, Self::Caller];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Bind => "bind",
            Self::Attestation => "attestation",
            Self::Session => "session",
            Self::Caller => "caller",
        }
    }
}

/// Why two are, or are not, authenticated to each other: the answer of `auth why`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuthWhy {
    /// All is as it must be: they may talk, and where policy asks for it they are proven.
    pub ok: bool,
    /// What was looked at, in order; nothing after the first that is not as it must be.
    pub steps: Vec<AuthStep>,
}

/// One of the things that must hold.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuthStep {
    /// Which: `policy`, `identity`, `session`, `certificate`, `proof`, `mark`, `lease`.
    pub step: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was found and, where it does not hold, what to do.
    pub text: String,
}

/// Who may have which certificate: what the agent tells its CA, from the authority alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placements {
    /// The domain that is issued for.
    pub trust_domain: TrustDomain,
    /// Every node of the mesh, and the IDs of the workloads that are placed on it.
    pub nodes: BTreeMap<String, BTreeSet<SpiffeId>>,
}

/// From the agent to its CA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToCa {
    /// Replaces the one before. → [`FromCa::Placed`].
    Place(Placements),
    /// How often has it refused what it was asked. → [`FromCa::Refused`].
    Count,
    /// A token by which a node can show once who it is. → [`FromCa::Token`].
    Token {
        /// The node's name; it must be placed.
        node: String,
    },
    /// End.
    Stop,
}

/// From the CA to its agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", content = "value", rename_all = "kebab-case")]
pub enum FromCa {
    /// Placements are in force.
    Placed,
    /// The token, good once, for an hour.
    Token(String),
    /// Refusals since it started, by the name of the reason.
    Refused(BTreeMap<String, u64>),
    /// It could not be done; the text says what and why.
    Error(String),
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    #[track_caller]
    fn goes_through<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: T) {
        let text = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&text).unwrap(), message);
    }

    /// Serde finds only at run time that a way of tagging does not fit what is tagged.
    #[test]
    fn every_message_can_be_written_and_read() {
        let trust_domain: TrustDomain = "mesh".parse().unwrap();
        let plan = AuthPlan {
            trust_domain: trust_domain.clone(),
            node: "node1".to_owned(),
            grace: 10_000,
            ahead: 20_000,
            nodes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            remotes: BTreeMap::new(),
            pairs: BTreeSet::new(),
        };
        goes_through(ToAuthAgent::Plan { number: 1, plan: Arc::new(plan) });
        goes_through(ToAuthAgent::Ask { number: 1, question: AuthQuestion::Pairs });
        goes_through(ToAuthAgent::Bundle { pem: "-----BEGIN".to_owned() });
        goes_through(ToAuthAgent::Stop);
        let remote = vec![[10, 0, 0, 1].into()];
        let ended = EndedPair { instance: 1, remote, epoch: 7, why: Refusal::Expired };
        let blame = Blame {
            expected: trust_domain.workload("default", "ship").unwrap(),
            shown: None,
            said: Some(Refusal::Expired),
        };
        let remote = vec![[10, 0, 0, 1].into()];
        let unproven = UnprovenPair { instance: 1, remote, why: Refusal::RefusedByPeer, blame: Some(blame) };
        let counters = AuthCounters {
            refused: [(Refusal::Expired, 2)].into(),
            lost: [(Refusal::Overloaded, 1)].into(),
            refusals: [(Step::Caller, [(Refusal::Untrusted, 3)].into())].into(),
            waited: Times { counts: [(50, 1), (u64::MAX, 2)].into(), sum: 7 },
            ..AuthCounters::default()
        };
        for message in [
            FromAuthAgent::Applied { number: 1 },
            FromAuthAgent::Settled { number: 1 },
            FromAuthAgent::Ended(vec![ended]),
            FromAuthAgent::Unproven(vec![unproven]),
            FromAuthAgent::Free { instance: 1 },
            FromAuthAgent::Answer { number: 1, answer: Box::new(AuthAnswer::Counters(counters)) },
        ] {
            goes_through(message);
        }
        let id = trust_domain.workload("default", "ship").unwrap();
        let nodes = [("node1".to_owned(), BTreeSet::from([id]))].into();
        goes_through(ToCa::Place(Placements { trust_domain, nodes }));
        goes_through(ToCa::Token { node: "node1".to_owned() });
        goes_through(ToCa::Count);
        goes_through(ToCa::Stop);
        let refused = FromCa::Refused([("not-placed".to_owned(), 3)].into());
        for message in [refused, FromCa::Placed, FromCa::Token("t".to_owned()), FromCa::Error("e".to_owned())]
        {
            goes_through(message);
        }
    }
}
