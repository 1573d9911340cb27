//! What is known of an exchange while it goes, and what is kept of it when it is over: a line of the access log where one is
//! written, and counts by the pair of its ends always.
//!
//! Promise: exchanges are kept up to a bound and those beyond are counted as lost; counts are never lost: pairs that there
//! is no room for are counted together.

mod counts;
mod flag;
mod request_id;

use mesh::access_log::Headers;
use mesh::exchange::Flag;
use mesh::flow::Verdict;
use tokio::time::Instant;

pub(crate) use counts::Counts;
pub(crate) use flag::flag;
pub(crate) use request_id::{REQUEST_ID, RequestIds};

/// What is kept of a header's value, bytes.
const MAX_VALUE: usize = 1024;

/// Headers of a message, by name in lower case.
type Kept = Vec<(String, String)>;

/// An exchange under way.
#[derive(Debug, Default)]
pub(crate) struct Course {
    /// There is one.
    pub(crate) is_begun: bool,
    /// When it went to the server.
    pub(crate) passed: Option<Instant>,
    /// From its first byte to the first of the answer, nanoseconds.
    pub(crate) answered: Option<u64>,
    pub(crate) code: Option<u16>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) reason: Option<&'static str>,
    /// The client has gone.
    pub(crate) is_left: bool,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) request: Kept,
    pub(crate) response: Kept,
}

/// Why a client that goes away is no reason of the proxy's: as Envoy says it.
const LEFT: &str = "downstream remote disconnect";

impl Course {
    /// What has been said of it: the first reason counts, and the worst verdict.
    pub(crate) fn note(
        &mut self,
        verdict: Verdict,
        reason: Option<&'static str>,
        answer: Option<(u16, u64)>,
    ) {
        // Of what passes a reason says something else.
        if verdict == Verdict::Dropped || answer.is_some() {
            self.reason = self.reason.or(reason);
        }
        let is_worse = match (self.verdict, verdict) {
            (None, _) | (_, Verdict::Dropped) => true,
            (Some(before), Verdict::Audit) => before == Verdict::Forwarded,
            (Some(_), Verdict::Forwarded) => false,
        };
        if is_worse {
            self.verdict = Some(verdict);
        }
        if let Some((code, latency)) = answer {
            self.code = self.code.or(Some(code));
            self.answered = self.answered.or(Some(latency));
        }
    }

    /// Why it was not as it should be.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        self.reason.or(self.is_left.then_some(LEFT))
    }

    /// The same for machines.
    pub(crate) fn flag(&self) -> Option<Flag> {
        match self.reason {
            Some(reason) => flag(reason, self.code),
            None => self.is_left.then_some(Flag::Dc),
        }
    }

    /// How long the server took to answer what began then, if it was not the proxy that did it in its place.
    pub(crate) fn served(&self, since: Instant) -> Option<u64> {
        let is_servers = self.reason.is_none() || self.verdict == Some(Verdict::Dropped);
        let before = self.passed?.checked_duration_since(since)?;
        let served = self.answered?.checked_sub(u64::try_from(before.as_nanos()).ok()?);
        served.filter(|_| is_servers)
    }
}

/// The headers of a message that are to be kept, by what it says of a name: the first line of each.
pub(crate) fn keep<'a>(names: &[String], mut first: impl FnMut(&str) -> Option<&'a [u8]>) -> Kept {
    let kept = names.iter().filter_map(|name| {
        let value = first(name)?;
        let value = value.get(..MAX_VALUE).unwrap_or(value);
        Some((name.clone(), String::from_utf8_lossy(value).into_owned()))
    });
    kept.collect()
}

/// Names of requests' headers to keep; none where no exchange is.
pub(crate) fn names(headers: Option<&Headers>, of: fn(&Headers) -> &Vec<String>) -> &[String] {
    headers.map_or(&[], |headers| of(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts_and_the_worst_verdict() {
        let mut course = Course::default();
        course.note(Verdict::Audit, Some("no rule lets it through"), None);
        assert_eq!((course.verdict, course.reason()), (Some(Verdict::Audit), None));
        course.note(Verdict::Forwarded, None, Some((200, 7)));
        assert_eq!((course.verdict, course.code), (Some(Verdict::Audit), Some(200)));
        course.note(Verdict::Dropped, Some("truncated body"), Some((502, 9)));
        assert_eq!((course.verdict, course.code), (Some(Verdict::Dropped), Some(200)));
        assert_eq!((course.reason(), course.answered), (Some("truncated body"), Some(7)));
    }

    #[test]
    fn long_values_are_cut_and_headers_that_are_not_there_are_left_out() {
        let long = [b'a'; 2 * MAX_VALUE];
        let names = ["x-a", "x-b"].map(str::to_owned);
        let kept = keep(&names, |name| (name == "x-b").then_some(long.as_slice()));
        assert_eq!(kept, [("x-b".to_owned(), "a".repeat(MAX_VALUE))]);
    }
}
