//! What is asked about policy beyond its list: what is compiled, what selects whom, and what an edit would change.
//!
//! Lists that grow with the cluster are [`Listed`]: their whole number, and as many items as an answer can carry.

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::l7::L7Demand;
use mesh::policy::{Authentication, Needs, PolicyName};
use mesh::workload::{EndpointId, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::{IdentityView, PolicyView, Trace, TraceQuery};

/// The first items of a list, and how many there are in all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listed<T> {
    /// How many there are.
    pub total: usize,
    /// The first of them; all, unless there are very many.
    pub items: Vec<T>,
}

impl<T> Listed<T> {
    /// The first `most` of these.
    pub fn first(most: usize, all: impl IntoIterator<Item = T>) -> Self {
        let mut all = all.into_iter();
        let items: Vec<T> = all.by_ref().take(most).collect();
        Self { total: items.len() + all.count(), items }
    }
}

/// What policy comes to for one endpoint: the rules that it is judged by.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EndpointPolicy {
    /// Its number.
    pub endpoint: EndpointId,
    /// The workload.
    pub workload: WorkloadName,
    /// Its identity.
    pub identity: Identity,
    /// Denials are reported, not enforced.
    pub audit: bool,
    /// Packets to it.
    pub ingress: RulesetView,
    /// Packets from it.
    pub egress: RulesetView,
    /// The identities that entries name.
    pub identities: Vec<IdentityView>,
}

/// One direction of an endpoint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RulesetView {
    /// What no entry matches is denied; if not, an entry allows everything.
    pub enforced: bool,
    /// The policies whose default deny holds.
    pub denied_by_default: Vec<PolicyName>,
    /// In order of identities, protocols and ports. A longer range of ports gives way to a shorter one within it.
    pub entries: Vec<RuleEntry>,
}

/// One entry of a ruleset.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RuleEntry {
    /// Whether it allows.
    pub allow: bool,
    /// The peer; none is anyone.
    pub identity: Option<Identity>,
    /// On which protocol and ports.
    #[serde(flatten)]
    pub ports: PortRange,
    /// Of an allowing one: what the peer must have proven. Of several that match a packet the strictest counts.
    pub authentication: Authentication,
    /// Of an allowing one: by way of the L7 proxy, which judges each request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxied: bool,
    /// What would have to hold before it allowed: nothing enforces that yet, so it denies.
    pub needs: Option<Needs>,
    /// The policies it comes from; empty for what holds without any.
    pub policies: Vec<PolicyName>,
}

/// Ports of a protocol, or types of ICMP.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PortRange {
    /// IP protocol number; none is any, but those in `except`.
    pub protocol: Option<u8>,
    /// Protocols that are left out of any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<u8>,
    /// First port or type.
    pub first: u16,
    /// Last one.
    pub last: u16,
}

/// A policy object, as it is understood.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PolicyDetails {
    /// Which object.
    pub policy: PolicyName,
    /// Whether a version of it is in force.
    pub in_force: bool,
    /// What became of it in each file that holds it.
    pub statuses: Vec<PolicyView>,
    /// Endpoints that one of its rules is about.
    pub endpoints: Listed<WorkloadName>,
    /// The rules of the version in force, with all defaults.
    pub rules: Vec<RuleView>,
}

/// One rule of a policy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RuleView {
    /// Selector of the endpoints it is about, narrowed to the policy's namespace.
    pub subject: String,
    /// Packets to them.
    pub ingress: SideView,
    /// Packets from them.
    pub egress: SideView,
}

/// One direction of a rule.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SideView {
    /// What nothing allows is denied.
    pub default_deny: bool,
    /// Denials first.
    pub statements: Vec<StatementView>,
}

/// Peers and ports, both of which must match.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatementView {
    /// Whether it allows.
    pub allow: bool,
    /// Who; none is anyone, an empty list nobody.
    pub peers: Option<Vec<PeerView>>,
    /// On which ports; empty is any.
    pub ports: Vec<String>,
    /// What the peer must have proven before it allows.
    pub authentication: Authentication,
    /// What must also hold and is not enforced yet.
    pub needs: Option<Needs>,
    /// What the proxy holds it to, where it goes that way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l7: Option<L7Demand>,
}

/// One way to name peers, and whom it means now.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerView {
    /// Selector, entity or prefix.
    pub peer: String,
    /// The identities.
    pub identities: Listed<Identity>,
}

/// A row of `policy selectors`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SelectorView {
    /// Selector, entity or prefix.
    pub selector: String,
    /// What it selects.
    pub role: SelectorRole,
    /// Policies that use it.
    pub users: usize,
    /// These policies.
    pub policies: Listed<PolicyName>,
    /// Whom it means now: of a subject, identities of this node's endpoints; of a peer, any.
    pub identities: Listed<Identity>,
}

/// What a selector is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectorRole {
    /// Whom a rule is about.
    Subject,
    /// With whom they may speak.
    Peer,
}

/// What would change if these files were put in place and these policies taken away?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WhatIf {
    /// Objects to be added; one of the same kind and name is replaced.
    pub with: Vec<SourceFile>,
    /// Policies to be taken away, `[KIND/][NAMESPACE/]NAME`.
    pub without: Vec<String>,
    /// May `from` reach `to` then? Without: what changes for all endpoints?
    pub trace: Option<TraceQuery>,
}

/// A file that the agent does not have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceFile {
    /// What errors call it.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// Answer to [`crate::Request::WhatIf`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Prediction {
    /// What the files do to the objects in force.
    pub edits: Vec<Edit>,
    /// What else is to be said of them: warnings, and which of them would not come into force. `file:line` first.
    pub notes: Vec<String>,
    /// What was asked.
    #[serde(flatten)]
    pub predicted: Predicted,
}

/// What would be.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Predicted {
    /// One question's answer, now and then.
    Trace {
        /// By the policies in force.
        now: Trace,
        /// After the edit.
        then: Trace,
    },
    /// What would change.
    Changes(Changes),
}

/// What an edit does to one object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Edit {
    /// What is done.
    pub action: EditAction,
    /// Kind, namespace and name.
    pub object: String,
    /// `file:line` of the version that is replaced or removed.
    pub replaces: Option<String>,
}

/// What is done to an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EditAction {
    /// There is none of this kind and name.
    Add,
    /// There is another version.
    Replace,
    /// The version in force says the same.
    Keep,
    /// It goes.
    Remove,
}

/// Flows that would be decided otherwise (passed, passed if authenticated, or denied): between an endpoint of this node and anyone it can meet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Changes {
    /// Endpoints of this node.
    pub endpoints: usize,
    /// Everyone that they were held against, themselves included: workloads, nodes, prefixes, the world.
    pub peers: usize,
    /// What changes. Flows that change alike are one row. What is to be denied comes first.
    pub rows: Listed<Change>,
    /// False if there are too many pairs to look at all of them: there may be more changes.
    pub complete: bool,
}

/// Flows from any of `from` to any of `to`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// From what to what.
    pub change: ChangeKind,
    /// Who opens the connection.
    pub from: Listed<String>,
    /// Whom it is opened to.
    pub to: Listed<String>,
    /// On which ports.
    pub ports: Listed<PortRange>,
    /// Where it is decided: egress is at the sender, ingress at the receiver.
    pub direction: TrafficDirection,
    /// By what.
    pub reason: Reason,
    /// By whom; empty for what holds without any policy.
    pub policies: Listed<PolicyName>,
}

/// How a verdict changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It passes now.
    AllowedToDenied,
    /// It passes now if the ends authenticate each other.
    AuthenticatedToDenied,
    /// It passes now, and then only if the ends authenticate each other.
    AllowedToAuthenticated,
    /// It is denied now, and passes then if the ends authenticate each other.
    DeniedToAuthenticated,
    /// It is denied now.
    DeniedToAllowed,
    /// It passes now only if the ends authenticate each other.
    AuthenticatedToAllowed,
}

/// What decides after the edit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A deny rule.
    DenyRule,
    /// No rule allows it, and these policies deny by default.
    DefaultDeny,
    /// A rule would allow it under a demand that nothing enforces yet.
    Unmet,
    /// A rule that allows it only if the peer authenticates, and the peer is no workload.
    NoPrincipal,
    /// A rule that allows it if the peer authenticates.
    Authentication,
    /// An allow rule.
    AllowRule,
    /// The node may always reach its own workloads.
    Node,
    /// No policy restricts the direction.
    NotEnforced,
}
