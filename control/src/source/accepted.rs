//! The last valid version of every object, kept over a restart.
//!
//! One file, replaced whole: the texts of the files that held the objects, and which document of which text each
//! object is. A file per object was rejected: many writes, and no order among them that survives a power cut. The
//! texts are decoded again at start, so no second format of the objects exists.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::SourceError;
use super::layout::Layout;
use crate::durable;
use crate::kind::Decoded;
use crate::objects::{Accepted, Objects, Pools};
use crate::yaml::documents;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    pools: Option<Pools>,
    texts: Vec<String>,
    objects: Vec<StoredObject>,
}

#[derive(Serialize, Deserialize)]
struct StoredObject {
    file: String,
    text: usize,
    position: usize,
}

/// Writes beside the caller, one after the other; who drops it waits for the last.
pub(super) struct Keeper {
    path: PathBuf,
    writing: Option<(JoinHandle<()>, oneshot::Receiver<io::Result<()>>)>,
}

impl Keeper {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, writing: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins to write what is in force; false if it still writes something earlier, or cannot now.
    pub(super) fn begin(&mut self, objects: &Objects, pools: Option<Pools>) -> bool {
        if self.writing.is_some() {
            return false;
        }
        let all: Vec<_> = objects.accepted.values().cloned().collect();
        let (sender, receiver) = oneshot::channel();
        let path = self.path.clone();
        let write = move || drop(sender.send(save(&path, &all, pools)));
        let thread = std::thread::Builder::new().name("keeper".to_owned()).spawn(write);
        self.writing = thread.ok().map(|thread| (thread, receiver));
        self.writing.is_some()
    }

    /// Waits for the end of the writing, if there is one; never ends if there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> io::Result<()> {
        let Some((_, receiver)) = &mut self.writing else { return std::future::pending().await };
        let done = receiver.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.wait().and(done)
    }

    /// Waits for the end of the writing, if there is one.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        let Some((thread, mut receiver)) = self.writing.take() else { return Ok(()) };
        // A thread that has failed has sent nothing.
        let _ = thread.join();
        match receiver.try_recv() {
            Ok(done) => done,
            // Already received.
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

/// Writes what is in force.
fn save(path: &Path, all: &[Arc<Accepted>], pools: Option<Pools>) -> std::io::Result<()> {
    let mut stored = Stored { version: VERSION, pools, texts: Vec::new(), objects: Vec::new() };
    let mut known: BTreeMap<*const str, usize> = BTreeMap::new();
    for accepted in all {
        let text = *known.entry(Arc::as_ptr(&accepted.text)).or_insert_with(|| {
            stored.texts.push(accepted.text.to_string());
            stored.texts.len() - 1
        });
        stored.objects.push(StoredObject { file: accepted.file.clone(), text, position: accepted.position });
    }
    durable::write(path, &serde_json::to_vec(&stored)?)
}

/// Reads what was in force; nothing if there is no such file yet. An object that this version no longer accepts is
/// left out and logged.
pub(super) fn load(path: &Path, layout: &Layout) -> Result<(Objects, Option<Pools>), SourceError> {
    let unusable = |reason: String| SourceError::Accepted { path: path.to_owned(), reason };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Objects::default(), None)),
        Err(error) => return Err(unusable(error.to_string())),
    };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
    if stored.version != VERSION {
        return Err(unusable(format!("version {}, expected {VERSION}", stored.version)));
    }
    let texts: Vec<Arc<str>> = stored.texts.into_iter().map(Arc::from).collect();
    let parsed: Vec<_> = texts.iter().map(|text| documents(text)).collect();
    let mut all = BTreeMap::new();
    for object in stored.objects {
        let (Some(text), Some(documents)) = (texts.get(object.text), parsed.get(object.text)) else {
            return Err(unusable(format!("no text {}", object.text)));
        };
        let document = documents.iter().find(|document| document.position == object.position);
        let decoded = document.map(|document| layout.writer(&object.file).decode(document));
        let Some(Decoded { key: Some(key), object: Some(value), line, .. }) = decoded else {
            // By another version, or another directory is shared now.
            let finding = decoded.and_then(|decoded| decoded.findings.into_iter().next());
            let why = finding.map_or_else(String::new, |finding| finding.message);
            tracing::warn!(file = object.file, "an object accepted earlier is not accepted any more: {why}");
            continue;
        };
        let text = Arc::clone(text);
        let accepted = Accepted { object: value, file: object.file, line, text, position: object.position };
        all.insert(key, Arc::new(accepted));
    }
    Ok((Objects::restored(all), stored.pools))
}
