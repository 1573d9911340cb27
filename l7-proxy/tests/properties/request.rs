//! Requests of HTTP/1, one behind the other.

use l7_proxy::stage::detect::{Protocol, detect};

use super::http1::{self, Manner};

/// What the strict parser lets through, every reader reads likewise, in whatever pieces it comes; and what a connection
/// speaks is known from its first bytes on. Whether there was a request.
pub fn holds(input: &[u8]) -> bool {
    let judged = ["x-role".into()];
    let read = http1::holds(
        input,
        |cuts| http1::requests(input, &judged, cuts),
        |manner: Manner| manner.requests(input),
    );
    let mut known = None;
    for end in 0..=input.len().min(64) {
        let found = detect(&input[..end]);
        assert!(known.is_none() || found == known, "it changes its mind: {}", input.escape_ascii());
        known = found;
    }
    assert!(
        read.messages.is_empty() || known == Some(Protocol::Http1),
        "{known:?}: {}",
        input.escape_ascii()
    );
    !read.messages.is_empty()
}
