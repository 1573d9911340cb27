//! `ferromesh plan`: what this node should be doing, as one value.

use std::process::ExitCode;

use clap::ValueEnum;
use node_api::{Reply, Request};
use serde_json::Value;

use super::{Agent, CliError, output};

/// Print what this node should be doing: endpoints, identities, rulesets, computed whole from the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferromesh plan > before; vi /etc/ferromesh/rule1.yaml; ferromesh plan | diff before -
  ferromesh plan -o json | jq '.endpoints | keys'")]
pub(crate) struct Args {
    /// How to print the plan.
    #[arg(short, long, value_enum, default_value = "yaml", value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let Reply::Plan(plan) = agent.ask(Request::Plan).await? else {
        return Err(CliError::Unexpected);
    };
    output::write(&render(&plan, args.output)?)?;
    Ok(ExitCode::SUCCESS)
}

fn render(plan: &Value, format: Format) -> Result<String, CliError> {
    match format {
        Format::Yaml => serde_saphyr::to_string(plan).map_err(|error| CliError::Yaml(error.to_string())),
        Format::Json => Ok(format!("{}\n", serde_json::to_string_pretty(plan)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn a_plan_in_both_formats() {
        golden("plan", &render(&golden::plan(), Format::Yaml).unwrap());
        golden("plan.json", &render(&golden::plan(), Format::Json).unwrap());
    }

    #[test]
    fn the_yaml_reads_back_as_the_same_plan() {
        let yaml = render(&golden::plan(), Format::Yaml).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), golden::plan());
    }
}
