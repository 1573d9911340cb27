//! Whether an expression can match a method at all: one that a request may have, and one that is registered.

use crate::{Branch, Matcher, Rest};

/// The longest method that the L7 proxy reads, bytes.
pub const MAX_METHOD: usize = 32;

/// The methods of IANA's registry, but for those that no request has (`PRI`, `*`), and two that servers and caches know besides.
pub const METHODS: [&str; 40] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "PURGE",
    "QUERY",
];

/// Which bytes a method consists of (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

impl Matcher {
    /// Whether a method of [`METHODS`] matches it.
    pub fn is_known_method(&self) -> bool {
        METHODS.iter().any(|method| self.is_match(method.as_bytes()))
    }

    /// Whether a request may have a method that matches it, known or not.
    pub fn may_be_a_method(&self) -> bool {
        self.branches().iter().any(Branch::may_be_a_method)
    }
}

impl Branch {
    fn may_be_a_method(&self) -> bool {
        let prefix = &*self.prefix;
        let Some(room) = MAX_METHOD.checked_sub(prefix.len()) else { return false };
        prefix.iter().all(|byte| is_token(*byte))
            && match &self.rest {
                Rest::End => !prefix.is_empty(),
                Rest::Line => true,
                Rest::Automaton(automaton) => {
                    automaton.reaches(prefix, usize::from(prefix.is_empty()), room, is_token)
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Expressions;

    fn matcher(text: &str) -> Matcher {
        Matcher::new(text, false, &mut Expressions::default()).unwrap()
    }

    #[test]
    fn what_no_request_can_have_as_its_method_is_found() {
        let long = "A".repeat(33);
        for text in
            ["GET POST", "GET,POST", "/v1", "()", "A{33,}", "GET[ /].*", "\\(.*", "^$", "GET\\n", &long]
        {
            assert!(!matcher(text).may_be_a_method(), "{text}");
        }
    }

    #[test]
    fn what_some_request_may_have_is_let_be() {
        let long = "A".repeat(32);
        for text in
            [".*", "GET|", "POTS", "get", "[^ ]+", "A{32,}", "GET( .*)?", "x*", "G(ET)?|/", "\\*", &long]
        {
            assert!(matcher(text).may_be_a_method(), "{text}");
        }
        // What is looked back at counts.
        assert!(matcher("A\\B[AB]").may_be_a_method() && !matcher("A\\b[AB]").may_be_a_method());
    }

    #[test]
    fn known_methods_are_told_from_others() {
        for text in ["GET", "P.*", "GET|POTS", "(?i)get", "M-SEARCH|LOCK", ".*"] {
            assert!(matcher(text).is_known_method(), "{text}");
        }
        for text in ["POTS", "get", "Get|Post", "M-SEARCH", "GETS?S"] {
            assert!(!matcher(text).is_known_method(), "{text}");
        }
    }
}
