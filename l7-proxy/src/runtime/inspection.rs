//! TLS that the proxy ends or begins: whose rules ask for it, and what that leaves to the other end's rules to say.
//!
//! Promise: a connection that has begun so stays so; where rules do not ask for it any more or ask for it by other Secrets, where
//! a Secret or an item of it is missing, where both ends of a connection ask for it, nothing passes. The end that does not ask
//! for it judges what it would see without the one that does: TLS by the name that is said, or requests.

use std::sync::Arc;

use mesh::l7::TlsContext;

use super::ends::{Ends, WITHDRAWN};
use super::open::host;
use crate::index::{Grant, Inspected, Originating, Terminating};
use crate::stage::authorize::Judge;

const BOTH: &str = "TLS that both ends would inspect";
const SEVERAL: &str = "rules that name different Secrets for the same TLS";
const NO_SECRET: &str = "TLS whose Secret is not there, or not whole";

/// How the client of a connection has begun that somebody inspects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Begun {
    /// Without TLS.
    Clear,
    /// With TLS, which the proxy ends, and said this name.
    Opened(Option<Box<str>>),
}

/// What the proxy does about a connection's TLS.
#[derive(Clone, Debug)]
pub(super) struct Inspection {
    pub(super) begun: Begun,
    /// Of which Secrets, by the rules that it began with; what stands in these may change.
    contexts: Option<[Option<TlsContext>; 2]>,
    pub(super) terminating: Option<Arc<Terminating>>,
    pub(super) originating: Option<Arc<Originating>>,
}

impl Judge {
    /// Whether the proxy takes part in TLS by its word. Who only looks on changes nothing.
    fn inspects(&self) -> bool {
        !self.inspected.is_empty() && !self.audit && !self.is_plain()
    }

    /// What is meant for such a connection.
    fn meant<'a>(&'a self, begun: &'a Begun) -> impl Iterator<Item = &'a Inspected> {
        self.inspected.iter().filter(move |one| match begun {
            Begun::Clear => one.terminating.is_none(),
            Begun::Opened(said) => one.opens(said.as_deref()),
        })
    }

    /// Lets through what these say, and of a client without TLS what it would without them.
    fn take(&mut self, inspected: &[Inspected], begun: &Begun) {
        let mut sets = match (begun, &self.grant) {
            (Begun::Clear, Grant::Http(sets)) => sets.clone(),
            _ => Vec::new(),
        };
        self.grant = match inspected.iter().any(|one| one.http.is_none()) {
            true => Grant::Plain,
            false => {
                sets.extend(inspected.iter().filter_map(|one| one.http.clone()));
                Grant::Http(sets)
            }
        };
    }
}

impl Ends {
    /// Whether TLS whose client says this is ended by the proxy.
    pub(super) fn opens(&self, said: Option<&str>) -> bool {
        self.judges.iter().flatten().any(|judge| judge.inspects() && judge.opens(said))
    }

    /// Whether somebody inspects connections of clients that speak no TLS; `None`: all of them, for no client is to speak any.
    pub(super) fn takes_clear(&self) -> Option<bool> {
        let mut all = self.judges.iter().flatten().filter(|judge| judge.inspects());
        let Some(judge) = all.next() else { return Some(false) };
        let clear = judge.meant(&Begun::Clear).count();
        let is_all = clear == judge.inspected.len() && judge.names.is_empty();
        if is_all { None } else { Some(clear > 0) }
    }

    /// From now on it is a connection that has begun so.
    pub(super) fn begin(&mut self, begun: Begun) {
        let begun = Inspection { begun, contexts: None, terminating: None, originating: None };
        self.inspection = Some(Box::new(begun));
        self.inspect();
    }

    /// It has begun with TLS that is not for the proxy to end. What it is judged by is to be looked up again.
    pub(super) fn leave(&mut self) {
        if self.inspection.take().is_some() {
            self.as_of = None;
        }
    }

    /// Supposes that a client which asks for this host begins as rules want it: in TLS if that is ended for this name.
    pub(super) fn suppose(&mut self, authority: &str) {
        let name = host(authority).unwrap_or_default().to_ascii_lowercase();
        match self.takes_clear() {
            Some(_) if self.opens(Some(&name)) => self.begin(Begun::Opened(Some(name.into()))),
            Some(false) => {}
            Some(true) | None => self.begin(Begun::Clear),
        }
    }

    /// The name that the client has said in TLS that the proxy has ended.
    pub(super) fn said(&self) -> Option<&str> {
        match &self.inspection.as_ref()?.begun {
            Begun::Clear => None,
            Begun::Opened(said) => said.as_deref(),
        }
    }

    /// Whether the proxy has ended the client's TLS.
    pub(super) fn is_opened(&self) -> bool {
        self.inspection.as_ref().is_some_and(|inspection| inspection.begun != Begun::Clear)
    }

    /// Whether TLS is spoken to the server; `None`: nobody takes part in it.
    pub(super) fn leads_to_tls(&self) -> Option<bool> {
        self.inspection.as_ref().map(|inspection| inspection.originating.is_some())
    }

    /// How the server is known, if TLS is spoken to it.
    pub(super) fn originating(&self) -> Option<&Arc<Originating>> {
        self.inspection.as_ref()?.originating.as_ref()
    }

    /// Has judges that have just been looked up say what they say of such a connection.
    pub(super) fn inspect(&mut self) {
        let Some(mut inspection) = self.inspection.take() else { return };
        if let Err(refusal) = self.inspect_by(&mut inspection) {
            self.refusal = self.refusal.or(Some(refusal));
        }
        self.inspection = Some(inspection);
    }

    fn inspect_by(&mut self, inspection: &mut Inspection) -> Result<(), &'static str> {
        let inspects = |judge: &Option<Judge>| judge.as_ref().is_some_and(Judge::inspects);
        let at = self.judges.iter().position(inspects).ok_or(WITHDRAWN)?;
        if self.judges.iter().skip(at + 1).any(inspects) {
            return Err(BOTH);
        }
        let Some(judge) = self.judges.get_mut(at).and_then(Option::as_mut) else { return Err(WITHDRAWN) };
        let meant: Vec<Inspected> = judge.meant(&inspection.begun).cloned().collect();
        let first = meant.first().ok_or(WITHDRAWN)?;
        if meant.iter().any(|one| one.contexts() != first.contexts()) {
            return Err(SEVERAL);
        }
        // A connection to the server that was made otherwise is not what rules ask for now.
        let contexts = first.contexts().map(|context| context.cloned());
        if *inspection.contexts.get_or_insert_with(|| contexts.clone()) != contexts {
            return Err(WITHDRAWN);
        }
        inspection.terminating = first.terminating.clone().map(|held| held.ok_or(NO_SECRET)).transpose()?;
        inspection.originating = first.originating.clone().map(|held| held.ok_or(NO_SECRET)).transpose()?;
        judge.take(&meant, &inspection.begun);
        // The server's rules stand behind the client's.
        let is_clients = at == 0;
        let (is_tls, said) = match (&inspection.begun, is_clients) {
            (Begun::Opened(said), false) => (true, said.clone()),
            (Begun::Clear, false) => (false, None),
            (Begun::Opened(said), true) => (inspection.originating.is_some(), said.clone()),
            (Begun::Clear, true) => (inspection.originating.is_some(), None),
        };
        let other = self.judges.get_mut(usize::from(is_clients)).and_then(Option::as_mut);
        let Some(other) = other.filter(|judge| is_tls && !judge.is_plain() && !judge.audit) else {
            return Ok(());
        };
        other.judge_tls(&Ok(said))?;
        other.grant = Grant::Open;
        Ok(())
    }
}
