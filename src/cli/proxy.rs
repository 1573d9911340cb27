//! `ferromesh proxy`: what goes by the node's L7 proxy; and, with what the agent starts it with, the process itself.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Agent, CliError, proxied, wait};

/// Show what goes by the node's L7 proxy, or have another process take its place.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<proxied::Verb>,
    #[command(flatten)]
    process: Option<Process>,
}

/// The process; the agent starts it, with the descriptors it needs.
#[derive(Debug, clap::Args)]
struct Process {
    /// Its directory, which becomes all it can see
    #[arg(long, value_name = "DIR", hide = true)]
    directory: PathBuf,
    /// Who it runs as: a user without rights, by name or number
    #[arg(long, value_name = "USER", hide = true)]
    user: String,
    /// Threads that serve; each has two listening sockets
    #[arg(long, value_name = "N", default_value = "1", hide = true, value_parser = clap::value_parser!(u16).range(1..=120))]
    workers: u16,
}

/// The process must not be started in a runtime: it has to have one thread when it gives up its rights.
pub(super) fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    match (args.verb, args.process) {
        (Some(verb), _) => wait(proxied::run(agent, verb)),
        (None, Some(Process { directory, user, workers })) => {
            super::agent::log();
            crate::proxy::run(&directory, &user, workers.into())
                .map_err(|error| CliError::Failed(error.to_string()))?;
            Ok(ExitCode::SUCCESS)
        }
        (None, None) => Err(CliError::Failed(
            "expected a verb: ferromesh proxy connections, budgets, explain or restart".to_owned(),
        )),
    }
}
