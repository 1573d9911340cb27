//! Who is at an end of a flow: pods, namespaces, labels, identities, addresses, ports.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh::flow::Peer;
use mesh::identity::Identity;
use mesh::labels::{LabelSet, Source};
use node_api::PeerFilter;

use super::{FilterError, any};

/// A compiled [`PeerFilter`].
#[derive(Clone, PartialEq, Debug)]
pub(super) struct PeerMatch {
    pods: Vec<PodPrefix>,
    namespaces: Vec<String>,
    labels: Vec<Vec<LabelMatch>>,
    identities: Vec<Vec<Identity>>,
    prefixes: Vec<IpNet>,
    ports: Vec<u16>,
}

#[derive(Clone, PartialEq, Debug)]
struct PodPrefix {
    namespace: String,
    name_prefix: String,
}

#[derive(Clone, PartialEq, Debug)]
struct LabelMatch {
    /// Any, if the person named none.
    source: Option<Source>,
    key: String,
    /// Any, if the person named none.
    value: Option<String>,
}

/// What the values of a flag are and how they are understood.
struct Kind<T> {
    flag: &'static str,
    expected: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> Kind<T> {
    fn all(&self, texts: &[String], prefix: &str) -> Result<Vec<T>, FilterError> {
        let parse = |text: &String| {
            (self.parse)(text).ok_or_else(|| FilterError {
                field: format!("--{prefix}{}", self.flag),
                found: text.clone(),
                expected: self.expected.to_owned(),
            })
        };
        texts.iter().map(parse).collect()
    }
}

const POD: Kind<PodPrefix> = Kind { flag: "pod", expected: "[namespace/]name-prefix", parse: pod };
const NAMESPACE: Kind<String> = Kind {
    flag: "namespace",
    expected: "the name of a namespace",
    parse: |text| (!text.is_empty() && !text.contains('/')).then(|| text.to_owned()),
};
const LABEL: Kind<Vec<LabelMatch>> = Kind {
    flag: "label",
    expected: "[k8s:|reserved:|cidr:]key[=value], more of them after commas",
    parse: |text| text.split(',').map(|label| label_match(label.trim())).collect(),
};
const IDENTITY: Kind<Vec<Identity>> = Kind {
    flag: "identity",
    expected: "a number, or a reserved name as host, world, remote-node",
    parse: identities,
};
const IP: Kind<IpNet> = Kind {
    flag: "ip",
    expected: "an address or a prefix, as 10.1.0.7, fd00::7 or 10.1.0.0/16",
    parse: |text| text.parse::<IpAddr>().map(IpNet::from).ok().or_else(|| text.parse().ok()),
};
const PORT: Kind<u16> =
    Kind { flag: "port", expected: "a number from 0 to 65535", parse: |text| text.parse().ok() };

impl PeerMatch {
    /// `prefix` of the flags' names: `from-`, `to-` or none.
    pub(super) fn compile(filter: &PeerFilter, prefix: &str) -> Result<Self, FilterError> {
        Ok(Self {
            pods: POD.all(&filter.pods, prefix)?,
            namespaces: NAMESPACE.all(&filter.namespaces, prefix)?,
            labels: LABEL.all(&filter.labels, prefix)?,
            identities: IDENTITY.all(&filter.identities, prefix)?,
            prefixes: IP.all(&filter.ips, prefix)?,
            ports: PORT.all(&filter.ports, prefix)?,
        })
    }

    /// Whether each field holds at one of the ends.
    pub(super) fn matches(&self, ends: &[&Peer]) -> bool {
        let at = |holds: &dyn Fn(&Peer) -> bool| ends.iter().any(|end| holds(end));
        any(&self.ports, |port| at(&|end| end.port == Some(*port)))
            && any(&self.prefixes, |prefix| at(&|end| contains(prefix, end.address)))
            && any(&self.identities, |wanted| {
                at(&|end| end.identity.is_some_and(|one| wanted.contains(&one)))
            })
            && any(&self.namespaces, |namespace| at(&|end| is_in(end, namespace)))
            && any(&self.pods, |pod| at(&|end| pod.admits(end)))
            && any(&self.labels, |all| at(&|end| all.iter().all(|one| one.admits(&end.labels))))
    }
}

impl PodPrefix {
    fn admits(&self, end: &Peer) -> bool {
        end.workload.as_ref().is_some_and(|workload| {
            workload.namespace == self.namespace && workload.name.starts_with(&self.name_prefix)
        })
    }
}

impl LabelMatch {
    fn admits(&self, labels: &LabelSet) -> bool {
        let found = match self.source {
            Some(source) => labels.get(source, &self.key),
            None => labels.get_any(&self.key),
        };
        found.is_some_and(|found| self.value.as_deref().is_none_or(|value| value == found))
    }
}

fn is_in(end: &Peer, namespace: &str) -> bool {
    end.workload.as_ref().is_some_and(|workload| workload.namespace == namespace)
}

fn contains(prefix: &IpNet, address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| prefix.contains(&address))
}

/// `[namespace/]name-prefix`; without a namespace `default`, as Hubble has it. `namespace/` is the whole namespace.
fn pod(text: &str) -> Option<PodPrefix> {
    let (namespace, name_prefix) = text.split_once('/').unwrap_or(("default", text));
    let sound = !namespace.is_empty() && !name_prefix.contains('/') && !text.is_empty();
    sound.then(|| PodPrefix { namespace: namespace.to_owned(), name_prefix: name_prefix.to_owned() })
}

fn label_match(label: &str) -> Option<LabelMatch> {
    let sources = [Source::K8s, Source::Reserved, Source::Cidr];
    let sourced = label.split_once(':').and_then(|(source, rest)| {
        sources.into_iter().find(|known| known.as_str() == source).map(|known| (Some(known), rest))
    });
    let (source, rest) = sourced.unwrap_or((None, label));
    let (key, value) = rest.split_once('=').map_or((rest, None), |(key, value)| (key, Some(value)));
    (!key.is_empty()).then(|| LabelMatch { source, key: key.to_owned(), value: value.map(str::to_owned) })
}

fn identities(text: &str) -> Option<Vec<Identity>> {
    if text.eq_ignore_ascii_case("world") {
        return Some(vec![Identity::WORLD, Identity::WORLD_IPV4, Identity::WORLD_IPV6]);
    }
    let reserved = Identity::RESERVED.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
    let number = || text.parse().ok().and_then(Identity::new);
    reserved.map(|(identity, _)| *identity).or_else(number).map(|identity| vec![identity])
}
