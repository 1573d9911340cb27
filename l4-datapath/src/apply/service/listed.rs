//! Who was listed by any frontend: a backend that no frontend lists any more answers nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::service::{Backend, Frontend, FrontendPlan};

use super::change::side_by_side;

/// Protocol and backend.
pub(super) type Answerer = (u8, Backend);

/// The two lists of a frontend: for new connections, and draining.
type Lists = [Arc<[Backend]>; 2];

/// What the frontends of the last plan listed.
#[derive(Default)]
pub(super) struct Listed {
    by_frontend: BTreeMap<Frontend, Lists>,
    frontends: BTreeMap<Answerer, u32>,
}

impl Listed {
    /// After a start: what the kernel has. It does not know who was draining.
    pub(super) fn found(held: impl Iterator<Item = (Frontend, Arc<[Backend]>)>) -> Self {
        let mut listed = Self::default();
        for (frontend, backends) in held {
            listed.list(frontend, [backends, Arc::default()]);
        }
        listed
    }

    /// Goes on to another plan; who is listed no more.
    pub(super) fn follow(&mut self, plan: &BTreeMap<Frontend, FrontendPlan>) -> BTreeSet<Answerer> {
        let differs = |now: Option<&Lists>, then: Option<&FrontendPlan>| match (now, then) {
            (Some([backends, draining]), Some(plan)) => {
                *backends != plan.backends || *draining != plan.draining
            }
            _ => true,
        };
        let mut changes = Vec::new();
        for (frontend, now, then) in side_by_side(&self.by_frontend, plan) {
            if differs(now, then) {
                changes.push((frontend, then));
            }
        }
        let mut touched = BTreeSet::new();
        for (frontend, _) in &changes {
            touched.extend(self.unlist(frontend));
        }
        for (frontend, plan) in changes {
            if let Some(plan) = plan {
                self.list(frontend, [plan.backends.clone(), plan.draining.clone()]);
            }
        }
        touched.retain(|answerer| !self.frontends.contains_key(answerer));
        touched
    }

    fn list(&mut self, frontend: Frontend, lists: Lists) {
        for backend in lists.iter().flat_map(|list| list.iter()) {
            *self.frontends.entry((frontend.protocol, *backend)).or_default() += 1;
        }
        self.by_frontend.insert(frontend, lists);
    }

    fn unlist(&mut self, frontend: &Frontend) -> Vec<Answerer> {
        let lists = self.by_frontend.remove(frontend).unwrap_or_default();
        let answerers =
            lists.iter().flat_map(|list| list.iter()).map(|backend| (frontend.protocol, *backend));
        let answerers: Vec<Answerer> = answerers.collect();
        for answerer in &answerers {
            if let Some(count) = self.frontends.get_mut(answerer) {
                *count -= 1;
                if *count == 0 {
                    self.frontends.remove(answerer);
                }
            }
        }
        answerers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontend(port: u16) -> Frontend {
        Frontend { address: [10, 96, 0, 1].into(), port, protocol: 17 }
    }

    fn backends(hosts: &[u8]) -> Arc<[Backend]> {
        hosts.iter().map(|host| ([10, 0, 0, *host], 53).into()).collect()
    }

    fn plan(frontends: &[(u16, &[u8], &[u8])]) -> BTreeMap<Frontend, FrontendPlan> {
        let service = mesh::service::ServiceName { namespace: "default".to_owned(), name: "dns".to_owned() };
        let planned = |(port, ready, draining): &(u16, &[u8], &[u8])| {
            let (backends, draining) = (backends(ready), backends(draining));
            let service = service.clone();
            let port_name = String::new();
            (frontend(*port), FrontendPlan { service, port_name, backends, draining, affinity: None })
        };
        frontends.iter().map(planned).collect()
    }

    fn gone(hosts: &[u8]) -> BTreeSet<Answerer> {
        backends(hosts).iter().map(|backend| (17, *backend)).collect()
    }

    #[test]
    fn gone_is_who_is_in_no_list_of_any_frontend() {
        let mut listed = Listed::found([(frontend(1), backends(&[9]))].into_iter());
        for (frontends, expected) in [
            (vec![(1, &[1u8, 2][..], &[][..]), (2, &[2, 3], &[])], &[9][..]),
            (vec![(1, &[1], &[2]), (2, &[2, 3], &[])], &[]),
            (vec![(1, &[1], &[]), (2, &[3], &[])], &[2]),
            (vec![(1, &[3], &[]), (2, &[1], &[])], &[]),
            (vec![(2, &[1], &[])], &[3]),
            (vec![], &[1]),
            (vec![], &[]),
        ] {
            assert_eq!(listed.follow(&plan(&frontends)), gone(expected), "{frontends:?}");
        }
    }
}
