//! `ferromesh ca`: the embedded CA's process, which the agent starts.

use std::path::PathBuf;
use std::process::ExitCode;

use super::CliError;

/// Run the embedded CA; the agent does this, with the sockets the process needs.
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "\
Example:
  ferromesh ca --directory /var/lib/ferromesh/ca --user 64251 3<>CONTROL 4<>LISTENER"
)]
pub(super) struct Args {
    /// Its directory, which becomes all it can see
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Who it runs as: a user without rights, by name or number
    #[arg(long, value_name = "USER")]
    user: String,
}

/// Must not be called in a runtime: the process has to have one thread when it gives up its rights.
pub(super) fn run(args: Args) -> Result<ExitCode, CliError> {
    super::agent::log();
    let Args { directory, user } = args;
    crate::ca::run(&directory, &user).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
