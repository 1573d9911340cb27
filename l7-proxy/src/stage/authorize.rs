//! *authorize*: whether a request may pass, by the client's rules for whom it calls and the server's for who calls it.

use std::sync::Arc;

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::workload::EndpointId;

use super::normalise::Path;
use crate::codec::is_look_alike;
use crate::index::{Asks, Edit, Endpoint, Exhausted, Grant, Inspected, Names, Rule, RuleSet, Subject, Work};

/// Why nothing that is not TLS passes where names of TLS servers are all that there is.
pub const NOT_TLS: &str = "not TLS, which alone may pass";

/// One end's say about a connection.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Whose rules.
    pub endpoint: EndpointId,
    /// For whom it calls (egress), or for who calls it.
    pub direction: TrafficDirection,
    /// What they say of the other end.
    pub grant: Grant,
    /// Names of TLS servers, one of which a client that speaks TLS must say.
    pub names: Vec<Arc<Names>>,
    /// TLS that the proxy ends or begins.
    pub inspected: Arc<[Inspected]>,
    /// What the port's rules look at.
    pub asks: Option<Arc<Asks>>,
    /// Denials are reported, not enforced.
    pub audit: bool,
}

impl Judge {
    /// What an endpoint says of a peer at a port; `None`: nothing at all.
    pub fn new(
        endpoint: &Endpoint,
        direction: TrafficDirection,
        port: u16,
        peer: Option<Identity>,
    ) -> Option<Self> {
        let side = endpoint.side(direction)?;
        let ((grant, asks), names) = (side.grant(port, peer), side.names(port, peer));
        let inspected = side.inspected(port, peer);
        let (endpoint, audit) = (endpoint.id, endpoint.audit);
        let mut judge = Self { endpoint, direction, grant, names, inspected, asks, audit };
        if judge.is_for_tls() {
            judge.grant = Grant::Nothing(NOT_TLS);
        }
        Some(judge)
    }

    /// Whether anything may pass, HTTP or not.
    pub fn is_plain(&self) -> bool {
        matches!(self.grant, Grant::Open | Grant::Plain)
    }

    /// Whether a rule that does not let everything through looks at paths.
    pub fn looks_at_paths(&self) -> bool {
        !self.is_plain() && self.asks.as_ref().is_some_and(|asks| asks.path)
    }

    /// Which rule lets a request through; `Ok(None)`: all may pass.
    pub fn judge(&self, request: &impl Subject, path: &Path) -> Result<Option<&Rule>, &'static str> {
        self.judge_counted(request, path, &mut Work::default())
    }

    /// The same; `work` says what it has taken.
    pub fn judge_counted(
        &self,
        request: &impl Subject,
        path: &Path,
        work: &mut Work,
    ) -> Result<Option<&Rule>, &'static str> {
        match &self.grant {
            Grant::Open | Grant::Plain => return Ok(None),
            Grant::Nothing(why) => return Err(why),
            Grant::Http(_) => {}
        }
        let headers = self.asks.as_ref().map_or(&[][..], |asks| &asks.headers);
        if !headers.is_empty() {
            work.headers(request.names().count(), headers.len()).map_err(|Exhausted| TOO_MUCH)?;
        }
        if headers.iter().any(|judged| request.names().any(|name| is_look_alike(name, judged.as_bytes()))) {
            return Err("header that differs from a judged one by an underscore or a dot");
        }
        let mut first = |path| self.find(request, path, work).map_err(|Exhausted| TOO_MUCH);
        let rule = first(path.canonical())?.ok_or("no rule lets it through")?;
        // Whatever an origin may take the path for must be allowed, too.
        for reading in path.readings() {
            if first(reading)?.is_none() {
                return Err("path that servers read in several ways, not all of them allowed");
            }
        }
        Ok(Some(rule))
    }

    /// The lists of rules of which one must let a request through.
    pub fn sets(&self) -> &[Arc<RuleSet>] {
        if let Grant::Http(sets) = &self.grant { sets } else { &[] }
    }

    /// The first rule that lets a request through, its path read as `path`.
    pub fn find(
        &self,
        request: &impl Subject,
        path: &[u8],
        work: &mut Work,
    ) -> Result<Option<&Rule>, Exhausted> {
        for set in self.sets() {
            if let Some(rule) = set.find(request, path, work)? {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    /// The changes that a rule asks for.
    pub fn edits<'a>(rule: Option<&'a Rule>, request: &impl Subject) -> Vec<Edit<'a>> {
        let mut edits = Vec::new();
        if let Some(rule) = rule.filter(|rule| !rule.headers.is_empty()) {
            rule.edits(request, &mut edits);
        }
        edits
    }
}

/// Why a request does not pass for which rules would have to look at too much.
const TOO_MUCH: &str = "path that takes too long to be held against all rules";
