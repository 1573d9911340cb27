//! A cursor over the tree: reads values, and notes what is wrong with path and line.
//!
//! A reader that finds something wrong notes an error and returns a harmless value, so that one pass finds all errors.
//! The result of a pass counts only if no error was noted.

use std::cell::RefCell;
use std::fmt::Display;
use std::str::FromStr;

use super::tree::quoted;
use super::{Finding, Findings, Node, Place, Severity, Value};

/// A node, the way to it, and the place for findings.
#[derive(Clone, Debug)]
pub(crate) struct At<'a> {
    node: &'a Node,
    path: String,
    /// Where findings point: the key, for a value in a mapping.
    place: Place,
    findings: &'a Findings,
}

impl<'a> At<'a> {
    /// The root of a document.
    pub(crate) fn root(node: &'a Node, findings: &'a Findings) -> Self {
        Self { node, path: String::new(), place: node.place, findings }
    }

    /// Its name, from the root: `spec.ingress[0]`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Where it stands.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    fn note(&self, severity: Severity, path: String, place: Place, message: String) {
        self.findings.add(Finding { severity, line: place.line, column: place.column, path, message });
    }

    /// Notes an error here.
    pub(crate) fn error(&self, message: impl Display) {
        self.note(Severity::Error, self.path.clone(), self.place, message.to_string());
    }

    /// Notes a warning here: it is in force, but not as it may look.
    pub(crate) fn warn(&self, message: impl Display) {
        self.note(Severity::Warning, self.path.clone(), self.place, message.to_string());
    }

    /// Notes a hint here.
    pub(crate) fn hint(&self, message: impl Display) {
        self.note(Severity::Hint, self.path.clone(), self.place, message.to_string());
    }

    /// Notes that the value is something else than expected.
    pub(crate) fn expected(&self, expected: impl Display) {
        self.error(format_args!("found {}, expected {expected}", self.node.kind()));
    }

    /// Whether some error was noted, here or elsewhere in the document.
    pub(crate) fn failed(&self) -> bool {
        self.findings.failed()
    }

    /// Whether it is an empty text or an empty list.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.node.value {
            Value::Scalar { text, .. } => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Mapping(_) => false,
        }
    }

    /// Whether it is null.
    pub(crate) fn is_null(&self) -> bool {
        self.node.is_null()
    }

    /// Reads a mapping; fields that `read` never asked for are errors.
    pub(crate) fn mapping<T>(&self, read: impl FnOnce(&Fields<'a>) -> T) -> Option<T> {
        let Value::Mapping(entries) = &self.node.value else {
            self.expected("a mapping");
            return None;
        };
        let fields = Fields { at: self.clone(), entries, asked: RefCell::default() };
        let value = read(&fields);
        fields.refuse_unknown();
        Some(value)
    }

    /// The entries of a mapping whose keys are free: labels, annotations.
    pub(crate) fn entries(&self) -> Vec<(&'a str, At<'a>)> {
        self.hidden_entries().unwrap_or_else(|| {
            self.expected("a mapping");
            Vec::new()
        })
    }

    /// The same where values are not for showing: if it is no mapping, nothing is noted.
    pub(crate) fn hidden_entries(&self) -> Option<Vec<(&'a str, At<'a>)>> {
        let Value::Mapping(entries) = &self.node.value else { return None };
        let entries = entries.iter().map(|(key, place, node)| (key.as_str(), self.child(key, *place, node)));
        Some(entries.collect())
    }

    /// The items of a list.
    pub(crate) fn list(&self) -> Vec<At<'a>> {
        let Value::List(items) = &self.node.value else {
            self.expected("a list");
            return Vec::new();
        };
        let item = |(index, node): (usize, &'a std::rc::Rc<Node>)| At {
            node,
            path: format!("{}[{index}]", self.path),
            place: node.place,
            findings: self.findings,
        };
        items.iter().enumerate().map(item).collect()
    }

    /// A scalar's text, whatever its type.
    pub(crate) fn text(&self, expected: &str) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => Some(text),
            _ => {
                self.expected(expected);
                None
            }
        }
    }

    /// A string: quoted, or plain text that is no number or boolean.
    pub(crate) fn string(&self) -> String {
        match &self.node.value {
            Value::Scalar { text, plain: true } if is_typed(text) && !self.node.is_null() => {
                self.error(format_args!("found {text}, expected a string: write \"{text}\""));
                String::new()
            }
            _ => self.text("a string").unwrap_or_default().to_owned(),
        }
    }

    /// A string that is not for showing: if it is none, nothing is noted.
    pub(crate) fn hidden(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, plain } if !(*plain && is_typed(text) || self.node.is_null()) => Some(text),
            _ => None,
        }
    }

    /// A boolean.
    pub(crate) fn boolean(&self) -> bool {
        match &self.node.value {
            Value::Scalar { text, plain: true } if text == "true" || text == "false" => text == "true",
            _ => {
                self.expected("true or false");
                false
            }
        }
    }

    /// Anything that a text can be parsed into.
    pub(crate) fn parse<T: FromStr>(&self, expected: &str) -> Option<T> {
        let text = self.text(expected)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.expected(expected);
        }
        value
    }

    /// One of a few names; an error lists them.
    pub(crate) fn one_of<T: Copy>(&self, choices: &[(T, &str)]) -> Option<T> {
        let names = || choices.iter().map(|(_, name)| *name);
        let text = self.text(&either(names()))?;
        let found = choices.iter().find(|(_, name)| *name == text).map(|(value, _)| *value);
        if found.is_none() {
            match nearest(text, names()) {
                Some(near) => self.error(format_args!("found {}, did you mean {near}", quoted(text))),
                None => self.expected(either(names())),
            }
        }
        found
    }

    fn child(&self, key: &str, place: Place, node: &'a Node) -> At<'a> {
        At { node, path: self.path_of(key), place, findings: self.findings }
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }
}

/// The fields of a mapping, and which of them were asked for.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    at: At<'a>,
    entries: &'a [(String, Place, std::rc::Rc<Node>)],
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    /// The mapping itself, for findings about it as a whole.
    pub(crate) fn whole(&self) -> &At<'a> {
        &self.at
    }

    /// A field, if it is given. Null is an error, not an absent field: `fromEndpoints:` with its list forgotten would
    /// otherwise mean "from anywhere".
    pub(crate) fn get(&self, name: &'static str) -> Option<At<'a>> {
        let field = self.given(name)?;
        if field.is_null() {
            field.error("found nothing, expected a value: write one ([] or {} if it is meant to be empty), or leave the field out");
            return None;
        }
        Some(field)
    }

    /// A field that an API server writes as null where it has no value.
    pub(crate) fn nullable(&self, name: &'static str) -> Option<At<'a>> {
        self.given(name).filter(|field| !field.is_null())
    }

    /// A field that must be given.
    pub(crate) fn require(&self, name: &'static str, expected: &str) -> Option<At<'a>> {
        if self.given(name).is_none() {
            let message = format!("missing, expected {expected}");
            self.at.note(Severity::Error, self.at.path_of(name), self.at.place, message);
        }
        self.get(name)
    }

    /// Fields that mean nothing here.
    pub(crate) fn ignore(&self, names: &[&'static str]) {
        self.asked.borrow_mut().extend(names);
    }

    /// Fields that have a meaning this version does not enforce: the object is refused.
    pub(crate) fn refuse(&self, names: &[&'static str], why: &str) {
        for name in names {
            if let Some(field) = self.given(name) {
                field.error(why);
            }
        }
    }

    fn given(&self, name: &'static str) -> Option<At<'a>> {
        self.asked.borrow_mut().push(name);
        let (key, place, node) = self.entries.iter().find(|(key, ..)| key == name)?;
        Some(self.at.child(key, *place, node))
    }

    fn refuse_unknown(&self) {
        let mut known = self.asked.borrow().clone();
        known.sort_unstable();
        known.dedup();
        for (key, place, node) in self.entries {
            if known.contains(&key.as_str()) {
                continue;
            }
            let child = self.at.child(key, *place, node);
            match nearest(key, known.iter().copied()) {
                Some(near) => child.error(format_args!("unknown, did you mean {near}")),
                None => child.error(format_args!("unknown, expected {}", either(known.iter().copied()))),
            }
        }
    }
}

/// The candidate that a typing error most likely meant.
pub(crate) fn nearest<'b>(text: &str, candidates: impl Iterator<Item = &'b str>) -> Option<&'b str> {
    let lower = text.to_lowercase();
    let score = |name: &str| strsim::normalized_damerau_levenshtein(&lower, &name.to_lowercase());
    let best = candidates.map(|name| (score(name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score >= 0.6).map(|(_, name)| name)
}

fn either<'b>(names: impl Iterator<Item = &'b str>) -> String {
    let names: Vec<_> = names.collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

/// Whether a plain scalar is a number or boolean in YAML 1.2's core schema or in YAML 1.1, which Kubernetes reads.
fn is_typed(text: &str) -> bool {
    let boolean = ["true", "false", "yes", "no", "on", "off"].contains(&text.to_lowercase().as_str());
    let digits = text.trim_start_matches(['-', '+']);
    let number =
        digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok();
    let prefixed = ["0x", "0o"].iter().any(|prefix| {
        digits
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_hexdigit()))
    });
    boolean || number || prefixed
}
