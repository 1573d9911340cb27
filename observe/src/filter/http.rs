//! Filters on requests: `--http-method`, `--http-path`, `--http-status`.

use mesh::flow::Flow;
use mesh::l7::{HttpFlow, L7Flow};
use node_api::FlowFilter;
use regex_automata::Input;
use regex_automata::dfa::{Automaton, dense};
use regex_automata::util::syntax;

use super::{FilterError, any};

/// Memory that one expression may take, bytes.
const LARGEST: usize = 1 << 20;

/// What is asked of a request and the answer to it.
#[derive(Clone, Debug)]
pub(super) struct HttpMatch {
    methods: Vec<String>,
    paths: Vec<Path>,
    statuses: Vec<Status>,
}

/// An expression that some part of the path matches.
#[derive(Clone, Debug)]
struct Path {
    text: String,
    automaton: Box<dense::DFA<Vec<u32>>>,
}

/// A code, or those that begin with these digits.
#[derive(Clone, PartialEq, Debug)]
struct Status {
    first: u16,
    last: u16,
}

impl PartialEq for HttpMatch {
    fn eq(&self, other: &Self) -> bool {
        let texts = |it: &Self| it.paths.iter().map(|path| path.text.clone()).collect::<Vec<_>>();
        self.methods == other.methods && self.statuses == other.statuses && texts(self) == texts(other)
    }
}

impl HttpMatch {
    pub(super) fn compile(filter: &FlowFilter) -> Result<Self, FilterError> {
        Ok(Self {
            methods: filter.http_methods.clone(),
            paths: filter.http_paths.iter().map(|text| path(text)).collect::<Result<_, _>>()?,
            statuses: filter.http_statuses.iter().map(|text| status(text)).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn matches(&self, flow: &Flow) -> bool {
        if self.methods.is_empty() && self.paths.is_empty() && self.statuses.is_empty() {
            return true;
        }
        let Some(http) = flow.l7.as_ref().and_then(L7Flow::http) else { return false };
        any(&self.methods, |method| method.eq_ignore_ascii_case(&http.method))
            && any(&self.paths, |path| path.is_in(path_of(http)))
            && any(&self.statuses, |status| {
                http.code.is_some_and(|code| (status.first..=status.last).contains(&code))
            })
    }
}

impl Path {
    fn is_in(&self, path: &str) -> bool {
        self.automaton.try_search_fwd(&Input::new(path).earliest(true)).is_ok_and(|found| found.is_some())
    }
}

/// The path of a URL, without its query.
fn path_of(http: &HttpFlow) -> &str {
    let after = http.url.split_once("://").map_or(http.url.as_str(), |(_, after)| after);
    let path = after.find('/').and_then(|at| after.get(at..)).unwrap_or("/");
    path.split_once('?').map_or(path, |(path, _)| path)
}

fn path(text: &str) -> Result<Path, FilterError> {
    let config = dense::Config::new().dfa_size_limit(Some(LARGEST)).determinize_size_limit(Some(LARGEST));
    let syntax = syntax::Config::new().unicode(false).utf8(false);
    let thompson = regex_automata::nfa::thompson::Config::new().utf8(false).nfa_size_limit(Some(LARGEST));
    let built = dense::Builder::new().configure(config).syntax(syntax).thompson(thompson).build(text);
    match built {
        Ok(automaton) => Ok(Path { text: text.to_owned(), automaton: Box::new(automaton) }),
        Err(_) => Err(FilterError {
            field: "--http-path".to_owned(),
            found: text.to_owned(),
            expected: "a regular expression of moderate size".to_owned(),
        }),
    }
}

/// `404`, or `4+` and `40+` for all that begin so.
fn status(text: &str) -> Result<Status, FilterError> {
    let digits = text.strip_suffix('+').unwrap_or(text);
    let number =
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten();
    let found = match (number, digits.len(), text.ends_with('+')) {
        (Some(code @ 100..=599), 3, false) => Some(Status { first: code, last: code }),
        (Some(tens @ 10..=59), 2, true) => Some(Status { first: tens * 10, last: tens * 10 + 9 }),
        (Some(class @ 1..=5), 1, true) => Some(Status { first: class * 100, last: class * 100 + 99 }),
        _ => None,
    };
    found.ok_or_else(|| FilterError {
        field: "--http-status".to_owned(),
        found: text.to_owned(),
        expected: "a status from 100 to 599, or the beginning of one: 4+, 40+".to_owned(),
    })
}
