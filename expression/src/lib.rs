//! Expressions of HTTP rules: how they are read, what they may take, and how they are matched.
//!
//! Promise: who accepts an expression (`control`) and who matches by it (the L7 proxy) ask the same function under the same
//! bounds, so that what one accepts the other can use. A match takes no memory and a time linear in the text. Pure: no I/O.

mod automaton;
mod budget;
mod canonical;
mod matcher;
mod method;
mod store;

pub use automaton::Automaton;
pub use budget::{Account, Budget};
pub use matcher::{Branch, Matcher, Rest};
pub use method::{MAX_METHOD, METHODS};
pub use store::Expressions;

/// Longest text of an expression, bytes.
pub const MAX_TEXT: usize = 4096;

/// Why an expression cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExpressionError {
    /// It is none.
    #[error("no regular expression: {0}")]
    Syntax(String),
    /// Its text is too long.
    #[error("an expression of {0} bytes, at most {MAX_TEXT} are read; write several rules")]
    TooLong(usize),
    /// Matching it, or making what matches it, would take too much.
    #[error("an expression that takes more than {} KiB when compiled; repeat less in it, or write several rules", automaton::MAX_DFA >> 10)]
    TooLarge,
    /// Others of the same object have used up what it may take: this many expressions and headers, or this many bytes.
    #[error("with the expressions and headers before it, it takes more than one object may have ({} of them, {} MiB compiled); repeat less in them, or write fewer", .0.expressions, .0.bytes >> 20)]
    Spent(Budget),
}
