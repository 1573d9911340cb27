//! The part of an expression that needs an automaton: deterministic, of bounded size.

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Hir, Look};

use crate::ExpressionError;

/// The largest automaton before it is made deterministic, bytes.
const MAX_NFA: usize = 256 << 10;
/// The largest one after, bytes.
pub(crate) const MAX_DFA: usize = 512 << 10;
/// Memory that making it may take.
pub(crate) const MAX_WORK: usize = 4 << 20;

/// What matches a text to its end from some place on.
#[derive(Clone, Debug)]
pub struct Automaton(dense::DFA<Vec<u32>>);

impl Automaton {
    pub(crate) fn new(expression: Hir) -> Result<Self, ExpressionError> {
        let to_the_end = Hir::concat(vec![expression, Hir::look(Look::End)]);
        let config = thompson::Config::new()
            .utf8(false)
            .nfa_size_limit(Some(MAX_NFA))
            .which_captures(WhichCaptures::None)
            .shrink(true);
        let nfa = thompson::Compiler::new()
            .configure(config)
            .build_from_hir(&to_the_end)
            .map_err(|_| ExpressionError::TooLarge)?;
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .dfa_size_limit(Some(MAX_DFA))
            .determinize_size_limit(Some(MAX_WORK));
        dense::Builder::new().configure(config).build_from_nfa(&nfa).map(Self).map_err(|error| {
            match error.is_size_limit_exceeded() {
                true => ExpressionError::TooLarge,
                false => ExpressionError::Syntax(error.to_string()),
            }
        })
    }

    /// Whether all of `text` from `from` on matches; what stands before counts for edges of words.
    pub fn is_match(&self, text: &[u8], from: usize) -> bool {
        if from > text.len() {
            return false;
        }
        let input = Input::new(text).range(from..).anchored(Anchored::Yes).earliest(true);
        // It can only fail at bytes that it was told to give up on: none.
        matches!(self.0.try_search_fwd(&input), Ok(Some(_)))
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        self.0.memory_usage() + size_of::<Self>()
    }
}
