//! What the L7 proxy would do with a request that nobody sends, and why: `ferromesh proxy explain`.

use std::net::IpAddr;

use mesh::flow::{TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::l7::HttpRule;
use mesh::policy::PolicyName;
use mesh::workload::EndpointId;
use serde::{Deserialize, Serialize};

/// A request that nobody sends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SupposedRequest {
    /// HTTP/2, and not HTTP/1.1.
    pub http2: bool,
    /// `GET`.
    pub method: String,
    /// The target: a path with its query, mostly.
    pub path: String,
    /// `Host` or `:authority`; `None`: the called address.
    pub host: Option<String>,
    /// The other headers, in order.
    pub headers: Vec<(String, String)>,
}

/// What a person asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExplainQuery {
    /// Who calls: a workload, an address, `reserved:NAME`.
    pub from: String,
    /// Whom: the same, or a service.
    pub to: String,
    /// Destination port.
    pub port: u16,
    /// The request.
    pub asked: SupposedRequest,
}

/// What a person is answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyExplained {
    /// Whether the request reaches the server, audit mode included.
    pub allowed: bool,
    /// Who calls.
    pub from: ExplainedEnd,
    /// Whom; of a service one of those who answer for it.
    pub to: ExplainedEnd,
    /// Destination port, there.
    pub port: u16,
    /// The request, with its host.
    pub request: SupposedRequest,
    /// What the kernel does with the connection.
    pub kernel: KernelSays,
    /// What the proxy does with the request; `None`: the connection does not come to it.
    pub proxy: Option<ProxySays>,
    /// What else there is to know, a sentence each.
    pub notes: Vec<String>,
}

/// One end of the connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExplainedEnd {
    /// As it is called: `default/tiefighter`, `192.0.2.1`, `reserved:world`.
    pub name: String,
    /// Its address, where it is known.
    pub address: Option<IpAddr>,
    /// Its identity.
    pub identity: Identity,
    /// It is an endpoint of this node.
    pub here: bool,
}

/// What the kernel does with a connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KernelSays {
    /// Which way it goes.
    pub way: KernelWay,
    /// Why: the lines of `policy trace`.
    pub lines: Vec<String>,
}

/// Which way a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelWay {
    /// By way of this node's L7 proxy.
    Proxy,
    /// To the server, and no request is looked at here.
    Direct,
    /// Nowhere.
    Dropped,
}

/// What the proxy is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxySupposed {
    /// Who calls.
    pub client: SupposedEnd,
    /// Whom.
    pub server: SupposedEnd,
    /// Destination port.
    pub port: u16,
    /// What is asked; its host is there.
    pub request: SupposedRequest,
}

/// An end, for the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SupposedEnd {
    /// Its address; of somebody without a known one the unspecified one.
    pub address: IpAddr,
    /// Whose it is taken to be; `None`: as the proxy knows it.
    pub identity: Option<Identity>,
}

/// What the proxy does with a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxySays {
    /// The client's identity, as the proxy knows it.
    pub client_identity: Option<Identity>,
    /// The server's.
    pub server_identity: Option<Identity>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why it is denied; or what else there is to say of it, as flows do.
    pub reason: Option<String>,
    /// Whose rules have decided: the client's for whom it calls (egress), or the server's for who calls it.
    pub by: Option<TrafficDirection>,
    /// The proxy's own answer; `None`: the server answers, or the connection is closed without one.
    pub answer: Option<ProxyReply>,
    /// No request is looked at: bytes pass untouched.
    pub relayed: bool,
    /// The head that goes to the server, line by line; empty where none does.
    pub forwarded: Vec<String>,
    /// Whether that is another than the one that came.
    pub changed: bool,
    /// What either end's rules say, the client's first; one that this node has no L7 rules for is missing.
    pub judges: Vec<ProxyJudge>,
}

/// An answer of the proxy's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyReply {
    /// Status of HTTP.
    pub status: u16,
    /// Status of gRPC, if the request is a call of that.
    pub grpc_status: Option<u16>,
    /// What it says.
    pub body: String,
}

/// What one end's rules say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyJudge {
    /// Whose rules.
    pub endpoint: EndpointId,
    /// The workload in it, where the agent knows it.
    pub workload: Option<String>,
    /// For whom it calls (egress), or for who calls it.
    pub direction: TrafficDirection,
    /// Denials are reported, not enforced.
    pub audit: bool,
    /// What they let the other end do at this port.
    pub grant: ProxyGrant,
    /// False: the request does not come so far, and this is what would be said if it did.
    pub asked: bool,
    /// Why it does not pass; `None`: it does, or the request could not be read.
    pub reason: Option<String>,
    /// Whether a rule has let it pass, or none was needed; `None`: the request could not be read.
    pub allowed: Option<bool>,
    /// The path in its one form, then everything else that servers may take it for.
    pub readings: Vec<ProxyReading>,
    /// Changes of headers that the rule asks for: `+ name: value`, `- name`.
    pub edits: Vec<String>,
    /// Of a denial: the rules that come nearest, and how they differ.
    pub nearest: Vec<ProxyNear>,
    /// How many rules there are for this peer at this port.
    pub rules: usize,
    /// Why the latest rules of the workload are not in force, if they are not.
    pub refused: Option<String>,
}

/// What an end's rules let a peer do at a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyGrant {
    /// There are no L7 rules for this port in this direction.
    NoRules,
    /// Anything.
    Anything,
    /// HTTP requests that a rule lets through.
    Http,
    /// TLS to named servers.
    Tls,
    /// Nothing.
    Nothing,
}

/// A way to read a path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyReading {
    /// Path and query.
    pub path: String,
    /// The rule that lets it pass; `None`: none does.
    pub rule: Option<ProxyRule>,
}

/// A rule, and whose it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyRule {
    /// As it is written.
    #[serde(flatten)]
    pub rule: HttpRule,
    /// Where it stands, as the agent knows it: all that have one like it for this peer.
    #[serde(default)]
    pub places: Vec<RulePlace>,
}

/// Where a rule stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RulePlace {
    /// The policy.
    pub policy: PolicyName,
    /// Its number in its list of `rules.http`, from 0.
    pub http: usize,
}

/// A rule that does not match.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyNear {
    /// The rule.
    #[serde(flatten)]
    pub rule: ProxyRule,
    /// What of the request differs: `method`, `path`, `host`, `header NAME`.
    pub differs: Vec<String>,
}
