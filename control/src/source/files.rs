//! Directories of YAML files, watched: the node's own, and what it shares with others.
//!
//! Promise: level-based. Whatever happens, the files are read and what they say *now* counts; events only say when and
//! where to look, and a patrol every five seconds makes up for lost ones. All `*.yaml` and `*.yml` files are read, in
//! sub-directories too (four levels; symbolic links to files are followed, to directories not); names that begin with
//! `.` or `#` or end with `~` are an editor's business. A file that cannot be read changes nothing that is in force.
//!
//! A file that vanishes counts as there for 20 ms more: editors that move the old file away before they write
//! the new one would otherwise open a hole. An emptied file is an error for the same reason: to take objects away,
//! remove the file or the object.
//!
//! An edit costs the files that it touches, not the directory: the patrol walks beside the caller, and so does the
//! writing of what must outlive a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use inotify::{EventStream, Inotify};
use tokio::task::JoinHandle;

use super::layout::Layout;
use super::notice::{Notice, Watched};
use super::walk::{Counts, Found, Stamp, Walk, file, is_open, read, stamp, walk_all};
use super::{SourceError, accepted};
use crate::objects::{Changes, File, Objects, Pools};
use crate::world::World;

/// How long a file must be gone.
const VANISHED: Duration = Duration::from_millis(20);
/// Several events belong to one edit: wait until none came for so long.
const QUIET: Duration = Duration::from_millis(2);
/// But no longer than this.
const BUSY: Duration = Duration::from_millis(10);
/// How often the files are looked at without an event.
const PERIOD: Duration = Duration::from_secs(5);
/// So many files that no event named are read in one go, and then events are looked after again.
const PORTION: usize = 64;

/// The directories, what they say, and what is in force.
pub struct Directory {
    layout: Layout,
    watched: Watched,
    events: EventStream<Vec<u8>>,
    files: BTreeMap<String, Seen>,
    counts: Counts,
    /// Files that are gone, and since when.
    missing: BTreeMap<String, Instant>,
    objects: Objects,
    world: Arc<World>,
    pools: Option<Pools>,
    /// What events have named.
    notice: Notice,
    /// When to look at that.
    next_look: Option<Instant>,
    /// When to do so at the latest.
    latest_look: Option<Instant>,
    next_patrol: Instant,
    patrol: Option<JoinHandle<Walk>>,
    /// Files that may have changed unnoticed.
    doubtful: BTreeSet<String>,
    /// What files have become since they were last judged.
    unjudged: BTreeMap<String, Option<Arc<File>>>,
    /// Something else is to be judged.
    rejudge: bool,
    /// Something is in force that is not durable yet.
    unsaved: bool,
    keeper: accepted::Keeper,
    /// What is wrong with reading or keeping as a whole.
    unreadable: Vec<String>,
    unwritable: Option<String>,
}

struct Seen {
    stamp: Option<Stamp>,
    open: bool,
    file: Arc<File>,
}

impl Directory {
    /// Reads the node's own directory, what it shares with other nodes, if it does, and what was accepted by an earlier
    /// agent from `state`. Must be called within a tokio runtime.
    ///
    /// `shared` must hold `admin/` and `nodes/`: see `docs/nodes.md`.
    pub fn open(path: &Path, state: &Path, shared: Option<&Path>) -> Result<Self, SourceError> {
        let layout = Layout::new(path, shared)?;
        layout.check()?;
        let inotify = Inotify::init().map_err(SourceError::Watch)?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; 64 << 10]).map_err(SourceError::Watch)?;
        let accepted_path = state.join("accepted.json");
        let (objects, pools) = accepted::load(&accepted_path, &layout)?;
        let mut directory = Self {
            layout,
            watched: Watched::new(watches),
            events,
            files: BTreeMap::new(),
            counts: Counts::default(),
            missing: BTreeMap::new(),
            objects,
            world: Arc::default(),
            pools,
            notice: Notice::Everything,
            next_look: None,
            latest_look: None,
            next_patrol: Instant::now() + PERIOD,
            patrol: None,
            doubtful: BTreeSet::new(),
            unjudged: BTreeMap::new(),
            rejudge: true,
            unsaved: false,
            keeper: accepted::Keeper::new(accepted_path),
            unreadable: Vec::new(),
            unwritable: None,
        };
        directory.look();
        directory.judge();
        directory.begin_save();
        let saved = directory.keeper.wait();
        directory.saved(saved);
        Ok(directory)
    }

    /// What is in force.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.world)
    }

    /// Tells which pools endpoints have addresses of, if there are endpoints: a configuration that moves them is
    /// refused meanwhile. Kept over a restart, until it is told otherwise.
    pub fn set_pools_in_use(&mut self, pools: Option<Pools>) {
        let changed = self.pools != pools;
        self.pools = pools;
        self.rejudge |= changed;
        self.unsaved |= changed;
    }

    /// Waits until something else is in force or something else is to be said, and returns it. What the caller has put
    /// in force since the last call is made durable meanwhile: an edit does not wait for the disk. Cancel-safe.
    pub async fn changed(&mut self) -> Arc<World> {
        self.begin_save();
        loop {
            let busy = self.rejudge || !self.doubtful.is_empty();
            tokio::select! {
                biased;
                () = self.event() => {}
                // The caller's other work goes on meanwhile.
                () = tokio::task::yield_now(), if busy => {}
            }
            self.look();
            if (std::mem::take(&mut self.rejudge) || !self.unjudged.is_empty()) && self.judge() {
                return self.world();
            }
        }
    }

    /// Waits until it is time to look: at the end of a burst of events, or without one. The time is kept in `self`, for
    /// who gives up waiting may have taken the only event from the queue.
    async fn event(&mut self) {
        loop {
            let vanished = self.missing.values().min().map(|since| *since + VANISHED);
            let patrol = self.patrol.is_none().then_some(self.next_patrol);
            let next = [self.next_look, vanished, patrol].into_iter().flatten().min();
            if next.is_some_and(|next| Instant::now() >= next) {
                return;
            }
            let wait = next.unwrap_or_else(|| Instant::now() + PERIOD);
            tokio::select! {
                event = self.events.next() => {
                    if self.notice.add(event, &self.watched) {
                        let now = Instant::now();
                        let latest = *self.latest_look.get_or_insert(now + BUSY);
                        self.next_look = Some(latest.min(now + QUIET));
                    }
                }
                saved = self.keeper.done() => {
                    self.saved(saved);
                    // What failed is tried again with the caller's next call.
                    if self.unwritable.is_none() {
                        self.begin_save();
                    }
                    if self.rejudge {
                        return;
                    }
                }
                walked = ended(&mut self.patrol) => {
                    self.patrol = None;
                    self.next_patrol = Instant::now() + PERIOD;
                    self.compare(walked);
                    return;
                }
                () = tokio::time::sleep_until(wait.into()) => return,
            }
        }
    }

    /// Begins to make durable what is in force, unless that is under way; then it begins again afterwards.
    fn begin_save(&mut self) {
        if self.unsaved && self.keeper.begin(&self.objects, self.pools) {
            self.unsaved = false;
        }
    }

    fn saved(&mut self, saved: io::Result<()>) {
        let problem = saved.err().map(|error| {
            format!("{}: {error}; a restart may lose last valid versions", self.keeper.path().display())
        });
        if problem.is_some() {
            self.unsaved = true;
        }
        if self.unwritable != problem {
            self.unwritable = problem;
            self.rejudge = true;
        }
    }

    /// Settles what is in force; whether anything is different.
    fn judge(&mut self) -> bool {
        let files = std::mem::take(&mut self.unjudged);
        let Changes { objects, any } = self.objects.update(files, self.pools);
        let degraded: Vec<_> = self.unreadable.iter().chain(&self.unwritable).cloned().collect();
        if !any && degraded == self.world.degraded && self.world.generation != 0 {
            return false;
        }
        let mut world = match self.world.generation {
            0 => World::new(&self.objects, 0, self.layout.is_shared()),
            _ => self.world.as_ref().clone(),
        };
        for key in &objects {
            world.put(key, self.objects.accepted.get(key));
        }
        world.statuses = Arc::clone(&self.objects.statuses);
        world.degraded = degraded;
        world.generation += 1;
        self.unsaved |= any || world.generation == 1;
        self.world = Arc::new(world);
        true
    }

    /// Looks where something may have changed.
    fn look(&mut self) {
        let due = self.next_look.is_none_or(|next| Instant::now() >= next);
        let notice = if due { std::mem::take(&mut self.notice) } else { Notice::default() };
        if due {
            (self.next_look, self.latest_look) = (None, None);
        }
        match notice {
            Notice::Everything => self.look_at_everything(),
            Notice::These(names) => {
                let portion: Vec<_> = self.doubtful.iter().take(PORTION).cloned().collect();
                let now = Instant::now();
                let vanished: Vec<_> = self
                    .missing
                    .iter()
                    .filter(|(_, since)| now >= **since + VANISHED)
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in names.into_iter().chain(portion).chain(vanished) {
                    self.look_at(&name);
                }
            }
        }
        if self.patrol.is_none() && Instant::now() >= self.next_patrol {
            let layout = self.layout.clone();
            self.patrol = Some(tokio::task::spawn_blocking(move || Walk::new(&layout)));
        }
    }

    fn look_at_everything(&mut self) {
        let watched = &mut self.watched;
        watched.begin();
        let found = walk_all(&self.layout, &mut |path, below| watched.add(path, below));
        self.watched.end(&found);
        self.tell_unlisted(found.unlisted.values().cloned().collect());
        let gone: Vec<_> = self.gone(&found).cloned().collect();
        self.doubtful.clear();
        for name in gone.iter().chain(found.files.keys()) {
            self.look_at(name);
        }
    }

    /// Known files that were not found. Of a directory that cannot be listed nothing is known: everything stays as it is.
    fn gone<'a>(&'a self, found: &'a Found) -> impl Iterator<Item = &'a String> {
        let listed =
            |name: &str| self.layout.root(name).is_some_and(|root| !found.unlisted.contains_key(&root.below));
        self.files.keys().filter(move |name| !found.files.contains_key(*name) && listed(name))
    }

    fn tell_unlisted(&mut self, problems: Vec<String>) {
        self.rejudge |= self.unreadable != problems;
        self.unreadable = problems;
    }

    /// Holds what a patrol saw against what is known. It may be older than that, so it only leads to looks.
    fn compare(&mut self, walked: io::Result<Walk>) {
        let walk = match walked {
            Ok(walk) => walk,
            Err(error) => return self.tell_unlisted(vec![error.to_string()]),
        };
        let was_unlisted = !self.unreadable.is_empty();
        self.tell_unlisted(walk.found.unlisted.values().cloned().collect());
        if was_unlisted || !self.unreadable.is_empty() || !self.watched.stands(&walk.found) {
            self.notice = Notice::Everything;
            return;
        }
        let gone: Vec<_> = self.gone(&walk.found).cloned().collect();
        self.doubtful.extend(gone);
        for (name, stamp) in walk.found.files.into_keys().zip(walk.stamps) {
            match (self.files.get(&name), stamp) {
                // Written a moment ago, perhaps being written: its end is an event, or the next patrol sees it.
                (Some(_), None) => {}
                (Some(seen), stamp) if seen.stamp == stamp => {}
                _ => drop(self.doubtful.insert(name)),
            }
        }
    }

    /// Brings one file up to date.
    fn look_at(&mut self, name: &str) {
        self.doubtful.remove(name);
        let path = self.layout.path(name);
        let may_link = self.layout.writer(name).may_link();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => return self.look_for_missing(name),
            // It is to be watched as well.
            Ok(found) if found.is_symlink() && may_link && !self.watched.has_link(&path) => {
                self.notice = Notice::Everything
            }
            Ok(_) => {}
            Err(_) => return self.look_for_missing(name),
        }
        self.missing.remove(name);
        let stamp = stamp(&path);
        match self.files.get(name) {
            Some(seen) if stamp.is_some() && seen.stamp == stamp => return,
            None if !self.counts.add(&self.layout, name) => return,
            _ => {}
        }
        let (text, open) = (read(&self.layout, name), is_open(&path));
        if let (Ok(text), Some(seen)) = (&text, self.files.get_mut(name))
            && *seen.file.text == **text
            && seen.open == open
            && !text.is_empty()
        {
            seen.stamp = stamp;
            return;
        }
        let file = Arc::new(file(self.layout.writer(name), name, text, open, || self.objects.holds(name)));
        self.unjudged.insert(name.to_owned(), Some(Arc::clone(&file)));
        self.files.insert(name.to_owned(), Seen { stamp, open, file });
    }

    /// A file is not there; when it has been gone for long enough, it is forgotten.
    fn look_for_missing(&mut self, name: &str) {
        let now = Instant::now();
        let since = *self.missing.entry(name.to_owned()).or_insert(now);
        if self.files.contains_key(name) && now.duration_since(since) < VANISHED {
            return;
        }
        self.missing.remove(name);
        // With the directory itself nothing goes; the patrol tells when it is back.
        let there = self.layout.root(name).is_some_and(|root| fs::read_dir(&root.path).is_ok());
        if there && self.files.remove(name).is_some() {
            self.counts.remove(&self.layout, name);
            self.unjudged.insert(name.to_owned(), None);
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.unsaved {
            let _ = self.keeper.wait();
            self.begin_save();
        }
    }
}

/// The end of a task, if there is one.
async fn ended(task: &mut Option<JoinHandle<Walk>>) -> io::Result<Walk> {
    match task {
        Some(task) => task.await.map_err(io::Error::other),
        None => std::future::pending().await,
    }
}

/// What an agent that started now would put in force. Changes nothing.
pub fn peek(path: &Path, state: &Path, shared: Option<&Path>) -> Result<World, SourceError> {
    let layout = Layout::new(path, shared)?;
    layout.check()?;
    let (mut objects, pools) = accepted::load(&state.join("accepted.json"), &layout)?;
    let read = |name: &String| {
        let (text, open) = (read(&layout, name), is_open(&layout.path(name)));
        file(layout.writer(name), name, text, open, || objects.holds(name))
    };
    let files: Vec<File> = walk_all(&layout, &mut |_, _| {}).files.keys().map(read).collect();
    objects.take_in(files, pools);
    Ok(World::new(&objects, 1, layout.is_shared()))
}
