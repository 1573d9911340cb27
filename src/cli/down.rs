//! `ferromesh down`: ends the node and undoes every change to the host.

use std::process::ExitCode;

use node_api::{Client, ClientError, Reply, Request};

use super::CliError;
use crate::directories::Directories;
use crate::teardown::teardown;

/// End this node: workloads, programs, devices, settings; every change to this host is undone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sudo ferromesh down && ferromesh check --clean

Certificates go too, and if this node has the CA of the mesh, its keys: other nodes must then trust and join another.
Whoever wants to keep the CA saves the directories ca and ca-root of --state before.")]
pub(super) struct Args {
    #[command(flatten)]
    directories: Directories,
}

/// Asks the agent to undo everything; does it here if there is none. An agent that is there and cannot be asked (another
/// version, no permission) is not worked around: it would go on writing what is being undone.
pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let directories = &args.directories;
    match Client::connect(&directories.socket(), crate::BUILD).await {
        Ok(client) => match client.ask(&Request::Down).await? {
            Reply::Done => {}
            _ => return Err(CliError::Unexpected),
        },
        Err(ClientError::NotRunning { .. }) => {
            let endpoints = super::check::endpoints(directories).map_err(CliError::Failed)?;
            teardown(directories, &endpoints).await.map_err(|error| CliError::Failed(error.to_string()))?;
        }
        Err(error) => return Err(error.into()),
    }
    super::output::note("node is down: workloads ended, every change to this host undone");
    Ok(ExitCode::SUCCESS)
}
