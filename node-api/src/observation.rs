//! What a node is seen doing: flows, the kernel's events, counters, metrics, programs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh::workload::WorkloadName;
use serde::{Deserialize, Serialize};

/// Which flows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ObserveQuery {
    /// All of its fields must hold.
    pub filter: FlowFilter,
    /// What any of these matches is left out.
    pub except: Vec<FlowFilter>,
    /// Not before (nanoseconds since 1970).
    pub since: Option<i64>,
    /// Not after.
    pub until: Option<i64>,
    /// Of what is kept.
    pub past: Past,
    /// Then go on with what comes.
    pub follow: bool,
}

/// How much of the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Past {
    /// The oldest so many.
    First(usize),
    /// The newest so many; 0 none.
    Last(usize),
}

impl Default for Past {
    fn default() -> Self {
        Self::Last(0)
    }
}

/// Filters of `observe`: within a field any of its values, between fields all; an empty field matches everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowFilter {
    /// Either end of the packet; each field by itself.
    pub either: PeerFilter,
    /// Who sent it.
    pub source: PeerFilter,
    /// Whom it was for.
    pub destination: PeerFilter,
    /// `FORWARDED`, `DROPPED`, `AUDIT`.
    pub verdicts: Vec<String>,
    /// `tcp`, `udp`, `icmp`, `icmpv4`, `icmpv6`, `sctp`, and `http` for what the L7 proxy has seen.
    pub protocols: Vec<String>,
    /// TCP flags that are all set, after commas: `SYN,ACK`.
    pub tcp_flags: Vec<String>,
    /// Drop reason by its text or number.
    pub drop_reasons: Vec<String>,
    /// `ingress` or `egress`.
    pub directions: Vec<String>,
    /// Method of the request, in any case.
    pub http_methods: Vec<String>,
    /// Regular expression that a part of the request's path matches.
    pub http_paths: Vec<String>,
    /// Status of the answer: `403`, or `4+` and `40+` for all that begin so.
    pub http_statuses: Vec<String>,
}

/// Who is at an end of a flow.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerFilter {
    /// `[namespace/]name-prefix`.
    pub pods: Vec<String>,
    /// The workload's namespace.
    pub namespaces: Vec<String>,
    /// Labels (`k=v`, all must hold within one).
    pub labels: Vec<String>,
    /// Number of an identity, or name of a reserved one; `world` is both families.
    pub identities: Vec<String>,
    /// Address or prefix.
    pub ips: Vec<String>,
    /// Port.
    pub ports: Vec<String>,
}

/// Which events, as the kernel reported them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MonitorQuery {
    /// Any of these; all if empty.
    pub types: Vec<EventType>,
    /// Sent by one of these endpoints.
    pub from: Vec<u16>,
    /// For one of these endpoints.
    pub to: Vec<u16>,
    /// Either.
    pub related_to: Vec<u16>,
}

/// What an event tells; one may tell several things.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventType {
    /// A packet was dropped.
    Drop,
    /// A packet passed: the first one of a connection; at trace level `trace` each one.
    Trace,
    /// Policy decided: it allowed a new connection, would have denied it (audit), or denied the packet.
    PolicyVerdict,
}

/// A record of the kernel's event ring, number for number, and the endpoints that it is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventView {
    /// Nanoseconds since 1970, of the kernel's clock.
    pub time: i64,
    /// `abi::EventKind`: 1 dropped, 2 new connection allowed, 3 passed.
    pub kind: u8,
    /// `abi::DropReason`; 0 unless dropped.
    pub reason: u8,
    /// 0 ingress, 1 egress, relative to the endpoint that judged.
    pub direction: u8,
    /// `abi::EventFlags`: 1 reply, 2 audited.
    pub flags: u8,
    /// Interface of the endpoint that judged.
    pub ifindex: u32,
    /// Endpoint that judged; none where that is a device of the node, or the endpoint is gone.
    pub endpoint: Option<u16>,
    /// Endpoint that sent the packet: the one that judged, on egress, whatever address the packet claims.
    pub from: Option<u16>,
    /// Endpoint that the packet is for.
    pub to: Option<u16>,
    /// Identity of the source; 0 unknown.
    pub source_identity: u32,
    /// Identity of the destination; 0 unknown.
    pub destination_identity: u32,
    /// Ruleset that decided; 0 where none was asked.
    pub ruleset: u32,
    /// Cookie of the entry that decided; 0 where none matched.
    pub cookie: u32,
    /// EtherType.
    pub ethertype: u16,
    /// Source address; absent for what is not IP.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; ICMP: identifier.
    pub source_port: u16,
    /// Destination port; ICMP: type.
    pub destination_port: u16,
    /// TCP flags byte, else 0.
    pub tcp_flags: u8,
    /// Bytes of the packet, Ethernet header included.
    pub length: u32,
    /// Of an allowed connection: number of the mark it depends on. Of a refused one: why, as `mesh::auth::Refusal` numbers
    /// it. Else 0.
    pub authentication: u32,
}

/// A row of `drops`: packets that one endpoint's judgement dropped for one reason, since it is here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DropView {
    /// `abi::DropReason` as number; 130–203 are Hubble's.
    pub number: u8,
    /// Its text.
    pub reason: String,
    /// `ingress` or `egress`, relative to the endpoint that judged.
    pub direction: String,
    /// The workload that judged; absent where a device of the node did.
    pub workload: Option<WorkloadName>,
    /// Interface of who judged.
    pub ifindex: u32,
    /// Packets.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// What the reason means and what to do.
    pub meaning: String,
}

/// A row of `metrics list`: one sample of what `/metrics` serves.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MetricView {
    /// Name, with the suffix of its sample (`_total`, `_bucket`).
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// A program that this agent loaded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProgramView {
    /// Its name in the object.
    pub name: String,
    /// The kernel's number of it, as `bpftool prog` shows.
    pub id: u32,
    /// Places where it is attached: interfaces, or the one cgroup of services; 0 for what the agent runs itself.
    pub attached: usize,
    /// Instructions that the verifier walked; absent before Linux 5.16.
    pub verified: Option<u32>,
    /// Memory, as the kernel accounts for it.
    pub bytes: u64,
}
