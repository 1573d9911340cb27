//! Workloads and endpoints: what runs, and where its packets enter the node.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::labels::LabelSet;

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WorkloadName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name within it.
    pub name: String,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A name that is not `[namespace/]name` of DNS labels.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("workload {0:?}: expected [namespace/]name, lower-case letters, digits, '-' and '.'")]
pub struct WorkloadNameError(String);

impl FromStr for WorkloadName {
    type Err = WorkloadNameError;

    /// Without a namespace: `default`.
    fn from_str(text: &str) -> Result<Self, WorkloadNameError> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let fits = |part: &str| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            part.len() <= 253
                && part.starts_with(inner)
                && part.ends_with(inner)
                && part.chars().all(|c| inner(c) || c == '-' || c == '.')
        };
        if !fits(namespace) || !fits(name) {
            return Err(WorkloadNameError(text.to_owned()));
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl Serialize for WorkloadName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WorkloadName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Number of an endpoint on its node, 1–65535; free for reuse after the endpoint is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(u16);

impl EndpointId {
    /// None for zero.
    pub fn new(number: u16) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The number, never zero.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A named port that a workload declares: (name, IP protocol number) → port.
pub type NamedPorts = BTreeMap<(String, u8), u16>;

/// An endpoint of this node: what enrolment made. It does not change while the endpoint lives.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Number on this node.
    pub id: EndpointId,
    /// Number of this creation, never reused on this node.
    pub instance: u64,
    /// The workload it carries.
    pub workload: WorkloadName,
    /// Labels given when it was started; an administrator's `Workload` object goes before them.
    pub labels: LabelSet,
    /// Service account given when it was started.
    pub service_account: String,
    /// Name of the host-side veth.
    pub interface: String,
    /// Its index in the node's namespace.
    pub ifindex: u32,
    /// MAC of the workload's end.
    pub mac: Mac,
    /// MAC of the host-side end.
    pub gateway_mac: Mac,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    pub ipv6: Ipv6Addr,
}
