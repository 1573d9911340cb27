//! The part of an expression that needs an automaton: deterministic, of bounded size.

use std::collections::BTreeSet;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::primitives::StateID;
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

    /// Whether there is a match of `least` to `most` bytes behind `before`, all of which `may` be there. Looks at each of
    /// its states once.
    pub(crate) fn reaches(&self, before: &[u8], least: usize, most: usize, may: fn(u8) -> bool) -> bool {
        let input = Input::new(before).range(before.len()..).anchored(Anchored::Yes);
        let Ok(start) = self.0.start_state_forward(&input) else { return false };
        let bytes: Vec<u8> = (0..=u8::MAX).filter(|byte| may(*byte)).collect();
        // A state is reached first by the shortest way, which leaves the most room for what comes then.
        let (mut known, mut reached) = (BTreeSet::new(), vec![start]);
        for length in 0..=most {
            let is_end = |state: &StateID| self.0.is_match_state(self.0.next_eoi_state(*state));
            if length >= least && reached.iter().any(is_end) {
                return true;
            }
            let next =
                reached.iter().flat_map(|state| bytes.iter().map(|byte| self.0.next_state(*state, *byte)));
            reached = next.filter(|state| !self.0.is_dead_state(*state) && known.insert(*state)).collect();
        }
        false
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        self.0.memory_usage() + size_of::<Self>()
    }
}
