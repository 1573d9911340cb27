//! `ferromesh check`: may a node run here, would anything disturb it, is anything left of one.

use std::process::ExitCode;

use control::source::files::peek;
use endpoint::Host;

use super::{CliError, output};
use crate::directories::Directories;
use crate::teardown::leftovers;

/// Can a node run here, would anything disturb it, is anything left of one?
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ferromesh check              What this kernel offers and what on this host disturbs
  sudo ferromesh check --clean      After `down`: is anything left?")]
pub(super) struct Args {
    #[command(flatten)]
    directories: Directories,
    /// Only look for what is left of a node on this host; exit code 1 if anything is
    #[arg(long)]
    clean: bool,
}

/// Prints what was found; the exit code is 1 where a node cannot run, or, with `--clean`, where something is left.
pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let endpoints = endpoints(&args.directories).map_err(CliError::Failed)?;
    if args.clean {
        let found = leftovers(&args.directories, &endpoints).await.map_err(failed)?;
        output::write(&left(&found))?;
        return Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let capabilities = l4_datapath::probe::capabilities();
    let mut conflicts = Host::conflicts(&endpoints).await.map_err(failed)?;
    conflicts.extend(l4_datapath::foreign::programs());
    conflicts.extend(l4_datapath::foreign::socket_programs(&endpoints.cgroup, &args.directories.pins));
    let conflicts: String = conflicts.iter().map(|sentence| format!("‼ {sentence}\n")).collect();
    output::write(&format!("{capabilities}{conflicts}"))?;
    capabilities.check().map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

fn failed(error: impl ToString) -> CliError {
    CliError::Failed(error.to_string())
}

fn left(found: &[String]) -> String {
    match found {
        [] => "clean: nothing of a node is left on this host\n".to_owned(),
        found => found.iter().map(|sentence| format!("left: {sentence}\n")).collect(),
    }
}

/// How the endpoints of a node in these directories are made; the defaults where there is no configuration.
pub(super) fn endpoints(directories: &Directories) -> Result<endpoint::Config, String> {
    let world = peek(&directories.config, &directories.state).unwrap_or_default();
    directories.endpoints(&world).map_err(|error| error.to_string())
}
