//! `ferromesh config`: each setting, its value and where it comes from.

use std::process::ExitCode;

use node_api::{ConfigEntry, Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::table;
use super::{Agent, CliError};

/// Show the agent's settings.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List each key with the value in force and its origin: default, file and line, or flag.
    #[command(after_help = "\
Examples:
  ferromesh config view
  ferromesh config view -o json | jq '.[] | select(.origin != \"default\")'")]
    View {
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let Verb::View { format } = args.verb;
    let Reply::Config(entries) = agent.ask(Request::Config).await? else {
        return Err(CliError::Unexpected);
    };
    format.print(&entries, |paint| view(&entries, paint))
}

fn view(entries: &[ConfigEntry], paint: Paint) -> String {
    let row = |entry: &ConfigEntry| [&entry.key, &entry.value, &entry.origin].map(Into::into);
    table(["KEY", "VALUE", "ORIGIN"], entries.iter().map(row).collect(), paint)
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn settings_are_listed_with_their_origin() {
        golden("config-view", &view(&golden::config(), Paint::NONE));
        golden("config-view.json", &serde_json::to_string_pretty(&golden::config()).unwrap());
    }
}
