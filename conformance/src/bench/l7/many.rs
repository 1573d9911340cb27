//! Rules of a crowded node.

use std::fmt::Write as _;

use super::rules::rule;
use super::transparent::policy;
use crate::bench::plan::Plan;

/// How many.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    workloads: usize,
    /// Of each workload.
    ports: usize,
    /// For each port.
    rules: usize,
}

impl Extent {
    pub(super) fn of(plan: &Plan) -> Self {
        if plan.quick {
            Self { workloads: 2, ports: 2, rules: 25 }
        } else {
            Self { workloads: 10, ports: 5, rules: 100 }
        }
    }

    /// All together.
    pub(super) fn rules(self) -> usize {
        self.workloads * self.ports * self.rules
    }

    /// Names of the workloads that have them.
    pub(super) fn workloads(self) -> impl Iterator<Item = String> {
        (0..self.workloads).map(|number| format!("crowd-{number}"))
    }

    /// A policy for each workload and port; no two rules are the same.
    pub(super) fn policies(self) -> String {
        let mut text = String::new();
        let mut next = 0;
        for name in self.workloads() {
            for port in 0..self.ports {
                let rules: String = (next..next + self.rules).map(rule).collect();
                next += self.rules;
                let one = policy(&name, "client", &[9000 + port as u16], &rules);
                let named = one.replace(&format!("name: {name}-client"), &format!("name: {name}-{port}"));
                let _ = write!(text, "{named}");
            }
        }
        text
    }
}
