//! `ferromesh version`: which build is this, which one is the agent?

use std::process::ExitCode;

use node_api::{ClientError, Reply, Request, build_difference};
use serde::Serialize;

use super::output::{FormatArg, Paint};
use super::table::fields;
use super::{Agent, CliError};
use crate::BUILD;

/// Print commit and schema of this command and of the running agent, and whether they differ.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferromesh version
  ferromesh version -o json | jq .difference")]
pub(crate) struct Args {
    #[command(flatten)]
    format: FormatArg,
}

/// One side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Side {
    build: String,
    schema: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Versions {
    command: Side,
    /// Absent if no agent runs.
    agent: Option<Side>,
    /// Absent if both are the same, or no agent runs.
    difference: Option<String>,
}

impl Versions {
    fn new(command: Side, agent: Option<Side>) -> Self {
        let difference = agent.as_ref().and_then(|agent| build_difference(&command.build, &agent.build));
        Self { command, agent, difference }
    }
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let command = Side { build: BUILD.to_owned(), schema: abi::SCHEMA };
    let agent = match agent.ask(Request::Status).await {
        Ok(Reply::Status(status)) => Some(Side { build: status.build, schema: status.schema }),
        Ok(_) => return Err(CliError::Unexpected),
        Err(ClientError::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let versions = Versions::new(command, agent);
    args.format.print(&versions, |paint| render(&versions, paint))
}

fn render(versions: &Versions, paint: Paint) -> String {
    let side = |side: &Side| format!("{}, schema {}", side.build, side.schema);
    let agent = versions.agent.as_ref().map_or_else(|| "not running".to_owned(), side);
    let text = fields(vec![("Command", side(&versions.command).into()), ("Agent", agent.into())], paint);
    versions.difference.iter().fold(text, |text, difference| format!("{text}{difference}\n"))
}

#[cfg(test)]
mod tests {
    use super::super::golden::golden;
    use super::*;

    fn side(commit: &str) -> Side {
        Side { build: format!("0.1.0 ({commit})"), schema: 1 }
    }

    #[test]
    fn an_agent_of_another_build_is_said() {
        let versions = Versions::new(side("1111111111"), Some(side("2222222222")));
        golden("version", &render(&versions, Paint::NONE));
        golden("version.json", &serde_json::to_string_pretty(&versions).unwrap());
    }

    #[test]
    fn the_same_build_and_no_agent_are_no_difference() {
        for agent in [None, Some(side("1111111111"))] {
            assert_eq!(Versions::new(side("1111111111"), agent).difference, None);
        }
        let alone = render(&Versions::new(side("1111111111"), None), Paint::NONE);
        assert_eq!(alone, "Command:   0.1.0 (1111111111), schema 1\nAgent:     not running\n");
    }
}
