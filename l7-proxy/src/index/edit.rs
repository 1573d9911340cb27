//! What rules want of headers.

use mesh::l7::Mismatch;

use super::Subject;

/// What a header must be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HeaderMatcher {
    /// Its name in lower case.
    pub name: Box<str>,
    /// The value that each of its lines must have, of which there must be one; `None`: it must be there.
    pub value: Option<Box<str>>,
    /// What is done where it is not so.
    pub mismatch: Mismatch,
}

/// A change of a request's headers that a rule asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edit<'a> {
    /// This line is added.
    Add(&'a str, &'a str),
    /// All lines of this name go.
    Delete(&'a str),
}

impl HeaderMatcher {
    /// Whether the header is there, and no line of it is another value: an origin may read any of them.
    pub(super) fn is_met(&self, request: &impl Subject) -> bool {
        let mut lines = request.header(&self.name).peekable();
        lines.peek().is_some()
            && self.value.as_ref().is_none_or(|value| lines.all(|line| line == value.as_bytes()))
    }

    /// What is done where it is not met.
    pub(super) fn edit<'a>(&'a self, edits: &mut Vec<Edit<'a>>) {
        let value = self.value.as_deref().unwrap_or_default();
        match self.mismatch {
            Mismatch::Deny | Mismatch::Log => {}
            Mismatch::Add => edits.push(Edit::Add(&self.name, value)),
            Mismatch::Delete => edits.push(Edit::Delete(&self.name)),
            Mismatch::Replace => edits.extend([Edit::Delete(&self.name), Edit::Add(&self.name, value)]),
        }
    }
}
