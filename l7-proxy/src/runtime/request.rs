//! One request on its way through the stages: its head as it came, or as it has been written anew.

use super::ends::Ends;
use super::rewrite::rewrite;
use super::verdict::{Hears, Judged, Noted, Refused, authorize_heard, is_still_allowed};
use crate::codec::{Fault, Form, RequestHead};
use crate::index::{Edit, Subject};
use crate::stage::normalise::{Looks, Path, TargetFault};

/// What one that is at rest keeps for the next, bytes of each part.
const RESTS: usize = 1024;

/// A request. Made to be used again.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) head: RequestHead,
    pub(super) path: Path,
    /// The head that is forwarded in place of the one that came.
    edited: Vec<u8>,
    spare: Vec<u8>,
    is_edited: bool,
}

/// A request as rules look at it.
pub(super) struct View<'a> {
    bytes: &'a [u8],
    head: &'a RequestHead,
    path: &'a Path,
}

impl Subject for View<'_> {
    fn method(&self) -> &[u8] {
        self.head.method.bytes(self.bytes)
    }

    fn path(&self) -> &[u8] {
        self.path.canonical()
    }

    fn authority(&self) -> &[u8] {
        self.head.authority.bytes(self.bytes)
    }

    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.head.values(self.bytes, name)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.head.headers.iter().map(|header| header.name.bytes(self.bytes))
    }
}

impl Request {
    /// Reads the head in `input[start..end]`.
    pub(super) fn parse(&mut self, input: &[u8], start: usize, end: usize) -> Result<(), Fault> {
        self.is_edited = false;
        self.head.parse(input, start, end)
    }

    /// Gives back what a long one has taken, once it is over.
    pub(super) fn rest(&mut self) {
        self.path.rest();
        for bytes in [&mut self.edited, &mut self.spare] {
            if bytes.capacity() > RESTS {
                *bytes = Vec::new();
            }
        }
    }

    /// The bytes that [`Request::head`] has spans into.
    pub(super) fn source<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        if self.is_edited { &self.edited } else { input }
    }

    /// The head that goes in place of the one that came; empty: that one goes.
    pub(super) fn lead(&self) -> &[u8] {
        if self.is_edited { &self.edited } else { &[] }
    }

    /// Brings the head of `input` into its one form and asks both ends' rules.
    pub(super) fn authorize(&mut self, input: &[u8], ends: &Ends) -> Result<Noted, Refused> {
        self.authorize_heard(input, ends, &mut ())
    }

    /// The same, and somebody is told who has said what.
    pub(super) fn authorize_heard(
        &mut self,
        input: &[u8],
        ends: &Ends,
        hears: &mut impl Hears,
    ) -> Result<Noted, Refused> {
        let noted = authorize_heard(&mut Incoming { request: self, input }, ends, hears)?;
        if (self.head.upgrade || self.head.form == Form::Authority) && !self.is_edited {
            // What is asked for is looked at again when it is answered, and whenever rules change.
            self.rewrite(input, false, &[]).map_err(Refused::malformed)?;
        }
        Ok(noted)
    }

    /// Whether what was asked for may still be: for a connection that has been handed over to it.
    pub(super) fn is_still_allowed(&self, ends: &Ends) -> bool {
        is_still_allowed(&self.view(&[]), &self.path, ends)
    }

    /// Whether it has a header.
    pub(super) fn has(&self, input: &[u8], name: &str) -> bool {
        self.head.values(self.source(input), name).next().is_some()
    }

    /// Adds a header that no rule asks for.
    pub(super) fn add(&mut self, input: &[u8], name: &str, value: &str) -> Result<(), &'static str> {
        self.rewrite(input, false, &[Edit::Add(name, value)])
    }

    /// Whether a protocol was asked for.
    pub(super) fn asks_for(&self, protocol: &[u8]) -> bool {
        let mut values = self.head.values(&self.edited, "upgrade").flat_map(crate::codec::elements);
        self.is_edited && self.head.upgrade && values.any(|asked| asked.eq_ignore_ascii_case(protocol))
    }

    fn view<'a>(&'a self, input: &'a [u8]) -> View<'a> {
        View { bytes: self.source(input), head: &self.head, path: &self.path }
    }

    fn normalise(&mut self, input: &[u8], looks: Looks) -> Result<(), &'static str> {
        match self.head.form {
            Form::Asterisk => self.path.keep(b"*"),
            Form::Authority => self.path.keep(b""),
            Form::Origin | Form::Absolute => {
                self.path.take(self.head.path.bytes(input), looks).map_err(TargetFault::text)?;
            }
        }
        if self.path.is_changed() || self.head.upgrade_carries_requests {
            self.rewrite(input, self.path.is_changed(), &[])?;
        }
        Ok(())
    }

    /// Writes the head anew and reads it again: what is judged next is what will be sent.
    fn rewrite(&mut self, input: &[u8], has_path: bool, edits: &[Edit<'_>]) -> Result<(), &'static str> {
        let mut out = std::mem::take(&mut self.spare);
        let path = has_path.then(|| self.path.canonical());
        rewrite(self.source(input), &self.head, path, edits, &mut out);
        self.spare = std::mem::replace(&mut self.edited, out);
        self.is_edited = true;
        self.head.parse_edited(&self.edited).map_err(Fault::text)
    }
}

/// A request, and the bytes that its head came in.
struct Incoming<'a> {
    request: &'a mut Request,
    input: &'a [u8],
}

impl Judged for Incoming<'_> {
    fn subject(&self) -> impl Subject {
        self.request.view(self.input)
    }

    fn path(&self) -> &Path {
        &self.request.path
    }

    fn normalise(&mut self, looks: Looks) -> Result<(), &'static str> {
        self.request.normalise(self.input, looks)
    }

    fn edit(&mut self, edits: &[Edit<'_>]) -> Result<(), &'static str> {
        self.request.rewrite(self.input, false, edits)
    }
}
