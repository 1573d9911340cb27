//! The rules in force, as an agent tells them.
//!
//! Promise: an object that cannot be used leaves the one before it in force; where that says nothing and the new one does, nothing
//! passes. One with a Secret that cannot be used is refused by word, and in force but for that. Until an agent has told all, what one before it has told holds beside what it tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::l7::L7Endpoint;
use mesh::workload::EndpointId;
use node_api::proxy::FromProxy;

use crate::index::{Compiler, Endpoint, Refused};
use crate::runtime::{Published, Snapshot};

/// What has become of an order.
pub(super) type Outcome = Result<(), Refused>;

/// The rules in force, as they are told.
pub(super) struct Rules {
    pub(super) published: Arc<Published>,
    /// What is to be in force next, if that differs.
    next: Option<Snapshot>,
    pub(super) compiler: Compiler,
    /// What has been told since the agent came.
    told: BTreeSet<EndpointId>,
    /// Whether it has told all. Until then the kernel may send connections by what an agent before it has told.
    is_synced: bool,
    /// What of the told is in force together with what was before it, as it is to be from then on.
    alone: BTreeMap<EndpointId, Endpoint>,
}

impl Rules {
    pub(super) fn new(published: Arc<Published>) -> Self {
        let (told, alone) = (BTreeSet::new(), BTreeMap::new());
        Self { published, next: None, compiler: Compiler::default(), told, is_synced: false, alone }
    }

    /// Another agent has come.
    pub(super) fn begin(&mut self) {
        self.told.clear();
        self.alone.clear();
        self.is_synced = false;
    }

    /// What is to be in force next.
    fn snapshot(&mut self) -> &mut Snapshot {
        self.next.get_or_insert_with(|| Snapshot::clone(&self.published.snapshot()))
    }

    /// Puts in force what is to be next.
    pub(super) fn publish(&mut self) {
        if let Some(next) = self.next.take() {
            self.published.set(next);
        }
    }

    pub(super) fn remove(&mut self, endpoint: EndpointId) -> Outcome {
        self.told.remove(&endpoint);
        self.alone.remove(&endpoint);
        self.snapshot().remove(endpoint);
        Ok(())
    }

    pub(super) fn synced(&mut self, generation: u64) -> FromProxy {
        let (told, alone) = (self.told.clone(), std::mem::take(&mut self.alone));
        let snapshot = self.snapshot();
        for id in snapshot.ids().into_iter().filter(|id| !told.contains(id)) {
            snapshot.remove(id);
        }
        alone.into_values().for_each(|alone| snapshot.insert(alone));
        snapshot.is_synced = true;
        self.is_synced = true;
        FromProxy::Synced { generation }
    }

    pub(super) fn set(&mut self, compiled: Result<Endpoint, Refused>, endpoint: &L7Endpoint) -> Outcome {
        let id = endpoint.id;
        self.told.insert(id);
        self.alone.remove(&id);
        let is_synced = self.is_synced;
        let snapshot = self.snapshot();
        let before = snapshot.get(id).filter(|before| before.instance == endpoint.instance);
        let (now, alone, outcome) = match (compiled, before) {
            // Beside what the agent before this one has told of it, until this one has told all.
            (Ok(compiled), Some(before)) if !is_synced => {
                let fault = told(&compiled);
                (Compiler::joined(compiled.clone(), before), Some(compiled), fault)
            }
            (Ok(compiled), _) => {
                let fault = told(&compiled);
                (compiled, None, fault)
            }
            (Err(refused), Some(before)) => (Compiler::kept(before, endpoint), None, Err(refused)),
            (Err(refused), None) => (Compiler::nothing(endpoint), None, Err(refused)),
        };
        snapshot.insert(now);
        self.alone.extend(alone.map(|alone| (id, alone)));
        outcome
    }
}

/// What is said of one that is in force.
fn told(compiled: &Endpoint) -> Outcome {
    compiled.fault.clone().map_or(Ok(()), Err)
}
