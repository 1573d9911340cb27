//! A directory of YAML files, watched.
//!
//! Promise: level-based. Whatever happens, the files are read and what they say *now* counts; events only say when to
//! look, and a look every five seconds makes up for lost ones. All `*.yaml` and `*.yml` files are read, in
//! sub-directories too (four levels; symbolic links to files are followed, to directories not); names that begin with
//! `.` or `#` or end with `~` are an editor's business. A file that cannot be read changes nothing that is in force.
//!
//! A file that vanishes counts as there for 20 ms more: editors that move the old file away before they write
//! the new one would otherwise open a hole. An emptied file is an error for the same reason: to take objects away,
//! remove the file or the object.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask, Watches};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{SourceError, accepted};
use crate::kind::{Decoded, decode};
use crate::objects::{File, Objects};
use crate::world::World;
use crate::yaml::{Finding, Severity, documents};

/// Largest file.
const MOST_BYTES: u64 = 4 << 20;
/// Most files; those beyond it are not read.
const MOST_FILES: usize = 20_000;
/// Deepest sub-directory.
const DEEPEST: usize = 4;
/// How long a file must be gone.
const VANISHED: Duration = Duration::from_millis(20);
/// Several events belong to one edit: wait until none came for so long.
const QUIET: Duration = Duration::from_millis(2);
/// But no longer than this.
const BUSY: Duration = Duration::from_millis(10);
/// How often the files are looked at without an event.
const PERIOD: Duration = Duration::from_secs(5);
/// A time stamp younger than this proves nothing: another write may fall into the same tick of the clock.
const RACY: Duration = Duration::from_secs(1);

/// The directory, what it says, and what is in force.
pub struct Directory {
    path: PathBuf,
    accepted_path: PathBuf,
    watches: Watches,
    events: EventStream<Vec<u8>>,
    files: BTreeMap<String, Seen>,
    objects: Objects,
    world: Arc<World>,
    pools: Option<(Ipv4Net, Ipv6Net)>,
    /// When to look at the files, if no event comes before.
    next_look: Instant,
    /// When to look at the latest, since an event came.
    latest_look: Option<Instant>,
    /// Something other than the files changed since they were last judged.
    unjudged: bool,
    /// Something is in force that is not durable yet.
    unsaved: bool,
    /// What is wrong with reading or keeping as a whole.
    unreadable: Option<String>,
    unwritable: Option<String>,
}

struct Seen {
    stamp: Option<Stamp>,
    missing_since: Option<Instant>,
    file: Arc<File>,
}

/// What changes when a file's content does.
#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Directory {
    /// Reads the directory, and what was accepted by an earlier agent from `state`. Must be called within a tokio
    /// runtime.
    pub fn open(path: &Path, state: &Path) -> Result<Self, SourceError> {
        fs::read_dir(path).map_err(|source| SourceError::Directory { path: path.to_owned(), source })?;
        let inotify = Inotify::init().map_err(SourceError::Watch)?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; 64 << 10]).map_err(SourceError::Watch)?;
        let accepted_path = state.join("accepted.json");
        let (objects, pools) = accepted::load(&accepted_path)?;
        let mut directory = Self {
            path: path.to_owned(),
            accepted_path,
            watches,
            events,
            files: BTreeMap::new(),
            objects,
            world: Arc::default(),
            pools,
            next_look: Instant::now(),
            latest_look: None,
            unjudged: false,
            unsaved: false,
            unreadable: None,
            unwritable: None,
        };
        directory.scan();
        directory.judge();
        directory.save();
        Ok(directory)
    }

    /// What is in force.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.world)
    }

    /// Tells which pools endpoints have addresses of, if there are endpoints: a configuration that moves them is
    /// refused meanwhile. Kept over a restart, until it is told otherwise.
    pub fn set_pools_in_use(&mut self, pools: Option<(Ipv4Net, Ipv6Net)>) {
        let changed = self.pools != pools;
        self.pools = pools;
        self.unjudged |= changed;
        self.unsaved |= changed;
    }

    /// Waits until something else is in force or something else is to be said, and returns it. First makes durable
    /// what the caller has put in force since the last call: an edit does not wait for the disk. Cancel-safe.
    pub async fn changed(&mut self) -> Arc<World> {
        self.save();
        loop {
            if !self.unjudged {
                self.event().await;
            }
            let unjudged = std::mem::take(&mut self.unjudged);
            if (self.scan() || unjudged) && self.judge() {
                return self.world();
            }
        }
    }

    /// Waits until it is time to look: at the end of a burst of events, or without one. The time is kept in `self`, for
    /// who gives up waiting may have taken the only event from the queue.
    async fn event(&mut self) {
        loop {
            let vanished = self.files.values().filter_map(|seen| seen.missing_since).min();
            let next = vanished.map_or(self.next_look, |since| self.next_look.min(since + VANISHED));
            if Instant::now() >= next
                || tokio::time::timeout_at(next.into(), self.events.next()).await.is_err()
            {
                return;
            }
            let now = Instant::now();
            let latest = *self.latest_look.get_or_insert(now + BUSY);
            self.next_look = latest.min(now + QUIET);
        }
    }

    fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        let problem = accepted::save(&self.accepted_path, &self.objects, self.pools).err().map(|error| {
            format!("{}: {error}; a restart may lose last valid versions", self.accepted_path.display())
        });
        self.unsaved = problem.is_some();
        if self.unwritable != problem {
            self.unwritable = problem;
            self.unjudged = true;
        }
    }

    /// Settles what is in force; whether anything is different.
    fn judge(&mut self) -> bool {
        let files: Vec<Arc<File>> = self.files.values().map(|seen| Arc::clone(&seen.file)).collect();
        self.objects.update(&files, self.pools);
        let mut world = World::new(&self.objects, self.world.generation);
        world.degraded = self.unreadable.iter().chain(&self.unwritable).cloned().collect();
        if world == *self.world && world.generation != 0 {
            return false;
        }
        world.generation += 1;
        self.unsaved = true;
        self.world = Arc::new(world);
        true
    }

    /// Brings `files` up to date; whether anything was read or has gone.
    fn scan(&mut self) -> bool {
        self.latest_look = None;
        self.next_look = Instant::now() + PERIOD;
        let mut found = BTreeMap::new();
        let watches = &mut self.watches;
        let walked = walk(&self.path, "", 0, &mut |path| watch(watches, path), &mut found);
        // Without the directory nothing is known: everything stays as it is.
        let problem = walked.err().map(|error| {
            format!("{}: {error}; everything accepted earlier stays in force", self.path.display())
        });
        let said = self.unreadable != problem;
        self.unreadable = problem;
        if self.unreadable.is_some() {
            return said;
        }
        let mut different = said | self.forget(&found);
        for (name, path) in found {
            let stamp = stamp(&path);
            let seen = self.files.get_mut(&name);
            if let Some(seen) = seen {
                seen.missing_since = None;
                if stamp.is_some() && seen.stamp == stamp {
                    continue;
                }
            }
            let holds_objects = || self.objects.accepted.values().any(|accepted| accepted.file == name);
            let file = Arc::new(read(&name, &path, holds_objects));
            let same = self
                .files
                .get(&name)
                .is_some_and(|seen| seen.file.text == file.text && !file.text.is_empty());
            different |= !same;
            self.files.insert(name, Seen { stamp, missing_since: None, file });
        }
        different
    }

    /// Drops files that have been gone for long enough.
    fn forget(&mut self, found: &BTreeMap<String, PathBuf>) -> bool {
        let before = self.files.len();
        let now = Instant::now();
        self.files.retain(|name, seen| {
            found.contains_key(name) || now.duration_since(*seen.missing_since.get_or_insert(now)) < VANISHED
        });
        self.files.len() != before
    }
}

/// What an agent that started now would put in force. Changes nothing.
pub fn peek(path: &Path, state: &Path) -> Result<World, SourceError> {
    fs::read_dir(path).map_err(|source| SourceError::Directory { path: path.to_owned(), source })?;
    let (mut objects, pools) = accepted::load(&state.join("accepted.json"))?;
    let holds = |name: &str| objects.accepted.values().any(|accepted| accepted.file == name);
    let files: Vec<File> = list(path).iter().map(|(name, path)| read(name, path, || holds(name))).collect();
    objects.update(&files, pools);
    Ok(World::new(&objects, 1))
}

/// The files of a directory: name below it → path.
pub(crate) fn list(directory: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    // What cannot be listed has no files.
    let _ = walk(directory, "", 0, &mut |_| {}, &mut found);
    found
}

/// Finds files. `visit` is told of every directory before it is read and of every symbolic link, so that no change
/// falls between.
fn walk(
    path: &Path,
    below: &str,
    depth: usize,
    visit: &mut impl FnMut(&Path),
    found: &mut BTreeMap<String, PathBuf>,
) -> io::Result<()> {
    visit(path);
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str() else { continue };
        if name.starts_with(['.', '#']) || name.ends_with('~') {
            continue;
        }
        let file_type = entry.file_type()?;
        let inner = format!("{below}{name}");
        if file_type.is_dir() && depth < DEEPEST {
            // A sub-directory may vanish while it is read; the next event brings us back.
            let _ = walk(&entry.path(), &format!("{inner}/"), depth + 1, visit, found);
        } else if (name.ends_with(".yaml") || name.ends_with(".yml")) && found.len() < MOST_FILES {
            if file_type.is_symlink() {
                visit(&entry.path());
            }
            found.insert(inner, entry.path());
        }
    }
    Ok(())
}

/// Watching what is watched already changes nothing.
fn watch(watches: &mut Watches, path: &Path) {
    let mask = WatchMask::ATTRIB
        | WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE
        | WatchMask::MOVE_SELF;
    if let Err(error) = watches.add(path, mask) {
        tracing::debug!(path = %path.display(), %error, "not watched; looked at every few seconds");
    }
}

/// `None` if the file cannot be looked at, or was changed so recently that its stamp proves nothing.
fn stamp(path: &Path) -> Option<Stamp> {
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

/// Reads and decodes one file.
fn read(name: &str, path: &Path, holds_objects: impl Fn() -> bool) -> File {
    match text(path) {
        Ok(text) => {
            let mut documents: Vec<_> = documents(&text).iter().map(|d| (d.position, decode(d))).collect();
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
pub(crate) fn text(path: &Path) -> Result<String, (usize, String)> {
    let failed = |error: io::Error| (1, error.to_string());
    // A named pipe would block whoever opens it.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err((1, "no regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err((1, format!("larger than {} MiB; split it", MOST_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        (1 + valid.iter().filter(|byte| **byte == b'\n').count(), "no valid UTF-8".to_owned())
    })
}
