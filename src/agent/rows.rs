//! Answers of many rows: made beside the loop, from what it has shared or the kernel has, and sent in pieces.

use std::collections::BTreeMap;
use std::sync::Arc;

use control::{Found, Snapshot};
use l4_datapath::counters::DropRow;
use node_api::{
    DropView, LoadBalancerView, PolicyDetails, Reply, Request, SelectorView, ServiceView, WhatIf,
};

use super::node::Node;

/// Rows of a piece, backends counted as rows: enough that framing costs nothing, and few enough that a piece is far
/// below [`node_api::MAX_REPLY`] and does not keep other tasks waiting while it is written as JSON.
const PIECE: usize = 4096;

/// Makes the pieces of an answer; may take as long as its tables are large.
pub(super) type Rows = Box<dyn FnOnce() -> Vec<Reply> + Send>;

impl Node {
    /// Rows that answer a question, if it is one for rows.
    pub(super) fn rows(&self, question: &Request) -> Option<Rows> {
        let (plan, view) = (Arc::clone(&self.planned.plan), self.datapath.view());
        Some(match question {
            Request::Services => self.services(),
            Request::Addresses => {
                Box::new(move || pieces(control::status::addresses(&plan), |_| 1, Reply::Addresses))
            }
            Request::LoadBalancer => Box::new(move || {
                let size = |row: &LoadBalancerView| row.slots.len();
                read(view.load_balancer(), |rows| pieces(rows, size, Reply::LoadBalancer))
            }),
            Request::Connections => {
                Box::new(move || read(view.connections(), |rows| pieces(rows, |_| 1, Reply::Connections)))
            }
            Request::Drops => self.drops(),
            Request::Metrics => {
                let registry = Arc::clone(&self.registry);
                Box::new(move || pieces(observe::samples::samples(&registry), |_| 1, Reply::Metrics))
            }
            Request::PolicyGet { what } => self.policy(what.clone()),
            Request::Selectors => {
                let planned = Arc::clone(&self.planned);
                let size = |row: &SelectorView| row.policies.items.len() + row.identities.items.len();
                Box::new(move || pieces(control::selectors(&planned), size, Reply::Selectors))
            }
            Request::WhatIf(query) => self.what_if(query.clone()),
            _ => return None,
        })
    }

    fn drops(&self) -> Rows {
        let (counters, context) = (self.datapath.counters(), Arc::clone(&self.explanation.lock()));
        let view = move |row: DropRow| DropView {
            number: row.reason,
            reason: abi::DropReason::from_number(row.reason)
                .map_or_else(|| format!("Unknown reason {}", row.reason), |reason| reason.text().to_owned()),
            direction: if row.direction == abi::Direction::Ingress as u8 { "ingress" } else { "egress" }
                .to_owned(),
            workload: context.endpoint_of_interface(row.ifindex).map(|endpoint| endpoint.workload.clone()),
            ifindex: row.ifindex,
            packets: row.packets,
            bytes: row.bytes,
            meaning: observe::advice::meaning(row.reason).to_owned(),
        };
        Box::new(move || {
            read(counters, |counters| {
                let mut rows: Vec<_> = counters.drops.into_iter().map(view).collect();
                rows.sort_by(|one, other| {
                    let key = |row: &DropView| (row.number, row.direction.clone(), row.ifindex);
                    key(one).cmp(&key(other))
                });
                pieces(rows, |_| 1, Reply::Drops)
            })
        })
    }

    fn policy(&self, what: Option<String>) -> Rows {
        let (world, planned) = (Arc::clone(&self.world), Arc::clone(&self.planned));
        Box::new(move || match control::inspect(&world, &planned, what.as_deref()) {
            Ok(Found::Endpoint(policy)) => vec![Reply::EndpointPolicy(policy)],
            Ok(Found::Policies(policies)) => pieces(policies, details_size, Reply::PolicyDetails),
            Err(error) => vec![Reply::Error(error.to_string())],
        })
    }

    /// One at a time, for each may take a core for seconds; who comes meanwhile is told so, and holds nothing up.
    fn what_if(&self, query: WhatIf) -> Rows {
        let Ok(turn) = Arc::clone(&self.prediction).try_lock_owned() else {
            return Box::new(|| vec![Reply::Error("another prediction is being made; ask again".to_owned())]);
        };
        let snapshot = Snapshot {
            world: Arc::clone(&self.world),
            planned: Arc::clone(&self.planned),
            facts: self.facts.clone(),
            leaving: self.leaving.clone(),
            numbers: self.allocator.scratch(),
        };
        Box::new(move || {
            let _turn = turn;
            let prediction = control::what_if(snapshot, &query);
            vec![
                prediction.map_or_else(
                    |error| Reply::Error(error.to_string()),
                    |it| Reply::Prediction(Box::new(it)),
                ),
            ]
        })
    }

    fn services(&self) -> Rows {
        let plan = Arc::clone(&self.planned.plan);
        let frontends = plan.services.frontends.keys();
        let ids: BTreeMap<_, _> =
            frontends.filter_map(|frontend| Some((*frontend, self.datapath.service_id(frontend)?))).collect();
        Box::new(move || {
            let mut rows = control::status::services(&plan);
            for row in &mut rows {
                row.id = ids.get(&row.frontend).copied().unwrap_or(0);
            }
            let size = |row: &ServiceView| row.backends.len().saturating_add(row.draining.len());
            pieces(rows, size, Reply::Services)
        })
    }
}

/// Identities and workloads that a policy's details list.
fn details_size(details: &PolicyDetails) -> usize {
    let sides = details.rules.iter().flat_map(|rule| [&rule.ingress, &rule.egress]);
    let peers = sides.flat_map(|side| &side.statements).filter_map(|statement| statement.peers.as_ref());
    let identities: usize = peers.flatten().map(|peer| 1 + peer.identities.items.len()).sum();
    identities + details.endpoints.items.len()
}

fn read<T>(rows: Result<T, l4_datapath::Error>, answer: impl FnOnce(T) -> Vec<Reply>) -> Vec<Reply> {
    match rows {
        Ok(rows) => answer(rows),
        Err(error) => vec![Reply::Error(format!("the kernel's tables cannot be read: {error}"))],
    }
}

/// The rows in pieces, and the word that these were all.
pub(super) fn pieces<T>(
    rows: Vec<T>,
    size: impl Fn(&T) -> usize,
    reply: impl Fn(Vec<T>) -> Reply,
) -> Vec<Reply> {
    let (mut pieces, mut piece, mut filled) = (Vec::new(), Vec::new(), 0usize);
    for row in rows {
        filled = filled.saturating_add(size(&row)).saturating_add(1);
        piece.push(row);
        if filled >= PIECE {
            pieces.push(reply(std::mem::take(&mut piece)));
            filled = 0;
        }
    }
    if !piece.is_empty() {
        pieces.push(reply(piece));
    }
    pieces.push(Reply::Done);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_in_pieces_by_their_size_and_the_end_is_said() {
        // A flow is none of these answers, so its count stands for the rows of a piece.
        let counts = |rows: Vec<usize>| -> Vec<u64> {
            let told = pieces(rows, |size| *size, |piece| Reply::Lost(piece.len() as u64));
            let (last, told) = told.split_last().unwrap();
            assert_eq!(*last, Reply::Done);
            let count = |reply: &Reply| match reply {
                Reply::Lost(count) => *count,
                other => panic!("{other:?}"),
            };
            told.iter().map(count).collect()
        };
        assert_eq!(counts(vec![]), [0; 0]);
        assert_eq!(counts(vec![0; 5000]), [4096, 904]);
        assert_eq!(counts(vec![9_000, 0, 0]), [1, 2], "a large row is a piece of its own");
    }
}
