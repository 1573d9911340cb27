//! What the expressions and headers of one object may take together.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::automaton::{MAX_DFA, MAX_WORK};
use crate::{ExpressionError, Expressions, Matcher, Rest};

/// What a header takes beside its text.
const HEADER: usize = 64;

/// What an object may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Different expressions and headers.
    pub expressions: usize,
    /// Bytes, compiled.
    pub bytes: usize,
    /// Rules, whether or not they have expressions.
    pub rules: usize,
}

impl Budget {
    /// One object that a person writes: a policy.
    pub const OBJECT: Self = Self { expressions: 10_000, bytes: 8 << 20, rules: 20_000 };
    /// All that is about one workload: of several policies. Its rules are counted for each range of ports by itself.
    pub const WORKLOAD: Self = Self { expressions: 40_000, bytes: 32 << 20, rules: 80_000 };
}

/// What one object has taken of its budget. The same whatever else is in the store: what an object may have does not depend
/// on others. To be kept no longer than the store keeps what it has been given.
#[derive(Debug)]
pub struct Account {
    budget: Budget,
    expressions: usize,
    bytes: usize,
    /// Addresses of what has been counted.
    counted: BTreeSet<usize>,
    /// Names of headers, with their values where one is asked for.
    headers: BTreeSet<(Box<str>, Option<Box<str>>)>,
}

impl Account {
    /// One that has taken nothing.
    pub fn new(budget: Budget) -> Self {
        Self { budget, expressions: 0, bytes: 0, counted: BTreeSet::new(), headers: BTreeSet::new() }
    }

    /// Takes one more header that is looked at, by its name and the value that is asked for; one that it has already takes
    /// nothing.
    pub fn header(&mut self, name: &str, value: Option<&str>) -> Result<(), ExpressionError> {
        if !self.is_spent() && self.headers.insert((name.into(), value.map(Box::from))) {
            self.expressions += 1;
            self.bytes += HEADER + name.len() + value.map_or(0, str::len);
        }
        if self.is_spent() { Err(ExpressionError::Spent(self.budget)) } else { Ok(()) }
    }

    /// Takes one more expression; one that it has already takes nothing. Nothing is compiled once the budget is spent.
    pub fn matcher(
        &mut self,
        text: &str,
        ignores_case: bool,
        store: &mut Expressions,
    ) -> Result<Arc<Matcher>, ExpressionError> {
        if self.is_spent() {
            return Err(ExpressionError::Spent(self.budget));
        }
        let matcher = store.matcher(text, ignores_case).inspect_err(|error| {
            // That has been tried all the same, and must not be tried without end.
            self.bytes += if *error == ExpressionError::TooLarge { MAX_WORK + MAX_DFA } else { 0 };
        })?;
        if self.counted.insert(Arc::as_ptr(&matcher) as usize) {
            self.expressions += 1;
            self.bytes += matcher.memory() + text.len();
            for branch in matcher.branches() {
                if let Rest::Automaton(automaton) = &branch.rest
                    && self.counted.insert(Arc::as_ptr(automaton) as usize)
                {
                    self.bytes += automaton.memory();
                }
            }
        }
        if self.is_spent() { Err(ExpressionError::Spent(self.budget)) } else { Ok(matcher) }
    }

    fn is_spent(&self) -> bool {
        self.expressions > self.budget.expressions || self.bytes > self.budget.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these one object may have.
    fn fit(texts: impl Iterator<Item = String>, store: &mut Expressions) -> usize {
        let mut account = Account::new(Budget::OBJECT);
        texts.take_while(|text| account.matcher(text, false, store).is_ok()).count()
    }

    #[test]
    fn an_object_may_have_so_many_and_so_much_whatever_others_have() {
        let mut store = Expressions::default();
        let plain = || (0..20_000).map(|number| format!("/v1/resource-{number}/[0-9]+"));
        assert_eq!(fit(plain(), &mut store), Budget::OBJECT.expressions);
        assert_eq!(fit(plain(), &mut store), Budget::OBJECT.expressions, "though they are there");
        let alike = (0..20_000).map(|number| format!("/v1/{}", number % 10));
        assert_eq!(fit(alike, &mut store), 20_000);
        let hard = || (0..2000).map(|number| format!("/(a|b)*a(a|b){{9}}{number}"));
        let fits = fit(hard(), &mut store);
        assert!((10..2000).contains(&fits), "{fits}");
        assert_eq!(fit(hard(), &mut store), fits);
        assert_eq!(fit(hard(), &mut Expressions::default()), fits);
    }

    #[test]
    fn headers_are_counted_with_expressions() {
        let (mut store, mut account) = (Expressions::default(), Account::new(Budget::OBJECT));
        for _ in 0..20_000 {
            account.header("x-role", Some("user")).unwrap();
        }
        let most = Budget::OBJECT.expressions;
        assert!((1..most).all(|number| account.header("x-role", Some(&number.to_string())).is_ok()));
        let spent = ExpressionError::Spent(Budget::OBJECT);
        assert_eq!(account.header("x-role", None), Err(spent.clone()));
        assert_eq!(account.matcher("/a", false, &mut store).unwrap_err(), spent);
        let mut account = Account::new(Budget::OBJECT);
        let long = |number: usize| format!("{number:04000}");
        let fits = (0..).take_while(|number| account.header("x", Some(&long(*number))).is_ok()).count();
        assert!(fits < 2100, "{fits}");
    }

    #[test]
    fn what_cannot_be_compiled_is_not_tried_without_end() {
        let (mut store, mut account) = (Expressions::default(), Account::new(Budget::OBJECT));
        let mut tried = (0..).map(|number| format!("{number}(a|b)*a(a|b){{30}}"));
        let errors = tried.by_ref().map(|text| account.matcher(&text, false, &mut store).unwrap_err());
        let tries = errors.take_while(|error| *error == ExpressionError::TooLarge).count();
        assert!(tries <= 2, "{tries}");
        assert_eq!(
            account.matcher("/a", false, &mut store).unwrap_err(),
            ExpressionError::Spent(Budget::OBJECT)
        );
    }
}
