//! A plan that waits, a second at most, for others than the agent: by it some must authenticate who need not until now, and
//! who may have something open, and are to be proven first; or by it the L7 proxy has rules to enforce that it is to have
//! before anybody is sent to it.
//!
//! Promise: nothing else waits for that. A newer world takes the place of the one that waits and not the end of its
//! time, so edits without end put nothing off. What only makes sense once the plan is in force (a workload that starts, one
//! that has ended) waits with it.

use std::sync::Arc;
use std::time::Duration;

use control::{Planned, World};
use mesh::workload::{Endpoint, EndpointId};
use node_api::{Enrolled, Reply};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a plan waits: then what is not proven is cut, and what is to go by a proxy that is not ready is dropped.
pub(super) const AHEAD: Duration = Duration::from_secs(1);

/// For whom a plan waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Waits {
    /// For those who must authenticate.
    pub(super) proofs: bool,
    /// For the L7 proxy.
    pub(super) rules: bool,
}

impl Waits {
    /// For anybody.
    pub(super) fn any(self) -> bool {
        self.proofs || self.rules
    }
}

/// What waits.
pub(super) struct Switching {
    pub(super) world: Arc<World>,
    pub(super) planned: Planned,
    pub(super) waits: Waits,
    /// It comes into force then, whoever is proven and whatever the proxy has.
    pub(super) until: Instant,
    /// When the edits in it came.
    pub(super) edits: Vec<Instant>,
    pub(super) starting: Vec<Starting>,
    /// Who has ended.
    pub(super) ended: Vec<EndpointId>,
}

/// A workload that has an endpoint, and waits for its policy.
pub(super) struct Starting {
    pub(super) endpoint: Endpoint,
    pub(super) made: Enrolled,
    pub(super) reply: oneshot::Sender<Result<Enrolled, Reply>>,
}

impl Switching {
    /// The plan of a newer world, in the place of one that waits already, if one does.
    pub(super) fn next(earlier: Option<Self>, world: Arc<World>, planned: Planned, waits: Waits) -> Self {
        match earlier {
            Some(earlier) => Self { world, planned, waits, ..earlier },
            None => Self {
                world,
                planned,
                waits,
                until: Instant::now() + AHEAD,
                edits: Vec::new(),
                starting: Vec::new(),
                ended: Vec::new(),
            },
        }
    }
}
