//! `rules.http`: what a request must be like.
//!
//! As Cilium reads it: an empty text asks for nothing, an empty item lets every request through (and the proxy sees it),
//! an empty list is no rules at all. Beyond Cilium's own checks, what could not be enforced is refused: an expression that
//! the proxy would not take, a header that is none, an action on a header that frames messages.

use mesh::l7::{
    EXPRESSION_SIZE, EXPRESSION_TEXT, Expression, HeaderRule, HttpRule, HttpRules, Mismatch, expression,
};

use super::expression::differs;
use crate::yaml::{At, Fields};

/// Longest name or value of a header, bytes.
const HEADER: usize = 4096;

/// Headers that say where messages begin and end, and to whom they go: who changes them changes what is requested.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const ACTIONS: [(Mismatch, &str); 4] = [
    (Mismatch::Log, "LOG"),
    (Mismatch::Add, "ADD"),
    (Mismatch::Delete, "DELETE"),
    (Mismatch::Replace, "REPLACE"),
];

/// The rules of a list; `None` for an empty one.
pub(super) fn rules(at: &At<'_>) -> Option<HttpRules> {
    let items = at.list();
    if items.is_empty() {
        at.warn("empty, so that it restricts nothing; [{}] lets every request through by way of the proxy");
        return None;
    }
    Some(items.iter().filter_map(rule).collect())
}

fn rule(at: &At<'_>) -> Option<HttpRule> {
    at.mapping(|fields| {
        let names = fields.get("headers").map(|at| at.list()).unwrap_or_default();
        let matches = fields.get("headerMatches").map(|at| at.list()).unwrap_or_default();
        let headers = names.iter().filter_map(header).chain(matches.iter().filter_map(header_match));
        HttpRule {
            headers: headers.collect(),
            path: pattern(fields, "path"),
            method: pattern(fields, "method"),
            host: pattern(fields, "host"),
        }
    })
}

fn pattern(fields: &Fields<'_>, name: &'static str) -> Option<Expression> {
    let at = fields.get(name)?;
    let text = at.string();
    if text.is_empty() {
        return None;
    }
    if text.len() > EXPRESSION_TEXT {
        at.error(format_args!(
            "an expression of {} bytes, at most {EXPRESSION_TEXT} are read; write several rules",
            text.len()
        ));
        return None;
    }
    if let Err(error) = compiles(&text) {
        at.error(error);
        return None;
    }
    if let Some(form) = differs(&text) {
        at.error(form);
        return None;
    }
    Some(Expression(text))
}

/// Whether the proxy will take it. By itself: an expression that is one only between the anchors is none.
fn compiles(text: &str) -> Result<(), String> {
    use regex_automata::nfa::thompson;
    let syntax = regex_automata::util::syntax::Config::new()
        .unicode(expression::UNICODE)
        .utf8(false)
        .nest_limit(expression::DEPTH);
    let config = thompson::Config::new().utf8(false).nfa_size_limit(Some(EXPRESSION_SIZE));
    let nfa = thompson::Compiler::new().syntax(syntax).configure(config).build(text);
    nfa.map(drop).map_err(|error| match error.size_limit() {
        Some(_) => format!(
            "an expression that takes more than {} KiB when compiled; repeat less in it, or write several rules",
            EXPRESSION_SIZE / 1024
        ),
        None => format!("no regular expression: {}", reason(&error)),
    })
}

/// What is wrong with it, in one line.
fn reason(error: &dyn std::error::Error) -> String {
    let last = std::iter::successors(error.source(), |error| error.source()).last();
    let text = last.map_or_else(|| error.to_string(), ToString::to_string);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// An item of `headers`: `NAME`, or `NAME: VALUE`.
fn header(at: &At<'_>) -> Option<HeaderRule> {
    let text = at.string();
    let (name, value) = match text.split_once(' ') {
        Some((name, value)) => (name.trim_end_matches(':'), Some(value)),
        None => (text.as_str(), None),
    };
    let name = header_name(at, name)?;
    let value = value.and_then(|value| header_value(at, value));
    Some(HeaderRule { name, value, mismatch: Mismatch::Deny })
}

fn header_match(at: &At<'_>) -> Option<HeaderRule> {
    at.mapping(|fields| {
        let secret = "the proxy reads no secrets; write the value, which whoever reads this object then sees";
        fields.refuse(&["secret"], secret);
        let (value, action) = (fields.get("value"), fields.get("mismatch").filter(|at| !at.is_empty()));
        let name_at = fields.require("name", "the name of a header")?;
        let name = header_name(&name_at, &name_at.string())?;
        let value = value.and_then(|at| header_value(&at, &at.string())).filter(|value| !value.is_empty());
        let mismatch = action.as_ref().map_or(Some(Mismatch::Deny), |at| at.one_of(&ACTIONS))?;
        let changes = matches!(mismatch, Mismatch::Add | Mismatch::Delete | Mismatch::Replace);
        if let Some(action) = action.filter(|_| changes) {
            if value.is_none() {
                action.error("needs a value: without one there is nothing that could mismatch");
            }
            if FRAMING.contains(&name.as_str()) {
                action
                    .error(format_args!("{name} says what is requested and of whom; LOG is all that can be"));
            }
        }
        Some(HeaderRule { name, value, mismatch })
    })?
}

/// In lower case, if it is one.
fn header_name(at: &At<'_>, name: &str) -> Option<String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > HEADER || !name.bytes().all(is_token) {
        if !at.failed() || !name.is_empty() {
            at.expected("the name of a header: letters, digits and -");
        }
        return None;
    }
    Some(name.to_ascii_lowercase())
}

fn header_value(at: &At<'_>, value: &str) -> Option<String> {
    let fits = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    if value.len() > HEADER || !value.bytes().all(fits) || value.trim() != value {
        at.expected("the value of a header: one line, without spaces around it");
        return None;
    }
    Some(value.to_owned())
}
