//! Which objects are in force, given what the files say now and what was in force before.
//!
//! The rules, in one place: a valid object replaces its earlier version; an invalid one leaves it in force; a name
//! that is used twice belongs to the file that had it first, else to the first by path; an object goes when its file
//! no longer holds it, unless part of that file cannot be read, for it may be in that part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::kind::{Configuration, Decoded, Kind, Object, ObjectKey};
use crate::yaml::{Finding, Severity};

/// A file as it was read.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Path below the directory.
    pub(crate) name: String,
    /// Its text; empty if it cannot be read.
    pub(crate) text: Arc<str>,
    /// Its documents and their positions; a file that cannot be read has one, with the error.
    pub(crate) documents: Vec<(usize, Decoded)>,
}

impl AsRef<File> for File {
    fn as_ref(&self) -> &File {
        self
    }
}

/// An object in force.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) object: Object,
    pub(crate) file: String,
    pub(crate) line: usize,
    /// The file's text at the time, to be kept over a restart.
    pub(crate) text: Arc<str>,
    /// The document within it.
    pub(crate) position: usize,
}

/// What became of one object or of one unreadable piece of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStatus {
    /// The object, where the file says so readably.
    pub key: Option<ObjectKey>,
    /// Whether what the file says is in force.
    pub valid: bool,
    /// The file, below the directory.
    pub file: String,
    /// Line of the object, or of its first error.
    pub line: usize,
    /// What is wrong and what is in force instead; or that validation succeeded, and what is worth knowing.
    pub message: String,
    /// There is more to say than that it is valid.
    pub remarkable: bool,
}

/// The objects in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) accepted: BTreeMap<ObjectKey, Accepted>,
    pub(crate) statuses: Vec<ObjectStatus>,
}

/// One document that claims to be a certain object.
#[derive(Clone, Copy)]
struct Claim<'a> {
    file: &'a File,
    position: usize,
    document: &'a Decoded,
}

impl Objects {
    /// Takes in what the files (in order of their names) say. `pools` are those that endpoints have addresses of.
    pub(crate) fn update(&mut self, files: &[impl AsRef<File>], pools: Option<(Ipv4Net, Ipv6Net)>) {
        let files: Vec<&File> = files.iter().map(AsRef::as_ref).collect();
        let earlier = std::mem::take(&mut self.accepted);
        self.statuses.clear();
        let claims = claims(&files);
        for (key, claims) in &claims {
            self.settle(key, claims, earlier.get(key), pools);
        }
        let mut kept = BTreeSet::new();
        for (key, accepted) in earlier.into_iter().filter(|(key, _)| !claims.contains_key(key)) {
            let Some(file) = files.iter().find(|file| file.name == accepted.file) else {
                self.keep_pools(key, accepted, pools);
                continue;
            };
            match unidentified(file).next() {
                Some(document) => {
                    kept.insert(file.name.clone());
                    self.refuse(
                        Some(&key),
                        &file.name,
                        &document.findings,
                        document.line,
                        "; previous version in force",
                    );
                    self.accepted.insert(key, accepted);
                }
                None => self.keep_pools(key, accepted, pools),
            }
        }
        for file in files.iter().filter(|file| !kept.contains(&file.name)) {
            for document in unidentified(file) {
                self.refuse(None, &file.name, &document.findings, document.line, "");
            }
        }
        self.statuses.sort_by(|a, b| (&a.file, a.line, &a.key).cmp(&(&b.file, b.line, &b.key)));
    }

    /// Decides which of the claims on a name is right, and whether it is in force.
    fn settle(
        &mut self,
        key: &ObjectKey,
        claims: &[Claim<'_>],
        earlier: Option<&Accepted>,
        pools: Option<(Ipv4Net, Ipv6Net)>,
    ) {
        let had_it = |claim: &&Claim<'_>| earlier.is_some_and(|earlier| earlier.file == claim.file.name);
        let Some(owner) = claims.iter().find(had_it).or(claims.first()) else { return };
        for claim in claims.iter().filter(|claim| !std::ptr::eq(*claim, owner)) {
            let place = format!("{}:{}", owner.file.name, owner.document.line);
            self.statuses.push(ObjectStatus {
                key: Some(key.clone()),
                valid: false,
                file: claim.file.name.clone(),
                line: claim.document.line,
                message: format!(
                    "metadata.name: {key} is already given in {place}, which stays; rename or remove one"
                ),
                remarkable: true,
            });
        }
        let refusal = owner.document.object.as_ref().and_then(|object| pools_moved(object, pools));
        match (&owner.document.object, refusal) {
            (Some(object), None) => {
                self.statuses.push(succeeded(key, owner));
                let accepted = Accepted {
                    object: object.clone(),
                    file: owner.file.name.clone(),
                    line: owner.document.line,
                    text: Arc::clone(&owner.file.text),
                    position: owner.position,
                };
                self.accepted.insert(key.clone(), accepted);
            }
            (_, refusal) => {
                let findings =
                    refusal.map_or_else(|| owner.document.findings.clone(), |finding| vec![finding]);
                let instead = if earlier.is_some() { "; previous version in force" } else { "" };
                self.refuse(Some(key), &owner.file.name, &findings, owner.document.line, instead);
                if let Some(earlier) = earlier {
                    let kept = Accepted { file: owner.file.name.clone(), ..earlier.clone() };
                    self.accepted.insert(key.clone(), kept);
                }
            }
        }
    }

    fn refuse(
        &mut self,
        key: Option<&ObjectKey>,
        file: &str,
        findings: &[Finding],
        line: usize,
        instead: &str,
    ) {
        let errors: Vec<_> = findings.iter().filter(|f| f.severity == Severity::Error).collect();
        let line = errors.first().map_or(line, |first| first.line);
        let message = format!("{}{instead}", several(file, &errors));
        self.statuses.push(ObjectStatus {
            key: key.cloned(),
            valid: false,
            file: file.to_owned(),
            line,
            message,
            remarkable: true,
        });
    }

    /// A configuration that is gone stays in force where its pools are in use and are not the default ones.
    fn keep_pools(&mut self, key: ObjectKey, accepted: Accepted, pools: Option<(Ipv4Net, Ipv6Net)>) {
        let default = Object::Configuration(Configuration::default());
        if key.kind != Kind::Configuration {
            return;
        }
        let Some(mut finding) = pools_moved(&default, pools) else { return };
        finding.line = accepted.line;
        self.refuse(Some(&key), &accepted.file, &[finding], accepted.line, "; previous version in force");
        self.accepted.insert(key, accepted);
    }
}

fn claims<'a>(files: &[&'a File]) -> BTreeMap<ObjectKey, Vec<Claim<'a>>> {
    let mut claims: BTreeMap<ObjectKey, Vec<Claim<'a>>> = BTreeMap::new();
    for file in files {
        for (position, document) in &file.documents {
            if let Some(key) = &document.key {
                claims.entry(key.clone()).or_default().push(Claim { file, position: *position, document });
            }
        }
    }
    claims
}

fn unidentified(file: &File) -> impl Iterator<Item = &Decoded> {
    file.documents
        .iter()
        .map(|(_, document)| document)
        .filter(|document| document.key.is_none() && !document.is_foreign())
}

/// The error of a configuration that would take the addresses of living endpoints away.
pub(crate) fn pools_moved(object: &Object, pools: Option<(Ipv4Net, Ipv6Net)>) -> Option<Finding> {
    let (Object::Configuration(configuration), Some((ipv4, ipv6))) = (object, pools) else { return None };
    let moved = |key: &'static str, found: String, used: String| {
        let place = configuration.given.iter().find(|(given, _)| *given == key).map(|(_, place)| *place);
        let place = place.unwrap_or_default();
        (found != used).then(|| Finding {
            severity: Severity::Error,
            line: place.line,
            column: place.column,
            path: format!("spec.{key}"),
            message: format!("found {found}, but endpoints have addresses of {used}; end them first"),
        })
    };
    moved("ipv4Pool", configuration.ipv4_pool.to_string(), ipv4.to_string())
        .or_else(|| moved("ipv6Pool", configuration.ipv6_pool.to_string(), ipv6.to_string()))
}

/// What `kubectl describe` says of a valid policy, its like for other kinds, and the warnings.
fn succeeded(key: &ObjectKey, claim: &Claim<'_>) -> ObjectStatus {
    let mut message = match key.kind {
        Kind::Policy(_) => "Policy validation succeeded".to_owned(),
        kind => format!("{} is valid", kind.as_str()),
    };
    let warnings = claim.document.findings.iter().filter(|f| f.severity == Severity::Warning);
    let mut remarkable = false;
    for finding in warnings {
        message.push_str(&format!("; {finding}"));
        remarkable = true;
    }
    ObjectStatus {
        key: Some(key.clone()),
        valid: true,
        file: claim.file.name.clone(),
        line: claim.document.line,
        message,
        remarkable,
    }
}

/// The first error as it is, for its line stands in the status; some more with their places.
fn several(file: &str, errors: &[&Finding]) -> String {
    const SHOWN: usize = 4;
    let mut text = String::new();
    for (index, error) in errors.iter().take(SHOWN).enumerate() {
        match index {
            0 => text.push_str(&error.to_string()),
            _ => text.push_str(&format!("; {file}:{} {error}", error.line)),
        }
    }
    if errors.len() > SHOWN {
        text.push_str(&format!("; and {} more", errors.len() - SHOWN));
    }
    text
}
