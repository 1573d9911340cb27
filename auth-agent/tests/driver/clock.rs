//! The wall clock of a node is set, either way, while all that is proven to it has its certificates.

use std::time::Duration;

use node_api::auth::{AuthAnswer, AuthQuestion};

use crate::world::{Ca, Node, inside, until};

const MINUTE: i64 = 60;

/// What one node holds is valid from half an hour ago until an hour from now, as is what one of its peers holds; what the
/// other has begins now and ends in twenty minutes. By how far its clock is set ahead, whether there is a proof of each.
const STEPS: [(i64, [bool; 2]); 9] = [
    (10 * MINUTE, [true, true]),
    (-MINUTE / 2, [true, true]),
    (30 * MINUTE, [true, false]),
    (0, [true, true]),
    (-10 * MINUTE, [true, false]),
    (0, [true, true]),
    (120 * MINUTE, [false, false]),
    (-120 * MINUTE, [false, false]),
    (0, [true, true]),
];

#[test]
fn a_clock_that_is_set_ends_what_is_not_valid_by_it_and_nothing_else() {
    inside(async || {
        let nodes: [(&str, &[&str]); 3] = [("a", &["client"]), ("b", &["old"]), ("c", &["young"])];
        let early = Ca::start_behind(&nodes, Duration::from_secs(90 * 60), 30 * 60).await;
        let late = early.beside(&nodes, Duration::from_secs(20 * 60), 0).await;
        let mut a = Node::start(&early, "a", 1).await;
        let mut b = Node::start(&early, "b", 2).await;
        let mut c = Node::start(&late, "c", 3).await;
        a.tell(1, a.plan_of(&early, "client", &[(&b, "old"), (&c, "young")])).await;
        b.tell(1, b.plan(&early, "old", &a, "client")).await;
        c.tell(1, c.plan(&early, "young", &a, "client")).await;
        let peers = [&b, &c];
        let mut before = [0, 0];
        for (ahead, expected) in std::iter::once((0, [true, true])).chain(STEPS) {
            a.set_clock(ahead);
            until("it has seen that its clock was set", async || shows(&mut a, ahead).await.then_some(()))
                .await;
            let what = format!("{ahead} s ahead");
            let now = until(&what, async || {
                let epochs = peers.map(|peer| epoch(&a, peer));
                (epochs.map(|epoch| epoch.is_some()) == expected).then_some(epochs)
            });
            for (before, now) in before.iter_mut().zip(now.await) {
                // What it did not end stays what it was; what comes again has been proven anew.
                let now = now.unwrap_or(0);
                assert!(*before == 0 || now == *before || now == 0, "{what}: {before} has become {now}");
                *before = now;
            }
        }
    });
}

/// The epoch of the mark of a node for its peer.
fn epoch(of: &Node, to: &Node) -> Option<u64> {
    let marks = of.marks(to);
    (marks.len() == 2).then(|| marks.values().next().unwrap().epoch)
}

/// Whether what is left of the node's own certificates is as it has to be by its clock; with none left, that is so.
async fn shows(node: &mut Node, ahead: i64) -> bool {
    let AuthAnswer::Counters(counters) = node.ask(AuthQuestion::Counters).await else { panic!("counters") };
    let left = 60 * MINUTE - ahead;
    let is_valid = (0..=91 * MINUTE).contains(&left);
    match counters.first_expiry {
        Some(of_first) => (left - MINUTE..=left).contains(&i64::try_from(of_first).unwrap()),
        None => !is_valid,
    }
}
