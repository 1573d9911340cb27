//! The roots that this node is to trust, in a file that somebody else writes: the administrator, or whoever changes the
//! embedded CA's bundle.
//!
//! Promise: another content is told at once, whole, and only if it is a bundle. What cannot be read changes nothing and is
//! said once. Where the kernel gives no watch, or tells nothing, the file is looked at every few seconds all the same.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::bundle::Bundle;
use futures_util::StreamExt;
use inotify::{Event, EventStream, Inotify, WatchMask, Watches};
use mesh::spiffe::TrustDomain;
use tokio::time::{Instant, sleep_until};

/// How often the file is looked at without any event.
pub(super) const PATROL: Duration = Duration::from_secs(5);
/// A file that was written within this time may be half written, unless an event says that it is not.
const FRESH: Duration = Duration::from_secs(1);
/// Bytes of the longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Such a file.
#[derive(Clone, Debug)]
pub(super) struct RootsFile {
    pub(super) path: PathBuf,
    /// Where the directory is another user's, a link laid there is not followed.
    pub(super) may_link: bool,
}

impl RootsFile {
    /// Its text, not judged.
    pub(super) fn read(&self) -> Result<String, String> {
        let read = || {
            let mut text = String::new();
            let flags = if self.may_link { libc::O_NONBLOCK } else { libc::O_NONBLOCK | libc::O_NOFOLLOW };
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path)?;
            if file.metadata()?.len() > MAX_FILE {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            File::take(file, MAX_FILE).read_to_string(&mut text)?;
            Ok(text)
        };
        read().map_err(|error: io::Error| format!("{}: {error}", self.path.display()))
    }
}

/// The file, watched.
pub(super) struct Roots {
    file: RootsFile,
    trust_domain: TrustDomain,
    patrol: Duration,
    watch: Option<(Watches, EventStream<[u8; 4096]>)>,
    next_patrol: Instant,
    /// What was told last, or needs no telling.
    known: Option<String>,
    /// What was wrong with it last.
    problem: Option<String>,
}

impl Roots {
    /// Watches it from now on; `known` is what the auth-agent has heard of it already.
    pub(super) fn watch(
        file: RootsFile,
        trust_domain: TrustDomain,
        patrol: Duration,
        known: Option<String>,
    ) -> Self {
        let watch = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((watches, inotify.into_event_stream([0; 4096])?))
        });
        let watch = watch.map_err(|error| {
            let (path, seconds) = (file.path.display(), patrol.as_secs());
            tracing::warn!(
                "{path}: inotify: {error}; another trust bundle is noticed within {seconds} s, not at once"
            );
        });
        let watch = watch.ok();
        let mut roots =
            Self { file, trust_domain, patrol, watch, next_patrol: Instant::now(), known, problem: None };
        roots.add_watches();
        roots
    }

    /// Waits until there is another bundle, and returns it as it is written. Cancel safe.
    pub(super) async fn changed(&mut self) -> String {
        loop {
            self.sign().await;
            if let Some(text) = self.look() {
                return text;
            }
        }
    }

    /// Waits until it is worth a look.
    async fn sign(&mut self) {
        loop {
            let event = async {
                match &mut self.watch {
                    Some((_, events)) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = event => match event {
                    Some(event) if self.is_about(&event) => return,
                    Some(_) => {}
                    None => self.watch = None,
                },
                () = sleep_until(self.next_patrol) => {
                    // The directory may be another one now, or the link lead elsewhere.
                    self.add_watches();
                    let is_fresh = self.is_fresh();
                    self.next_patrol = Instant::now() + if is_fresh { FRESH } else { self.patrol };
                    if !is_fresh {
                        return;
                    }
                }
            }
        }
    }

    /// Adding what is watched already changes nothing.
    fn add_watches(&mut self) {
        let Some((watches, _)) = &mut self.watch else { return };
        // A file that is replaced is another file: its directory tells.
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO;
        let target = if self.file.may_link { self.file.path.canonicalize().ok() } else { None };
        for path in [Some(&self.file.path), target.as_ref()].into_iter().flatten() {
            let directory = path.parent().unwrap_or(Path::new("/"));
            if let Err(error) = watches.add(directory, mask) {
                tracing::debug!(directory = %directory.display(), %error, "not watched");
            }
        }
    }

    fn is_about(&self, event: &io::Result<Event<OsString>>) -> bool {
        let is_link = || self.file.path.symlink_metadata().is_ok_and(|found| found.is_symlink());
        match event.as_ref().map(|event| &event.name) {
            Ok(Some(name)) => self.file.path.file_name() == Some(name) || (self.file.may_link && is_link()),
            // Events are lost, or the directory is.
            Ok(None) | Err(_) => true,
        }
    }

    fn is_fresh(&self) -> bool {
        let modified = self.file.path.metadata().and_then(|metadata| metadata.modified());
        modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH))
    }

    /// Another bundle, if there is one.
    fn look(&mut self) -> Option<String> {
        let read = self.file.read().and_then(|text| {
            let judged = Bundle::from_pem(self.trust_domain.clone(), &text);
            judged.map(|_| text).map_err(|error| format!("{}: {error}", self.file.path.display()))
        });
        match read {
            Ok(text) => {
                self.problem = None;
                let is_new = self.known.as_ref() != Some(&text);
                is_new.then(|| self.known.insert(text).clone())
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    tracing::warn!("{problem}; whom this node trusts stays as it was");
                    self.problem = Some(problem);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use certs::UnixTime;
    use certs::ca::{Files, Lifetimes};
    use tokio::time::timeout;

    use super::*;

    /// Nothing here waits for a patrol but what is meant to.
    const NEVER: Duration = Duration::from_secs(1 << 20);
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Scene {
        directory: tempfile::TempDir,
        trust_domain: TrustDomain,
    }

    impl Scene {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap(), trust_domain: "mesh".parse().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// A bundle of a root that nobody else has.
        fn bundle(&self) -> String {
            let directory = tempfile::tempdir().unwrap();
            let files = Files {
                root: directory.path().join("root"),
                directory: directory.path().join("ca"),
                owner: None,
                trust_domain: self.trust_domain.clone(),
                lifetimes: Lifetimes::default(),
            };
            files.prepare(UnixTime::now()).unwrap().bundle.to_pem()
        }

        fn watch(&self, may_link: bool, known: &str) -> Roots {
            let file = RootsFile { path: self.path("bundle.pem"), may_link };
            let mut roots = Roots::watch(file, self.trust_domain.clone(), NEVER, Some(known.to_owned()));
            roots.next_patrol = Instant::now() + NEVER;
            roots
        }
    }

    async fn told(roots: &mut Roots) -> String {
        timeout(PATIENCE, roots.changed()).await.unwrap()
    }

    #[tokio::test]
    async fn another_bundle_is_told_however_it_is_written_and_nothing_else_is() {
        let scene = Scene::new();
        let [first, second, third] = [scene.bundle(), scene.bundle(), scene.bundle()];
        let path = scene.path("bundle.pem");
        fs::write(&path, &first).unwrap();
        let mut roots = scene.watch(true, &first);
        fs::write(&path, &second).unwrap();
        assert_eq!(told(&mut roots).await, second, "in place");
        for not_told in ["-----BEGIN CERTIFICATE-----\nAAAA", &second] {
            fs::write(&path, not_told).unwrap();
            assert_eq!(roots.look(), None);
        }
        fs::write(scene.path("other.pem"), &first).unwrap();
        fs::write(scene.path("draft"), &third).unwrap();
        fs::rename(scene.path("draft"), &path).unwrap();
        assert_eq!(told(&mut roots).await, third, "put in its place");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(told(&mut roots).await, "", "nobody is trusted");
    }

    #[tokio::test]
    async fn a_link_is_followed_only_where_it_may_be_there() {
        let scene = Scene::new();
        let [first, second] = [scene.bundle(), scene.bundle()];
        fs::create_dir(scene.path("there")).unwrap();
        fs::write(scene.path("there/roots.pem"), &first).unwrap();
        symlink(scene.path("there/roots.pem"), scene.path("bundle.pem")).unwrap();
        let mut roots = scene.watch(true, &first);
        fs::write(scene.path("there/roots.pem"), &second).unwrap();
        assert_eq!(told(&mut roots).await, second);
        let refused = scene.watch(false, &first);
        assert!(refused.file.read().is_err());
    }

    #[tokio::test]
    async fn without_any_event_it_is_looked_at_all_the_same() {
        let scene = Scene::new();
        let (first, second) = (scene.bundle(), scene.bundle());
        let mut roots = scene.watch(true, &first);
        (roots.watch, roots.patrol, roots.next_patrol) = (None, Duration::from_millis(10), Instant::now());
        fs::write(scene.path("bundle.pem"), &second).unwrap();
        assert_eq!(told(&mut roots).await, second);
    }
}
