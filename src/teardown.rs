//! Takes back everything a node changed on its host; works with the agent dead.

use std::fs;
use std::io;

use endpoint::Host;

use crate::agent::{auth, l7};
use crate::directories::Directories;

/// What could not be taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TeardownError {
    /// Devices, routes, settings, workloads.
    #[error(transparent)]
    Host(#[from] endpoint::Error),
    /// Processes that the agent started and what they kept.
    #[error(transparent)]
    Auth(#[from] auth::UndoError),
    /// The way to the L7 proxy.
    #[error(transparent)]
    Route(#[from] linux::Error),
    /// Programs and maps.
    #[error(transparent)]
    Datapath(#[from] l4_datapath::Error),
}

/// Ends every workload first, so that none runs for a moment without its programs; then programs and maps, then those who
/// authenticated the workloads, then the rest.
pub(crate) async fn teardown(
    directories: &Directories,
    endpoints: &endpoint::Config,
) -> Result<(), TeardownError> {
    Host::undo(endpoints).await?;
    l4_datapath::remove(&directories.pins)?;
    l4_datapath::redirect::remove_route().await?;
    auth::undo(directories).await?;
    l7::undo(endpoints).await?;
    for file in [directories.socket(), directories.log()] {
        // Absent is what we want it to be.
        let _ = fs::remove_file(file);
    }
    match fs::remove_dir(&directories.run_dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            tracing::info!(directory = %directories.run_dir.display(), "left: it holds files of others");
        }
        _ => {}
    }
    Ok(())
}

/// What of us is still on this host, a sentence each.
pub(crate) async fn leftovers(
    directories: &Directories,
    endpoints: &endpoint::Config,
) -> Result<Vec<String>, TeardownError> {
    let mut found = Host::leftovers(endpoints).await?;
    found.extend(l4_datapath::leftovers(&directories.pins)?);
    found.extend(l4_datapath::redirect::leftover_route().await?);
    found.extend(auth::leftovers(directories).await?);
    found.extend(l7::leftovers(endpoints));
    if directories.socket().exists() {
        found.push(format!("socket {}", directories.socket().display()));
    }
    Ok(found)
}
