//! `ferromesh proxy`: the process that judges the HTTP requests of this node, which the agent starts.

use std::path::PathBuf;
use std::process::ExitCode;

use super::CliError;

/// Run the L7 proxy; the agent does this, with the descriptors the process needs.
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "\
Example:
  ferromesh proxy --directory /var/lib/ferromesh/proxy --user 64251 --workers 1 \\
      3<>CONTROL 4<NODE 5<ENDPOINTS 6<ASSIGNMENTS 7<IPCACHE 8<>LISTENER4 9<>LISTENER6"
)]
pub(super) struct Args {
    /// Its directory, which becomes all it can see
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Who it runs as: a user without rights, by name or number
    #[arg(long, value_name = "USER")]
    user: String,
    /// Threads that serve; each has two listening sockets
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=120))]
    workers: u16,
}

/// Must not be called in a runtime: the process has to have one thread when it gives up its rights.
pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    super::agent::log();
    crate::proxy::run(&args.directory, &args.user, args.workers.into())
        .map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
