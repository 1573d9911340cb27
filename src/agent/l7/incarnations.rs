//! The processes of the proxy: the one that takes connections, and those that it has followed.
//!
//! Promise: each has a number and by that a control socket of its own; what runs is written down before it is told to end,
//! so that the next agent knows who takes connections and who does not. Who runs and is not written down is ended. Which
//! rules are in force there is written down when that is known, and taken back before it is not: whoever reads it may trust it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::process::Child;

use super::Settings;
use super::digest::Digest;
use crate::agent::auth::place::{Place, Process, remove_file};
use crate::agent::auth::process::{Start, end_one, end_those, launch, running};

/// One process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Incarnation {
    /// Higher than of those before it.
    pub(super) number: u32,
    pub(super) pid: i32,
    pub(super) settings: Settings,
    /// It takes no connections any more, or is about to be told so.
    pub(super) drains: bool,
    /// The rules in force there; none: they are not known, or are being changed.
    #[serde(default)]
    pub(super) rules: Option<Digest>,
}

/// All that run, by number.
#[derive(Clone)]
pub(super) struct Incarnations {
    place: Place,
    known: Arc<Mutex<Vec<Incarnation>>>,
}

/// What is written down of the rules of one, by who tells it of them.
#[derive(Clone)]
pub(super) struct Note {
    of: Incarnations,
    number: u32,
}

impl Note {
    /// Before it is told of other rules than it has: nobody knows which are in force there until [`Note::is_in_force`].
    pub(super) fn changes(&self) {
        self.set(None);
    }

    /// It has all these rules, and no others.
    pub(super) fn is_in_force(&self, rules: Digest) {
        self.set(Some(rules));
    }

    fn set(&self, rules: Option<Digest>) {
        let mut known = self.of.known.lock();
        let Some(one) = known.iter_mut().find(|one| one.number == self.number && one.rules != rules) else {
            return;
        };
        one.rules = rules;
        if let Err(error) = write(&self.of.place, &known) {
            tracing::error!("the L7 proxy: {error}");
            // What stands there would be trusted. Without it the next agent ends all that run.
            let _ = remove_file(&self.of.place.started(Process::Proxy));
        }
    }
}

impl Incarnations {
    /// None is known yet.
    pub(super) fn new(place: Place) -> Self {
        Self { place, known: Arc::default() }
    }

    /// Reads what an earlier agent has written; ends who runs and is not there.
    pub(super) async fn find(&self) -> Result<(), String> {
        self.read()?;
        for socket in self.place.numbered_sockets(Process::Proxy) {
            if self.known().iter().all(|one| self.socket(one.number) != socket) {
                remove_file(&socket).map_err(|error| format!("{}: {error}", socket.display()))?;
            }
        }
        self.end_unknown().await
    }

    /// Nobody writes meanwhile.
    fn read(&self) -> Result<(), String> {
        let mut known = self.known.lock();
        let text = fs::read(self.place.started(Process::Proxy)).unwrap_or_default();
        // What is not understood is of a build that had but one, whose rules nobody here knows.
        *known = serde_json::from_slice(&text).unwrap_or_default();
        let runs = running(Process::Proxy, &self.place).map_err(|error| error.to_string())?;
        known.retain(|one| runs.contains(&one.pid));
        known.sort_by_key(|one| one.number);
        Ok(())
    }

    /// Ends who runs and is not known.
    pub(super) async fn end_unknown(&self) -> Result<(), String> {
        let known = self.known();
        let is_unknown = |pid| known.iter().all(|one| one.pid != pid);
        end_those(Process::Proxy, &self.place, is_unknown).await.map_err(|error| error.to_string())
    }

    pub(super) fn known(&self) -> Vec<Incarnation> {
        self.known.lock().clone()
    }

    pub(super) fn pid(&self, number: u32) -> Option<i32> {
        self.known.lock().iter().find(|one| one.number == number).map(|one| one.pid)
    }

    pub(super) fn socket(&self, number: u32) -> PathBuf {
        self.place.numbered_socket(Process::Proxy, number)
    }

    /// For who tells one of its rules.
    pub(super) fn note(&self, number: u32) -> Note {
        Note { of: self.clone(), number }
    }

    /// Starts another one.
    pub(super) fn start(&self, settings: &Settings, start: Start) -> Result<(u32, Child), String> {
        self.place.make(Process::Proxy)?;
        let mut known = self.known.lock();
        let number = known.last().map_or(1, |last| last.number.wrapping_add(1));
        let launched = launch(Process::Proxy, &self.place, &self.socket(number), start);
        let child = launched.map_err(|error| format!("starting ferromesh proxy: {error}"))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or("it has ended at once")?;
        known.push(Incarnation { number, pid, settings: settings.clone(), drains: false, rules: None });
        write(&self.place, &known)?;
        Ok((number, child))
    }

    /// Writes down that it takes no connections any more.
    pub(super) fn drains(&self, number: u32) -> Result<(), String> {
        let mut known = self.known.lock();
        known.iter_mut().filter(|one| one.number == number).for_each(|one| one.drains = true);
        write(&self.place, &known)
    }

    /// Ends one, if it has not ended, and forgets it.
    pub(super) async fn end(&self, number: u32) -> Result<(), String> {
        let Some(pid) = self.pid(number) else { return Ok(()) };
        end_one(Process::Proxy, &self.place, pid).await.map_err(|error| error.to_string())?;
        let mut known = self.known.lock();
        known.retain(|one| one.number != number);
        let removed = remove_file(&self.socket(number));
        removed.map_err(|error| format!("{}: {error}", self.socket(number).display()))?;
        write(&self.place, &known)
    }
}

/// Whole or not at all.
fn write(place: &Place, known: &[Incarnation]) -> Result<(), String> {
    let path = place.started(Process::Proxy);
    let fresh = path.with_extension("started.new");
    let write = || {
        fs::write(&fresh, serde_json::to_vec(known).map_err(io::Error::other)?)?;
        fs::rename(&fresh, &path)
    };
    write().map_err(|error: io::Error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
impl Incarnations {
    /// One is known, by this number.
    pub(super) fn known_at(place: Place, number: u32) -> Self {
        let settings = Settings { build: "test".to_owned(), workers: 0 };
        let one = Incarnation { number, pid: 1, settings, drains: false, rules: None };
        write(&place, std::slice::from_ref(&one)).unwrap();
        Self { place, known: Arc::new(Mutex::new(vec![one])) }
    }

    /// What the next agent would read.
    pub(super) fn written(&self) -> Vec<Incarnation> {
        serde_json::from_slice(&fs::read(self.place.started(Process::Proxy)).unwrap()).unwrap()
    }
}
