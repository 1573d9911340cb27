//! What rules come to, in a few characters: by this an agent of another build knows whether a proxy has the rules of now.
//!
//! Promise: two that are equal are of the same rules, whichever builds have made them. It is SHA-256 of the rules as they are
//! told, JSON, endpoint by endpoint: that says what is meant and not what is shared in memory. A build that writes the same
//! rules down otherwise makes another digest; one that means something else by the same text must have another [`VERSION`].
//! Either way they differ, which is the safe side. Who has which address is not in it: every proxy knows that from the
//! kernel's maps, as it is now. A hash of the policies as they were written was rejected: what an agent makes of them is what
//! is enforced.

use std::collections::BTreeMap;
use std::fmt::Write;

use certs::tls::sha256;
use mesh::l7::L7Endpoint;
use mesh::workload::EndpointId;
use serde::{Deserialize, Serialize};

/// To be raised when a proxy of this build means something else than those before by rules that are written the same.
const VERSION: u32 = 1;

/// Of all rules that a proxy has. That of a version which is not known here is like none that is made here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Digest(String);

impl Digest {
    /// `None`: it cannot be said, and so is like no other.
    pub(super) fn of(endpoints: &BTreeMap<EndpointId, L7Endpoint>) -> Option<Self> {
        Digests::default().of(endpoints)
    }
}

/// What each endpoint's rules come to, kept while they stay: an edit costs what it touches.
#[derive(Default)]
pub(super) struct Digests(BTreeMap<EndpointId, [u8; 32]>);

impl Digests {
    /// Its rules are others from now on.
    pub(super) fn forget(&mut self, endpoint: EndpointId) {
        self.0.remove(&endpoint);
    }

    /// Of all these.
    pub(super) fn of(&mut self, endpoints: &BTreeMap<EndpointId, L7Endpoint>) -> Option<Digest> {
        let mut all = Vec::with_capacity(endpoints.len() * 32);
        for (id, endpoint) in endpoints {
            let known = self.0.get(id).copied();
            let one = known.or_else(|| sha256(&serde_json::to_vec(endpoint).ok()?))?;
            self.0.insert(*id, one);
            all.extend(one);
        }
        let mut text = format!("{VERSION}:");
        for byte in sha256(&all)? {
            write!(text, "{byte:02x}").ok()?;
        }
        Some(Digest(text))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh::identity::Identity;
    use mesh::l7::{Expression, HttpRule, L7Access, L7Plan, L7Ports, L7Rules};

    use super::super::tests as l7;
    use super::*;

    /// Rules at two ports that share their list, or have each its own.
    fn plan(path: &str, peer: u32, is_shared: bool) -> L7Plan {
        let access = || -> Arc<[L7Access]> {
            let rule = HttpRule { path: Some(Expression(path.to_owned())), ..HttpRule::default() };
            let peers = Identity::new(peer).map(|peer| [peer].into());
            [L7Access { peers, http: Some([rule].into()) }].into()
        };
        let first = access();
        let second = if is_shared { Arc::clone(&first) } else { access() };
        let ports = |port, access| L7Ports {
            first: port,
            last: port,
            access,
            tls: Arc::default(),
            inspected: Arc::default(),
        };
        let rules = L7Rules { ports: vec![ports(80, first), ports(8080, second)] };
        let mut plan = L7Plan::clone(&l7::plan(&[1, 2]));
        plan.endpoints.values_mut().for_each(|it| it.ingress = Some(Arc::new(rules.clone())));
        plan
    }

    fn digest(plan: &L7Plan) -> String {
        Digest::of(&plan.endpoints).unwrap().0
    }

    #[test]
    fn the_same_rules_come_to_the_same_and_others_do_not() {
        let rules = plan("/a", 300, true);
        assert_eq!(digest(&rules), digest(&plan("/a", 300, false)), "whatever is shared");
        let mut audited = rules.clone();
        audited.endpoints.values_mut().for_each(|endpoint| endpoint.audit = true);
        let mut fewer = rules.clone();
        fewer.endpoints.pop_last();
        for other in [plan("/b", 300, true), plan("/a", 301, true), audited, fewer, L7Plan::default()] {
            assert_ne!(digest(&rules), digest(&other));
        }
    }

    /// Agents of other builds have written this down. Where it changes they end the proxies of each other with what these have
    /// open, once: raise [`VERSION`] if the meaning has changed, and only then.
    #[test]
    fn builds_agree_on_what_the_same_rules_come_to() {
        assert_eq!(
            digest(&plan("/a", 300, true)),
            "1:fa790a6290d152c4d4e308006addae7b5e8c072793159a9726dc137bcbecb542"
        );
    }

    #[test]
    fn what_is_kept_is_what_would_be_made() {
        let (before, after) = (plan("/a", 300, true), plan("/b", 300, true));
        let mut kept = Digests::default();
        kept.of(&before.endpoints).unwrap();
        after.endpoints.keys().for_each(|id| kept.forget(*id));
        assert_eq!(kept.of(&after.endpoints), Digest::of(&after.endpoints));
    }
}
