//! YAML as a tree that remembers where everything stood, and a cursor over it that collects what is wrong.
//!
//! Promise: any bytes lead to documents and findings, never to a panic, and never to more than a bounded number of
//! nodes. Serde's derive was rejected: it stops at the first error, and its errors carry either a line or a path; the
//! person who must fix the file needs both, and all of them.

mod cursor;
mod tree;

pub(crate) use cursor::nearest;
pub(crate) use cursor::{At, Fields};
pub(crate) use tree::{Document, Node, Place, Value, documents, quoted};

use std::cell::RefCell;
use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Hint,
    /// In force, but not as the author may think.
    Warning,
    /// Not in force.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hint => "hint",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something to say about one place of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// The field, `spec.ingress[0].toPorts`; empty for a whole document.
    pub path: String,
    /// What was found, what is accepted.
    pub message: String,
}

impl fmt::Display for Finding {
    /// `path: message`; the caller knows the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => f.write_str(&self.message),
            false => write!(f, "{}: {}", self.path, self.message),
        }
    }
}

/// Where a cursor puts its findings. Bounded: after [`Findings::MOST`] further ones are dropped, except that the first
/// error is always kept.
#[derive(Debug, Default)]
pub(crate) struct Findings(RefCell<Vec<Finding>>);

impl Findings {
    /// The most findings kept of one document.
    pub(crate) const MOST: usize = 64;

    pub(crate) fn add(&self, finding: Finding) {
        let mut all = self.0.borrow_mut();
        // A reader may ask twice for the same value.
        if all.contains(&finding) {
            return;
        }
        let first_error =
            finding.severity == Severity::Error && !all.iter().any(|f| f.severity == Severity::Error);
        if all.len() < Self::MOST || first_error {
            all.push(finding);
        }
    }

    /// Whether some finding is an error.
    pub(crate) fn failed(&self) -> bool {
        self.0.borrow().iter().any(|finding| finding.severity == Severity::Error)
    }

    /// The findings in order of their places.
    pub(crate) fn into_vec(self) -> Vec<Finding> {
        let mut all = self.0.into_inner();
        all.sort_by_key(|finding| (finding.line, finding.column));
        all
    }
}
