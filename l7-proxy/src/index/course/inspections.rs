//! TLS that the proxy ends or begins: what rules and Secrets come to, once their lists of rules have been put together.

use std::sync::Arc;

use mesh::l7::{L7Inspected, TlsInspection};

use super::{Preparation, place, sorted};
use crate::index::{Compiler, Inspected, Originating, Refused, Terminating};

/// What the Secrets of an inspection have come to.
type Made = (Option<Option<Arc<Terminating>>>, Option<Option<Arc<Originating>>>);

impl Preparation {
    /// The inspections of what holds at some ranges; their lists of rules have been put together.
    pub(super) fn inspected(&mut self, number: usize, compiler: &mut Compiler) -> Box<[Inspected]> {
        let Some(kind) = self.kinds.all.get(number) else { return Box::default() };
        let all = Arc::clone(&kind.inspected);
        let mut made = Vec::with_capacity(all.len());
        for (at, L7Inspected { peers, inspection }) in all.iter().enumerate() {
            let (terminating, originating) = self.contexts(number, at, inspection, compiler);
            let names = inspection.names.as_ref().map(|names| {
                let list = self.names.known.get(&place(names)).and_then(|at| self.names.all.get(*at));
                list.map(|list| Arc::clone(&list.done)).unwrap_or_default()
            });
            let http = inspection.http.as_ref().map(|rules| {
                let list = self.lists.known.get(&place(rules)).copied();
                let set = list.and_then(|list| self.sets.get([list].as_slice()));
                set.cloned().unwrap_or_default()
            });
            let peers = peers.as_ref().map(|peers| sorted(peers, &mut self.peers));
            let written = Arc::clone(inspection);
            made.push(Inspected { peers, names, terminating, originating, http, written });
        }
        made.into()
    }

    /// A Secret that cannot be used is the fault of those connections alone that want it.
    fn contexts(
        &mut self,
        kind: usize,
        at: usize,
        inspection: &TlsInspection,
        compiler: &mut Compiler,
    ) -> Made {
        let of = format!("{}.inspected[{at}]", self.field(kind));
        let refused = |part: &str, why| Refused { field: format!("{of}.{part}"), why };
        let (secrets, fault) = (&self.endpoint.secrets, &mut self.fault);
        let terminating = inspection.terminating.as_ref().map(|context| {
            let (held, why) = compiler.contexts.terminating(context, secrets);
            *fault = fault.take().or(why.map(|why| refused("terminatingTLS", why)));
            held
        });
        let originating = inspection.originating.as_ref().map(|context| {
            let (held, why) = compiler.contexts.originating(context, secrets);
            *fault = fault.take().or(why.map(|why| refused("originatingTLS", why)));
            held
        });
        (terminating, originating)
    }
}
