//! A plan by which some must authenticate who need not until now, and who may have something open: it waits, a second at
//! most, until they are proven.
//!
//! Promise: nothing else waits for that. A newer world takes the place of the one that waits and not the end of its
//! time, so edits without end put nothing off. What only makes sense once the plan is in force (a workload that starts, one
//! that has ended) waits with it.

use std::sync::Arc;

use control::{Planned, World};
use mesh::workload::{Endpoint, EndpointId};
use node_api::{Enrolled, Reply};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::auth::AHEAD;

/// What waits.
pub(super) struct Switching {
    pub(super) world: Arc<World>,
    pub(super) planned: Planned,
    /// It comes into force then, whoever is proven.
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
    pub(super) fn next(earlier: Option<Self>, world: Arc<World>, planned: Planned) -> Self {
        match earlier {
            Some(earlier) => Self { world, planned, ..earlier },
            None => Self {
                world,
                planned,
                until: Instant::now() + AHEAD,
                edits: Vec::new(),
                starting: Vec::new(),
                ended: Vec::new(),
            },
        }
    }
}
