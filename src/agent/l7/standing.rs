//! How far each process of the proxy is with what it was told.

use std::collections::BTreeMap;

/// What one has answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Answered {
    /// Number of the latest plan of which it has answered all; 0: of none.
    pub(super) plan: u64,
    /// It has said that it has everything.
    pub(super) synced: bool,
    /// It is told that it has: from then on it takes connections, which it judges by what it was told before.
    pub(super) takes: bool,
}

/// All of them, by their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Standing {
    /// The one that takes connections.
    pub(super) serving: Option<u32>,
    /// The one that is to follow it, once it has everything.
    pub(super) next: Option<u32>,
    pub(super) answered: BTreeMap<u32, Answered>,
}

impl Standing {
    /// Whether whoever has connections has answered all of this plan.
    pub(super) fn is_settled(&self, plan: u64) -> bool {
        let has_none = |number, answered: &Answered| Some(number) == self.next && !answered.takes;
        let mut others = self.answered.iter().filter(|(number, answered)| !has_none(**number, answered));
        self.serving.is_some() && others.all(|(_, answered)| answered.plan >= plan)
    }

    /// Whether it has everything.
    pub(super) fn is_synced(&self, number: u32) -> bool {
        self.answered.get(&number).is_some_and(|answered| answered.synced && answered.plan != 0)
    }

    /// Whether there is one that has its rules.
    pub(super) fn is_ready(&self) -> bool {
        self.serving.and_then(|serving| self.answered.get(&serving)).is_some_and(|it| it.plan != 0)
    }

    /// How many another has followed.
    pub(super) fn draining(&self) -> usize {
        let is_old = |number: &&u32| Some(**number) != self.serving && Some(**number) != self.next;
        self.answered.keys().filter(is_old).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_connections_must_have_answered_and_who_has_none_need_not() {
        let answered = |plan| Answered { plan, synced: true, takes: true };
        let mut standing =
            Standing { serving: Some(2), next: None, answered: [(1, answered(6)), (2, answered(7))].into() };
        assert!(standing.is_settled(6) && !standing.is_settled(7), "what drains is told too");
        assert_eq!(standing.draining(), 1);
        standing.answered.remove(&1);
        standing.answered.insert(3, Answered::default());
        standing.next = Some(3);
        assert!(standing.is_settled(7) && standing.is_ready());
        assert_eq!(standing.draining(), 0);
        standing.answered.insert(3, Answered { plan: 6, synced: false, takes: true });
        assert!(standing.is_settled(6) && !standing.is_settled(7), "it takes connections already");
        standing.answered.insert(3, Answered::default());
        (standing.serving, standing.next) = (Some(3), None);
        assert!(!standing.is_settled(7) && !standing.is_ready());
        standing.serving = None;
        assert!(!standing.is_settled(0), "nobody serves");
    }
}
