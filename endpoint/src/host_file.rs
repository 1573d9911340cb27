//! The host's `/etc/resolv.conf`, while the host asks the node's DNS.
//!
//! Promise: a file is written in place, for it may be a mount; a link is replaced, for what it leads to is somebody
//! else's; what was there comes back unless it has been changed since. The servers that the host had stay in it after
//! ours, so that it finds names also while no agent runs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::dns::resolver::Resolver;
use crate::error::{AtFile, Result};
use crate::host::Change;

/// What the host had in the file's place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "was", rename_all = "kebab-case")]
pub enum HostFile {
    /// Nothing.
    Absent,
    /// A file.
    File {
        /// What it said.
        text: String,
    },
    /// A symbolic link.
    Link {
        /// Where it leads.
        target: PathBuf,
        /// What was there; empty if it led nowhere.
        text: String,
    },
}

impl HostFile {
    fn read(path: &Path) -> Result<Self> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // What cannot be put back as it was is not touched.
            text => {
                Some(String::from_utf8(text.at("read", path)?).map_err(io::Error::other).at("read", path)?)
            }
        };
        match fs::read_link(path) {
            Ok(target) => Ok(Self::Link { target, text: text.unwrap_or_default() }),
            Err(_) => Ok(text.map_or(Self::Absent, |text| Self::File { text })),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Absent => "",
            Self::File { text } | Self::Link { text, .. } => text,
        }
    }
}

/// The change that is wanted, after those on record.
pub(crate) fn change(config: &Config, record: &[Change]) -> Result<Option<Change>> {
    let Some(wanted) = &config.host_resolver else { return Ok(None) };
    let before = record.iter().find_map(|change| match change {
        Change::Resolver { path, old, new } if *path == wanted.file && says(path, new) => Some(old.clone()),
        _ => None,
    });
    let old = match before {
        Some(old) => old,
        None => HostFile::read(&wanted.file)?,
    };
    let servers = config.gateways().map(|gateway: IpNet| gateway.addr());
    let new = Resolver::for_host(old.text(), &servers, &wanted.domain);
    Ok(Some(Change::Resolver { path: wanted.file.clone(), old, new }))
}

/// Whether the file is as we left it. One that is not is someone else's now.
pub(crate) fn says(path: &Path, new: &str) -> bool {
    fs::read_link(path).is_err() && fs::read(path).is_ok_and(|text| text == new.as_bytes())
}

/// Makes the file say `new`, where `old` is.
pub(crate) fn write(path: &Path, old: &HostFile, new: &str) -> Result<()> {
    if says(path, new) || HostFile::read(path)? != *old {
        return Ok(());
    }
    match old {
        HostFile::Link { .. } => replace(path, |beside| write_whole(beside, new)),
        HostFile::Absent | HostFile::File { .. } => write_whole(path, new).at("write", path),
    }
}

/// Puts back what was there, unless someone else has changed the file.
pub(crate) fn restore(path: &Path, old: &HostFile, new: &str) -> Result<()> {
    if !says(path, new) {
        return Ok(());
    }
    match old {
        HostFile::Absent => fs::remove_file(path).at("delete", path),
        HostFile::File { text } => write_whole(path, text).at("write", path),
        HostFile::Link { target, .. } => replace(path, |beside| symlink(target, beside)),
    }
}

/// In place: the same file, whoever has it open or mounted.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())
}

/// Whoever looks finds the old or the new one.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let beside = path.with_extension("ferromesh");
    // Left by a crash.
    crate::record::delete(&beside)?;
    make(&beside).at("make", &beside)?;
    fs::rename(&beside, path).at("rename to", path)
}
