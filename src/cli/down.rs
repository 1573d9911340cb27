//! `ferromesh down`: ends the node and undoes every change to the host.

use std::process::ExitCode;

use node_api::{Client, ClientError, Reply, Request};

use super::{CliError, output};
use crate::directories::Directories;
use crate::teardown::teardown;

/// Asks the agent to undo everything; does it here if there is none.
pub(crate) async fn down(directories: &Directories) -> Result<ExitCode, CliError> {
    match Client::connect(&directories.socket(), crate::BUILD).await {
        Ok(client) => match client.ask(&Request::Down).await? {
            Reply::Done => {}
            _ => return Err(CliError::Unexpected),
        },
        Err(ClientError::NotRunning { .. }) => {
            let endpoints = super::check::endpoints(directories)?;
            teardown(directories, &endpoints).await.map_err(|error| error.to_string())?;
        }
        Err(error) => return Err(error.into()),
    }
    output::write("node is down: workloads ended, every change to this host undone\n")?;
    Ok(ExitCode::SUCCESS)
}
