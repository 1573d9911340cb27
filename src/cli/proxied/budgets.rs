//! `ferromesh proxy budgets`.

use std::process::ExitCode;

use node_api::proxy::{BudgetOwner, BudgetUse, ProxyBudgets};
use node_api::{Reply, Request};

use super::super::output::{FormatArg, Paint, Tone};
use super::super::table::{Cell, table};
use super::super::{Agent, CliError};

pub(super) async fn run(agent: &Agent, format: &FormatArg) -> Result<ExitCode, CliError> {
    let rows = |reply| match reply {
        Reply::ProxyBudgets(rows) => Some(rows),
        _ => None,
    };
    let mut rows = agent.rows(Request::ProxyBudgets, rows).await?;
    let key = |row: &ProxyBudgets| (row.draining, row.owner, row.workload.clone(), row.address);
    rows.sort_by_key(key);
    format.print(&rows, |paint| budgets(&rows, paint))
}

fn budgets(rows: &[ProxyBudgets], paint: Paint) -> String {
    let heading = ["WORKLOAD", "CONNECTIONS", "HEADS", "STREAMS", "BUFFERS", "REFUSED", "PROXY"];
    table(heading, rows.iter().map(row).collect(), paint)
}

fn row(row: &ProxyBudgets) -> [Cell; 7] {
    let ProxyBudgets { owner, workload, address, budgets, draining, .. } = row;
    let name = match (owner, workload, address) {
        (BudgetOwner::All, ..) => "all".to_owned(),
        (BudgetOwner::Nobody, ..) => "nobody of this node".to_owned(),
        (BudgetOwner::Workload, Some(workload), _) => workload.to_string(),
        (BudgetOwner::Workload, None, Some(address)) => format!("{address} (gone)"),
        (BudgetOwner::Workload, None, None) => "gone".to_owned(),
    };
    let of = |BudgetUse { used, bound, .. }: BudgetUse| Cell::from(format!("{used}/{bound}"));
    let kib = |bytes: u64| bytes.div_ceil(1024);
    let bytes = budgets.bytes;
    let refused = budgets.named().into_iter().filter(|(_, it)| it.refused > 0);
    let refused: Vec<_> = refused.map(|(name, it)| format!("{name} {}", it.refused)).collect();
    [
        name.into(),
        of(budgets.connections),
        of(budgets.heads),
        of(budgets.streams),
        format!("{}/{} KiB", kib(bytes.used), kib(bytes.bound)).into(),
        match refused.is_empty() {
            true => "-".into(),
            false => Cell::toned(Tone::Warning, refused.join("\n")),
        },
        if *draining { "draining" } else { "serving" }.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::golden::golden;
    use super::*;

    #[test]
    fn budgets_are_listed_by_workload_and_in_all() {
        let used = |used, bound, refused| BudgetUse { used, bound, refused };
        let row = |owner, workload: Option<&str>, uses: [BudgetUse; 4], draining| ProxyBudgets {
            owner,
            workload: workload.map(|name| name.parse().unwrap()),
            address: (owner == BudgetOwner::Workload).then(|| [10, 1, 0, 7].into()),
            instance: (owner == BudgetOwner::Workload).then_some(7),
            budgets: uses.into(),
            draining,
        };
        let some = [used(12, 16_390, 3), used(0, 2048, 0), used(40, 4000, 1), used(70_000, 134_217_728, 0)];
        let none = [used(0, 16_384, 1), used(0, 2048, 0), used(0, 4096, 0), used(0, 134_217_728, 0)];
        let all = [used(12, 32_768, 4), used(0, 4096, 0), used(40, 8192, 1), used(70_000, 268_435_456, 0)];
        let rows = [
            row(BudgetOwner::Workload, Some("default/tiefighter"), some, false),
            row(BudgetOwner::Workload, None, none, false),
            row(BudgetOwner::Nobody, None, none, false),
            row(BudgetOwner::All, None, all, false),
            row(BudgetOwner::All, None, [used(0, 16_384, 0); 4], true),
        ];
        golden("proxy-budgets", &budgets(&rows, Paint::NONE));
        golden("proxy-budgets.json", &serde_json::to_string_pretty(&rows).unwrap());
    }
}
