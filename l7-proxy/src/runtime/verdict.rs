//! Both ends' say about a request, whatever HTTP it came in.

use super::ends::Ends;
use super::reply::Reply;
use super::turn;
use crate::index::{Edit, Rule, Subject};
use crate::stage::authorize::Judge;
use crate::stage::normalise::{Looks, Path};
use mesh::flow::Verdict;

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

/// What there is to say of a request that may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Noted {
    /// Which of [`Ends::judges`] says so; `None`: whoever speaks of the connection.
    pub(super) by: Option<usize>,
    /// What became of it: forwarded, or by audit mode only.
    pub(super) verdict: Verdict,
    /// Why that, or what else there is about it.
    pub(super) reason: Option<&'static str>,
}

impl Noted {
    const NOTHING: Self = Self { by: None, verdict: Verdict::Forwarded, reason: None };

    fn audited(by: usize, reason: &'static str) -> Self {
        Self { by: Some(by), verdict: Verdict::Audit, reason: Some(reason) }
    }
}

/// A request that lacks what a rule with `mismatch: LOG` looks at.
const MISMATCH: &str = "header other than a rule with mismatch LOG has it";

/// A request that can be judged and, where rules ask for it, changed.
pub(super) trait Judged {
    /// What rules look at.
    fn subject(&self) -> impl Subject;
    /// Its path.
    fn path(&self) -> &Path;
    /// Brings it into its one form, as far as somebody looks.
    fn normalise(&mut self, looks: Looks) -> Result<(), &'static str>;
    /// Changes its headers; what is judged next is what will be sent.
    fn edit(&mut self, edits: &[Edit<'_>]) -> Result<(), &'static str>;
}

/// Who is told what each end's rules say.
pub(super) trait Hears {
    /// The one of [`Ends::judges`] of that number was asked about this request, and has said this.
    fn hear(
        &mut self,
        by: usize,
        judge: &Judge,
        request: &impl Judged,
        said: Result<Option<&Rule>, &'static str>,
    );
}

/// Nobody is.
impl Hears for () {
    fn hear(&mut self, _: usize, _: &Judge, _: &impl Judged, _: Result<Option<&Rule>, &'static str>) {}
}

/// Brings a request into its one form and asks both ends' rules. It counts for the turn: after a long one nobody goes on.
pub(super) fn authorize(request: &mut impl Judged, ends: &Ends) -> Result<Noted, Refused> {
    let said = authorize_heard(request, ends, &mut ());
    turn::judged();
    said
}

/// The same, and somebody is told who has said what.
pub(super) fn authorize_heard(
    request: &mut impl Judged,
    ends: &Ends,
    hears: &mut impl Hears,
) -> Result<Noted, Refused> {
    let denied = |by, reason| Refused { reply: Reply::Denied, reason, by };
    if let Some(reason) = ends.refusal {
        return Err(denied(None, reason));
    }
    let looking = |enforced: bool| {
        let looks = |judge: &Judge| judge.looks_at_paths() && (!enforced || !judge.audit);
        ends.judges.iter().position(|judge| judge.as_ref().is_some_and(looks))
    };
    let mut noted = Noted::NOTHING;
    let mut is_unread = false;
    match (looking(true), looking(false)) {
        (Some(by), _) => {
            let refused = |reason| Refused { by: Some(by), ..Refused::malformed(reason) };
            request.normalise(Looks::Rules).map_err(refused)?;
        }
        // Who only reports must not change what comes, nor keep it away because he cannot read it.
        (None, Some(by)) => {
            if let Err(reason) = request.normalise(Looks::Audit) {
                (noted, is_unread) = (Noted::audited(by, reason), true);
                request.normalise(Looks::Nobody).map_err(Refused::malformed)?;
            }
        }
        (None, None) => request.normalise(Looks::Nobody).map_err(Refused::malformed)?,
    }
    for (by, judge) in ends.judges.iter().enumerate() {
        let Some(judge) = judge else { continue };
        if is_unread && judge.looks_at_paths() {
            continue;
        }
        let said = judge.judge(&request.subject(), request.path());
        hears.hear(by, judge, &*request, said);
        let rule = match said {
            Ok(rule) => rule,
            Err(reason) if judge.audit => {
                noted = Noted::audited(by, reason);
                continue;
            }
            Err(reason) => return Err(denied(Some(by), reason)),
        };
        if noted == Noted::NOTHING && rule.is_some_and(|rule| rule.logs(&request.subject())) {
            noted = Noted { by: Some(by), reason: Some(MISMATCH), ..noted };
        }
        let edits = Judge::edits(rule, &request.subject());
        if !edits.is_empty() {
            request.edit(&edits).map_err(Refused::malformed)?;
        }
    }
    Ok(noted)
}

/// Whether what has passed may still pass; it counts for the turn likewise. What came when no rule looked at paths is brought
/// into its one form now.
pub(super) fn is_still_allowed(request: &impl Subject, path: &Path, ends: &Ends) -> bool {
    let overdue = match ends.judges.iter().flatten().any(Judge::looks_at_paths) {
        true => path.overdue(),
        false => None,
    };
    let allows = |judge: &Judge| match &overdue {
        _ if judge.audit => true,
        Some(Err(_)) if judge.looks_at_paths() => false,
        Some(Ok(path)) => judge.judge(request, path).is_ok(),
        Some(Err(_)) | None => judge.judge(request, path).is_ok(),
    };
    let is_allowed = ends.refusal.is_none() && ends.judges.iter().flatten().all(allows);
    turn::judged();
    is_allowed
}
