//! Rules of which one must match, by the paths that they are about.

use std::cmp::Ordering;
use std::sync::Arc;

use expression::Matcher;
use mesh::l7::Mismatch;

use super::paths::{self, Paths};
use super::work::{Exhausted, Work};
use super::{Edit, HeaderMatcher, Subject};

/// Rules of which one must match.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Arc<[Rule]>,
    paths: Paths,
    /// Numbers of the rules that look at no path, ascending.
    anywhere: Box<[u32]>,
}

/// One rule: every part that is there must match.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The whole `:path`.
    pub path: Option<Arc<Matcher>>,
    /// The method.
    pub method: Option<Arc<Matcher>>,
    /// Whether the method's expression is the word CONNECT, or words of which it is one.
    pub names_connect: bool,
    /// The authority.
    pub host: Option<Arc<Matcher>>,
    /// The headers.
    pub headers: Arc<[HeaderMatcher]>,
}

impl RuleSet {
    /// The rules, in the order in which they are written.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The first rule that a request matches, its path read as `path`.
    pub fn find(
        &self,
        request: &impl Subject,
        path: &[u8],
        work: &mut Work,
    ) -> Result<Option<&Rule>, Exhausted> {
        work.take(0)?;
        let mut search = Search { set: self, request, path, headers: None, best: None };
        search.look_at(&self.anywhere, work, |_| Ok(true))?;
        for hit in self.paths.hits(path) {
            match hit.rest {
                None => search.look_at(hit.numbers, work, |_| Ok(true))?,
                Some((rest, from)) => search.look_at(hit.numbers, work, |work| {
                    work.expression(path.len() - from)?;
                    Ok(rest.is_match(path, from))
                })?,
            }
        }
        Ok(search.best.map(|(_, rule)| rule))
    }
}

/// A [`RuleSet`] in the making: a rule at a time, then a branch of their paths at a time.
#[derive(Debug)]
pub(super) struct Building {
    rules: Arc<[Rule]>,
    next: u32,
    paths: paths::Building,
    anywhere: Vec<u32>,
}

impl Building {
    /// Of rules in the order in which they are written.
    pub(super) fn new(rules: Arc<[Rule]>) -> Self {
        Self { rules, next: 0, paths: paths::Building::default(), anywhere: Vec::new() }
    }

    /// Goes on; what that took, and nothing once it is done.
    pub(super) fn step(&mut self) -> Option<usize> {
        let Some(rule) = self.rules.get(self.next as usize) else {
            return self.paths.write().then_some(1);
        };
        let branches = match &rule.path {
            Some(path) => self.paths.sort(self.next, path),
            None => {
                self.anywhere.push(self.next);
                0
            }
        };
        self.next += 1;
        Some(1 + branches)
    }

    /// What it has come to.
    pub(super) fn finish(self) -> RuleSet {
        let Self { rules, paths, anywhere, .. } = self;
        RuleSet { rules, paths: paths.finish(), anywhere: anywhere.into() }
    }
}

/// A request on its way through the rules.
struct Search<'a, 'r, S> {
    set: &'a RuleSet,
    request: &'r S,
    path: &'r [u8],
    /// About how many bytes a look for one of its headers compares, once that is known.
    headers: Option<usize>,
    best: Option<(u32, &'a Rule)>,
}

impl<S: Subject> Search<'_, '_, S> {
    /// Looks for an earlier rule among these, whose paths match if `matches` says so, which is asked once and only if it matters.
    fn look_at(
        &mut self,
        numbers: &[u32],
        work: &mut Work,
        mut matches: impl FnMut(&mut Work) -> Result<bool, Exhausted>,
    ) -> Result<(), Exhausted> {
        let mut is_match = None;
        for number in numbers {
            if self.best.is_some_and(|(best, _)| best <= *number) {
                return Ok(());
            }
            let Some(rule) = self.set.rules.get(*number as usize) else { return Ok(()) };
            let headers = match rule.headers.len() {
                0 => 0,
                count => count * *self.headers.get_or_insert_with(|| 8 * self.request.names().count()),
            };
            let host = rule.host.as_ref().map_or(0, |host| host.cost(self.request.authority().len()));
            let method = rule.method.as_ref().map_or(0, |method| method.cost(self.request.method().len()));
            work.rule(headers + host + method)?;
            if !rule.allows_method(self.request, self.path) {
                continue;
            }
            let is_match = match is_match {
                Some(known) => known,
                None => *is_match.insert(matches(work)?),
            };
            if !is_match {
                return Ok(());
            }
            if rule.allows_rest(self.request) {
                self.best = Some((*number, rule));
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Rule {
    /// CONNECT only where the rule says so: it names that method, not just any, and no path, which CONNECT has not unless it
    /// asks for a protocol (RFC 8441).
    fn allows_method(&self, request: &impl Subject, path: &[u8]) -> bool {
        let method = request.method();
        let is_connect = method == b"CONNECT";
        !(is_connect && (!self.names_connect || self.path.is_some() && path.is_empty()))
            && self.method.as_ref().is_none_or(|matcher| matcher.is_match(method))
    }

    /// Host and headers.
    fn allows_rest(&self, request: &impl Subject) -> bool {
        self.allows_host(request) && self.unmet(request).next().is_none()
    }

    fn allows_host(&self, request: &impl Subject) -> bool {
        self.host.as_ref().is_none_or(|matcher| matcher.is_match(request.authority()))
    }

    /// Headers for which it does not match.
    fn unmet(&self, request: &impl Subject) -> impl Iterator<Item = &HeaderMatcher> {
        self.headers.iter().filter(|header| header.mismatch == Mismatch::Deny && !header.is_met(request))
    }

    /// What of a request, its path read as `path`, does not match; nothing: it matches.
    pub fn differs(&self, request: &impl Subject, path: &[u8]) -> Vec<String> {
        let named = [
            ("method", self.allows_method(request, path)),
            ("path", self.path.as_ref().is_none_or(|matcher| matcher.is_match(path))),
            ("host", self.allows_host(request)),
        ];
        let named = named.into_iter().filter(|(_, matches)| !matches).map(|(name, _)| name.to_owned());
        named.chain(self.unmet(request).map(|header| format!("header {}", header.name))).collect()
    }

    /// What it wants changed of a request that it lets through.
    pub fn edits<'a>(&'a self, request: &impl Subject, edits: &mut Vec<Edit<'a>>) {
        for header in self.headers.iter().filter(|header| !header.is_met(request)) {
            header.edit(edits);
        }
    }

    /// Whether it wants it to be said of a request that it lets through that a header is not as it should be.
    pub fn logs(&self, request: &impl Subject) -> bool {
        self.headers.iter().any(|header| header.mismatch == Mismatch::Log && !header.is_met(request))
    }

    /// What it consists of; expressions that are alike are the same ones.
    fn parts(&self) -> ([usize; 3], &[HeaderMatcher], bool) {
        let address =
            |matcher: &Option<Arc<Matcher>>| matcher.as_ref().map_or(0, |it| Arc::as_ptr(it) as usize);
        ([address(&self.path), address(&self.method), address(&self.host)], &self.headers, self.names_connect)
    }
}

/// In no order that means anything: by which expressions they have.
impl Ord for Rule {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl PartialOrd for Rule {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rule {}
