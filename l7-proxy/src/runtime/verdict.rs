//! Both ends' say about a request, whatever HTTP it came in.

use super::ends::Ends;
use super::reply::Reply;
use crate::index::{Edit, Subject};
use crate::stage::authorize::Judge;
use crate::stage::normalise::Path;

/// Why a request does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) reply: Reply,
    pub(super) reason: &'static str,
    /// Which of [`Ends::judges`] said so; `None`: any would have.
    pub(super) by: Option<usize>,
}

impl Refused {
    /// It is none that can be judged.
    pub(super) fn malformed(reason: &'static str) -> Self {
        Self { reply: Reply::BadRequest, reason, by: None }
    }
}

/// What audit mode let pass: which judge, and what it said.
pub(super) type Audited = Option<(usize, &'static str)>;

/// A request that can be judged and, where rules ask for it, changed.
pub(super) trait Judged {
    /// What rules look at.
    fn subject(&self) -> impl Subject;
    /// Its path.
    fn path(&self) -> &Path;
    /// Brings it into its one form; `looks`: a rule looks at its path.
    fn normalise(&mut self, looks: bool) -> Result<(), &'static str>;
    /// Changes its headers; what is judged next is what will be sent.
    fn edit(&mut self, edits: &[Edit<'_>]) -> Result<(), &'static str>;
}

/// Brings a request into its one form and asks both ends' rules.
pub(super) fn authorize(request: &mut impl Judged, ends: &Ends) -> Result<Audited, Refused> {
    let denied = |by, reason| Refused { reply: Reply::Denied, reason, by };
    if let Some(reason) = ends.refusal {
        return Err(denied(None, reason));
    }
    let looks = |judge: &Judge| !judge.is_plain() && judge.asks.as_ref().is_some_and(|asks| asks.path);
    let looking = ends.judges.iter().position(|judge| judge.as_ref().is_some_and(looks));
    let refused = |reason| Refused { by: looking, ..Refused::malformed(reason) };
    request.normalise(looking.is_some()).map_err(refused)?;
    let mut audited = None;
    for (by, judge) in ends.judges.iter().enumerate() {
        let Some(judge) = judge else { continue };
        let edits = match judge.judge(&request.subject(), request.path()) {
            Ok(rule) => Judge::edits(rule, &request.subject()),
            Err(reason) if judge.audit => {
                audited = Some((by, reason));
                continue;
            }
            Err(reason) => return Err(denied(Some(by), reason)),
        };
        if !edits.is_empty() {
            request.edit(&edits).map_err(Refused::malformed)?;
        }
    }
    Ok(audited)
}

/// Whether what has passed may still pass.
pub(super) fn is_still_allowed(request: &impl Subject, path: &Path, ends: &Ends) -> bool {
    let allows = |judge: &Judge| judge.audit || judge.judge(request, path).is_ok();
    ends.refusal.is_none() && ends.judges.iter().flatten().all(allows)
}
