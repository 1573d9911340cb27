//! `ferromesh down`: ends the node and undoes every change to the host.

use std::process::ExitCode;

use node_api::client::Client;
use node_api::{Reply, Request};

use crate::directories::Directories;
use crate::teardown::teardown;

/// Asks the agent to undo everything; does it here if there is none.
pub async fn down(directories: &Directories) -> Result<ExitCode, String> {
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
    println!("node is down: workloads ended, every change to this host undone");
    Ok(ExitCode::SUCCESS)
}
