//! Bringing the tables of services to what a plan says: level-based, by diff, in an order that never opens a hole.
//!
//! 1. Compare with what is in force; if that is the plan, nothing is written.
//! 2. Take everything the change needs, or refuse it whole: a fresh region of `SLOTS` for each changed set of backends,
//!    a number for each backend that has none, an index for each new service. What is in use is never overwritten.
//! 3. Write `BACKENDS`, then `SLOTS`: no program comes by what is written here.
//! 4. Add `MEMBERS`, so that a client may return to a backend from the moment it can be given it. A service in force
//!    then changes by two stores: its affinity, and the one word that says where its slots begin and how many they are. A
//!    program reads that word once and so chooses from the old set or from the new one, never from a mixture, and both
//!    sets stand. Either order of the two stores is right: affinity to a backend holds only while `MEMBERS` says so.
//! 5. A new service is written whole, then its address gets its own key in `FRONTENDS`, then the service gets its key: it
//!    is there or it is not. Its address goes first so that what is called there is refused, not routed.
//! 6. Remove in reverse: keys of services, keys of addresses that have none left, members. Indices stay as they are.
//! 7. Regions, indices and numbers that are not in use any more are free after a grace ([`crate::grace`]), which
//!    [`ServiceKernel::settle`] waits for, or the next change that finds too little free.
//!
//! `FRONTENDS` alone says what is in use, so an agent that dies at any write leaves each service in its old state or its
//! new one, and the next finds by [`Tables::read`] all the rest to be free. A failure here is treated as such a death.

mod change;
mod listed;
mod number;
mod read;
mod slots;
mod tables;

use std::collections::BTreeSet;

use mesh::service::{Backend, Frontend, Services};

use crate::address::address;
use crate::{Error, Sizes};
use change::{Change, Difference, Write};
use listed::Listed;
pub(crate) use tables::{ServiceMaps, Tables};

/// What an apply of services did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceReport {
    /// False if the tables said so already.
    pub changed: bool,
    /// Map elements written.
    pub written: u64,
    /// Map elements removed.
    pub removed: u64,
    /// Protocol and address of backends that some frontend listed before, draining ones included, and none lists any
    /// more: nothing answers there for a service.
    pub gone: BTreeSet<(u8, Backend)>,
}

/// The tables, and what the last plan listed.
pub(crate) struct ServiceKernel {
    pub(crate) tables: Tables,
    listed: Listed,
    /// The tables were read, and may hold what no plan ever had.
    is_adopted: bool,
    /// The copy may not say what the tables say.
    is_torn: bool,
}

impl ServiceKernel {
    /// Reads what an earlier agent left.
    pub(crate) fn read(maps: ServiceMaps, sizes: Sizes) -> Result<Self, Error> {
        let mut tables = Tables::new(maps, sizes)?;
        tables.read()?;
        let held = tables.held.iter().map(|(frontend, held)| (*frontend, held.backends.clone()));
        Ok(Self { listed: Listed::found(held), tables, is_adopted: true, is_torn: false })
    }

    /// See the module.
    pub(crate) fn apply(&mut self, plan: &Services) -> Result<ServiceReport, Error> {
        if self.is_torn {
            self.adopt()?;
        }
        if let Err(error) = self.bring(plan) {
            if !matches!(error, Error::Full { .. }) {
                // The error is told, not this one's: the next apply begins by it.
                self.is_torn = true;
                let _ = self.adopt();
            }
            return Err(error);
        }
        let (written, removed) = self.tables.counted();
        let gone = self.listed.follow(&plan.frontends);
        Ok(ServiceReport { changed: written + removed > 0, written, removed, gone })
    }

    /// Makes what is in use no more free, after a wait if need be.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        self.tables.settle()
    }

    /// Index of a service in force.
    pub(crate) fn index(&self, frontend: &Frontend) -> Option<u32> {
        self.tables.held.get(frontend).map(|held| held.index)
    }

    fn adopt(&mut self) -> Result<(), Error> {
        self.tables.read()?;
        (self.is_torn, self.is_adopted) = (false, true);
        Ok(())
    }

    fn bring(&mut self, plan: &Services) -> Result<(), Error> {
        if self.is_adopted {
            self.tables.mend()?;
        }
        let differences = self.tables.differences(&plan.frontends);
        if !differences.is_empty() {
            if self.tables.is_unsure {
                self.tables.settle()?;
            }
            let change = self.change(&differences)?;
            self.carry_out(change)?;
        }
        if self.is_adopted {
            self.tables.remove_unused_vips()?;
            self.is_adopted = false;
        }
        Ok(())
    }

    fn change(&mut self, differences: &[Difference<'_>]) -> Result<Change, Error> {
        match self.tables.change(differences) {
            Err(Error::Full { .. }) if self.tables.pending => {
                self.tables.settle()?;
                self.tables.change(differences)
            }
            result => result,
        }
    }

    fn carry_out(&mut self, change: Change) -> Result<(), Error> {
        let tables = &mut self.tables;
        for (number, backend) in &change.backends {
            tables.write_backend(*number, backend)?;
        }
        for Write { next, numbers, .. } in &change.writes {
            for (slot, number) in next.region.slots().zip(numbers) {
                tables.write_slot(slot, *number)?;
            }
        }
        for write in change.writes {
            tables.carry_out(write)?;
        }
        for frontend in &change.removed {
            tables.remove_service(*frontend)?;
        }
        let vips: BTreeSet<_> = change.removed.iter().map(|frontend| address(frontend.address)).collect();
        vips.into_iter().try_for_each(|vip| tables.remove_vip_if_unused(vip))
    }
}

impl Tables {
    fn carry_out(&mut self, write: Write) -> Result<(), Error> {
        let Write { frontend, next, members, is_new, .. } = write;
        let index = next.index;
        members.iter().try_for_each(|member| self.add_member(*member))?;
        if is_new {
            return self.add_service(frontend, next);
        }
        self.change_service(frontend, next)?;
        let left: Vec<_> = self.members_of(index).difference(&members).copied().collect();
        left.into_iter().try_for_each(|member| self.remove_member(member))
    }

    fn remove_unused_vips(&mut self) -> Result<(), Error> {
        let vips = self.vips.clone();
        vips.into_iter().try_for_each(|vip| self.remove_vip_if_unused(vip))
    }
}
