//! One question to several processes of the proxy.

use node_api::proxy::{ProxyAnswer, ProxyQuestion};
use tokio::sync::{mpsc, oneshot};

use super::talk::Asked;

/// Asks all of them, each with whether it takes connections, and answers for all.
pub(super) async fn ask_all(
    all: Vec<(bool, mpsc::Sender<Asked>)>,
    question: ProxyQuestion,
    asker: oneshot::Sender<ProxyAnswer>,
) {
    let mut answers: Option<ProxyAnswer> = None;
    for (serves, asks) in all {
        match (one(&asks, question.clone()).await, serves) {
            (Some(found), _) => answers = Some(joined(answers, found)),
            // It does not answer.
            (None, true) => return,
            // It has just ended.
            (None, false) => {}
        }
    }
    // Who asked may be gone.
    let _ = answers.map(|answers| asker.send(answers));
}

async fn one(asks: &mpsc::Sender<Asked>, question: ProxyQuestion) -> Option<ProxyAnswer> {
    let (asker, answer) = oneshot::channel();
    asks.send((question, asker)).await.ok()?;
    answer.await.ok()
}

/// What several have answered to one question.
fn joined(before: Option<ProxyAnswer>, more: ProxyAnswer) -> ProxyAnswer {
    match (before, more) {
        (Some(ProxyAnswer::Connections(mut rows)), ProxyAnswer::Connections(more)) => {
            rows.extend(more);
            ProxyAnswer::Connections(rows)
        }
        (Some(ProxyAnswer::Budgets(mut rows)), ProxyAnswer::Budgets(more)) => {
            rows.extend(more);
            ProxyAnswer::Budgets(rows)
        }
        (_, more) => more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_processes_the_answers_are_one() {
        let row = |draining| node_api::proxy::ProxyBudgets {
            owner: node_api::proxy::BudgetOwner::All,
            workload: None,
            address: None,
            instance: None,
            budgets: node_api::proxy::PerBudget::default(),
            draining,
        };
        let one = joined(None, ProxyAnswer::Budgets(vec![row(true)]));
        let both = joined(Some(one), ProxyAnswer::Budgets(vec![row(false)]));
        assert_eq!(both, ProxyAnswer::Budgets(vec![row(true), row(false)]));
    }
}
