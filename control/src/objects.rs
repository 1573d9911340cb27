//! Which objects are in force, given what the files say now and what was in force before.
//!
//! The rules, in one place: a valid object replaces its earlier version; an invalid one leaves it in force; a name
//! that is used twice belongs to the file that had it first, else to the first by path; an object goes when its file
//! no longer holds it, unless part of that file cannot be read, for it may be in that part.
//!
//! A change of some files costs what these files hold. That nothing else can come out differently follows from the
//! rules: they decide for each name alone, from the claims on it and its earlier version, and to decide once more from
//! the same changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::kind::{Configuration, Decoded, Kind, Object, ObjectKey};
use crate::yaml::{Finding, Severity};

/// Pools that endpoints have addresses of.
pub(crate) type Pools = (Ipv4Net, Ipv6Net);

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
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) accepted: BTreeMap<ObjectKey, Arc<Accepted>>,
    /// In order of files and lines.
    pub(crate) statuses: Arc<Vec<Arc<ObjectStatus>>>,
    /// What was taken in last, by name.
    files: BTreeMap<String, Arc<File>>,
    pools: Option<Pools>,
    claims: BTreeMap<ObjectKey, Vec<Claim>>,
    /// Objects in force by the files they are of.
    of_file: BTreeMap<String, BTreeSet<ObjectKey>>,
    /// Of those, the ones that are in force because part of the file cannot be read.
    kept: BTreeMap<String, BTreeSet<ObjectKey>>,
    said: BTreeMap<Topic, Vec<Arc<ObjectStatus>>>,
    /// Restored, and not held against the files yet.
    unsettled: BTreeSet<ObjectKey>,
}

/// What statuses come from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Topic {
    /// An object.
    Object(ObjectKey),
    /// The unreadable parts of a file.
    File(String),
}

/// One document that claims to be a certain object.
#[derive(Clone, Debug)]
struct Claim {
    file: Arc<File>,
    /// Among the documents of the file.
    index: usize,
}

impl Claim {
    fn document(&self) -> Option<(usize, &Decoded)> {
        self.file.documents.get(self.index).map(|(position, decoded)| (*position, decoded))
    }
}

/// What an update changed.
#[derive(Default)]
pub(crate) struct Changes {
    /// Objects that are other ones now, or gone.
    pub(crate) objects: Vec<ObjectKey>,
    /// Anything: of objects, of where they stand, or of what is to be said.
    pub(crate) any: bool,
}

impl Objects {
    /// What was in force, before the first update.
    pub(crate) fn restored(accepted: BTreeMap<ObjectKey, Arc<Accepted>>) -> Self {
        let mut objects = Self { unsettled: accepted.keys().cloned().collect(), ..Self::default() };
        for (key, accepted) in accepted {
            objects.accept(key, accepted);
        }
        objects
    }

    /// The objects of these files.
    pub(crate) fn of(files: impl IntoIterator<Item = File>) -> Self {
        let mut objects = Self::default();
        objects.take_in(files, None);
        objects
    }

    /// Takes in what these files say; the others are as they were. `pools` are those that endpoints have addresses of.
    pub(crate) fn take_in(&mut self, files: impl IntoIterator<Item = File>, pools: Option<Pools>) -> Changes {
        self.update(files.into_iter().map(|file| (file.name.clone(), Some(Arc::new(file)))), pools)
    }

    /// Whether something of this file is in force.
    pub(crate) fn holds(&self, file: &str) -> bool {
        self.of_file.contains_key(file)
    }

    /// Takes in what has become of some files: a new content, or nothing.
    pub(crate) fn update(
        &mut self,
        files: impl IntoIterator<Item = (String, Option<Arc<File>>)>,
        pools: Option<Pools>,
    ) -> Changes {
        let mut keys = std::mem::take(&mut self.unsettled);
        let mut names = BTreeSet::new();
        for (name, file) in files {
            self.replace(&name, file, &mut keys);
            names.insert(name);
        }
        if self.pools != pools {
            self.pools = pools;
            keys.insert(ObjectKey::CONFIGURATION);
        }
        let (mut changes, mut said) = (Changes::default(), Said::default());
        for key in keys {
            let earlier = self.forget(&key);
            names.extend(earlier.as_ref().map(|earlier| earlier.file.clone()));
            let mut statuses = Vec::new();
            let now = self.decide(&key, earlier.as_ref(), &mut statuses);
            self.say(Topic::Object(key.clone()), statuses, &mut said);
            let objects = (earlier.as_ref().map(|it| &it.object), now.as_ref().map(|it| &it.object));
            let moved =
                earlier.as_ref().map(|it| (&it.file, it.line)) != now.as_ref().map(|it| (&it.file, it.line));
            changes.any |= moved;
            if objects.0 != objects.1
                || moved && matches!(key.kind, Kind::Configuration | Kind::WorkloadEndpoint)
            {
                changes.any = true;
                changes.objects.push(key.clone());
            }
            if let Some(now) = now {
                self.accept(key, now);
            }
        }
        for name in names {
            let mut statuses = Vec::new();
            if let Some(file) = self.files.get(&name).filter(|_| !self.kept.contains_key(&name)) {
                for document in unidentified(file) {
                    refuse(None, &name, &document.findings, document.line, "", &mut statuses);
                }
            }
            self.say(Topic::File(name), statuses, &mut said);
        }
        changes.any |= self.revise(said);
        changes
    }

    /// Puts a file in the place of its earlier version and adds the objects that this may be about.
    fn replace(&mut self, name: &str, file: Option<Arc<File>>, keys: &mut BTreeSet<ObjectKey>) {
        if let Some(earlier) = self.files.remove(name) {
            for key in earlier.documents.iter().filter_map(|(_, decoded)| decoded.key.as_ref()) {
                if let Some(claims) = self.claims.get_mut(key) {
                    claims.retain(|claim| claim.file.name != name);
                    if claims.is_empty() {
                        self.claims.remove(key);
                    }
                }
                keys.insert(key.clone());
            }
        }
        keys.extend(self.of_file.get(name).into_iter().flatten().cloned());
        let Some(file) = file else { return };
        for (index, (_, decoded)) in file.documents.iter().enumerate() {
            if let Some(key) = &decoded.key {
                let claims = self.claims.entry(key.clone()).or_default();
                // In order of files, and within one in order of documents.
                let at = claims.partition_point(|claim| claim.file.name.as_str() <= name);
                claims.insert(at, Claim { file: Arc::clone(&file), index });
                keys.insert(key.clone());
            }
        }
        self.files.insert(name.to_owned(), file);
    }

    fn accept(&mut self, key: ObjectKey, accepted: Arc<Accepted>) {
        self.of_file.entry(accepted.file.clone()).or_default().insert(key.clone());
        self.accepted.insert(key, accepted);
    }

    /// Takes an object out, to be decided upon anew.
    fn forget(&mut self, key: &ObjectKey) -> Option<Arc<Accepted>> {
        let accepted = self.accepted.remove(key)?;
        for by_file in [&mut self.of_file, &mut self.kept] {
            if let Some(keys) = by_file.get_mut(&accepted.file) {
                keys.remove(key);
                if keys.is_empty() {
                    by_file.remove(&accepted.file);
                }
            }
        }
        Some(accepted)
    }

    /// What is in force under a name.
    fn decide(
        &mut self,
        key: &ObjectKey,
        earlier: Option<&Arc<Accepted>>,
        statuses: &mut Vec<ObjectStatus>,
    ) -> Option<Arc<Accepted>> {
        if let Some(claims) = self.claims.get(key) {
            return settle(key, claims, earlier, self.pools, statuses);
        }
        let earlier = earlier?;
        let unreadable = self.files.get(&earlier.file).and_then(|file| unidentified(file).next());
        let Some(document) = unreadable else { return keep_pools(key, earlier, self.pools, statuses) };
        let instead = "; previous version in force";
        refuse(Some(key), &earlier.file, &document.findings, document.line, instead, statuses);
        self.kept.entry(earlier.file.clone()).or_default().insert(key.clone());
        Some(Arc::clone(earlier))
    }

    fn say(&mut self, topic: Topic, statuses: Vec<ObjectStatus>, said: &mut Said) {
        let earlier = self.said.remove(&topic).unwrap_or_default();
        if earlier.iter().map(AsRef::as_ref).eq(&statuses) {
            if !earlier.is_empty() {
                self.said.insert(topic, earlier);
            }
            return;
        }
        said.no_more.extend(earlier);
        let statuses: Vec<_> = statuses.into_iter().map(Arc::new).collect();
        said.new.extend(statuses.iter().cloned());
        if !statuses.is_empty() {
            self.said.insert(topic, statuses);
        }
    }

    /// Brings the list of statuses up to date; whether it is another one.
    fn revise(&mut self, said: Said) -> bool {
        fn place(status: &ObjectStatus) -> (&str, usize, &Option<ObjectKey>, &str) {
            (&status.file, status.line, &status.key, &status.message)
        }
        if said.no_more.is_empty() && said.new.is_empty() {
            return false;
        }
        let statuses = Arc::make_mut(&mut self.statuses);
        let gone: BTreeSet<_> = said.no_more.iter().map(Arc::as_ptr).collect();
        statuses.retain(|status| !gone.contains(&Arc::as_ptr(status)));
        let few = said.new.len() < 64;
        for status in said.new {
            // In an ordered list it goes to its place; where much is new, all is ordered at the end.
            let at = statuses.partition_point(|known| few && place(known) <= place(&status));
            statuses.insert(if few { at } else { statuses.len() }, status);
        }
        if !few {
            statuses.sort_by(|a, b| place(a).cmp(&place(b)));
        }
        true
    }
}

/// What is to be said now, and what no more.
#[derive(Default)]
struct Said {
    no_more: Vec<Arc<ObjectStatus>>,
    new: Vec<Arc<ObjectStatus>>,
}

/// Decides which of the claims on a name is right, and whether it is in force.
fn settle(
    key: &ObjectKey,
    claims: &[Claim],
    earlier: Option<&Arc<Accepted>>,
    pools: Option<Pools>,
    statuses: &mut Vec<ObjectStatus>,
) -> Option<Arc<Accepted>> {
    let had_it = |claim: &&Claim| earlier.is_some_and(|earlier| earlier.file == claim.file.name);
    let owner = claims.iter().find(had_it).or(claims.first())?;
    let (position, document) = owner.document()?;
    for claim in claims.iter().filter(|claim| !std::ptr::eq(*claim, owner)) {
        let place = format!("{}:{}", owner.file.name, document.line);
        statuses.push(ObjectStatus {
            key: Some(key.clone()),
            valid: false,
            file: claim.file.name.clone(),
            line: claim.document().map_or(0, |(_, document)| document.line),
            message: format!(
                "metadata.name: {key} is already given in {place}, which stays; rename or remove one"
            ),
            remarkable: true,
        });
    }
    let refusal = document.object.as_ref().and_then(|object| pools_moved(object, pools));
    let (Some(object), None) = (&document.object, &refusal) else {
        let findings = refusal.map_or_else(|| document.findings.clone(), |finding| vec![finding]);
        let instead = if earlier.is_some() { "; previous version in force" } else { "" };
        refuse(Some(key), &owner.file.name, &findings, document.line, instead, statuses);
        return earlier
            .map(|earlier| Arc::new(Accepted { file: owner.file.name.clone(), ..earlier.as_ref().clone() }));
    };
    statuses.push(succeeded(key, &owner.file.name, document));
    // Whoever compares by address sees that it is the same.
    let same = earlier.map(|earlier| &earlier.object).filter(|earlier| *earlier == object);
    Some(Arc::new(Accepted {
        object: same.unwrap_or(object).clone(),
        file: owner.file.name.clone(),
        line: document.line,
        text: Arc::clone(&owner.file.text),
        position,
    }))
}

fn refuse(
    key: Option<&ObjectKey>,
    file: &str,
    findings: &[Finding],
    line: usize,
    instead: &str,
    statuses: &mut Vec<ObjectStatus>,
) {
    let errors: Vec<_> = findings.iter().filter(|f| f.severity == Severity::Error).collect();
    let line = errors.first().map_or(line, |first| first.line);
    let message = format!("{}{instead}", several(file, &errors));
    statuses.push(ObjectStatus {
        key: key.cloned(),
        valid: false,
        file: file.to_owned(),
        line,
        message,
        remarkable: true,
    });
}

/// A configuration that is gone stays in force where its pools are in use and are not the default ones.
fn keep_pools(
    key: &ObjectKey,
    accepted: &Arc<Accepted>,
    pools: Option<Pools>,
    statuses: &mut Vec<ObjectStatus>,
) -> Option<Arc<Accepted>> {
    if key.kind != Kind::Configuration {
        return None;
    }
    let mut finding = pools_moved(&Object::Configuration(Arc::new(Configuration::default())), pools)?;
    finding.line = accepted.line;
    let instead = "; previous version in force";
    refuse(Some(key), &accepted.file, &[finding], accepted.line, instead, statuses);
    Some(Arc::clone(accepted))
}

fn unidentified(file: &File) -> impl Iterator<Item = &Decoded> {
    file.documents
        .iter()
        .map(|(_, document)| document)
        .filter(|document| document.key.is_none() && !document.is_foreign())
}

/// The error of a configuration that would take the addresses of living endpoints away.
pub(crate) fn pools_moved(object: &Object, pools: Option<Pools>) -> Option<Finding> {
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
fn succeeded(key: &ObjectKey, file: &str, document: &Decoded) -> ObjectStatus {
    let mut message = match key.kind {
        Kind::Policy(_) => "Policy validation succeeded".to_owned(),
        kind => format!("{} is valid", kind.as_str()),
    };
    let warnings = document.findings.iter().filter(|f| f.severity == Severity::Warning);
    let mut remarkable = false;
    for finding in warnings {
        message.push_str(&format!("; {finding}"));
        remarkable = true;
    }
    ObjectStatus {
        key: Some(key.clone()),
        valid: true,
        file: file.to_owned(),
        line: document.line,
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
