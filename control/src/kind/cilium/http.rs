//! `rules.http`: what a request must be like.
//!
//! As Cilium reads it: an empty text asks for nothing, an empty item lets every request through (and the proxy sees it),
//! an empty list is no rules at all. Beyond Cilium's own checks, what could not be enforced is refused, by the word of who
//! enforces it: an expression that the proxy would not take, more of them than one object may have, more than it may have at all
//! ranges of ports together, a header that is none, an action on a header that frames messages. So is what no request could
//! match: no method at all, two values of one header.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use expression::{Account, Budget, ExpressionError, Expressions, MAX_METHOD, METHODS, Matcher};
use mesh::flow::TrafficDirection;
use mesh::l7::{Expression, HeaderFault, HeaderRule, HttpRule, HttpRules, Mismatch, OBJECT_PARTS};
use mesh::policy::{Side, l7};

use super::expression::differs;
use crate::yaml::{At, Fields, nearest, quoted};

const ACTIONS: [(Mismatch, &str); 4] = [
    (Mismatch::Log, "LOG"),
    (Mismatch::Add, "ADD"),
    (Mismatch::Delete, "DELETE"),
    (Mismatch::Replace, "REPLACE"),
];

/// What the rules of one object have taken of what it may have.
#[derive(Debug)]
pub(super) struct Taken(RefCell<Inner>);

#[derive(Debug)]
struct Inner {
    expressions: Expressions,
    account: Account,
    rules: usize,
    /// What its rules come to at all ranges of ports.
    parts: usize,
    /// It has been said that there is no more.
    is_spent: bool,
}

thread_local! {
    /// Expressions of the objects that were read last: an edit changes few of an object's, and what an object may have does not
    /// depend on what is there.
    static KNOWN: Cell<Option<Expressions>> = const { Cell::new(None) };
}

/// So many expressions, and KiB of automata, may be kept there.
const MOST_KNOWN: usize = 16 << 10;

impl Default for Taken {
    fn default() -> Self {
        let (expressions, account) = (KNOWN.take().unwrap_or_default(), Account::new(Budget::OBJECT));
        Self(RefCell::new(Inner { expressions, account, rules: 0, parts: 0, is_spent: false }))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let expressions = std::mem::take(&mut self.0.get_mut().expressions);
        if expressions.made() <= MOST_KNOWN {
            KNOWN.set(Some(expressions));
        }
    }
}

impl Taken {
    /// Whether the object may have so many more rules; says it if not.
    fn rules(&self, at: &At<'_>, count: usize) -> bool {
        let (mut inner, most) = (self.0.borrow_mut(), Budget::OBJECT.rules);
        inner.rules += count;
        let fits = inner.rules <= most;
        if !fits && !std::mem::replace(&mut inner.is_spent, true) {
            at.error(format_args!(
                "with these, {} rules in one object, at most {most} can be used; write several",
                inner.rules
            ));
        }
        fits
    }

    /// Counts what the rules of a side come to at all its ranges of ports; says it if that is too much.
    pub(super) fn ranges(&self, at: &At<'_>, side: &Side, direction: TrafficDirection) {
        let mut inner = self.0.borrow_mut();
        if side.allow.iter().all(|statement| statement.l7.is_none()) || inner.is_spent {
            return;
        }
        inner.parts += l7::parts(side, direction, OBJECT_PARTS);
        if inner.parts > OBJECT_PARTS {
            inner.is_spent = true;
            at.error(format_args!(
                "with these, rules that come to more than {OBJECT_PARTS} at all ranges of ports together (alternatives \
                 and headers are counted, and lists for each range where others hold beside them); name fewer ranges, \
                 or fewer rules for many ports"
            ));
        }
    }

    /// Whether the object may have this header among those that its rules look at; says it if not.
    fn header(&self, at: &At<'_>, rule: &HeaderRule) -> bool {
        let inner = &mut *self.0.borrow_mut();
        let taken = inner.account.header(&rule.name, rule.value.as_deref());
        taken.map_err(|error| inner.say(at, &error)).is_ok()
    }

    /// Whether the proxy will take an expression; says it if not.
    fn expression(&self, at: &At<'_>, text: &str, name: &str) -> bool {
        let inner = &mut *self.0.borrow_mut();
        let matcher = match inner.account.matcher(text, name == "host", &mut inner.expressions) {
            Ok(matcher) => matcher,
            Err(error) => {
                inner.say(at, &error);
                return false;
            }
        };
        match name {
            "path" => {
                if let Some(why) = matcher.never_a_path() {
                    at.warn(format_args!("no path matches it: {why}"));
                }
                true
            }
            "method" => method(at, text, &matcher),
            _ => true,
        }
    }
}

impl Inner {
    fn say(&mut self, at: &At<'_>, error: &ExpressionError) {
        let is_spent = matches!(error, ExpressionError::Spent(_));
        // Nor would those that come then fit.
        if !is_spent || !std::mem::replace(&mut self.is_spent, true) {
            at.error(error);
        }
    }
}

/// Whether a request may have a method that matches; says it if not, or if it would be one that nobody knows.
fn method(at: &At<'_>, text: &str, matcher: &Matcher) -> bool {
    if matcher.is_known_method() {
        return true;
    }
    if !matcher.may_be_a_method() {
        at.error(format_args!(
            "no method matches it: one has 1 to {MAX_METHOD} letters, digits or !#$%&'*+-.^_`|~; several are written GET|POST"
        ));
        return false;
    }
    let unknown = "no known method matches it, and capitals count";
    match nearest(text, METHODS.into_iter()) {
        Some(near) => at.warn(format_args!("{unknown}; did you mean {near}")),
        None => at.warn(format_args!("{unknown}; only requests with a method of their own pass by it")),
    }
    true
}

/// The rules of a list; `None` for an empty one.
pub(super) fn rules(at: &At<'_>, taken: &Taken) -> Option<HttpRules> {
    let items = at.list();
    if items.is_empty() {
        at.warn("empty, so that it restricts nothing; [{}] lets every request through by way of the proxy");
        return None;
    }
    if !taken.rules(at, items.len()) {
        return None;
    }
    Some(items.iter().filter_map(|at| rule(at, taken)).collect())
}

fn rule(at: &At<'_>, taken: &Taken) -> Option<HttpRule> {
    at.mapping(|fields| {
        let names = fields.get("headers").map(|at| at.list()).unwrap_or_default();
        let matches = fields.get("headerMatches").map(|at| at.list()).unwrap_or_default();
        let headers = names.iter().filter_map(|at| Some((at, header(at, taken)?)));
        let headers = headers.chain(matches.iter().filter_map(|at| Some((at, header_match(at, taken)?))));
        let mut required = BTreeMap::new();
        let headers =
            headers.inspect(|(at, rule)| contradicts(at, rule, &mut required)).map(|(_, rule)| rule);
        HttpRule {
            headers: headers.collect(),
            path: pattern(fields, "path", taken),
            method: pattern(fields, "method", taken),
            host: pattern(fields, "host", taken),
        }
    })
}

/// Says of a header that another item of the same rule asks for another value of it.
fn contradicts(at: &At<'_>, rule: &HeaderRule, required: &mut BTreeMap<String, String>) {
    let (Some(value), Mismatch::Deny) = (&rule.value, rule.mismatch) else { return };
    let other = required.entry(rule.name.clone()).or_insert_with(|| value.clone());
    if other != value {
        at.error(format_args!(
            "found {}, but the same rule asks for {}: every line of {} must have the value, so that no request matches both; write two rules",
            quoted(value), quoted(other), rule.name
        ));
    }
}

fn pattern(fields: &Fields<'_>, name: &'static str, taken: &Taken) -> Option<Expression> {
    let at = fields.get(name)?;
    let text = at.string();
    if text.is_empty() || !taken.expression(&at, &text, name) {
        return None;
    }
    if let Some(form) = differs(&text) {
        at.error(form);
        return None;
    }
    Some(Expression(text))
}

/// An item of `headers`: `NAME`, or `NAME: VALUE`.
fn header(at: &At<'_>, taken: &Taken) -> Option<HeaderRule> {
    let text = at.string();
    let (name, value) = match text.split_once(' ') {
        Some((name, value)) => (name.trim_end_matches(':'), Some(value)),
        None => (text.as_str(), None),
    };
    let rule =
        HeaderRule { name: name.to_owned(), value: value.map(str::to_owned), mismatch: Mismatch::Deny };
    checked(rule, |_| at.clone()).filter(|rule| taken.header(at, rule))
}

fn header_match(at: &At<'_>, taken: &Taken) -> Option<HeaderRule> {
    let rule = at.mapping(|fields| {
        let secret =
            "values of headers are written in the rule, not kept in Secrets; write value, which whoever reads this object then sees";
        fields.refuse(&["secret"], secret);
        let (value, action) = (fields.get("value"), fields.get("mismatch").filter(|at| !at.is_empty()));
        let name = fields.require("name", "the name of a header")?;
        let mismatch = action.as_ref().map_or(Some(Mismatch::Deny), |at| at.one_of(&ACTIONS))?;
        let text = value.as_ref().map(At::string).filter(|value| !value.is_empty());
        let rule = HeaderRule { name: name.string(), value: text, mismatch };
        checked(rule, |fault| {
            let field = match fault {
                HeaderFault::Name => Some(name),
                HeaderFault::Value => value,
                HeaderFault::NoValue | HeaderFault::Framing => action,
            };
            field.unwrap_or_else(|| at.clone())
        })
    })?;
    rule.filter(|rule| taken.header(at, rule))
}

/// A rule that the proxy will take, its name in lower case; else it is said where.
fn checked<'a>(rule: HeaderRule, place: impl FnOnce(HeaderFault) -> At<'a>) -> Option<HeaderRule> {
    let rule = HeaderRule { name: rule.name.to_ascii_lowercase(), ..rule };
    let Err(fault) = rule.check() else { return Some(rule) };
    let at = place(fault);
    match fault {
        // That has been said.
        HeaderFault::Name if at.failed() && rule.name.is_empty() => {}
        HeaderFault::Name => at.expected("the name of a header: letters, digits and -"),
        HeaderFault::Value => at.expected("the value of a header: one line, without spaces around it"),
        HeaderFault::NoValue => at.error(fault),
        HeaderFault::Framing => {
            at.error(format_args!(
                "{} says what is requested and of whom; LOG is all that can be",
                rule.name
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_edit_leaves_is_not_compiled_again() {
        KNOWN.set(None);
        let paths = |last: &str| -> Vec<String> {
            let all = (0..1000).map(|number| format!("/v1/resource-{number}/[0-9]+"));
            all.chain([last.to_owned()]).collect()
        };
        let made = |paths: &[String]| {
            let taken = Taken::default();
            let inner = &mut *taken.0.borrow_mut();
            let before = inner.expressions.made();
            for path in paths {
                inner.account.matcher(path, false, &mut inner.expressions).unwrap();
            }
            inner.expressions.made() - before
        };
        assert!(made(&paths("/a")) > 1000);
        assert_eq!(made(&paths("/b")), 1);
        // Others drop out when there are too many.
        let hard = |object: usize| -> Vec<String> {
            (0..10).map(|number| format!("/(a|b)*a(a|b){{9}}{object}x{number}")).collect()
        };
        let mut all = 0;
        for object in 0.. {
            all += made(&hard(object));
            if all > MOST_KNOWN {
                break;
            }
        }
        assert!(made(&paths("/b")) > 1000);
    }
}
