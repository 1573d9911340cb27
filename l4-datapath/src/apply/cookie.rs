//! Numbers for sets of policy names: what a `RULES` entry carries so that an event can name the policies behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::policy::PolicyName;

/// A sorted set, shared with the rulesets.
pub(crate) type Names = Arc<[PolicyName]>;

/// The numbers in use. A number never stands for two sets while an entry or a late event may carry it.
#[derive(Default)]
pub(crate) struct Cookies {
    names: BTreeMap<u32, Names>,
    numbers: BTreeMap<Names, u32>,
    /// Highest number that any entry in the kernel carries or ever was given out.
    highest: u32,
    /// Unused since the last [`Cookies::retire`]: the next one drops them.
    fading: BTreeSet<u32>,
}

impl Cookies {
    /// The number of a set, a fresh one if need be. Never 0, which means that no entry matched.
    pub(crate) fn number(&mut self, names: &Names) -> u32 {
        if let Some(number) = self.numbers.get(names) {
            return *number;
        }
        self.highest += 1;
        self.names.insert(self.highest, names.clone());
        self.numbers.insert(names.clone(), self.highest);
        self.highest
    }

    /// A number found in the kernel: not to be given out.
    pub(crate) fn found(&mut self, number: u32) {
        self.highest = self.highest.max(number);
    }

    /// Learns what numbers found in the kernel stand for, all of them or none. False if one contradicts what is known.
    pub(crate) fn learn(&mut self, pairs: &[(u32, &Names)]) -> bool {
        let mut learnt: BTreeMap<u32, &Names> = BTreeMap::new();
        for (number, names) in pairs {
            let known = self.names.get(number).or_else(|| learnt.get(number).copied());
            if known.is_some_and(|known| known != *names) {
                return false;
            }
            learnt.insert(*number, names);
        }
        for (number, names) in learnt {
            self.names.insert(number, names.clone());
            self.numbers.entry(names.clone()).or_insert(number);
        }
        true
    }

    /// What every number stands for.
    pub(crate) fn names(&self) -> &BTreeMap<u32, Names> {
        &self.names
    }

    /// Forgets the sets that were not in use at the last call and are not now: events on their way still find theirs.
    pub(crate) fn retire(&mut self, used: &BTreeSet<Names>) {
        let unused: BTreeSet<u32> = self
            .names
            .iter()
            .filter(|(_, names)| !used.contains(*names))
            .map(|(number, _)| *number)
            .collect();
        for number in self.fading.intersection(&unused) {
            if let Some(names) = self.names.remove(number)
                && self.numbers.get(&names) == Some(number)
            {
                self.numbers.remove(&names);
            }
        }
        self.fading = unused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Names {
        let kind = mesh::policy::PolicyKind::NetworkPolicy;
        [PolicyName { kind, namespace: None, name: name.to_owned() }].into()
    }

    #[test]
    fn equal_sets_share_a_number_and_zero_is_never_one() {
        let mut cookies = Cookies::default();
        let first = cookies.number(&names("a"));
        assert_ne!(first, 0);
        assert_eq!(cookies.number(&names("a")), first);
        assert_ne!(cookies.number(&names("b")), first);
    }

    #[test]
    fn a_number_found_in_the_kernel_is_not_given_out() {
        let mut cookies = Cookies::default();
        cookies.found(7);
        assert_eq!(cookies.number(&names("a")), 8);
    }

    #[test]
    fn contradicting_numbers_are_not_learnt_at_all() {
        let mut cookies = Cookies::default();
        assert!(cookies.learn(&[(1, &names("a")), (2, &names("b"))]));
        assert!(!cookies.learn(&[(3, &names("c")), (2, &names("c"))]));
        assert!(!cookies.names().contains_key(&3));
        assert!(!cookies.learn(&[(4, &names("c")), (4, &names("d"))]));
    }

    #[test]
    fn an_unused_set_outlives_one_retirement() {
        let mut cookies = Cookies::default();
        let number = cookies.number(&names("a"));
        cookies.retire(&BTreeSet::new());
        assert!(cookies.names().contains_key(&number));
        cookies.retire(&BTreeSet::new());
        assert!(!cookies.names().contains_key(&number));
    }
}
