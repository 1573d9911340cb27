//! Each expression, and each automaton, once, whoever has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex_syntax::hir::Hir;

use crate::{Automaton, ExpressionError, Matcher};

/// Expressions by their text, automata by theirs. They stay until [`Expressions::collect`] finds that nobody has them.
#[derive(Debug, Default)]
pub struct Expressions {
    /// Those that regard case, and those that do not.
    matchers: [BTreeMap<Box<str>, Arc<Matcher>>; 2],
    automata: BTreeMap<Box<str>, Arc<Automaton>>,
    made: usize,
}

impl Expressions {
    /// The expression of a text, compiled now if it is not there.
    pub fn matcher(&mut self, text: &str, ignores_case: bool) -> Result<Arc<Matcher>, ExpressionError> {
        if let Some(matcher) = self.matchers[usize::from(ignores_case)].get(text) {
            return Ok(Arc::clone(matcher));
        }
        let matcher = Arc::new(Matcher::new(text, ignores_case, self)?);
        self.matchers[usize::from(ignores_case)].insert(text.into(), Arc::clone(&matcher));
        self.made += 1;
        Ok(matcher)
    }

    /// The automaton of an expression that every text matches to its end; expressions that are printed alike are alike.
    pub(crate) fn automaton(&mut self, expression: Hir) -> Result<Arc<Automaton>, ExpressionError> {
        let text = expression.to_string();
        if let Some(automaton) = self.automata.get(text.as_str()) {
            return Ok(Arc::clone(automaton));
        }
        let automaton = Arc::new(Automaton::new(expression)?);
        self.automata.insert(text.into(), Arc::clone(&automaton));
        self.made += automaton.memory() >> 10;
        Ok(automaton)
    }

    /// Forgets what nobody has any more.
    pub fn collect(&mut self) {
        for matchers in &mut self.matchers {
            matchers.retain(|_, matcher| Arc::strong_count(matcher) > 1);
        }
        self.automata.retain(|_, automaton| Arc::strong_count(automaton) > 1);
    }

    /// How much work it has done since it was made: expressions, and KiB of automata.
    pub fn made(&self) -> usize {
        self.made
    }

    /// How many expressions and automata there are.
    pub fn count(&self) -> (usize, usize) {
        (self.matchers.iter().map(BTreeMap::len).sum(), self.automata.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_is_compiled_once_and_forgotten_when_unused() {
        let mut store = Expressions::default();
        let numbers = ["/a/[0-9]+", "/b/[0-9]+", "/c/([0-9])+$", "/a/[0-9]+"];
        let mut kept: Vec<_> = numbers.iter().map(|text| store.matcher(text, false).unwrap()).collect();
        assert!(Arc::ptr_eq(&kept[0], &kept[3]));
        assert_eq!(store.count(), (3, 1));
        store.matcher("/a", true).unwrap();
        kept.truncate(1);
        store.collect();
        assert_eq!(store.count(), (1, 1));
        kept.clear();
        store.collect();
        assert_eq!(store.count(), (0, 0));
    }
}
