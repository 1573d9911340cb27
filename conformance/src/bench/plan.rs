//! What a run of the benchmark is asked for: how long, how often, which rows.

use super::report::{Row, Target};

/// How the rows are measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// How often each comparison is repeated; a figure is the median of its rounds.
    pub rounds: usize,
    /// How long one run of load takes, about.
    pub seconds_per_run: f64,
    /// Which rows.
    pub selected: Selection,
    /// Everything once and as short as can be: shows that the machinery works, and judges nothing.
    pub quick: bool,
}

impl Plan {
    /// Holds the row against a promise, as [`Row::judge`] does; a quick run names the promise and says no more.
    #[must_use]
    pub fn judge(&self, row: Row, target: Target, noise: Option<f64>) -> Row {
        let judged = row.judge(target, noise);
        Row { met: judged.met.filter(|_| !self.quick), ..judged }
    }
}

/// Ids of rows, or of groups of them: `l4.tc` selects `l4.tc.rr` and its like. None at all select everything.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Selection(Vec<String>);

impl Selection {
    /// These rows and groups.
    pub fn new(ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(ids.into_iter().map(Into::into).collect())
    }

    /// Whether the row of this id is asked for.
    #[must_use]
    pub fn wants(&self, id: &str) -> bool {
        let within = |group: &String| {
            id.strip_prefix(group.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0.is_empty() || self.0.iter().any(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_selects_its_rows_and_no_others() {
        let selection = Selection::new(["l4.tc", "l4.socket_lb.crr.1"]);
        let wanted = |id| selection.wants(id);
        assert!(wanted("l4.tc") && wanted("l4.tc.rr") && wanted("l4.socket_lb.crr.1"));
        assert!(!wanted("l4.tcx") && !wanted("l4") && !wanted("l4.socket_lb.crr.10k"));
        assert!(Selection::default().wants("l4.anything"));
    }

    #[test]
    fn a_quick_run_names_the_promise_and_judges_nothing() {
        let plan = |quick| Plan { rounds: 1, seconds_per_run: 0.1, selected: Selection::default(), quick };
        let row = || Row::new("l4.tc.rr", "RR", 1.0, "µs").against("routed", 1.0);
        assert_eq!(plan(false).judge(row(), Target::AtMost(1.1), None).met, Some(true));
        let quick = plan(true).judge(row(), Target::AtMost(1.1), None);
        assert_eq!((quick.met, quick.target.as_deref()), (None, Some("≤ 1.1")));
    }
}
