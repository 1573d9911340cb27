//! A head written anew, where something of it has to change.

use crate::codec::{Header, RequestHead, ResponseHead, elements};
use crate::index::Edit;

/// Headers that go with an upgrade to HTTP/2.
const UPGRADE: [&str; 2] = ["upgrade", "http2-settings"];

/// Writes `head` of `input` with these changes and, if one is given, another path; every other line stays as it is, in its
/// place.
pub(super) fn rewrite(
    input: &[u8],
    head: &RequestHead,
    path: Option<&[u8]>,
    edits: &[Edit<'_>],
    out: &mut Vec<u8>,
) {
    out.clear();
    let (target, whole) = (head.target.bytes(input), head.whole.bytes(input));
    // Of an absolute target what is before the path.
    let base = target.len().saturating_sub(head.path.bytes(input).len());
    out.extend_from_slice(head.method.bytes(input));
    out.push(b' ');
    match path {
        None => out.extend_from_slice(target),
        Some(path) => {
            out.extend_from_slice(target.get(..base).unwrap_or_default());
            out.extend_from_slice(path);
        }
    }
    let version: &[u8] = if head.minor == 0 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" };
    out.extend_from_slice(version);
    for (number, header) in head.headers.iter().enumerate() {
        let end = match head.headers.get(number + 1) {
            Some(next) => next.name.start,
            None => (head.whole.start as usize + whole.len() - 2) as u32,
        };
        line(input, *header, end, head.upgrade_carries_requests, edits, out);
    }
    for edit in edits {
        if let Edit::Add(name, value) = edit {
            for part in [name, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Adds to `out` the head of an answer, `head` of `input`, after which the connection ends, and says so.
pub(super) fn farewell(input: &[u8], head: &ResponseHead, out: &mut Vec<u8>) {
    let whole = head.whole.bytes(input);
    let last = whole.len().saturating_sub(2);
    let first = head.headers.first().map_or(last, |header| header.name.start as usize);
    out.extend_from_slice(whole.get(..first).unwrap_or_default());
    for (number, header) in head.headers.iter().enumerate() {
        let name = header.name.bytes(input);
        let end = head.headers.get(number + 1).map_or(last, |next| next.name.start as usize);
        if name.eq_ignore_ascii_case(b"keep-alive") {
            continue;
        }
        if !name.eq_ignore_ascii_case(b"connection") {
            out.extend_from_slice(input.get(header.name.start as usize..end).unwrap_or_default());
            continue;
        }
        let others = elements(header.value.bytes(input)).filter(|it| !it.eq_ignore_ascii_case(b"keep-alive"));
        let kept: Vec<&[u8]> = others.collect();
        if !kept.is_empty() {
            out.extend_from_slice(&[name, b": ", &kept.join(&b", "[..]), b"\r\n"].concat());
        }
    }
    out.extend_from_slice(b"connection: close\r\n\r\n");
}

fn line(input: &[u8], header: Header, end: u32, strips: bool, edits: &[Edit<'_>], out: &mut Vec<u8>) {
    let name = header.name.bytes(input);
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    let is_deleted = edits.iter().any(|edit| matches!(edit, Edit::Delete(name) if is(name)));
    if is_deleted || strips && UPGRADE.iter().any(|other| is(other)) {
        return;
    }
    if !(strips && is("connection")) {
        out.extend_from_slice(input.get(header.name.start as usize..end as usize).unwrap_or_default());
        return;
    }
    let goes = |option: &&[u8]| !UPGRADE.iter().any(|other| option.eq_ignore_ascii_case(other.as_bytes()));
    let kept: Vec<&[u8]> = elements(header.value.bytes(input)).filter(goes).collect();
    if !kept.is_empty() {
        out.extend_from_slice(&[name, b": ", &kept.join(&b", "[..]), b"\r\n"].concat());
    }
}
