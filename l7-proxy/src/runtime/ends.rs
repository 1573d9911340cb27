//! Who the two ends of a connection are, and what their rules say of each other: looked up when something has changed.

use std::net::{IpAddr, SocketAddr};

use mesh::flow::TrafficDirection::{Egress, Ingress};
use mesh::identity::Identity;

use super::inspection::Inspection;
use super::worker::Published;
use crate::index::Grant;
use crate::stage::authorize::Judge;

/// What is known of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Whose it is.
    pub identity: Option<Identity>,
    /// Number of the creation of the endpoint of this node that has it.
    pub instance: Option<u64>,
}

/// Identities by address, as the kernel has them.
pub trait Identities {
    /// Moves with every change of what [`Identities::find`] says.
    fn generation(&self) -> u64;

    /// Who has an address now.
    fn find(&self, address: IpAddr) -> Found;
}

/// What is done with a connection before it is looked at what it brings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opening {
    /// It is closed.
    Refused(&'static str),
    /// Somebody's rules let everything pass, and nobody's forbid it: bytes pass untouched.
    Relayed,
    /// Rules are asked about each request.
    Judged,
}

/// The kernel sends nobody here whom no rules are about, but for what rules that are gone still had on the way.
const NO_RULES: &str = "no rules for it";
/// Why nothing passes on a connection, and it ends, of which an end has another owner than it began with.
pub(super) const INHERITED: &str = "address of another workload by now";

/// Why what has passed does not any more.
pub(super) const WITHDRAWN: &str = "not allowed any more";

/// Which endpoints of this node had the two addresses of a connection when it began, and whether others have them by now.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    as_of: Option<u64>,
    first: Option<[Option<u64>; 2]>,
    are_others: bool,
}

impl Owners {
    /// Whether an address is another one's by now: what one has sent is not for, nor to be judged as, whoever has its address
    /// next. A load and no system call if nothing has changed.
    pub(super) fn are_others<I: Identities>(&mut self, ends: [SocketAddr; 2], identities: &I) -> bool {
        // Before what it is the number of.
        let now = identities.generation();
        if self.as_of != Some(now) {
            self.note(now, ends.map(|end| identities.find(end.ip()).instance));
        }
        self.are_others
    }

    fn note(&mut self, now: u64, instances: [Option<u64>; 2]) {
        self.as_of = Some(now);
        self.are_others |= *self.first.get_or_insert(instances) != instances;
    }
}

/// The ends of a connection, as of some moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    pub(super) as_of: Option<(u64, u64)>,
    pub(super) owners: Owners,
    pub(super) client: Option<Identity>,
    pub(super) server: Option<Identity>,
    /// The client's rules for whom it calls, the server's for who calls it; either may be missing.
    pub(super) judges: [Option<Judge>; 2],
    /// Headers that rules look at.
    pub(super) judged: Box<[Box<str>]>,
    /// Why nothing passes, whatever the rules say.
    pub(super) refusal: Option<&'static str>,
    /// What the proxy does about its TLS, once that is known. Boxed: it does so for few.
    pub(super) inspection: Option<Box<Inspection>>,
}

impl Ends {
    /// Looks again if anything may have changed, and says whether it has. Two loads and no system call if nothing has.
    pub(super) fn refresh<I: Identities>(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        published: &Published,
        identities: &I,
    ) -> bool {
        // Both are read before what they are numbers of.
        let now = (published.version(), identities.generation());
        if self.as_of == Some(now) {
            return false;
        }
        let snapshot = published.snapshot();
        let ends = [client, server].map(|end| (end.ip(), identities.find(end.ip())));
        let [(_, caller), (_, called)] = ends;
        let mut refusal = (!snapshot.is_synced).then_some("rules not known yet");
        let local = ends.map(|(address, found)| {
            let endpoint = snapshot.of(address)?;
            if found.instance != Some(endpoint.instance) {
                refusal = Some("address of another workload than the rules are for");
            }
            Some(endpoint)
        });
        let mut owners = std::mem::take(&mut self.owners);
        owners.note(now.1, ends.map(|(_, found)| found.instance));
        if owners.are_others {
            refusal = Some(INHERITED);
        }
        let [from, to] = local;
        let egress = from.and_then(|it| Judge::new(it, Egress, server.port(), called.identity));
        let ingress = to.and_then(|it| Judge::new(it, Ingress, server.port(), caller.identity));
        let judges = [egress, ingress];
        let asks = judges.iter().flatten().filter_map(|judge| judge.asks.as_ref());
        let judged = asks.flat_map(|asks| asks.headers.iter().cloned()).collect();
        *self = Self {
            as_of: Some(now),
            owners,
            client: caller.identity,
            server: called.identity,
            judges,
            judged,
            refusal,
            inspection: self.inspection.take(),
        };
        self.inspect();
        true
    }

    /// Whether an address is another one's by now.
    pub(super) fn are_inherited(&self) -> bool {
        self.owners.are_others
    }

    /// Why a connection ends that may not be any more.
    pub(super) fn withdrawal(&self) -> &'static str {
        if self.are_inherited() { INHERITED } else { WITHDRAWN }
    }

    /// How a connection begins.
    pub(super) fn opening(&self) -> Opening {
        match self.refusal {
            Some(reason) => Opening::Refused(reason),
            None if self.strict().is_some() => Opening::Judged,
            None if self.is_granted() => Opening::Relayed,
            None => Opening::Refused(NO_RULES),
        }
    }

    /// Whether anything may pass, HTTP or not; else by whose word and why it does not.
    pub(super) fn plain(&self) -> bool {
        self.refusal.is_none() && self.judges.iter().flatten().all(|judge| judge.is_plain() || judge.audit)
    }

    /// Whether nothing but TLS may pass: by the word of who enforces it, or of who only looks on where nobody enforces anything.
    pub(super) fn is_for_tls(&self) -> bool {
        let nobody_enforces = self.plain();
        let mut judges = self.judges.iter().flatten();
        judges.any(|judge| judge.is_for_tls() && (!judge.audit || nobody_enforces))
    }

    /// Whether somebody's rules let everything through, and not just nobody's forbid it.
    pub(super) fn is_granted(&self) -> bool {
        self.judges.iter().flatten().any(|judge| matches!(judge.grant, Grant::Plain))
    }

    /// Who speaks of the connection in flows: the server's rules, else the client's.
    pub(super) fn speaker(&self) -> Option<&Judge> {
        let [egress, ingress] = &self.judges;
        ingress.as_ref().or(egress.as_ref())
    }

    /// Who does not let through what is not HTTP.
    pub(super) fn strict(&self) -> Option<&Judge> {
        self.judges.iter().flatten().find(|judge| !judge.is_plain())
    }
}
