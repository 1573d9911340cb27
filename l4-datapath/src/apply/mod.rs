//! Bringing the kernel to what a plan says: level-based, by diff, in an order that never opens a hole.
//!
//! 1. Compare with what is in force; if that is the plan, nothing is written and the generation stays.
//! 2. Settle: wait until no program runs that began before the last switch, remove what was left for it.
//! 3. Compute the whole change, and refuse it whole if a map cannot hold old and new side by side.
//! 4. Write new rulesets under fresh ids, then prefixes, assignments and endpoints, touching of everything that is in
//!    force only the slot that is not.
//! 5. Store generation + 1: that is the switch, for every endpoint of the node at once, and it makes every remembered
//!    verdict be asked again.
//! 6. Take out the endpoints that are gone. Rulesets and prefixes nobody needs go at the next settling.
//!
//! A failure before step 5 leaves the old state in force; what was already written is either reused or removed later.

mod change;
mod cookie;
mod kernel;
mod ruleset;
mod service;
mod target;

use std::time::{Duration, Instant};

use mesh::plan::NodePlan;

use crate::Error;
use change::Change;
pub(crate) use kernel::{Kernel, PolicyMaps};
pub use service::ServiceReport;
pub(crate) use service::{ServiceKernel, ServiceMaps};
use target::Target;
pub(crate) use target::prefix;

/// What an apply did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// The generation in force.
    pub generation: u64,
    /// False if the plan was in force already.
    pub changed: bool,
    /// Rulesets written.
    pub rulesets_written: usize,
    /// Directions of endpoints that share a ruleset with another one.
    pub rulesets_shared: usize,
    /// Map entries written.
    pub entries_written: u64,
    /// Map entries removed, those of earlier changes included.
    pub entries_removed: u64,
    /// From the call to the switch, the wait for an earlier switch included.
    pub duration: Duration,
}

impl Kernel {
    /// See the module.
    pub(crate) fn apply(&mut self, plan: &NodePlan) -> Result<Report, Error> {
        let begin = Instant::now();
        let target = Target::new(plan, self.sizes.connections, self.remotes.as_deref());
        let mut change = Change::default();
        let changed = !self.stands(&target);
        if changed {
            self.settle()?;
            change = self.change(&target);
            change.fits(self)?;
            // After a failure in the middle everything is compared anew.
            self.remotes = None;
            self.carry_out(&change)?;
        }
        self.remotes = Some(target.planned);
        let duration = begin.elapsed();
        self.clear_away(&change)?;
        let (entries_written, entries_removed) = self.counted();
        Ok(Report {
            generation: self.node.generation,
            changed,
            rulesets_written: change.rulesets.len(),
            rulesets_shared: change.shared,
            entries_written,
            entries_removed,
            duration,
        })
    }

    fn carry_out(&mut self, change: &Change) -> Result<(), Error> {
        if !change.replaced.is_empty() {
            change.replaced.iter().try_for_each(|address| self.remove_endpoint(*address))?;
            self.wait()?;
        }
        for (id, content) in &change.rulesets {
            self.write_ruleset(*id, content)?;
        }
        for (prefix, remote) in &change.remotes {
            self.write_remote(*prefix, *remote)?;
        }
        for (id, assignments) in &change.assignments {
            self.write_assignments(*id, *assignments)?;
        }
        for (address, endpoint) in &change.added {
            self.add_endpoint(*address, *endpoint)?;
        }
        self.switch();
        Ok(())
    }

    fn clear_away(&mut self, change: &Change) -> Result<(), Error> {
        self.doomed.extend(&change.doomed);
        change.gone.iter().try_for_each(|address| self.remove_endpoint(*address))
    }
}
