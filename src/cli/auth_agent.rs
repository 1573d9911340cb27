//! `ferromesh auth-agent`: the process that proves workloads to one another, which the agent starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use super::CliError;

/// Run the auth-agent; the agent does this, with the descriptors the process needs.
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "\
Example:
  ferromesh auth-agent --node n1 --ca 127.0.0.1:4251 --directory /var/lib/ferromesh/auth --user 64250 \\
      3<>CONTROL 4<>HOLD 5<>AUTH 6<>MARKS 7<>LEASES 8<>LISTENER"
)]
pub(super) struct Args {
    /// Its directory, which becomes all it can see
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Who it runs as: a user without rights, by name or number
    #[arg(long, value_name = "USER")]
    user: String,
    /// Where the CA answers
    #[arg(long, value_name = "ADDRESS:PORT")]
    ca: SocketAddr,
    /// Name of this node
    #[arg(long, value_name = "NAME")]
    node: String,
}

/// Must not be called in a runtime: the process has to have one thread when it gives up its rights.
pub(super) fn run(args: Args) -> Result<ExitCode, CliError> {
    super::agent::log();
    let Args { directory, user, ca, node } = args;
    crate::auth_agent::run(&directory, &user, ca, node)
        .map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
