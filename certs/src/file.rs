//! Files that hold keys and certificates.
//!
//! Promise: a file is there whole or as it was before, whatever happens in between (power, kill -9, a full disk); it is
//! never readable by others for a moment; and no symbolic link that the directory's owner may have laid is followed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// No file of ours is longer; what is, is not ours.
const MAX_FILE: u64 = 1 << 20;

/// Something could not be done to a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Whether it is not there.
    pub fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Its owner: 0600.
    Owner,
    /// Everybody: 0644.
    Everybody,
}

/// A user and group that files are given to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Makes a directory for its owner alone, or makes one that is there so.
pub(crate) fn make_directory(path: &Path, owner: Option<Owner>) -> Result<(), FileError> {
    let error = |action| move |source| FileError { action, path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error("make directory"))?;
    let directory = open(path, libc::O_DIRECTORY).map_err(error("open directory"))?;
    directory.set_permissions(fs::Permissions::from_mode(0o700)).map_err(error("restrict directory"))?;
    if let Some(Owner { uid, gid }) = owner {
        fchown(&directory, Some(uid), Some(gid)).map_err(error("change the owner of directory"))?;
    }
    Ok(())
}

/// Puts a file in the place of the one before.
pub(crate) fn replace(
    path: &Path,
    content: &[u8],
    access: Access,
    owner: Option<Owner>,
) -> Result<(), FileError> {
    let error = |source| FileError { action: "write", path: path.to_owned(), source };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(error(io::ErrorKind::InvalidInput.into()));
    };
    let prefix = format!(".{name}.");
    // Left by one who was killed while he wrote.
    for entry in fs::read_dir(directory).map_err(error)?.flatten() {
        if entry.file_name().to_str().is_some_and(|old| old.starts_with(&prefix) && old.ends_with(".new")) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let random = getrandom::u64().map_err(|source| error(io::Error::other(source.to_string())))?;
    let new = directory.join(format!("{prefix}{random:016x}.new"));
    let written = write_new(&new, content, access, owner)
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| open(directory, libc::O_DIRECTORY)?.sync_all());
    if written.is_err() {
        // It may not be there, or stand where it was to stand.
        let _ = fs::remove_file(&new);
    }
    written.map_err(error)
}

fn write_new(path: &Path, content: &[u8], access: Access, owner: Option<Owner>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if let Some(Owner { uid, gid }) = owner {
        fchown(&file, Some(uid), Some(gid))?;
    }
    if access == Access::Everybody {
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    file.sync_all()
}

/// Reads a file whole, as text.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let error = |source| FileError { action: "read", path: path.to_owned(), source };
    let file = open(path, 0).map_err(error)?;
    let length = file.metadata().map_err(error)?.len();
    if length > MAX_FILE {
        return Err(error(io::ErrorKind::FileTooLarge.into()));
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
    file.take(MAX_FILE).read_to_string(&mut text).map_err(error)?;
    Ok(text)
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    // O_NONBLOCK: a pipe laid here must not make the reader wait.
    let flags = flags | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}
