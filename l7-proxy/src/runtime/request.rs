//! One request on its way through the stages: its head as it came, or as it has been written anew.

use super::ends::Ends;
use super::reply::Reply;
use super::rewrite::rewrite;
use crate::codec::{Fault, Form, RequestHead};
use crate::index::{Edit, Subject};
use crate::stage::authorize::Judge;
use crate::stage::normalise::Path;

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

/// Why a request does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) reply: Reply,
    pub(super) reason: &'static str,
    /// Which of [`Ends::judges`] said so; `None`: any would have.
    pub(super) by: Option<usize>,
}

/// What audit mode let pass: which judge, and what it said.
pub(super) type Audited = Option<(usize, &'static str)>;

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
}

impl Request {
    /// Reads the head in `input[start..end]`.
    pub(super) fn parse(&mut self, input: &[u8], start: usize, end: usize) -> Result<(), Fault> {
        self.is_edited = false;
        self.head.parse(input, start, end)
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
    pub(super) fn authorize(&mut self, input: &[u8], ends: &Ends) -> Result<Audited, Refused> {
        let denied = |by, reason| Refused { reply: Reply::Denied, reason, by };
        if let Some(reason) = ends.refusal {
            return Err(denied(None, reason));
        }
        self.normalise(input, ends)?;
        let mut audited = None;
        for (by, judge) in ends.judges.iter().enumerate() {
            let Some(judge) = judge else { continue };
            let view = self.view(input);
            match judge.judge(&view, &self.path) {
                Ok(rule) => {
                    let edits = Judge::edits(rule, &view);
                    if !edits.is_empty() {
                        self.rewrite(input, false, &edits)?;
                    }
                }
                Err(reason) if judge.audit => audited = Some((by, reason)),
                Err(reason) => return Err(denied(Some(by), reason)),
            }
        }
        if (self.head.upgrade || self.head.form == Form::Authority) && !self.is_edited {
            // What is asked for is looked at again when it is answered, and whenever rules change.
            self.rewrite(input, false, &[])?;
        }
        Ok(audited)
    }

    /// Whether what was asked for may still be: for a connection that has been handed over to it.
    pub(super) fn is_still_allowed(&self, ends: &Ends) -> bool {
        let view = self.view(&[]);
        let allows = |judge: &Judge| judge.audit || judge.judge(&view, &self.path).is_ok();
        ends.refusal.is_none() && ends.judges.iter().flatten().all(allows)
    }

    /// Whether a protocol was asked for.
    pub(super) fn asks_for(&self, protocol: &[u8]) -> bool {
        let mut values = self.head.values(&self.edited, "upgrade").flat_map(crate::codec::elements);
        self.is_edited && self.head.upgrade && values.any(|asked| asked.eq_ignore_ascii_case(protocol))
    }

    fn view<'a>(&'a self, input: &'a [u8]) -> View<'a> {
        View { bytes: self.source(input), head: &self.head, path: &self.path }
    }

    fn normalise(&mut self, input: &[u8], ends: &Ends) -> Result<(), Refused> {
        let looks = |judge: &Judge| !judge.is_plain() && judge.asks.as_ref().is_some_and(|asks| asks.path);
        match self.head.form {
            Form::Asterisk => self.path.keep(b"*"),
            Form::Authority => self.path.keep(b""),
            Form::Origin | Form::Absolute if ends.judges.iter().flatten().any(looks) => {
                let path = self.head.path.bytes(input);
                let refused =
                    |fault: crate::stage::normalise::TargetFault| bad_request(fault.text(), ends, looks);
                self.path.normalise(path).map_err(refused)?;
            }
            Form::Origin | Form::Absolute => self.path.keep(self.head.path.bytes(input)),
        }
        if self.path.is_changed() || self.head.upgrade_http2 {
            self.rewrite(input, self.path.is_changed(), &[])?;
        }
        Ok(())
    }

    /// Writes the head anew and reads it again: what is judged next is what will be sent.
    fn rewrite(&mut self, input: &[u8], has_path: bool, edits: &[Edit<'_>]) -> Result<(), Refused> {
        let mut out = std::mem::take(&mut self.spare);
        let path = has_path.then(|| self.path.canonical());
        rewrite(self.source(input), &self.head, path, edits, &mut out);
        self.spare = std::mem::replace(&mut self.edited, out);
        self.is_edited = true;
        let refused = |fault: Fault| Refused { reply: Reply::BadRequest, reason: fault.text(), by: None };
        self.head.parse(&self.edited, 0, self.edited.len()).map_err(refused)
    }
}

fn bad_request(reason: &'static str, ends: &Ends, looks: impl Fn(&Judge) -> bool) -> Refused {
    let by = ends.judges.iter().position(|judge| judge.as_ref().is_some_and(&looks));
    Refused { reply: Reply::BadRequest, reason, by }
}
