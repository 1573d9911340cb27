//! Rules as they are matched: an endpoint's [`mesh::l7::L7Rules`], compiled.
//!
//! Promise: an endpoint is compiled whole or refused with the field that is wrong; expressions, automata and lists of rules
//! that are alike are kept once for all endpoints, and compiling one goes in small steps; a request costs what its path has in common with rules, not how many rules
//! there are, and no more than [`MAX_WORK`].

mod compile;
mod contexts;
mod course;
mod edit;
mod inspected;
mod names;
mod paths;
mod rule;
mod rules;
mod set;
mod work;

pub use compile::{Compiler, Refused};
pub use contexts::{Offer, Originating, Terminating};
pub use course::{Preparation, SLICE};
pub use edit::{Edit, HeaderMatcher};
pub use inspected::Inspected;
pub use names::{Names, Tls};
pub use rules::{Access, Asks, Endpoint, Grant, Ports, Side, Subject, Terms};
pub use set::{Rule, RuleSet};
pub use work::{Exhausted, MAX_WORK, Work};
