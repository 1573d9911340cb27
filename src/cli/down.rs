//! `ferromesh down`: ends the node and undoes every change to the host.

use std::process::ExitCode;

use node_api::{Client, Reply, Request};

use super::CliError;
use crate::directories::Directories;
use crate::teardown::teardown;

/// End this node: workloads, programs, devices, settings; every change to this host is undone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sudo ferromesh down && ferromesh check --clean")]
pub(super) struct Args {
    #[command(flatten)]
    directories: Directories,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    down(&args.directories).await.map_err(CliError::Failed)
}

/// Asks the agent to undo everything; does it here if there is none.
async fn down(directories: &Directories) -> Result<ExitCode, String> {
    match Client::connect(&directories.socket(), crate::BUILD).await {
        Ok(client) => match client.ask(&Request::Down).await.map_err(|error| error.to_string())? {
            Reply::Done => {}
            Reply::Error(text) => return Err(text),
            other => return Err(format!("the agent answered {other:?}")),
        },
        Err(_) => {
            let endpoints = super::check::endpoints(directories)?;
            teardown(directories, &endpoints).await.map_err(|error| error.to_string())?;
        }
    }
    super::output::note("node is down: workloads ended, every change to this host undone");
    Ok(ExitCode::SUCCESS)
}
