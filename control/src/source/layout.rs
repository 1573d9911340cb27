//! Which directories a node reads, and whose word a file is.
//!
//! Promise: the name of a file alone says who may have written it. Files of the node's own directory are named below
//! it; those of the shared directory by their whole path, so no two have one name. Under `admin/` stands what the
//! administrator says, under `nodes/NAME/` what node NAME says of itself and nothing else; what stands elsewhere in the
//! shared directory is not read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::SourceError;
use crate::kind::{Decoded, Kind, Object, is_name};
use crate::yaml::{Document, Finding, Severity};

/// Most files of the node's own directory, and of the administrator's.
const MOST_FILES: usize = 20_000;
/// Most files of another node: it cannot crowd out anyone but itself.
const MOST_OF_NODE: usize = 4_096;
/// Largest file.
const MOST_BYTES: u64 = 4 << 20;
/// Largest file of a node.
const MOST_BYTES_OF_NODE: u64 = 64 << 10;

/// The directories that are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    roots: Vec<Root>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) path: PathBuf,
    /// What the names of its files begin with.
    pub(crate) below: String,
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Own,
    Admin,
    Nodes,
}

/// Whose word a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writer<'a> {
    /// The node's own configuration.
    Own,
    /// The administrator of all nodes.
    Administrator,
    /// A node; the name is that of its directory.
    Node(&'a str),
    /// Nobody: it lies among the directories of nodes, or in one that cannot be a node's.
    Nobody,
}

impl Layout {
    /// A node's own directory, and what it shares with others.
    pub(crate) fn new(config: &Path, shared: Option<&Path>) -> Result<Self, SourceError> {
        let mut roots = vec![Root { path: config.to_owned(), below: String::new(), part: Part::Own }];
        if let Some(shared) = shared {
            let unusable = |source| SourceError::Shared { path: shared.to_owned(), source };
            let whole = std::path::absolute(shared).map_err(unusable)?;
            let text = whole.to_str().ok_or_else(|| unusable(io::Error::other("the path is no UTF-8")))?;
            roots.extend(Self::shared(text));
        }
        Ok(Self { roots })
    }

    /// A directory whose files are named as they are shown; a shared one is known by its two parts.
    pub(crate) fn shown(path: &Path) -> Self {
        let is_shared = path.join("admin").is_dir() && path.join("nodes").is_dir();
        let roots = path.to_str().filter(|_| is_shared).map(Self::shared);
        Self { roots: roots.into_iter().flatten().collect() }
    }

    fn shared(path: &str) -> [Root; 2] {
        let path = path.trim_end_matches('/');
        [("admin", Part::Admin), ("nodes", Part::Nodes)].map(|(name, part)| {
            let below = format!("{path}/{name}");
            Root { path: PathBuf::from(&below), below: format!("{below}/"), part }
        })
    }

    /// Adds the directories of another.
    pub(crate) fn add(&mut self, other: Self) {
        self.roots.extend(other.roots);
    }

    pub(crate) fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Whether other nodes are heard.
    pub(crate) fn is_shared(&self) -> bool {
        self.roots.iter().any(|root| root.part == Part::Nodes)
    }

    /// Fails if one of them cannot be listed.
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        for root in &self.roots {
            fs::read_dir(&root.path).map_err(|source| match root.part {
                Part::Own => SourceError::Directory { path: root.path.clone(), source },
                Part::Admin | Part::Nodes => SourceError::Shared { path: root.path.clone(), source },
            })?;
        }
        Ok(())
    }

    /// The directory a file is of.
    pub(crate) fn root(&self, name: &str) -> Option<&Root> {
        let around = self.roots.iter().filter(|root| name.starts_with(&root.below));
        around.max_by_key(|root| root.below.len())
    }

    /// Where a file is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self.root(name) {
            Some(root) => root.path.join(name.strip_prefix(&root.below).unwrap_or(name)),
            None => PathBuf::from(name),
        }
    }

    /// Whose word a file is.
    pub(crate) fn writer<'a>(&self, name: &'a str) -> Writer<'a> {
        let Some(root) = self.root(name) else { return Writer::Own };
        match root.part {
            Part::Own => Writer::Own,
            Part::Admin => Writer::Administrator,
            Part::Nodes => {
                let node = name.strip_prefix(&root.below).and_then(|rest| rest.split_once('/'));
                node.map_or(Writer::Nobody, |(node, _)| match is_name(node) {
                    true => Writer::Node(node),
                    false => Writer::Nobody,
                })
            }
        }
    }

    /// Files that count together against a bound: what their names begin with, and the bound.
    pub(crate) fn bound(&self, name: &str) -> (String, usize) {
        match (self.writer(name), self.root(name)) {
            (Writer::Node(node), Some(root)) => (format!("{}{node}/", root.below), MOST_OF_NODE),
            (Writer::Nobody, Some(root)) => (root.below.clone(), MOST_OF_NODE),
            (_, Some(root)) => (root.below.clone(), MOST_FILES),
            (_, None) => (String::new(), MOST_FILES),
        }
    }
}

impl Writer<'_> {
    /// Largest file that is read, bytes.
    pub(crate) fn most_bytes(self) -> u64 {
        match self {
            Self::Own | Self::Administrator => MOST_BYTES,
            Self::Node(_) | Self::Nobody => MOST_BYTES_OF_NODE,
        }
    }

    /// Whether a file of it may be a symbolic link. A node could lead others to files of theirs.
    pub(crate) fn may_link(self) -> bool {
        matches!(self, Self::Own | Self::Administrator)
    }

    /// Reads one document as this writer's.
    pub(crate) fn decode(self, document: &Document) -> Decoded {
        let mut decoded = crate::kind::decode(document);
        let Some(key) = &mut decoded.key else { return decoded };
        let refusal = match (self, key.kind) {
            (Self::Node(node), Kind::WorkloadEndpoint) => {
                key.node = Some(node.to_owned());
                if let Some(Object::WorkloadEndpoint(endpoint)) = &mut decoded.object {
                    std::sync::Arc::make_mut(endpoint).node = node.to_owned();
                }
                return decoded;
            }
            (Self::Node(node), _) => {
                format!(
                    "a node says only which endpoints it has: WorkloadEndpoint; what is not {node}'s own goes to admin/"
                )
            }
            (Self::Nobody, _) => {
                "not in the directory of a node: nodes/NAME/, NAME as the Node object has it".to_owned()
            }
            (Self::Own | Self::Administrator, Kind::WorkloadEndpoint) => {
                "written by nodes, each in its own nodes/NAME/ of the shared directory".to_owned()
            }
            (Self::Administrator, Kind::Configuration) => {
                "settings are each node's own: put them into its directory of --config".to_owned()
            }
            (Self::Own | Self::Administrator, _) => return decoded,
        };
        let message = format!("{key}: {refusal}");
        let severity = Severity::Error;
        let line = decoded.line;
        let finding = Finding { severity, line, column: 1, path: "kind".to_owned(), message };
        // Without a key: it claims no name that belongs to somebody else.
        Decoded { key: None, object: None, line, findings: vec![finding] }
    }
}
