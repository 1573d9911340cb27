//! What is on the disk: which files there are, whether one has changed, and what it says.
//!
//! Promise: reads and never remembers. What cannot be read is a finding of its file, what cannot be listed is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::SourceError;
use super::layout::{Layout, Writer};
use crate::kind::{Decoded, Object};
use crate::objects::File;
use crate::yaml::{Finding, Severity, documents};

/// Deepest sub-directory.
const DEEPEST: usize = 4;
/// A time stamp younger than this proves nothing: another write may fall into the same tick of the clock.
const RACY: Duration = Duration::from_secs(1);

/// What changes when a file's content does.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a patrol saw.
pub(super) struct Walk {
    pub(super) found: Found,
    pub(super) stamps: Vec<Option<Stamp>>,
}

/// Files and directories.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Name below the directory → path.
    pub(super) files: BTreeMap<String, PathBuf>,
    /// Directories: path → what names below it begin with.
    pub(super) directories: BTreeMap<PathBuf, String>,
    /// Files that are symbolic links.
    pub(super) links: BTreeSet<PathBuf>,
    /// What names of files begin with in directories that cannot be listed, and why that is.
    pub(super) unlisted: BTreeMap<String, String>,
    counts: Counts,
}

/// How many files count against each bound; those beyond one are not read.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Counts(BTreeMap<String, usize>);

impl Counts {
    /// Counts a file, if there is room for it.
    pub(super) fn add(&mut self, layout: &Layout, name: &str) -> bool {
        let (together, most) = layout.bound(name);
        let count = self.0.entry(together).or_default();
        let fits = *count < most;
        *count += usize::from(fits);
        fits
    }

    pub(super) fn remove(&mut self, layout: &Layout, name: &str) {
        if let Some(count) = self.0.get_mut(&layout.bound(name).0) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Walk {
    pub(super) fn new(layout: &Layout) -> Self {
        let found = walk_all(layout, &mut |_, _| {});
        let stamps = found.files.values().map(|path| stamp(path)).collect();
        Self { found, stamps }
    }
}

/// The paths of the files of a directory. What cannot be listed has no files.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let layout = Layout::new(directory, None)?;
    Ok(walk_all(&layout, &mut |_, _| {}).files.into_values().collect())
}

/// Whether a name is an editor's business.
pub(super) fn is_passed_over(name: &str) -> bool {
    name.starts_with(['.', '#']) || name.ends_with('~')
}

/// Whether a name is one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    !is_passed_over(name) && (name.ends_with(".yaml") || name.ends_with(".yml"))
}

/// Finds the files of all directories.
pub(super) fn walk_all(layout: &Layout, visit: &mut impl FnMut(&Path, Option<&str>)) -> Found {
    let mut found = Found::default();
    for root in layout.roots() {
        if let Err(error) = walk(layout, &root.path, &root.below, 0, visit, &mut found) {
            let path = root.path.display();
            let problem = format!("{path}: {error}; everything accepted earlier stays in force");
            found.unlisted.insert(root.below.clone(), problem);
        }
    }
    found
}

/// Finds files. `visit` is told of every directory before it is read and of every symbolic link, so that no change
/// falls between.
fn walk(
    layout: &Layout,
    path: &Path,
    below: &str,
    depth: usize,
    visit: &mut impl FnMut(&Path, Option<&str>),
    found: &mut Found,
) -> io::Result<()> {
    visit(path, Some(below));
    found.directories.insert(path.to_owned(), below.to_owned());
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().filter(|name| !is_passed_over(name)) else { continue };
        let file_type = entry.file_type()?;
        let inner = format!("{below}{name}");
        if file_type.is_dir() && depth < DEEPEST {
            // A sub-directory may vanish while it is read; the next event brings us back.
            let _ = walk(layout, &entry.path(), &format!("{inner}/"), depth + 1, visit, found);
        } else if is_ours(name) && found.counts.add(layout, &inner) {
            if file_type.is_symlink() && layout.writer(&inner).may_link() {
                visit(&entry.path(), None);
                found.links.insert(entry.path());
            }
            found.files.insert(inner, entry.path());
        }
    }
    Ok(())
}

/// `None` if the file cannot be looked at, or was changed so recently that its stamp proves nothing.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    let changed =
        u64::try_from(metadata.ctime()).ok().map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s))?;
    if SystemTime::now().duration_since(changed).is_ok_and(|age| age < RACY + Duration::from_secs(1)) {
        return None;
    }
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Whether others than its owner may read a file.
pub(super) fn is_open(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o044 != 0)
}

/// Says it of a Secret whose file is open.
fn warn_of_open(name: &str, decoded: &mut Decoded) {
    if let Some(Object::Secret(_)) = decoded.object {
        let message = format!("others than its owner may read the file: chmod 600 {name}");
        let (severity, line) = (Severity::Warning, decoded.line);
        decoded.findings.push(Finding { severity, line, column: 1, path: String::new(), message });
    }
}

/// Decodes one file; `open`: as [`is_open`] has it.
pub(super) fn file(
    writer: Writer<'_>,
    name: &str,
    text: Result<String, (usize, String)>,
    open: bool,
    holds_objects: impl Fn() -> bool,
) -> File {
    match text {
        Ok(text) => {
            let mut documents: Vec<_> =
                documents(&text).iter().map(|d| (d.position, writer.decode(d))).collect();
            if open {
                documents.iter_mut().for_each(|(_, decoded)| warn_of_open(name, decoded));
            }
            if documents.is_empty() && holds_objects() {
                let message = "the file is empty; remove it to take its objects away".to_owned();
                documents.push((0, unreadable(1, message)));
            }
            File { name: name.to_owned(), text: text.into(), documents }
        }
        Err((line, message)) => {
            File { name: name.to_owned(), text: "".into(), documents: vec![(0, unreadable(line, message))] }
        }
    }
}

fn unreadable(line: usize, message: String) -> Decoded {
    let finding = Finding { severity: Severity::Error, line, column: 1, path: String::new(), message };
    Decoded { key: None, object: None, line, findings: vec![finding] }
}

/// A file's text, or the line and what is wrong.
pub(crate) fn read(layout: &Layout, name: &str) -> Result<String, (usize, String)> {
    let (path, writer) = (layout.path(name), layout.writer(name));
    let failed = |error: io::Error| (1, error.to_string());
    if !writer.may_link() && fs::symlink_metadata(&path).map_err(failed)?.is_symlink() {
        return Err((1, "a symbolic link; what a node writes is a file".to_owned()));
    }
    text(&path, writer.most_bytes())
}

fn text(path: &Path, most: u64) -> Result<String, (usize, String)> {
    let failed = |error: io::Error| (1, error.to_string());
    // A named pipe would block whoever opens it.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err((1, "no regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err((1, format!("larger than {} KiB; split it", most >> 10)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        (1 + valid.iter().filter(|byte| **byte == b'\n').count(), "no valid UTF-8".to_owned())
    })
}
