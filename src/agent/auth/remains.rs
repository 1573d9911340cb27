//! What of the processes that the agent starts is on this host, and taking it back; works with the agent dead.

use std::fs;
use std::io;
use std::path::PathBuf;

use linux::netlink::Netlink;

use super::place::{HOLD_DEVICE, Place, Process, remove_file};
use super::process::{end, running};
use crate::directories::Directories;

/// What could not be taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UndoError {
    /// A process or a device.
    #[error(transparent)]
    Linux(#[from] linux::Error),
    /// A file or directory.
    #[error("deleting {}: {error}", .path.display())]
    Delete {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Ends the processes, deletes the device and everything they and the agent kept for them: certificates and the CA's
/// keys too. What else had waited for a proof is gone with the datapath.
pub(crate) async fn undo(directories: &Directories) -> Result<(), UndoError> {
    let place = Place::new(directories);
    for process in Process::ALL {
        end(process, &place).await?;
    }
    let netlink = Netlink::open()?;
    if let Some(link) = netlink.link(HOLD_DEVICE).await? {
        match netlink.delete_link(link.index).await {
            Err(error) if !error.is_absent() => return Err(error.into()),
            _ => {}
        }
    }
    for file in files(&place) {
        remove_file(&file).map_err(|error| UndoError::Delete { path: file, error })?;
    }
    for directory in kept(&place) {
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(UndoError::Delete { path: directory, error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A sentence each; empty after [`undo`].
pub(crate) async fn leftovers(directories: &Directories) -> Result<Vec<String>, UndoError> {
    let place = Place::new(directories);
    let mut found = Vec::new();
    for process in Process::ALL {
        let pids = running(process, &place)?;
        found.extend(pids.iter().map(|pid| format!("process {pid}: ferromesh {}", process.verb())));
    }
    if Netlink::open()?.link(HOLD_DEVICE).await?.is_some() {
        found.push(format!("device {HOLD_DEVICE}"));
    }
    let paths = files(&place).into_iter().chain(kept(&place)).filter(|path| path.exists());
    found.extend(paths.map(|path| path.display().to_string()));
    Ok(found)
}

fn files(place: &Place) -> Vec<PathBuf> {
    let of = |process| [place.socket(process), place.log(process), place.started(process)];
    let numbered = place.numbered_sockets(Process::Proxy);
    Process::ALL.into_iter().flat_map(of).chain([place.told_bundle()]).chain(numbered).collect()
}

fn kept(place: &Place) -> [PathBuf; 4] {
    [
        place.directory(Process::Proxy),
        place.directory(Process::AuthAgent),
        place.directory(Process::Ca),
        place.root(),
    ]
}
