//! What events say: where to look.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use inotify::{Event, EventMask, WatchMask, Watches};

use super::walk::{Found, is_ours};

/// Where something may have changed.
pub(super) enum Notice {
    /// Anywhere.
    Everything,
    /// Only in files of these names.
    These(BTreeSet<String>),
}

impl Default for Notice {
    /// Nowhere.
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Notice {
    /// Adds what an event says; whether it says anything.
    pub(super) fn add(&mut self, event: Option<io::Result<Event<OsString>>>, watched: &Watched) -> bool {
        // No event: the queue is gone, and with it all that it held.
        let about = event.and_then(Result::ok).and_then(|event| watched.about(&event));
        match (about, &mut *self) {
            (Some(About::Nothing), _) => return false,
            (Some(About::File(name)), Self::These(names)) => drop(names.insert(name)),
            (Some(About::File(_)), Self::Everything) => {}
            (None, _) => *self = Self::Everything,
        }
        true
    }
}

/// What an event is about.
enum About {
    Nothing,
    File(String),
}

/// Directories and links that the kernel watches for us.
pub(super) struct Watched {
    watches: Watches,
    /// What names below each directory begin with, by the number of its watch.
    directories: BTreeMap<i32, String>,
    paths: BTreeMap<PathBuf, String>,
    links: BTreeSet<PathBuf>,
}

impl Watched {
    pub(super) fn new(watches: Watches) -> Self {
        let (paths, links) = (BTreeMap::new(), BTreeSet::new());
        Self { watches, directories: BTreeMap::new(), paths, links }
    }

    /// All will be added anew.
    pub(super) fn begin(&mut self) {
        self.directories.clear();
    }

    /// Watches a directory, or without `below` what a link leads to. Watching what is watched already changes nothing.
    pub(super) fn add(&mut self, path: &Path, below: Option<&str>) {
        let mask = WatchMask::ATTRIB
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE
            | WatchMask::MOVE_SELF;
        match (self.watches.add(path, mask), below) {
            (Ok(descriptor), Some(below)) => {
                drop(self.directories.insert(descriptor.get_watch_descriptor_id(), below.to_owned()))
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                tracing::debug!(path = %path.display(), %error, "not watched; looked at every few seconds");
            }
        }
    }

    /// All has been added.
    pub(super) fn end(&mut self, found: &Found) {
        self.paths.clone_from(&found.directories);
        self.links.clone_from(&found.links);
    }

    /// Whether these are the directories and links that were added; another directory of the same name is not.
    pub(super) fn stands(&mut self, found: &Found) -> bool {
        let before = self.directories.len();
        found.directories.iter().for_each(|(path, below)| self.add(path, Some(below)));
        found.links.iter().for_each(|path| self.add(path, None));
        self.directories.len() == before && self.paths == found.directories && self.links == found.links
    }

    pub(super) fn has_link(&self, path: &Path) -> bool {
        self.links.contains(path)
    }

    /// What an event is about; `None` where that cannot be told.
    fn about(&self, event: &Event<OsString>) -> Option<About> {
        let of_directory = EventMask::ISDIR
            | EventMask::IGNORED
            | EventMask::Q_OVERFLOW
            | EventMask::UNMOUNT
            | EventMask::DELETE_SELF
            | EventMask::MOVE_SELF;
        if event.mask.intersects(of_directory) {
            return None;
        }
        let below = self.directories.get(&event.wd.get_watch_descriptor_id())?;
        // Of a name that is no text there can be no file.
        match event.name.as_ref()?.to_str() {
            Some(name) if is_ours(name) => Some(About::File(format!("{below}{name}"))),
            // A link may lead through anything that has another name.
            _ => self.links.is_empty().then_some(About::Nothing),
        }
    }
}
