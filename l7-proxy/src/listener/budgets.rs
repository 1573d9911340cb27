//! What workloads have of the proxy, all workers together, for who asks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use node_api::proxy::{BudgetOwner, BudgetUse, PerBudget, ProxyBudgets};

use crate::stage::admit::{Amounts, Budget, Budgets, Tenant};

/// Workloads in one answer.
const MAX_ROWS: usize = 4096;

/// A row for each workload, and the last one for all together.
pub(super) fn rows<'a>(workers: impl Iterator<Item = &'a Budgets>, draining: bool) -> Vec<ProxyBudgets> {
    let mut left = Amounts::default();
    let mut all = Sums::default();
    let mut tenants: BTreeMap<Tenant, (IpAddr, Sums)> = BTreeMap::new();
    for worker in workers {
        let free = worker.left();
        left.iter_mut().zip(free).for_each(|(left, free)| *left += free);
        all.add(worker.all());
        for known in worker.known() {
            let (_, sums) = tenants.entry(known.tenant).or_insert_with(|| (known.address, Sums::default()));
            sums.add(known.budgets);
            // In place of what he could have if he had nothing there.
            sums.without.iter_mut().zip(free).for_each(|(without, free)| *without += free);
        }
    }
    let of_all = ProxyBudgets {
        owner: BudgetOwner::All,
        workload: None,
        address: None,
        instance: None,
        budgets: all.uses(Amounts::default()),
        draining,
    };
    let rows = tenants.into_iter().take(MAX_ROWS).map(|(tenant, (address, sums))| {
        let (owner, instance) = match tenant {
            Tenant::Endpoint(instance) => (BudgetOwner::Workload, Some(instance)),
            Tenant::Nobody | Tenant::Worker => (BudgetOwner::Nobody, None),
        };
        let (address, budgets) = (Some(address), sums.uses(left));
        ProxyBudgets { owner, workload: None, address, instance, budgets, draining }
    });
    rows.chain([of_all]).collect()
}

/// What somebody has of all workers.
#[derive(Default)]
struct Sums {
    uses: [BudgetUse; 4],
    /// What he could have, if he had nothing, of the workers that are counted in `uses`.
    without: Amounts,
}

impl Sums {
    fn add(&mut self, budgets: [Budget; 4]) {
        for (sum, Budget { used, bound, refused, .. }) in self.uses.iter_mut().zip(budgets) {
            sum.used += used;
            sum.bound += bound;
            sum.refused += refused;
        }
    }

    /// With what he could have of the others: of all workers together there is so much for who has nothing.
    fn uses(mut self, left: Amounts) -> PerBudget<BudgetUse> {
        for ((sum, left), without) in self.uses.iter_mut().zip(left).zip(self.without) {
            sum.bound += left.saturating_sub(without);
        }
        self.uses.into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::stage::admit::{Kind, Payer};

    #[test]
    fn what_a_workload_has_of_several_workers_adds_up_and_so_does_what_it_could_have() {
        let workers = [(), ()].map(|()| Arc::new(Budgets::new([120, 12, 12, 1200])));
        let payer = |number| Payer {
            tenant: Tenant::Endpoint(number),
            address: [10, 0, 0, number as u8].into(),
            is_caller: true,
        };
        let client = IpAddr::from([10, 0, 9, 1]);
        let first = workers[0].admit(payer(1), client).unwrap();
        let both = workers.each_ref().map(|worker| worker.admit(payer(2), client).unwrap());
        assert!(first.account.take(Kind::Bytes, 600) && !first.account.take(Kind::Bytes, 600));
        let rows = |draining| rows(workers.iter().map(AsRef::as_ref), draining);
        let all = rows(false);
        let uses = |row: &ProxyBudgets| {
            let PerBudget { connections, bytes, .. } = row.budgets;
            [connections, bytes].map(|it| (it.used, it.bound, it.refused))
        };
        assert_eq!(all.iter().map(|row| row.instance).collect::<Vec<_>>(), [Some(1), Some(2), None]);
        // Of 120 places on the first worker 118 are left, of the other's 119.
        assert_eq!(uses(&all[0]), [(1, 119 / 2 + 119 / 2, 0), (600, 600 + 600, 1)]);
        assert_eq!(uses(&all[1]), [(2, 119 / 2 + 120 / 2, 0), (0, 300 + 600, 0)]);
        assert_eq!(uses(&all[2]), [(3, 240, 0), (600, 2400, 1)]);
        assert_eq!((all[0].address, all[2].owner), (Some([10, 0, 0, 1].into()), BudgetOwner::All));
        first.account.give_back(Kind::Bytes, 600);
        drop((first, both));
        let left = rows(true);
        assert_eq!(left.len(), 2, "who was refused something is known");
        assert_eq!(uses(&left[0]), [(0, 120, 0), (0, 1200, 1)]);
        assert!(left[0].draining);
    }
}
