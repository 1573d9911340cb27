//! Services as one node has them: what is called, who answers, under which names.
//!
//! Promise: resolved. Selectors, slices, named ports, `internalTrafficPolicy` and readiness have been turned into
//! lists of addresses by `control::plan`; whoever reads this only carries it out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::policy::protocol;

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name within it.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for ServiceName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| serde::de::Error::custom(format_args!("{text:?}: expected namespace/name")))?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// What is called: `10.96.0.7:80/TCP`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// The VIP.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            SocketAddr::new(self.address, self.port),
            protocol::name(self.protocol).unwrap_or("?")
        )
    }
}

/// A text that is no `address:port/protocol`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?}: expected ADDRESS:PORT/PROTOCOL, such as 10.96.0.7:80/TCP")]
pub struct FrontendError(String);

impl FromStr for Frontend {
    type Err = FrontendError;

    fn from_str(text: &str) -> Result<Self, FrontendError> {
        let parsed = text.rsplit_once('/').and_then(|(socket, name)| {
            let socket: SocketAddr = socket.parse().ok()?;
            let known = [protocol::TCP, protocol::UDP, protocol::SCTP];
            let protocol = known
                .into_iter()
                .find(|known| protocol::name(*known).is_some_and(|known| known.eq_ignore_ascii_case(name)))?;
            Some(Self { address: socket.ip(), port: socket.port(), protocol })
        });
        parsed.ok_or_else(|| FrontendError(text.to_owned()))
    }
}

impl Serialize for Frontend {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Frontend {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Who answers.
pub type Backend = SocketAddr;

/// One port of one address of a service, on this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FrontendPlan {
    /// Whose it is.
    pub service: ServiceName,
    /// Name of the port; empty if it has none.
    pub port_name: String,
    /// Whom new connections go to: sorted, each once, of the frontend's family. None: they are refused.
    pub backends: Arc<[Backend]>,
    /// Gets no new connections, keeps those it has: terminating, or not ready. Sorted, none that is in `backends`.
    pub draining: Arc<[Backend]>,
    /// Seconds for which a client returns to the backend it had (`sessionAffinity: ClientIP`).
    pub affinity: Option<u32>,
}

/// A port as names know it (SRV records).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct ServicePort {
    /// Empty if it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The number that clients use: of the service, or of the endpoint where the service is headless.
    pub port: u16,
}

/// What the name of a service leads to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum NamePlan {
    /// To its VIPs.
    Cluster {
        /// One or two.
        addresses: Vec<IpAddr>,
        /// Its ports.
        ports: Vec<ServicePort>,
    },
    /// To its endpoints themselves (`clusterIP: None`).
    Headless {
        /// Those that are ready, or all (`publishNotReadyAddresses`).
        endpoints: Vec<HeadlessEndpoint>,
    },
    /// To another name (`type: ExternalName`).
    External {
        /// The name, without a final dot.
        name: String,
    },
}

/// An endpoint of a headless service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct HeadlessEndpoint {
    /// Its own name below the service's.
    pub hostname: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// All services of a node.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Services {
    /// By what is called.
    pub frontends: BTreeMap<Frontend, FrontendPlan>,
    /// By name; a service with an error is not there.
    #[serde(serialize_with = "by_name")]
    pub names: BTreeMap<ServiceName, NamePlan>,
}

impl Services {
    /// Whether a client of `frontend` may go on talking with `backend`.
    pub fn answers(&self, frontend: &Frontend, backend: &Backend) -> bool {
        self.frontends.get(frontend).is_some_and(|plan| plan.answers(backend))
    }

    /// Who answered here on UDP and does no longer in `next`: nothing tells their clients but us. TCP has the
    /// endpoint itself for that, as long as it lives.
    pub fn departed(&self, next: &Self) -> BTreeSet<(Frontend, Backend)> {
        let mut departed = BTreeSet::new();
        for (frontend, plan) in
            self.frontends.iter().filter(|(frontend, _)| frontend.protocol == protocol::UDP)
        {
            let backends = plan.backends.iter().chain(plan.draining.iter());
            let left = backends.filter(|backend| !next.answers(frontend, backend));
            departed.extend(left.map(|backend| (*frontend, *backend)));
        }
        departed
    }
}

impl FrontendPlan {
    fn answers(&self, backend: &Backend) -> bool {
        self.backends.binary_search(backend).is_ok() || self.draining.binary_search(backend).is_ok()
    }
}

fn by_name<S: serde::Serializer>(
    names: &BTreeMap<ServiceName, NamePlan>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(names.iter().map(|(name, plan)| (name.to_string(), plan)))
}

#[cfg(test)]
mod tests {
    use serde::de::value::{Error, StrDeserializer};

    use super::*;

    fn services(rows: &[(&str, &[&str], &[&str])]) -> Services {
        let backends = |list: &[&str]| list.iter().map(|backend| backend.parse().unwrap()).collect();
        let rows = rows.iter().map(|(frontend, ready, draining)| {
            let plan = FrontendPlan {
                service: ServiceName { namespace: "default".to_owned(), name: "deathstar".to_owned() },
                port_name: String::new(),
                backends: backends(ready),
                draining: backends(draining),
                affinity: None,
            };
            (frontend.parse().unwrap(), plan)
        });
        Services { frontends: rows.collect(), names: BTreeMap::new() }
    }

    #[test]
    fn a_backend_departs_when_it_neither_answers_nor_drains_at_that_frontend_any_more() {
        const UDP: &str = "10.96.0.7:53/UDP";
        let (a, b) = ("10.42.0.2:53", "10.42.0.3:53");
        let before = services(&[(UDP, &[a], &[b])]);
        let cases: [(&str, Services, &[&str]); 5] = [
            ("nothing changed", services(&[(UDP, &[a], &[b])]), &[]),
            ("one drains now, one answers", services(&[(UDP, &[b], &[a])]), &[]),
            ("one is gone", services(&[(UDP, &[b], &[])]), &[a]),
            ("both answer elsewhere only", services(&[("10.96.0.8:53/UDP", &[a, b], &[])]), &[a, b]),
            ("the service is gone", Services::default(), &[a, b]),
        ];
        for (case, after, gone) in cases {
            let gone = gone.iter().map(|backend| (UDP.parse().unwrap(), backend.parse().unwrap()));
            assert_eq!(before.departed(&after), gone.collect(), "{case}");
        }
    }

    #[test]
    fn tcp_clients_are_left_to_their_endpoint() {
        let before = services(&[("10.96.0.7:80/TCP", &["10.42.0.2:80"], &[])]);
        assert!(before.departed(&Services::default()).is_empty());
    }

    #[test]
    fn frontends_read_back_what_they_print() {
        for text in ["10.96.0.7:80/TCP", "[fd00:218::7]:53/UDP", "10.96.0.7:9000/SCTP"] {
            let frontend: Frontend = text.parse().unwrap();
            assert_eq!(frontend.to_string(), text);
            let again = Frontend::deserialize(StrDeserializer::<Error>::new(text)).unwrap();
            assert_eq!(again, frontend);
        }
        assert_eq!("10.96.0.7:80/tcp".parse::<Frontend>().unwrap().protocol, protocol::TCP);
    }

    #[test]
    fn what_is_no_frontend_is_said_with_an_example() {
        for text in ["", "10.96.0.7:80", "10.96.0.7/TCP", "10.96.0.7:80/ICMP", "fd00::7:80/TCP", "a:80/TCP"] {
            let error = text.parse::<Frontend>().unwrap_err().to_string();
            assert_eq!(error, format!("{text:?}: expected ADDRESS:PORT/PROTOCOL, such as 10.96.0.7:80/TCP"));
        }
    }

    #[test]
    fn names_are_namespace_and_name() {
        let name = ServiceName { namespace: "default".to_owned(), name: "deathstar".to_owned() };
        let read = |text| ServiceName::deserialize(StrDeserializer::<Error>::new(text));
        assert_eq!(name.to_string(), "default/deathstar");
        assert_eq!(read("default/deathstar").unwrap(), name);
        let error = read("deathstar").unwrap_err().to_string();
        assert_eq!(error, "\"deathstar\": expected namespace/name");
    }
}
