//! One expression, compiled: anchored at both ends, over bytes, of bounded size, matched in one pass without memory.

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Hir, HirKind, Look};

/// The longest expression, in bytes.
const MAX_PATTERN: usize = 8 << 10;
/// The largest automaton before and after it is made deterministic, in bytes.
const MAX_NFA: usize = 256 << 10;
const MAX_DFA: usize = 512 << 10;
/// Memory that making it may take.
const MAX_WORK: usize = 4 << 20;

/// An expression that bytes match whole or not at all.
#[derive(Clone, Debug)]
pub struct Matcher {
    /// What every match begins with.
    prefix: Box<[u8]>,
    rest: Rest,
}

#[derive(Clone, Debug)]
enum Rest {
    /// Nothing comes after the prefix.
    End,
    /// Anything but a line break may come after it.
    Line,
    /// The automaton of the whole expression decides.
    Automaton(Box<dense::DFA<Vec<u32>>>),
}

/// Why an expression cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExpressionError {
    /// It is none.
    #[error("{0}")]
    Syntax(String),
    /// Matching it would take too much.
    #[error("takes too much memory; write shorter repetitions, or several rules")]
    TooLarge,
}

impl Matcher {
    /// Compiles an expression; classes such as `\w` are ASCII, as in RE2.
    pub fn new(pattern: &str, ignores_case: bool) -> Result<Self, ExpressionError> {
        if pattern.len() > MAX_PATTERN {
            return Err(ExpressionError::TooLarge);
        }
        let parsed = regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .case_insensitive(ignores_case)
            .nest_limit(64)
            .build()
            .parse(pattern)
            .map_err(|error| ExpressionError::Syntax(one_line(&error)))?;
        let prefix = prefix(&parsed);
        let rest = match rest(&parsed) {
            Some(rest) => rest,
            None => Rest::Automaton(Box::new(automaton(parsed)?)),
        };
        Ok(Self { prefix, rest })
    }

    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        let Some(after) = text.strip_prefix(&*self.prefix) else { return false };
        match &self.rest {
            Rest::End => after.is_empty(),
            Rest::Line => memchr::memchr(b'\n', after).is_none(),
            Rest::Automaton(automaton) => {
                let input = Input::new(text).anchored(Anchored::Yes).earliest(true);
                // It can only fail at bytes that it was told to give up on: none.
                matches!(automaton.try_search_fwd(&input), Ok(Some(_)))
            }
        }
    }

    /// Bytes that it takes, beside itself.
    pub fn memory(&self) -> usize {
        let automaton = match &self.rest {
            Rest::End | Rest::Line => 0,
            Rest::Automaton(automaton) => automaton.memory_usage(),
        };
        self.prefix.len() + automaton
    }
}

fn automaton(parsed: Hir) -> Result<dense::DFA<Vec<u32>>, ExpressionError> {
    let anchored = Hir::concat(vec![Hir::look(Look::Start), parsed, Hir::look(Look::End)]);
    let nfa = thompson::Compiler::new()
        .configure(thompson::Config::new().utf8(false).nfa_size_limit(Some(MAX_NFA)).shrink(true))
        .build_from_hir(&anchored)
        .map_err(|_| ExpressionError::TooLarge)?;
    dense::Builder::new()
        .configure(
            dense::Config::new()
                .start_kind(StartKind::Anchored)
                .dfa_size_limit(Some(MAX_DFA))
                .determinize_size_limit(Some(MAX_WORK)),
        )
        .build_from_nfa(&nfa)
        .map_err(|error| match error.is_size_limit_exceeded() {
            true => ExpressionError::TooLarge,
            false => ExpressionError::Syntax(error.to_string()),
        })
}

/// The literal that an expression begins with.
fn prefix(parsed: &Hir) -> Box<[u8]> {
    match parsed.kind() {
        HirKind::Literal(literal) => literal.0.clone(),
        HirKind::Concat(parts) => match parts.first().map(Hir::kind) {
            Some(HirKind::Literal(literal)) => literal.0.clone(),
            _ => Box::default(),
        },
        _ => Box::default(),
    }
}

/// What comes after the prefix, where that needs no automaton.
fn rest(parsed: &Hir) -> Option<Rest> {
    match parsed.kind() {
        HirKind::Empty | HirKind::Literal(_) => Some(Rest::End),
        HirKind::Concat(parts) => match parts.as_slice() {
            [first, last] if matches!(first.kind(), HirKind::Literal(_)) && is_any_line(last) => {
                Some(Rest::Line)
            }
            _ => None,
        },
        _ if is_any_line(parsed) => Some(Rest::Line),
        _ => None,
    }
}

/// `.*`.
fn is_any_line(parsed: &Hir) -> bool {
    let HirKind::Repetition(repetition) = parsed.kind() else { return false };
    repetition.min == 0
        && repetition.max.is_none()
        && *repetition.sub == Hir::dot(regex_syntax::hir::Dot::AnyByteExceptLF)
}

/// The parser draws its finding under the expression; flows and errors have one line.
fn one_line(error: &regex_syntax::Error) -> String {
    match error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        other => other.to_string(),
    }
}
