//! What would change? `policy trace --with FILE`.
//!
//! Promise: a function of values. The files are read as the agent would read them and laid over the world in force;
//! that world is planned by [`plan`] itself, with a copy of the numbers; then the two plans are compared. Nothing is
//! written, no number is taken. It may take as long as planning twice, so it belongs beside the agent's loop.

mod changes;
mod classes;
mod overlay;
mod parties;

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::policy::Authentication;
use mesh::workload::{Endpoint, EndpointId};
use node_api::{Predicted, Prediction, Trace, TraceQuery, WhatIf};

use crate::allocate::Allocator;
use crate::plan::{NodeFacts, PlanError, Planned, Present, plan};
use crate::trace::{TraceError, trace};
use crate::world::World;
use overlay::Overlay;

/// Everything that an answer is made from: a snapshot of a node.
pub struct Snapshot {
    /// What is in force.
    pub world: Arc<World>,
    /// Its plan.
    pub planned: Arc<Planned>,
    /// The node.
    pub facts: NodeFacts,
    /// Endpoints that are about to be removed.
    pub leaving: BTreeSet<EndpointId>,
    /// A copy of the numbers: [`Allocator::scratch`].
    pub numbers: Allocator,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WhatIfError {
    /// Files that an agent would not accept: what `analyze` says of them, a line each.
    #[error("an agent would not accept this:\n{0}")]
    Refused(String),
    /// A policy to be taken away that is not there.
    #[error("--without {0}: no policy of this name is in force; see `ferromesh policy list`")]
    NotInForce(String),
    /// The question of the trace has no answer.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// There would be no plan.
    #[error("this edit would not come into force: {0}")]
    Plan(#[from] PlanError),
}

/// Predicts what an edit would do.
pub fn what_if(mut node: Snapshot, query: &WhatIf) -> Result<Prediction, WhatIfError> {
    let endpoints: Vec<Endpoint> =
        node.planned.plan.endpoints.values().map(|planned| planned.endpoint.clone()).collect();
    let pools = (!endpoints.is_empty()).then_some((node.facts.ipv4_pool, node.facts.ipv6_pool));
    let overlay = Overlay::new(&node.world, query, pools)?;
    let present = Present { endpoints: &endpoints, leaving: &node.leaving, plan: Some(&node.planned.plan) };
    let then = plan(&overlay.world, present, &node.facts, &mut node.numbers)?;
    let predicted = match &query.trace {
        Some(query) => {
            let (now, then) = both(&node, &overlay.world, &then, query)?;
            Predicted::Trace { now, then }
        }
        None => {
            let parties = parties::parties((&node.world, &node.planned.plan), (&overlay.world, &then.plan));
            Predicted::Changes(changes::changes(&parties))
        }
    };
    let mut notes = overlay.notes(&then);
    if overlay.world.configuration.audit {
        notes.push("audit mode: what is denied is reported, and passes".to_owned());
    }
    Ok(Prediction { edits: overlay.edits, notes, predicted })
}

/// The answers now and then. Whoever is asked about may be known only then.
fn both(
    node: &Snapshot,
    world: &World,
    then: &Planned,
    query: &TraceQuery,
) -> Result<(Trace, Trace), TraceError> {
    let then = trace(world, then, query)?;
    let now = trace(&node.world, &node.planned, query).unwrap_or_else(|error| Trace {
        allowed: false,
        authentication: Authentication::None,
        lines: vec![error.to_string()],
    });
    Ok((now, then))
}

#[cfg(test)]
mod tests;
