//! The last valid version of every object, kept over a restart.
//!
//! One file, replaced whole: the texts of the files that held the objects, and which document of which text each
//! object is. A file per object was rejected: many writes, and no order among them that survives a power cut. The
//! texts are decoded again at start, so no second format of the objects exists.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::SourceError;
use crate::durable;
use crate::kind::decode;
use crate::objects::{Accepted, Objects};
use crate::yaml::documents;

const VERSION: u32 = 1;

/// Pools that endpoints have addresses of.
type Pools = (Ipv4Net, Ipv6Net);

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

/// Writes what is in force.
pub(super) fn save(path: &Path, objects: &Objects, pools: Option<Pools>) -> std::io::Result<()> {
    let mut stored = Stored { version: VERSION, pools, texts: Vec::new(), objects: Vec::new() };
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for accepted in objects.accepted.values() {
        let text = *known.entry(&accepted.text).or_insert_with(|| {
            stored.texts.push(accepted.text.to_string());
            stored.texts.len() - 1
        });
        stored.objects.push(StoredObject { file: accepted.file.clone(), text, position: accepted.position });
    }
    durable::write(path, &serde_json::to_vec(&stored)?)
}

/// Reads what was in force; nothing if there is no such file yet. An object that this version no longer accepts is
/// left out and logged.
pub(super) fn load(path: &Path) -> Result<(Objects, Option<Pools>), SourceError> {
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
    let mut objects = Objects::default();
    for object in stored.objects {
        let (Some(text), Some(documents)) = (texts.get(object.text), parsed.get(object.text)) else {
            return Err(unusable(format!("no text {}", object.text)));
        };
        let document = documents.iter().find(|document| document.position == object.position);
        let decoded = document.map(decode);
        let Some((key, value, line)) = decoded.and_then(|d| Some((d.key?, d.object?, d.line))) else {
            tracing::warn!(file = object.file, "an object accepted earlier is not accepted by this version");
            continue;
        };
        let text = Arc::clone(text);
        let accepted = Accepted { object: value, file: object.file, line, text, position: object.position };
        objects.accepted.insert(key, accepted);
    }
    Ok((objects, stored.pools))
}
