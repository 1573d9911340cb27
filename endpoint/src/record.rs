//! What is remembered in the state directory, as JSON.
//!
//! Promise: a file is whole or not there: it is written beside and renamed. It is not synced to disk, for after a
//! power cut the namespaces it speaks of are gone too, and an unreadable record counts as none.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh::workload::Endpoint;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{AtFile, Result};
use crate::quarantine::Quarantine;

/// What has been given out so far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Allocation {
    pub(crate) ipv4_pool: Ipv4Net,
    pub(crate) ipv6_pool: Ipv6Net,
    /// The address given out last.
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    pub(crate) id: u16,
    pub(crate) instance: u64,
    /// Addresses that are not given out yet.
    #[serde(default)]
    pub(crate) quarantine: Quarantine,
}

impl Allocation {
    /// Before the first. Instances go on from `instance`.
    pub(crate) fn new(config: &Config, instance: u64) -> Self {
        Self {
            ipv4_pool: config.ipv4_pool,
            ipv6_pool: config.ipv6_pool,
            ipv4: config.ipv4_gateway(),
            ipv6: config.ipv6_gateway(),
            id: 0,
            instance,
            quarantine: Quarantine::default(),
        }
    }

    pub(crate) fn path(config: &Config) -> PathBuf {
        config.state_dir.join("allocation.json")
    }
}

/// Where the record of an endpoint is.
pub(crate) fn endpoint_path(config: &Config, interface: &str) -> PathBuf {
    config.records().join(interface).with_extension("json")
}

/// All endpoints on record.
pub(crate) fn endpoints(config: &Config) -> Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for path in files(&config.records())? {
        endpoints.extend(read(&path)?);
    }
    Ok(endpoints)
}

/// Paths in a directory, in order; none where it does not exist.
pub(crate) fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", directory)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.at("list", directory)?.path());
    }
    paths.sort();
    Ok(paths)
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.at("read", path)?,
    };
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "unreadable record, taken as none");
            Ok(None)
        }
    }
}

pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).at("encode", path)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).at("create", directory)?;
    }
    let beside = path.with_extension("new");
    fs::write(&beside, text).at("write", &beside)?;
    fs::rename(&beside, path).at("rename to", path)
}

/// That it is gone already is no error.
pub(crate) fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("delete", path),
        _ => Ok(()),
    }
}
