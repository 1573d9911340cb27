//! `ferromesh policy selectors`: every selector in use, and whom it means now.

use std::process::ExitCode;

use node_api::{Reply, Request, SelectorRole, SelectorView};

use super::super::output::{FormatArg, Paint};
use super::super::table::table;
use super::super::{Agent, CliError};
use super::some;

/// Names and numbers of a cell.
const SHOWN: usize = 20;

pub(super) async fn run(agent: &Agent, format: &FormatArg) -> Result<ExitCode, CliError> {
    let piece = |reply| if let Reply::Selectors(rows) = reply { Some(rows) } else { None };
    let rows = agent.rows(Request::Selectors, piece).await?;
    format.print(&rows, |paint| list(&rows, paint))
}

/// In the columns of `cilium-dbg policy selectors`, and the role.
fn list(rows: &[SelectorView], paint: Paint) -> String {
    let row = |view: &SelectorView| {
        let role = match view.role {
            SelectorRole::Subject => "subject",
            SelectorRole::Peer => "peer",
        };
        let numbers = node_api::Listed {
            total: view.identities.total,
            items: view.identities.items.iter().map(|identity| identity.number()).collect(),
        };
        [
            view.selector.as_str().into(),
            role.into(),
            some(&view.policies, SHOWN).into(),
            view.users.into(),
            some(&numbers, SHOWN).into(),
        ]
    };
    table(["SELECTOR", "ROLE", "POLICIES", "USERS", "IDENTITIES"], rows.iter().map(row).collect(), paint)
}

#[cfg(test)]
mod tests {
    use node_api::Listed;

    use super::super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn selectors_are_listed_in_ciliums_columns() {
        let view = |selector: &str, role, policies: &[&str], identities: Vec<u32>, total| SelectorView {
            selector: selector.to_owned(),
            role,
            users: policies.len(),
            policies: Listed::first(10, policies.iter().map(|name| golden::policy(name))),
            identities: Listed { total, items: identities.into_iter().map(golden::identity).collect() },
        };
        let rows = vec![
            view("10.0.0.0/8 except 10.1.0.0/16", SelectorRole::Peer, &["rule2"], vec![16_777_217], 1),
            view("class=deathstar", SelectorRole::Subject, &["rule1", "rule2"], vec![17_839], 1),
            view("class=nobody", SelectorRole::Peer, &["rule2"], vec![], 0),
            view("org=empire", SelectorRole::Peer, &["rule1"], (256..280).collect(), 9_000),
        ];
        golden("policy-selectors", &list(&rows, Paint::NONE));
        golden("policy-selectors.json", &serde_json::to_string_pretty(&rows[..3]).unwrap());
    }
}
