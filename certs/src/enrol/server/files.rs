//! What the administrator changes while the CA runs: another intermediate, another bundle.
//!
//! Promise: what is written is in force at once, and told to the nodes that wait; what cannot be read leaves what was
//! there in force, and is said. Where the kernel gives no watch the files are looked at every second.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use inotify::{Event, EventStream, Inotify, WatchMask};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Server, now};
use crate::ca::{Authority, BUNDLE_FILE, CA_FILE};

/// How often the files are looked at without any event.
const PATROL: Duration = Duration::from_secs(1);

/// What the files were when they were read: inode, length and time of each.
pub(super) type Stamp = [Option<(u64, u64, SystemTime)>; 2];

impl Server {
    /// Takes changes of the files over as they are made, until it is dropped.
    pub async fn follow(self: Arc<Self>) {
        let mut events = watch(&self.directory)
            .map_err(
                |error| warn!(%error, "no inotify: another bundle is noticed within a second, not at once"),
            )
            .ok();
        let mut seen = stamp(&self.directory);
        loop {
            let event = async {
                match &mut events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = event => match event {
                    Some(event) if is_about(&event) => self.read_files(),
                    Some(_) => {}
                    None => events = None,
                },
                () = sleep(PATROL) => {
                    // Twice the same: nobody is writing it just now.
                    let before = std::mem::replace(&mut seen, stamp(&self.directory));
                    if before == seen {
                        self.refresh();
                    }
                }
            }
        }
    }

    /// Reads the files again, if they have changed.
    pub(super) fn refresh(&self) {
        if stamp(&self.directory) != self.state.lock().stamp {
            self.read_files();
        }
    }

    fn read_files(&self) {
        let mut state = self.state.lock();
        state.stamp = stamp(&self.directory);
        let opened = Authority::open(&self.directory, self.lifetime)
            .and_then(|authority| Ok((authority.own(now(&self.clock)?)?, authority)));
        match opened {
            Ok((own, authority)) if authority.trust_domain() == state.authority.trust_domain() => {
                info!("intermediate and bundle read again");
                self.bundles.replace(authority.bundle().clone());
                let fingerprint = authority.bundle().fingerprint();
                (state.own, state.authority) = (own, authority);
                drop(state);
                self.fingerprint.send_replace(fingerprint);
            }
            Ok((_, authority)) => {
                warn!("the files are now of trust domain {}: not taken over", authority.trust_domain());
            }
            Err(error) => warn!(%error, "the files have changed and are of no use: not taken over"),
        }
    }
}

fn watch(directory: &Path) -> io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    // A file that is replaced is another file: its directory tells.
    inotify.watches().add(directory, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO)?;
    inotify.into_event_stream([0; 4096])
}

fn is_about(event: &io::Result<Event<OsString>>) -> bool {
    match event.as_ref().map(|event| &event.name) {
        Ok(Some(name)) => name == CA_FILE || name == BUNDLE_FILE,
        // Events are lost.
        Ok(None) | Err(_) => true,
    }
}

/// A new file has another inode; one that is written in place another time, or at least another length.
pub(super) fn stamp(directory: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    [CA_FILE, BUNDLE_FILE].map(|name| {
        let metadata = std::fs::symlink_metadata(directory.join(name)).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
    })
}
