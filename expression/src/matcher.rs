//! One expression, compiled: anchored at both ends, over bytes, taken apart into what it can begin with and what comes then.

use std::sync::Arc;

use regex_syntax::hir::{Hir, HirKind, Look, Repetition};

use crate::automaton::MAX_DFA;
use crate::{Automaton, ExpressionError, Expressions, MAX_TEXT};

/// Groups within groups.
const MAX_DEPTH: u32 = 64;

/// What it takes to try a branch that begins otherwise, in bytes that are looked at.
const BRANCH: usize = 8;

/// An expression that bytes match whole or not at all: if they match one of its branches.
#[derive(Clone, Debug)]
pub struct Matcher {
    text: Arc<str>,
    branches: Box<[Branch]>,
}

/// A literal, and what may come after it.
#[derive(Clone, Debug)]
pub struct Branch {
    /// What every match begins with.
    pub prefix: Box<[u8]>,
    /// What comes then.
    pub rest: Rest,
}

/// What comes after a literal.
#[derive(Clone, Debug)]
pub enum Rest {
    /// Nothing.
    End,
    /// Anything but a line break.
    Line,
    /// What the automaton says, which others may share.
    Automaton(Arc<Automaton>),
}

impl Matcher {
    /// Compiles an expression; classes such as `\w` are ASCII, as RE2 has them in Latin-1. Automata that `store` has are shared.
    pub fn new(text: &str, ignores_case: bool, store: &mut Expressions) -> Result<Self, ExpressionError> {
        if text.len() > MAX_TEXT {
            return Err(ExpressionError::TooLong(text.len()));
        }
        let parsed = regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .case_insensitive(ignores_case)
            .nest_limit(MAX_DEPTH)
            .build()
            .parse(text)
            .map_err(|error| ExpressionError::Syntax(one_line(&error)))?;
        let branches = match without_groups(parsed).into_kind() {
            HirKind::Alternation(branches) => branches,
            kind => vec![hir(kind)],
        };
        let mut compiled = Vec::with_capacity(branches.len());
        let mut memory = 0;
        for branch in branches {
            let branch = Branch::new(branch, store)?;
            memory += branch.rest.memory();
            if memory > MAX_DFA {
                return Err(ExpressionError::TooLarge);
            }
            compiled.push(branch);
        }
        Ok(Self { text: text.into(), branches: compiled.into() })
    }

    /// As it is written. [`Expressions`] finds it by the same text.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.branches.iter().any(|branch| branch.is_match(text))
    }

    /// What it consists of: it matches what one of these does.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// About how many bytes a match by trying its branches looks at.
    pub fn cost(&self, text: usize) -> usize {
        text + BRANCH * self.branches.len()
    }

    /// Bytes that its own text takes; automata, which others may share, are counted by themselves.
    pub fn memory(&self) -> usize {
        let own = self.branches.iter().map(|branch| branch.prefix.len() + size_of::<Branch>());
        size_of::<Self>() + own.sum::<usize>()
    }
}

impl Branch {
    fn new(branch: Hir, store: &mut Expressions) -> Result<Self, ExpressionError> {
        let mut parts = match branch.into_kind() {
            HirKind::Concat(parts) => parts,
            HirKind::Empty => Vec::new(),
            kind => vec![hir(kind)],
        };
        // Said by what a match is already.
        while parts.first().is_some_and(|part| is_look(part, Look::Start)) {
            parts.remove(0);
        }
        while parts.last().is_some_and(|part| is_look(part, Look::End)) {
            parts.pop();
        }
        let prefix = match parts.first().map(Hir::kind) {
            Some(HirKind::Literal(literal)) => literal.0.clone(),
            _ => Box::default(),
        };
        if !prefix.is_empty() {
            parts.remove(0);
        }
        let rest = match parts.as_slice() {
            [] => Rest::End,
            [only] if is_any_line(only) => Rest::Line,
            _ => Rest::Automaton(store.automaton(Hir::concat(parts))?),
        };
        Ok(Self { prefix, rest })
    }

    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        text.starts_with(&self.prefix) && self.rest.is_match(text, self.prefix.len())
    }
}

impl Rest {
    /// Whether this is what `text` has from `from` on.
    pub fn is_match(&self, text: &[u8], from: usize) -> bool {
        let Some(after) = text.get(from..) else { return false };
        match self {
            Self::End => after.is_empty(),
            Self::Line => memchr::memchr(b'\n', after).is_none(),
            Self::Automaton(automaton) => automaton.is_match(text, from),
        }
    }

    fn memory(&self) -> usize {
        match self {
            Self::End | Self::Line => 0,
            Self::Automaton(automaton) => automaton.memory(),
        }
    }
}

/// The same without groups, which only say what a match consists of. As deep as [`MAX_DEPTH`] lets it be.
fn without_groups(parsed: Hir) -> Hir {
    let all = |parts: Vec<Hir>| parts.into_iter().map(without_groups).collect();
    match parsed.into_kind() {
        HirKind::Capture(group) => without_groups(*group.sub),
        HirKind::Concat(parts) => Hir::concat(all(parts)),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)),
        HirKind::Repetition(Repetition { min, max, greedy, sub }) => {
            Hir::repetition(Repetition { min, max, greedy, sub: Box::new(without_groups(*sub)) })
        }
        kind => hir(kind),
    }
}

/// What a kind is the kind of.
fn hir(kind: HirKind) -> Hir {
    match kind {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Repetition(repetition) => Hir::repetition(repetition),
        HirKind::Capture(capture) => Hir::capture(capture),
        HirKind::Concat(parts) => Hir::concat(parts),
        HirKind::Alternation(parts) => Hir::alternation(parts),
    }
}

fn is_look(part: &Hir, look: Look) -> bool {
    matches!(part.kind(), HirKind::Look(found) if *found == look)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(text: &str) -> Matcher {
        Matcher::new(text, false, &mut Expressions::default()).unwrap()
    }

    #[test]
    fn expressions_match_the_whole() {
        let matches = |pattern: &str, text: &str| matcher(pattern).is_match(text.as_bytes());
        assert!(matches("/v1/request-landing", "/v1/request-landing"));
        assert!(!matches("/v1/request-landing", "/v1/request-landing?x"));
        assert!(!matches("/v1/request-landing", "/x/v1/request-landing"));
        assert!(matches("/v1/.*", "/v1/a/b?c=d") && !matches("/v1/.*", "/v2/"));
        assert!(matches("a|ab", "ab") && matches("ab|a", "a") && !matches("a|ab", "abc"));
        assert!(matches("/[0-9]{3}/(x|y)", "/123/y") && !matches("/[0-9]{3}/(x|y)", "/1234/y"));
        assert!(matches("", "") && !matches("", "a") && matches(".*", "anything"));
        assert!(matches("^/a$", "/a") && matches("^(/a|/b)$", "/b") && matches("^/a|/b$", "/b"));
        assert!(!matches("/a^b", "/ab") && !matches("/a$b", "/ab") && !matches("(/a|^/b)c", "x/bc"));
        assert!(matches("/a(?:b|c)+d", "/abcd") && !matches("/a(?:b|c)+d", "/ad"));
        assert!(!matches("/\\w", "/\u{e4}"));
        assert!(matches("(/v1)/(x)", "/v1/x") && matches("/a(/b)?", "/a") && matches("/a(/b)?", "/a/b"));
        let host = Matcher::new("EXAMPLE\\.com(:80)?", true, &mut Expressions::default()).unwrap();
        assert!(host.is_match(b"example.COM:80"));
    }

    /// What is matched after a literal still sees the byte before it.
    #[test]
    fn edges_of_words_are_seen_across_the_literal() {
        assert!(!matcher("/v1\\b[a-z]").is_match(b"/v1a"));
        assert!(matcher("/v1\\b.[a-z]").is_match(b"/v1/a"));
        assert!(matcher("/v1\\B[a-z]").is_match(b"/v1a"));
        assert!(matcher("a\n(?m:^)b").is_match(b"a\nb") && !matcher("a(?m:^)b").is_match(b"ab"));
    }

    /// However an expression is taken apart, it says what the whole of it says.
    #[test]
    fn parts_say_what_the_whole_says() {
        let patterns = [
            "(/a|/b/.*|[a-c]{1,2})",
            "^/a(b|c)*d?$",
            "/.*/x|/a/(y|z)",
            "(a|b)(c|d)",
            "()",
            "a||b",
            "(?i)/Ab.*",
            "/a\\.b",
            "(^/a$)|(/b)",
            "x*",
            "(?:/a){2}/.*",
            "/a.*|",
            "[^/]+/b",
        ];
        let texts = [
            "", "/", "/a", "/b", "/b/", "/b/c", "ab", "c", "/abcd", "/acbd", "/ad", "/q/x", "/a/y", "ac",
            "bd", "b", "/aB/", "/AbC", "/a.b", "/axb", "xxx", "/a/a/x", "/a/a", "c/b", "/a\n",
        ];
        for pattern in patterns {
            let matcher = matcher(pattern);
            let whole =
                regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).unwrap();
            let whole = Hir::concat(vec![Hir::look(Look::Start), whole]);
            let whole = Automaton::new(whole).unwrap();
            for text in texts {
                assert_eq!(
                    matcher.is_match(text.as_bytes()),
                    whole.is_match(text.as_bytes(), 0),
                    "{pattern} {text:?}"
                );
            }
        }
    }

    #[test]
    fn expressions_that_cost_too_much_are_refused() {
        let error = |pattern: &str| Matcher::new(pattern, false, &mut Expressions::default()).unwrap_err();
        assert_eq!(error("(a|b)*a(a|b){30}"), ExpressionError::TooLarge);
        assert_eq!(error("(((a{100}){100}){100}){100}"), ExpressionError::TooLarge);
        assert_eq!(error(&"a".repeat(10_000)), ExpressionError::TooLong(10_000));
        assert!(matches!(error("a)|(b"), ExpressionError::Syntax(_)));
        assert!(matches!(error("(?<x"), ExpressionError::Syntax(_)));
        assert!(matches!(error("\\1"), ExpressionError::Syntax(_)));
        let deep = format!("{}a{}", "(".repeat(70), ")".repeat(70));
        assert!(matches!(error(&deep), ExpressionError::Syntax(_)));
    }
}
