//! The processes of the proxy: the one that takes connections, and those that it has followed.
//!
//! Promise: each has a number and by that a control socket of its own; what runs is written down before it is told to end,
//! so that the next agent knows who takes connections and who does not. Who runs and is not written down is ended.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::process::Child;

use super::Settings;
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
}

/// All that run, by number.
pub(super) struct Incarnations {
    place: Place,
    known: Vec<Incarnation>,
}

impl Incarnations {
    /// None is known yet.
    pub(super) fn new(place: Place) -> Self {
        Self { place, known: Vec::new() }
    }

    /// Reads what an earlier agent has written; ends who runs and is not there.
    pub(super) async fn find(&mut self) -> Result<(), String> {
        let text = fs::read(self.place.started(Process::Proxy)).unwrap_or_default();
        // What is not understood is of a build that had but one, whose rules nobody here knows.
        self.known = serde_json::from_slice(&text).unwrap_or_default();
        let runs = running(Process::Proxy, &self.place).map_err(|error| error.to_string())?;
        self.known.retain(|one| runs.contains(&one.pid));
        self.known.sort_by_key(|one| one.number);
        for socket in self.place.numbered_sockets(Process::Proxy) {
            if self.known.iter().all(|one| self.socket(one.number) != socket) {
                remove_file(&socket).map_err(|error| format!("{}: {error}", socket.display()))?;
            }
        }
        let is_unknown = |pid| self.known.iter().all(|one| one.pid != pid);
        end_those(Process::Proxy, &self.place, is_unknown).await.map_err(|error| error.to_string())
    }

    pub(super) fn known(&self) -> &[Incarnation] {
        &self.known
    }

    pub(super) fn get(&self, number: u32) -> Option<&Incarnation> {
        self.known.iter().find(|one| one.number == number)
    }

    pub(super) fn socket(&self, number: u32) -> PathBuf {
        self.place.numbered_socket(Process::Proxy, number)
    }

    /// Starts another one.
    pub(super) fn start(&mut self, settings: &Settings, start: Start) -> Result<(u32, Child), String> {
        self.place.make(Process::Proxy)?;
        let number = self.known.last().map_or(1, |last| last.number.wrapping_add(1));
        let launched = launch(Process::Proxy, &self.place, &self.socket(number), start);
        let child = launched.map_err(|error| format!("starting ferromesh proxy: {error}"))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or("it has ended at once")?;
        self.known.push(Incarnation { number, pid, settings: settings.clone(), drains: false });
        self.write()?;
        Ok((number, child))
    }

    /// Writes down that it takes no connections any more.
    pub(super) fn drains(&mut self, number: u32) -> Result<(), String> {
        self.known.iter_mut().filter(|one| one.number == number).for_each(|one| one.drains = true);
        self.write()
    }

    /// Ends one, if it has not ended, and forgets it.
    pub(super) async fn end(&mut self, number: u32) -> Result<(), String> {
        let Some(one) = self.get(number) else { return Ok(()) };
        end_one(Process::Proxy, &self.place, one.pid).await.map_err(|error| error.to_string())?;
        self.known.retain(|one| one.number != number);
        let removed = remove_file(&self.socket(number));
        removed.map_err(|error| format!("{}: {error}", self.socket(number).display()))?;
        self.write()
    }

    /// Whole or not at all.
    fn write(&self) -> Result<(), String> {
        let path = self.place.started(Process::Proxy);
        let fresh = path.with_extension("started.new");
        let write = || {
            fs::write(&fresh, serde_json::to_vec(&self.known).map_err(io::Error::other)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|error: io::Error| format!("{}: {error}", path.display()))
    }
}
