//! TLS that the proxy ends or begins for some peers, for looking up.

use std::sync::Arc;

use mesh::identity::Identity;
use mesh::l7::{TlsContext, TlsInspection};

use super::rules::terms;
use super::{Names, Originating, RuleSet, Side, Terminating};

/// One item of rules.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The peers, ascending; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// The names of which a client must say one; `None`: any, or none.
    pub names: Option<Arc<Names>>,
    /// What clients are shown; `None`: they speak no TLS.
    pub terminating: Option<Held<Terminating>>,
    /// How the server is known; `None`: it is spoken to without TLS.
    pub originating: Option<Held<Originating>>,
    /// What may be requested inside; `None`: anything.
    pub http: Option<Arc<RuleSet>>,
    /// As it is written.
    pub written: Arc<TlsInspection>,
}

/// What a Secret has come to; `None`: it is not there, or not all that is needed of it.
pub(super) type Held<T> = Option<Arc<T>>;

impl Inspected {
    /// Which Secrets, and which items of them.
    pub fn contexts(&self) -> [Option<&TlsContext>; 2] {
        [self.written.terminating.as_ref(), self.written.originating.as_ref()]
    }

    /// Whether it is for a client that has begun with TLS and says this name.
    pub fn opens(&self, said: Option<&str>) -> bool {
        let is_named = |names: &Arc<Names>| said.is_some_and(|said| names.holds(said));
        self.terminating.is_some() && self.names.as_ref().is_none_or(is_named)
    }
}

impl Side {
    /// What a peer is held to at a port.
    pub fn inspected(&self, port: u16, peer: Option<Identity>) -> Arc<[Inspected]> {
        let (Self::Ports(ports), Some(peer)) = (self, peer) else { return Arc::default() };
        let all = terms(ports, port).map(|terms| &*terms.inspected).unwrap_or_default();
        if all.is_empty() {
            return Arc::default();
        }
        let is_meant =
            |one: &&Inspected| one.peers.as_ref().is_none_or(|peers| peers.binary_search(&peer).is_ok());
        all.iter().filter(is_meant).cloned().collect()
    }
}
