//! The zone of the cluster domain: what every name below it means, by the Kubernetes DNS specification 1.1.
//!
//! Promise: pure; an answer is a function of services and question. A name of the cluster domain is always answered
//! here, if only by NXDOMAIN; of the reverse zones only addresses that a service has. What the name of a service of
//! type ExternalName leads to outside the domain is asked for by whoever holds [`Found::Alias`], for stub resolvers do
//! not follow a CNAME themselves.
//!
//! Beyond the specification, as CoreDNS has it: an endpoint without hostname is known by its address with dashes, and
//! the name server of the zone is `ns.dns.DOMAIN`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::name::FromStrError;
use domain::base::{Name, Record, RecordData, Serial, Ttl};
use domain::rdata::{A, Aaaa, Cname, Ns, Ptr, Soa, Srv, Txt, ZoneRecordData};
use mesh::policy::protocol;
use mesh::service::{Frontend, HeadlessEndpoint, NamePlan, ServiceName, ServicePort, Services};

use super::reverse;

/// A name of any spelling; comparisons do not look at case.
pub(super) type Owner = Name<Vec<u8>>;
pub(super) type Data = ZoneRecordData<Vec<u8>, Owner>;
pub(super) type Resource = Record<Owner, Data>;

/// How long an answer may be kept, in seconds. Short, for services come and go.
pub(super) const TTL: u32 = 5;
/// How many aliases within the zone are followed for one question.
const CHAIN: usize = 8;
/// What the specification of our names is called.
const VERSION: &str = "1.1.0";
/// RFC 2782: among equals any weight does, and 0 is for "no choice at all".
const WEIGHT: u16 = 100;

/// An answer, complete.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Answer {
    pub(super) rcode: Rcode,
    /// It is about a name of ours.
    pub(super) authoritative: bool,
    pub(super) answers: Vec<Resource>,
    /// Who says that there is nothing.
    pub(super) authority: Vec<Resource>,
    /// What the client will ask next; may be left out.
    pub(super) additional: Vec<Resource>,
}

/// Where a question leads.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Found {
    /// The answer is known here.
    Here(Answer),
    /// The name stands for another one outside the zone.
    Alias {
        /// CNAME records up to there.
        chain: Vec<Resource>,
        /// The name outside.
        target: Owner,
    },
    /// Not a name of ours.
    Elsewhere,
}

/// What a name of the zone is.
enum Node {
    /// It does not exist, nor does anything below it.
    Nothing,
    /// It has this: nothing, if only names below it exist.
    Has(Vec<Data>),
    /// It has this, and the client will ask for that.
    With(Vec<Data>, Vec<Resource>),
    /// It stands for another name.
    Alias(Owner),
}

/// The names of one state of the services.
#[derive(Debug)]
pub(super) struct Zone {
    domain: Owner,
    /// Where the zone itself is served.
    servers: Vec<IpAddr>,
    serial: u32,
    services: Arc<Services>,
    /// Names of endpoints of headless services.
    endpoints: BTreeMap<IpAddr, Vec<Owner>>,
}

impl Zone {
    pub(super) fn new(domain: Owner, servers: Vec<IpAddr>, serial: u32, services: Arc<Services>) -> Self {
        let mut zone = Self { domain, servers, serial, services, endpoints: BTreeMap::new() };
        let mut endpoints: BTreeMap<IpAddr, Vec<Owner>> = BTreeMap::new();
        for (service, plan) in &zone.services.names {
            let NamePlan::Headless { endpoints: all } = plan else { continue };
            for (name, address) in all.iter().flat_map(|endpoint| zone.endpoint_names(service, endpoint)) {
                endpoints.entry(address).or_default().push(name);
            }
        }
        zone.endpoints = endpoints;
        zone
    }

    /// The same zone with other services.
    pub(super) fn with(&self, services: Arc<Services>) -> Self {
        Self::new(self.domain.clone(), self.servers.clone(), self.serial.wrapping_add(1), services)
    }

    /// Whether these are the services it was made of.
    pub(super) fn is_of(&self, services: &Arc<Services>) -> bool {
        Arc::ptr_eq(&self.services, services)
    }

    /// The cluster domain.
    pub(super) fn domain(&self) -> &Owner {
        &self.domain
    }

    /// The node's own addresses, where the zone is served.
    pub(super) fn servers(&self) -> &[IpAddr] {
        &self.servers
    }

    /// Answers a question. Records of one name begin with a different one for each `rotation`.
    pub(super) fn find(&self, name: &Owner, rtype: Rtype, rotation: usize) -> Found {
        let mut chain = Vec::new();
        let mut name = name.clone();
        for _ in 0..CHAIN {
            let node = match self.labels(&name) {
                Some(labels) => self.node(&labels),
                None => match self.reverse(&name) {
                    Some(names) => Node::Has(names),
                    None if chain.is_empty() => return Found::Elsewhere,
                    None => return Found::Alias { chain, target: name },
                },
            };
            let (mut data, additional) = match node {
                Node::Nothing => return Found::Here(self.negative(Rcode::NXDOMAIN, chain)),
                Node::Alias(target) => {
                    chain.push(record(name, Cname::new(target.clone())));
                    if matches!(rtype, Rtype::CNAME | Rtype::ANY) {
                        return Found::Here(Answer::positive(chain, Vec::new()));
                    }
                    name = target;
                    continue;
                }
                Node::Has(data) => (data, Vec::new()),
                Node::With(data, additional) => (data, additional),
            };
            data.retain(|data| rtype == Rtype::ANY || data.rtype() == rtype);
            if data.is_empty() {
                return Found::Here(self.negative(Rcode::NOERROR, chain));
            }
            let first = rotation % data.len();
            data.rotate_left(first);
            chain.extend(data.into_iter().map(|data| record(name.clone(), data)));
            return Found::Here(Answer::positive(chain, additional));
        }
        Found::Here(Answer::empty(Rcode::SERVFAIL))
    }

    /// The labels below the domain, in lower case; none if the name is not in the zone.
    fn labels(&self, name: &Owner) -> Option<Vec<String>> {
        if !name.ends_with(&self.domain) {
            return None;
        }
        let below = name.label_count().saturating_sub(self.domain.label_count());
        let lower = |label: &[u8]| String::from_utf8_lossy(label).to_ascii_lowercase();
        Some(name.iter().take(below).map(|label| lower(label.as_slice())).collect())
    }

    fn node(&self, labels: &[String]) -> Node {
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => self.apex(),
            ["dns-version"] => match Txt::build_from_slice(VERSION.as_bytes()) {
                Ok(text) => Node::Has(vec![text.into()]),
                Err(_) => Node::Nothing,
            },
            ["dns"] | ["svc"] => Node::Has(Vec::new()),
            ["ns", "dns"] => Node::Has(self.servers.iter().map(|server| host(*server)).collect()),
            [namespace, "svc"] => self.namespace(namespace),
            [service, namespace, "svc"] => self.service(&service_name(namespace, service)),
            [name, service, namespace, "svc"] => self.below(&service_name(namespace, service), name),
            [port, protocol, service, namespace, "svc"] => {
                self.port(&service_name(namespace, service), port, protocol)
            }
            _ => Node::Nothing,
        }
    }

    fn apex(&self) -> Node {
        let servers = self.servers.iter();
        let Ok(server) = self.below_domain("ns.dns") else { return Node::Nothing };
        let glue = servers.map(|address| record(server.clone(), host(*address))).collect();
        Node::With(vec![Ns::new(server).into(), self.authority()], glue)
    }

    /// There is no list of namespaces here: one exists that has a service.
    fn namespace(&self, namespace: &str) -> Node {
        let first = self.services.names.range(service_name(namespace, "")..).next();
        match first {
            Some((service, _)) if service.namespace == namespace => Node::Has(Vec::new()),
            _ => Node::Nothing,
        }
    }

    fn service(&self, service: &ServiceName) -> Node {
        match self.services.names.get(service) {
            None => Node::Nothing,
            Some(NamePlan::Cluster { addresses, .. }) => {
                Node::Has(addresses.iter().map(|address| host(*address)).collect())
            }
            Some(NamePlan::Headless { endpoints }) => {
                let addresses = endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
                Node::Has(addresses.map(|address| host(*address)).collect())
            }
            Some(NamePlan::External { name }) => match Owner::vec_from_str(name) {
                Ok(target) => Node::Alias(target),
                Err(_) => Node::Nothing,
            },
        }
    }

    /// An endpoint, or the parent of ports.
    fn below(&self, service: &ServiceName, name: &str) -> Node {
        let plan = self.services.names.get(service);
        if let Some(wanted) = name.strip_prefix('_') {
            let exists = plan.into_iter().flat_map(ports).any(|port| is_of(port, wanted));
            return if exists { Node::Has(Vec::new()) } else { Node::Nothing };
        }
        let Some(NamePlan::Headless { endpoints }) = plan else { return Node::Nothing };
        let found = endpoints.iter().flat_map(named).filter(|(label, _)| label == name);
        let data: Vec<_> = found.map(|(_, address)| host(address)).collect();
        if data.is_empty() { Node::Nothing } else { Node::Has(data) }
    }

    fn port(&self, service: &ServiceName, port: &str, protocol: &str) -> Node {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
            return Node::Nothing;
        };
        let wanted = |candidate: &&ServicePort| candidate.name == port && is_of(candidate, protocol);
        let mut data = Vec::new();
        let mut additional = Vec::new();
        let mut add = |port: &ServicePort, target: &Owner, address: IpAddr| {
            let srv: Data = Srv::new(0, WEIGHT, port.port, target.clone()).into();
            if !data.contains(&srv) {
                data.push(srv);
            }
            additional.push(record(target.clone(), host(address)));
        };
        match self.services.names.get(service) {
            Some(NamePlan::Cluster { addresses, ports }) => {
                let Ok(target) = self.service_owner(service) else { return Node::Nothing };
                for port in ports.iter().filter(wanted) {
                    addresses.iter().for_each(|address| add(port, &target, *address));
                }
            }
            Some(NamePlan::Headless { endpoints }) => {
                for endpoint in endpoints {
                    for port in endpoint.ports.iter().filter(wanted) {
                        let names = self.endpoint_names(service, endpoint);
                        names.for_each(|(target, address)| add(port, &target, address));
                    }
                }
            }
            Some(NamePlan::External { .. }) | None => {}
        }
        if data.is_empty() { Node::Nothing } else { Node::With(data, additional) }
    }

    /// Names of an address in a reverse zone, if a service has it.
    fn reverse(&self, name: &Owner) -> Option<Vec<Data>> {
        let address = reverse::address(name)?;
        let lowest = Frontend { address, port: 0, protocol: 0 };
        let vip =
            self.services.frontends.range(lowest..).next().filter(|(found, _)| found.address == address);
        if let Some((_, plan)) = vip {
            let owner = self.service_owner(&plan.service).ok()?;
            return Some(vec![Ptr::new(owner).into()]);
        }
        let names = self.endpoints.get(&address)?;
        Some(names.iter().map(|name| Ptr::new(name.clone()).into()).collect())
    }

    fn negative(&self, rcode: Rcode, answers: Vec<Resource>) -> Answer {
        let authority = vec![record(self.domain.clone(), self.authority())];
        Answer { rcode, authoritative: true, answers, authority, additional: Vec::new() }
    }

    fn authority(&self) -> Data {
        let name = |below: &str| self.below_domain(below).unwrap_or_else(|_| self.domain.clone());
        let seconds = Ttl::from_secs;
        let (refresh, retry, expire) = (seconds(7200), seconds(1800), seconds(86400));
        let [server, person] = ["ns.dns", "hostmaster"].map(name);
        Soa::new(server, person, Serial(self.serial), refresh, retry, expire, seconds(TTL)).into()
    }

    /// Each name of an endpoint with each address it leads to. A name too long for DNS is none.
    fn endpoint_names<'a>(
        &'a self,
        service: &'a ServiceName,
        endpoint: &'a HeadlessEndpoint,
    ) -> impl Iterator<Item = (Owner, IpAddr)> + 'a {
        named(endpoint).filter_map(move |(label, address)| {
            let name = format!("{label}.{}.{}.svc", service.name, service.namespace);
            Some((self.below_domain(&name).ok()?, address))
        })
    }

    fn service_owner(&self, service: &ServiceName) -> Result<Owner, FromStrError> {
        self.below_domain(&format!("{}.{}.svc", service.name, service.namespace))
    }

    fn below_domain(&self, name: &str) -> Result<Owner, FromStrError> {
        Owner::vec_from_str(&format!("{name}.{}", self.domain))
    }
}

impl Answer {
    /// One that says only how it went.
    pub(super) fn empty(rcode: Rcode) -> Self {
        let [answers, authority, additional] = [const { Vec::new() }; 3];
        Self { rcode, authoritative: false, answers, authority, additional }
    }

    fn positive(answers: Vec<Resource>, additional: Vec<Resource>) -> Self {
        Self { authoritative: true, answers, additional, ..Self::empty(Rcode::NOERROR) }
    }
}

fn record(name: Owner, data: impl Into<Data>) -> Resource {
    Record::new(name, Class::IN, Ttl::from_secs(TTL), data.into())
}

fn host(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(address) => A::new(address).into(),
        IpAddr::V6(address) => Aaaa::new(address).into(),
    }
}

fn service_name(namespace: &str, name: &str) -> ServiceName {
    ServiceName { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// The labels of an endpoint, each with an address: its hostname, or else each address with dashes.
fn named(endpoint: &HeadlessEndpoint) -> impl Iterator<Item = (String, IpAddr)> + '_ {
    endpoint.addresses.iter().map(|address| {
        let label = endpoint.hostname.clone();
        (label.unwrap_or_else(|| address.to_string().replace(['.', ':'], "-")), *address)
    })
}

fn ports(plan: &NamePlan) -> Vec<&ServicePort> {
    match plan {
        NamePlan::Cluster { ports, .. } => ports.iter().collect(),
        NamePlan::Headless { endpoints } => endpoints.iter().flat_map(|endpoint| &endpoint.ports).collect(),
        NamePlan::External { .. } => Vec::new(),
    }
}

/// Whether the port has a name and is of the protocol. A port without a name has no SRV record.
fn is_of(port: &ServicePort, protocol: &str) -> bool {
    let name = protocol::name(port.protocol);
    !port.name.is_empty() && name.is_some_and(|name| name.eq_ignore_ascii_case(protocol))
}

#[cfg(test)]
mod tests;
