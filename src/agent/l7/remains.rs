//! What of the proxy is on this host beside its process and files: its cgroup.

use std::path::PathBuf;

use linux::cgroup::Cgroup;

use crate::agent::auth::UndoError;

/// Beside those of the workloads, whose names are those of interfaces and begin otherwise.
pub(super) fn cgroup(endpoints: &endpoint::Config) -> PathBuf {
    endpoints.cgroup.join("proxy")
}

/// Deletes it; the process has been ended.
pub(crate) async fn undo(endpoints: &endpoint::Config) -> Result<(), UndoError> {
    Cgroup::remove(&cgroup(endpoints)).await?;
    // The workloads': it goes with the last of what is in it.
    Ok(Cgroup::remove_empty(&endpoints.cgroup)?)
}

/// A sentence each; empty after [`undo`].
pub(crate) fn leftovers(endpoints: &endpoint::Config) -> Vec<String> {
    let path = cgroup(endpoints);
    path.exists().then(|| format!("cgroup {}", path.display())).into_iter().collect()
}
