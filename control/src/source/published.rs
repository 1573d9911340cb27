//! What this node says of its endpoints in the shared directory: the other half of [`super::files`].
//!
//! Promise: `nodes/NAME/` says what was given last, and nothing else of ours or of an earlier agent's is left there. A
//! file is replaced by rename, so nobody reads half of one; what goes is taken away before what comes is written, so no
//! address is claimed twice. Nothing is synced to disk: after a power cut the endpoints are gone, and the next agent
//! says so.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh::workload::Endpoint;

use super::SourceError;
use super::walk::is_ours;

/// The directory of this node.
#[derive(Debug)]
pub struct Published {
    directory: PathBuf,
    /// What stands there: name of the file → text; `None` if that is not known.
    files: BTreeMap<String, Option<String>>,
}

impl Published {
    /// Makes `nodes/NODE/` if it is not there; `nodes/` must be.
    pub fn open(shared: &Path, node: &str) -> Result<Self, SourceError> {
        let directory = shared.join("nodes").join(node);
        let failed = |source| SourceError::Publish { path: directory.clone(), source };
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
            // An unfinished one of an earlier agent has our name for such.
            if is_ours(&name) || is_unfinished(&name) {
                files.insert(name, None);
            }
        }
        Ok(Self { directory, files })
    }

    /// Says that these are the endpoints of this node. After an error some files may be those of before; the next call
    /// makes up for it.
    pub fn publish(&mut self, endpoints: &[Endpoint]) -> Result<(), SourceError> {
        let wanted: BTreeMap<String, String> = endpoints
            .iter()
            .map(|endpoint| (format!("{}.yaml", endpoint.instance), text(endpoint)))
            .collect();
        let gone: Vec<_> = self.files.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in gone {
            let path = self.directory.join(&name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SourceError::Publish { path, source: error });
                }
                _ => drop(self.files.remove(&name)),
            }
        }
        for (name, text) in wanted {
            if self.files.get(&name).is_some_and(|known| known.as_ref() == Some(&text)) {
                continue;
            }
            let path = self.directory.join(&name);
            let beside = self.directory.join(unfinished(&name));
            let written = fs::write(&beside, &text).and_then(|()| fs::rename(&beside, &path));
            written.map_err(|source| SourceError::Publish { path, source })?;
            self.files.insert(name, Some(text));
        }
        Ok(())
    }
}

fn unfinished(name: &str) -> String {
    format!(".{name}.new")
}

fn is_unfinished(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".yaml.new")
}

/// A `WorkloadEndpoint` object. Names are quoted: one may look like a number.
fn text(endpoint: &Endpoint) -> String {
    let Endpoint { workload, instance, ipv4, ipv6, .. } = endpoint;
    format!(
        "apiVersion: ferromesh.io/v1alpha1\nkind: WorkloadEndpoint\nmetadata:\n  name: instance-{instance}\n  namespace: \"{}\"\nspec:\n  workload: \"{}\"\n  instance: {instance}\n  ipv4: {ipv4}\n  ipv6: \"{ipv6}\"\n",
        workload.namespace, workload.name
    )
}
