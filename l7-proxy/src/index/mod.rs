//! Rules as they are matched: an endpoint's [`mesh::l7::L7Rules`], compiled.
//!
//! Promise: an endpoint is compiled whole or refused with the field that is wrong; expressions that are written alike are
//! compiled once; matching takes no memory and a time that is linear in what is matched.

mod compile;
mod expression;
mod names;
mod rules;

pub use compile::{Compiler, Refused};
pub use expression::{ExpressionError, Matcher};
pub use names::{Names, Tls};
pub use rules::{Access, Asks, Edit, Endpoint, Grant, HeaderMatcher, Ports, Rule, RuleSet, Side, Subject};
