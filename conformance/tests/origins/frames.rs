//! The same over HTTP/2, in frames written by hand, so that they can say what no library would (RFC 9113, RFC 7541).

use crate::cases::{Case, Expected};

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Names and values.
type Headers<'a> = &'a [(&'a str, &'a str)];

/// All cases: the headers of one stream, and whether it is answered with 200.
pub(crate) fn cases() -> Vec<Case> {
    let get = |path: &str, more: Headers<'_>| {
        let common = [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", path)];
        [&common[..], more]
            .concat()
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect::<Vec<_>>()
    };
    let paths = [
        ("/public", 200),
        ("/public/group%2Fproject", 200),
        ("/%61dmin", 403),
        ("/public/%2e%2e/admin", 403),
        ("/public/%252e%252e/admin", 403),
        ("/public/..%2fadmin", 403),
        ("/public/..%5cadmin", 403),
        ("/public\\..\\admin", 400),
        ("//admin", 403),
        ("/public/../admin", 403),
        ("/public/..;/admin", 403),
        ("/Public/a", 403),
        ("/public%00", 400),
        ("/public/%c0%ae%c0%ae/admin", 400),
        ("/public /admin", 400),
        ("/public\r\nX: y", 400),
        ("http://h/admin", 400),
        ("admin", 400),
        ("", 400),
    ];
    let mut cases: Vec<Case> = paths
        .into_iter()
        .map(|(path, status)| case(&format!(":path {path:?}"), &get(path, &[]), &[], status))
        .collect();
    let lines: [(&str, Headers<'_>, u16); 9] = [
        ("T9 another host", &[("host", "evil")], 400),
        ("T11 another method", &[(":method", "PUT")], 400),
        ("T13 line feed", &[("x", "a\nhost: evil")], 400),
        ("T13 upper case", &[("X-Role", "user")], 400),
        ("T15 connection", &[("connection", "x-role")], 400),
        ("T16 coding", &[("transfer-encoding", "chunked")], 400),
        ("T20 length", &[("content-length", "5")], 400),
        ("T20 two lengths", &[("content-length", "0"), ("content-length", "5")], 400),
        ("T21 pseudo behind", &[("x", "y"), (":path", "/admin")], 400),
    ];
    cases
        .extend(lines.into_iter().map(|(name, more, status)| case(name, &get("/public", more), &[], status)));
    let role = |more: Headers<'_>| get("/role", more);
    cases.push(case("T12", &role(&[("x-role", "user")]), &[], 200));
    cases.push(case("T12", &role(&[("x-role", "user"), ("x-role", "admin")]), &[], 403));
    cases.push(case("T13", &role(&[("x-role", "user"), ("x_role", "admin")]), &[], 403));
    let upload = |length: &str| {
        let mut headers = get("/upload", &[("content-length", length)]);
        headers[0].1 = "POST".to_owned();
        headers
    };
    cases.push(case("upload", &upload("5"), b"hello", 200));
    cases.push(case(
        "T20 shorter than it says",
        &upload("50"),
        b"GET /admin HTTP/1.1\r\nHost: h\r\n\r\n",
        400,
    ));
    cases
}

fn case(name: &str, headers: &[(String, String)], body: &[u8], status: u16) -> Case {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let mut block = Vec::new();
    for (name, value) in headers {
        // Literal, never indexed, with its name.
        block.push(0x10);
        text(&mut block, name);
        text(&mut block, value);
    }
    let end = if body.is_empty() { END_STREAM } else { 0 };
    frame(&mut bytes, HEADERS, END_HEADERS | end, 1, &block);
    if !body.is_empty() {
        frame(&mut bytes, DATA, END_STREAM, 1, body);
    }
    Case { name: format!("HTTP/2 {name}"), bytes, expected: Expected::Status(status) }
}

fn text(block: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127, "one octet says its length");
    block.push(text.len() as u8);
    block.extend_from_slice(text.as_bytes());
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// Whether the stream was answered with `:status` 200, which is number 8 of the static table.
pub(crate) fn is_ok(mut answer: &[u8]) -> bool {
    while let [a, b, c, kind, _, _, _, _, stream, rest @ ..] = answer {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(payload) = rest.get(..length) else { return false };
        if (*kind, *stream) == (HEADERS, 1) {
            return payload.first() == Some(&0x88);
        }
        answer = &rest[length..];
    }
    false
}
