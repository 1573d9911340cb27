//! What the agent and the node's L7 proxy say to each other; and what `ferromesh proxy` prints.
//!
//! The proxy is a child that the agent starts, at the other end of a unix socket on which the agent has listened. What it is
//! to enforce is told object by object, each with the generation of the change that it belongs to; each is accepted or
//! refused on its own, and of one that is refused the version before stays in force. After a connect everything is told, and
//! [`ToProxy::Synced`] says that what was not told is not there.

mod budgets;
mod explain;
mod packed;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh::access_log::Headers;
use mesh::exchange::{Exchange, PairCounts};
use mesh::flow::{TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::l7::{L7Endpoint, L7Flow};
use mesh::workload::EndpointId;
use serde::{Deserialize, Serialize};

pub use self::budgets::{BudgetOwner, BudgetUse, PerBudget, ProxyBudgets};
pub use self::explain::{
    ExplainQuery, ExplainedEnd, KernelSays, KernelWay, ProxyExplained, ProxyGrant, ProxyJudge, ProxyNear,
    ProxyReading, ProxyReply, ProxyRule, ProxySays, ProxySupposed, RulePlace, SupposedEnd, SupposedRequest,
};

/// From the agent to its L7 proxy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", content = "value", rename_all = "kebab-case")]
pub enum ToProxy {
    /// An endpoint's rules, in place of those before. → [`FromProxy::Accepted`] or [`FromProxy::Refused`].
    Set {
        /// Of the change it belongs to; never lower than the one before.
        generation: u64,
        /// The endpoint.
        endpoint: Box<L7Endpoint>,
    },
    /// An endpoint has no rules any more, or is gone. → [`FromProxy::Accepted`].
    Remove {
        /// As in `Set`.
        generation: u64,
        /// Which.
        endpoint: EndpointId,
    },
    /// Everything has been told: what was not is removed. Before the first one, no request is let through.
    /// → [`FromProxy::Synced`].
    Synced {
        /// As in `Set`.
        generation: u64,
    },
    /// → [`FromProxy::Answer`] of the same number.
    Ask {
        /// Chosen by the asker.
        number: u64,
        /// What.
        question: ProxyQuestion,
    },
    /// What of exchanges is to be recorded from now on.
    Record(Record),
    /// From now on [`FromProxy::Flows`] and [`FromProxy::Report`] may come packed, and [`FromProxy::Working`] may come: this
    /// agent is of the proxy's build. One that is not does not say so, and reads of what it does not know what it can.
    Pack,
    /// A [`FromProxy::Flows`] or [`FromProxy::Report`] has been taken. Until then no more of either come, so that answers wait
    /// behind one at most.
    Taken,
    /// Another takes the connections from now on: take none, say with the next answer on each connection that it ends, and
    /// end with the last of them. Rules are told, and questions asked, as before.
    ///
    /// This message stays as it is, for good: an agent tells it to proxies of earlier builds too, to which it says nothing
    /// else. A field may be added if its absence means what it did before.
    Drain {
        /// Milliseconds; after them, all connections that are left end.
        within: u64,
        /// Milliseconds; until then connections that wait for a request are left to their clients, after it they end. Where
        /// it is not said, they end at once.
        #[serde(default)]
        idle: u64,
    },
}

/// From the L7 proxy to its agent. As JSON; what comes with requests is packed for who has asked for that ([`ToProxy::Pack`]).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "message", content = "value", rename_all = "kebab-case")]
pub enum FromProxy {
    /// In force on every worker.
    Accepted {
        /// Of the message.
        generation: u64,
        /// Whose rules.
        endpoint: EndpointId,
    },
    /// Not in force; what was in force before is. Of a Secret that cannot be used: all else is in force.
    Refused {
        /// Of the message.
        generation: u64,
        /// Whose rules.
        endpoint: EndpointId,
        /// Which part of them: `ingress.ports[0].access[1].http[0].path`.
        field: String,
        /// Why, and what to write instead.
        why: String,
    },
    /// Everything told before [`ToProxy::Synced`] of this generation has been answered and is in force.
    Synced {
        /// Of the message.
        generation: u64,
    },
    /// It is at work on what it was told, and there is no answer yet: at most one a second, to who has said
    /// [`ToProxy::Pack`]. Who says neither this nor an answer hangs.
    Working,
    /// What requests, answers and TLS connections it has seen since the last of these; → [`ToProxy::Taken`]. A proxy whose
    /// agent is away, or busy, keeps the latest few.
    Flows(Vec<ProxyFlow>),
    /// What exchanges have come to since the last of these; → [`ToProxy::Taken`].
    Report(Box<ProxyReport>),
    /// To a question.
    Answer {
        /// The question's.
        number: u64,
        /// Boxed: it is much larger than the rest.
        answer: Box<ProxyAnswer>,
    },
}

/// What of exchanges is recorded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Each exchange, with these headers; `None`: only counts.
    pub exchanges: Option<Headers>,
    /// A request without `x-request-id` is given one.
    pub request_id: bool,
}

/// What exchanges have come to.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Those that are over, for the access log.
    pub exchanges: Vec<Exchange>,
    /// So many are missing between them and those of the report before.
    pub lost: u64,
    /// What has been added. Nothing of it is ever lost.
    pub counts: Vec<PairCounts>,
    /// How often a workload was refused more of something. Likewise what has been added.
    #[serde(default)]
    pub refused: PerBudget<u64>,
    /// By reason, how often something was refused of which there is no flow, for no rules are about it. Likewise.
    #[serde(default)]
    pub untold: BTreeMap<String, u64>,
}

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "question", content = "value", rename_all = "kebab-case")]
pub enum ProxyQuestion {
    /// → [`ProxyAnswer::Connections`].
    Connections,
    /// → [`ProxyAnswer::Budgets`].
    Budgets,
    /// What would become of a request? → [`ProxyAnswer::Explained`].
    Explain(Box<ProxySupposed>),
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", content = "value", rename_all = "kebab-case")]
pub enum ProxyAnswer {
    /// Connections under way, at most ten thousand.
    Connections(Vec<ProxyConnection>),
    /// What workloads have, at most four thousand of them, and what all have together.
    Budgets(Vec<ProxyBudgets>),
    /// What would become of it.
    Explained(Box<ProxySays>),
}

/// A connection of a client that the proxy stands in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyConnection {
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom it called.
    pub server: SocketAddr,
    /// The proxy's own connection to the server, by its local address; `None` before the first request that may pass.
    pub upstream: Option<SocketAddr>,
    /// `HTTP/1.1`, …; `None` until it is known.
    pub protocol: Option<String>,
    /// Requests so far.
    pub requests: u64,
    /// Seconds since it was opened.
    pub age: u64,
    /// It is with a proxy that another one has followed, and ends with its next answer.
    #[serde(default)]
    pub draining: bool,
}

/// One proxy has taken the place of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyRestarted {
    /// Process id of the one that takes no more connections.
    pub from: i32,
    /// Process id of the one that takes them.
    pub to: i32,
    /// Seconds that the former leaves connections to their clients that wait for a request.
    pub idle: u64,
    /// Seconds after which it ends, whatever is under way.
    pub within: u64,
}

/// A request, an answer or the begin of TLS, as the proxy saw it; the agent knows who the ends are.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProxyFlow {
    /// Nanoseconds since 1970, UTC.
    pub time: i64,
    /// Who opened the connection.
    pub client: SocketAddr,
    /// Whom it called.
    pub server: SocketAddr,
    /// The client's identity at the time of the verdict.
    pub client_identity: Option<Identity>,
    /// The server's.
    pub server_identity: Option<Identity>,
    /// The endpoint by whose rules it was judged; of two, the one that denied, else the server's.
    pub endpoint: EndpointId,
    /// Whether these are its rules for its callers or for whom it calls.
    pub direction: TrafficDirection,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was denied, in a few words; `None` if it was not.
    pub reason: Option<String>,
    /// The request or the answer, or the TLS connection.
    pub l7: L7Flow,
}

#[cfg(test)]
mod tests {
    use mesh::exchange::{Flag, Kind};

    use super::*;

    fn supposed() -> ProxySupposed {
        let end = SupposedEnd { address: [10, 0, 0, 1].into(), identity: Identity::new(256) };
        let headers = vec![("x-a".to_owned(), "b".to_owned())];
        let (method, path) = ("GET".to_owned(), "/".to_owned());
        let request = SupposedRequest { http2: true, method, path, host: None, headers };
        ProxySupposed { client: end, server: SupposedEnd { identity: None, ..end }, port: 80, request }
    }

    fn says(endpoint: EndpointId) -> ProxySays {
        let rule = ProxyRule { rule: mesh::l7::HttpRule::default(), places: Vec::new() };
        let judge = ProxyJudge {
            endpoint,
            workload: None,
            direction: TrafficDirection::Egress,
            audit: false,
            grant: ProxyGrant::Http,
            asked: true,
            reason: None,
            allowed: Some(false),
            readings: vec![ProxyReading { path: "/".to_owned(), rule: Some(rule.clone()) }],
            edits: vec!["- x-a".to_owned()],
            nearest: vec![ProxyNear { rule, differs: vec!["method".to_owned()] }],
            rules: 1,
            refused: None,
        };
        ProxySays {
            client_identity: None,
            server_identity: Identity::new(256),
            verdict: Verdict::Dropped,
            reason: Some("no".to_owned()),
            by: Some(TrafficDirection::Egress),
            answer: Some(ProxyReply { status: 200, grpc_status: Some(7), body: String::new() }),
            relayed: false,
            forwarded: Vec::new(),
            changed: false,
            judges: vec![judge],
        }
    }

    fn exchange() -> Exchange {
        Exchange {
            start: -1,
            client: ([10, 0, 0, 1], 40_000).into(),
            server: (std::net::Ipv6Addr::LOCALHOST, 80).into(),
            client_identity: None,
            server_identity: Identity::new(256),
            is_passed: true,
            is_https: false,
            method: "GET".to_owned(),
            authority: "a".to_owned(),
            path: "/".to_owned(),
            protocol: "HTTP/2".to_owned(),
            server_name: None,
            code: Some(503),
            verdict: Verdict::Forwarded,
            reason: Some("server not reached".to_owned()),
            flag: Some(Flag::Uf),
            received: 1,
            sent: u64::MAX,
            duration: 3,
            answered: None,
            served: Some(4),
            request_headers: vec![("x-a".to_owned(), "b".to_owned())],
            response_headers: Vec::new(),
        }
    }

    #[track_caller]
    fn goes_through<T>(message: T)
    where
        T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let text = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&text).unwrap(), message);
    }

    /// Packed, a field that is left out would shift all that follow.
    #[track_caller]
    fn goes_packed(message: FromProxy) {
        let packed = postcard::to_stdvec(&message).unwrap();
        assert_eq!(postcard::from_bytes::<FromProxy>(&packed).unwrap(), message);
        goes_through(message);
    }

    /// Serde finds only at run time that a way of tagging does not fit what is tagged.
    #[test]
    fn every_message_can_be_written_and_read() {
        let endpoint = EndpointId::new(7).unwrap();
        goes_through(ToProxy::Remove { generation: 1, endpoint });
        goes_through(ToProxy::Synced { generation: 1 });
        goes_through(ToProxy::Ask { number: 1, question: ProxyQuestion::Connections });
        goes_through(ToProxy::Ask { number: 2, question: ProxyQuestion::Budgets });
        let question = ProxyQuestion::Explain(Box::new(supposed()));
        goes_through(ToProxy::Ask { number: 3, question });
        goes_through(ToProxy::Taken);
        goes_through(ToProxy::Pack);
        let exchanges = Some(Headers { request: vec!["x-a".to_owned()], response: Vec::new() });
        goes_through(ToProxy::Record(Record { exchanges, request_id: true }));
        goes_through(ToProxy::Drain { within: 5000, idle: 1000 });
        goes_through(FromProxy::Accepted { generation: 1, endpoint });
        goes_through(FromProxy::Working);
        let (field, why) = ("ingress".to_owned(), "no".to_owned());
        goes_through(FromProxy::Refused { generation: 1, endpoint, field, why });
        goes_through(FromProxy::Synced { generation: 1 });
        let mut counts = PairCounts::default();
        let kind = Kind { method: Some(1), code: 503, verdict: Verdict::Forwarded, flag: Some(Flag::Uf) };
        counts.count(kind, 2);
        counts.latency.observe(0.1, &mesh::exchange::SECONDS);
        let refused = [0, 0, 1, 2].into();
        let untold = [("no rules for it".to_owned(), 2)].into();
        let exchanges = vec![exchange(), exchange()];
        let report = ProxyReport { exchanges, lost: 1, counts: vec![counts], refused, untold };
        goes_packed(FromProxy::Report(Box::new(report)));
        let tls =
            |name: Option<&str>| L7Flow::Tls(mesh::l7::TlsFlow { server_name: name.map(str::to_owned) });
        let http = L7Flow::Http(mesh::l7::HttpFlow {
            kind: mesh::l7::HttpKind::Response,
            method: "GET".to_owned(),
            url: "http://a/".to_owned(),
            protocol: "HTTP/1.1".to_owned(),
            code: Some(200),
            latency: Some(1),
            note: None,
        });
        let flow = |l7| ProxyFlow {
            time: 1,
            client: ([10, 0, 0, 1], 40_000).into(),
            server: ([10, 0, 0, 2], 443).into(),
            client_identity: None,
            server_identity: Identity::new(256),
            endpoint,
            direction: TrafficDirection::Ingress,
            verdict: Verdict::Dropped,
            reason: Some("no rule names this server".to_owned()),
            l7,
        };
        goes_packed(FromProxy::Flows(vec![flow(tls(Some("a.example"))), flow(http), flow(tls(None))]));
        let names: mesh::l7::ServerNames = ["*.example".parse().unwrap()].into();
        goes_through(mesh::l7::L7Demand::ServerNames(names.clone()));
        let tls = [mesh::l7::L7Tls { peers: None, names }].into();
        let ports = mesh::l7::L7Ports {
            first: 443,
            last: 443,
            access: Vec::new().into(),
            tls,
            inspected: Vec::new().into(),
        };
        goes_through(mesh::l7::L7Rules { ports: vec![ports] });
        let budgets = ProxyBudgets {
            owner: BudgetOwner::Workload,
            workload: Some("default/w".parse().unwrap()),
            address: Some([10, 0, 0, 1].into()),
            instance: Some(7),
            budgets: [BudgetUse { used: 1, bound: 2, refused: 3 }; 4].into(),
            draining: true,
        };
        for answer in [
            ProxyAnswer::Connections(Vec::new()),
            ProxyAnswer::Budgets(vec![budgets]),
            ProxyAnswer::Explained(Box::new(says(endpoint))),
        ] {
            goes_through(FromProxy::Answer { number: 1, answer: Box::new(answer) });
        }
    }

    /// Proxies of earlier builds are told this too: the text is what they know.
    #[test]
    fn what_ends_an_earlier_proxy_is_said_as_ever() {
        let told = serde_json::to_value(ToProxy::Drain { within: 5000, idle: 1000 }).unwrap();
        let text = r#"{"message":"drain","value":{"within":5000,"idle":1000}}"#;
        assert_eq!(told, serde_json::from_str::<serde_json::Value>(text).unwrap());
        let first = r#"{"message":"drain","value":{"within":5000}}"#;
        assert_eq!(serde_json::from_str::<ToProxy>(first).unwrap(), ToProxy::Drain { within: 5000, idle: 0 });
    }
}
