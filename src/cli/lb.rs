//! `ferromesh lb`: the tables by which the kernel chooses backends.

use std::process::ExitCode;

use mesh::policy::protocol;
use node_api::{LoadBalancerView, Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::{Cell, table};
use super::{Agent, CliError};

/// Show the kernel's load balancing tables: frontends, and the backend in each slot.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List frontends and slots as the kernel has them.
    #[command(after_help = "\
Examples:
  ferromesh lb list
  ferromesh lb list -o json | jq '.[] | {frontend, slots: (.slots | length)}'

This is what is in force; `ferromesh service list` is what should be. Slot 0 stands for the frontend itself: its
number of slots and its affinity. A call takes one of the slots.")]
    List {
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let rows = |reply| match reply {
        Reply::LoadBalancer(rows) => Some(rows),
        _ => None,
    };
    let mut rows = agent.rows(Request::LoadBalancer, rows).await?;
    rows.sort_by_key(|view| view.frontend);
    let Verb::List { format } = args.verb;
    format.print(&rows, |paint| list(&rows, paint))
}

fn list(rows: &[LoadBalancerView], paint: Paint) -> String {
    let heading = ["SERVICE ADDRESS", "BACKEND ADDRESS (REVNAT_ID) (SLOT)"];
    table(heading, rows.iter().flat_map(slots).collect(), paint)
}

fn slots(view: &LoadBalancerView) -> Vec<[Cell; 2]> {
    let LoadBalancerView { id, frontend, slots, affinity } = view;
    let protocol = protocol::name(frontend.protocol).unwrap_or("?");
    let nobody = if frontend.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let affinity = if *affinity == 0 { String::new() } else { format!(", affinity {affinity} s") };
    let count = slots.len();
    let itself =
        [format!("{frontend} (0)").into(), format!("{nobody} ({id}) (0) [slots: {count}{affinity}]").into()];
    let slot = |(number, (_, backend)): (usize, &(u32, mesh::service::Backend))| {
        let number = number.saturating_add(1);
        [format!("{frontend} ({number})").into(), format!("{backend}/{protocol} ({id}) ({number})").into()]
    };
    std::iter::once(itself).chain(slots.iter().enumerate().map(slot)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn slots_are_listed_in_ciliums_columns() {
        golden("lb-list", &list(&golden::load_balancer(), Paint::NONE));
        golden("lb-list.json", &serde_json::to_string_pretty(&golden::load_balancer()).unwrap());
    }
}
