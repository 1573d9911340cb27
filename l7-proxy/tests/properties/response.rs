//! Answers of HTTP/1, one behind the other: the first byte says to what, `h` to HEAD, `c` to CONNECT.

use l7_proxy::codec::Asked;

use super::http1::{self, Manner};

/// As of requests, for clients. Whether there was an answer.
pub fn holds(input: &[u8]) -> bool {
    let Some((kind, input)) = input.split_first() else { return false };
    let asked = Asked { is_head: *kind == b'h', is_connect: *kind == b'c' };
    let read = http1::holds(
        input,
        |cuts| http1::answers(input, asked, cuts),
        |manner: Manner| manner.answers(input, asked),
    );
    !read.messages.is_empty()
}
