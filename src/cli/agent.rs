//! `ferromesh agent`: the node's agent in the foreground, as a service manager runs it.

use std::io;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use super::CliError;
use crate::directories::Directories;

/// Run the node's agent in the foreground; a service manager does this.
///
/// Ending it changes nothing in the kernel: policy stays in force, and the next agent adopts it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  ferromesh agent --config /etc/ferromesh        (RUST_LOG=debug says more)")]
pub(super) struct Args {
    #[command(flatten)]
    directories: Directories,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    foreground(&args.directories).await
}

/// Runs an agent here until it ends.
pub(super) async fn foreground(directories: &Directories) -> Result<ExitCode, CliError> {
    log();
    crate::agent::agent(directories).await.map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// Lets a process of the node write its log to standard error.
pub(super) fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
}
