//! `ferromesh ip`: who has an address.

use std::process::ExitCode;

use node_api::{AddressView, Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::table;
use super::{Agent, CliError};

/// Show addresses: which identity is behind each, and how that is known.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List addresses and prefixes with the identities behind them.
    #[command(after_help = "\
Examples:
  ferromesh ip list
  ferromesh ip list -o json | jq -r '.[] | select(.source == \"policy\") | .prefix'

The longest prefix that holds an address decides. SOURCE tells how the identity is known: an endpoint of this node,
the node itself or another, the pool that workloads have their addresses of, a prefix that a policy names, or else
the world.")]
    List {
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let rows = |reply| match reply {
        Reply::Addresses(rows) => Some(rows),
        _ => None,
    };
    let rows = agent.rows(Request::Addresses, rows).await?;
    let Verb::List { format } = args.verb;
    format.print(&rows, |paint| list(&rows, paint))
}

fn list(rows: &[AddressView], paint: Paint) -> String {
    let row = |view: &AddressView| {
        [
            view.prefix.into(),
            view.identity.number().into(),
            view.source.as_str().into(),
            view.workload.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string).into(),
            view.labels.to_string().replace(',', "\n").into(),
        ]
    };
    table(["IP", "IDENTITY", "SOURCE", "WORKLOAD", "LABELS"], rows.iter().map(row).collect(), paint)
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn addresses_are_listed_with_who_is_behind_them() {
        golden("ip-list", &list(&golden::addresses(), Paint::NONE));
        golden("ip-list.json", &serde_json::to_string_pretty(&golden::addresses()).unwrap());
    }
}
