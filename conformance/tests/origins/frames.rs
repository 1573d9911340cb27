//! The same over HTTP/2, in frames written by hand, so that they can say what no library would (RFC 9113, RFC 7541).

use crate::cases::Expected::{self, Gone, Reset, Status, Whatever};
use crate::cases::{Case, below};

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Names and values.
type Headers<'a> = &'a [(&'a str, &'a str)];

/// All cases: one stream each, or what is said besides, and what is said of the first stream.
pub(crate) fn cases() -> Vec<Case> {
    [paths(), lines(), roles(), bodies(), methods(), trailers(), lies(), heads()]
        .into_iter()
        .flatten()
        .collect()
}

/// A GET of a path, with more headers.
fn get(path: &str, more: Headers<'_>) -> Vec<(String, String)> {
    let common = [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", path)];
    [&common[..], more].concat().iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

/// The same with other pseudo-headers, in the order of [`get`].
fn with(method: &str, scheme: &str, authority: &str, path: &str, more: Headers<'_>) -> Vec<(String, String)> {
    let mut headers = get(path, more);
    for (header, value) in headers.iter_mut().zip([method, scheme, authority]) {
        value.clone_into(&mut header.1);
    }
    headers
}

fn paths() -> Vec<Case> {
    let paths = [
        ("/public", Status(200)),
        ("/public/group%2Fproject", Status(200)),
        ("/%61dmin", Status(403)),
        ("/public/%2e%2e/admin", Status(403)),
        ("/public/%252e%252e/admin", Status(403)),
        ("/public/..%2fadmin", Status(403)),
        ("/public/..%5cadmin", Status(403)),
        ("/public\\..\\admin", Status(400)),
        ("//admin", Status(403)),
        ("/public/../admin", Status(403)),
        ("/public/..;/admin", Status(403)),
        ("/Public/a", Status(403)),
        ("/public%00", Status(400)),
        ("/public/%c0%ae%c0%ae/admin", Status(400)),
        ("/public /admin", Reset),
        ("/public\r\nX: y", Reset),
        ("http://h/admin", Reset),
        ("?admin", Status(400)),
        ("", Reset),
    ];
    paths
        .into_iter()
        .map(|(path, expected)| case(&format!(":path {path:?}"), &get(path, &[]), b"", expected))
        .collect()
}

fn lines() -> Vec<Case> {
    let lines: [(&str, Headers<'_>, Expected); 12] = [
        ("T9 another host", &[("host", "evil")], Status(400)),
        ("T11 two methods", &[(":method", "PUT")], Reset),
        ("T13 line feed", &[("x", "a\nhost: evil")], Gone),
        ("T13 upper case", &[("X-Role", "user")], Gone),
        (
            "T14 who says who he is",
            &[("x-forwarded-for", "10.0.0.9"), ("x-forwarded-client-cert", "x")],
            Status(200),
        ),
        ("T15 connection", &[("connection", "x-role")], Reset),
        ("T16 coding", &[("transfer-encoding", "chunked")], Reset),
        ("T19 upgrade", &[("upgrade", "websocket")], Reset),
        ("T20 length", &[("content-length", "5")], Reset),
        ("T20 two lengths", &[("content-length", "0"), ("content-length", "5")], Reset),
        ("T21 pseudo behind", &[("x", "y"), (":path", "/admin")], Reset),
        ("T26 a coding", &[("content-encoding", "gzip")], Status(200)),
    ];
    lines.into_iter().map(|(name, more, expected)| case(name, &get("/public", more), b"", expected)).collect()
}

fn roles() -> Vec<Case> {
    let role = |name: &str, more: Headers<'_>, status| case(name, &get("/role", more), b"", Status(status));
    vec![
        role("T12", &[("x-role", "user")], 200),
        role("T12", &[("x-role", "user"), ("x-role", "admin")], 403),
        role("T13", &[("x-role", "user"), ("x_role", "admin")], 403),
    ]
}

fn upload(more: Headers<'_>) -> Vec<(String, String)> {
    with("POST", "http", "h", "/upload", more)
}

fn bodies() -> Vec<Case> {
    let smuggled = b"GET /admin HTTP/1.1\r\nHost: h\r\n\r\n";
    vec![
        case("upload", &upload(&[("content-length", "5")]), b"hello", Status(200)),
        case("T18 a body with GET", &get("/public", &[]), smuggled, Status(200)),
        case("T20 shorter than it says", &upload(&[("content-length", "50")]), smuggled, Reset),
        case("T20 longer than it says", &upload(&[("content-length", "2")]), smuggled, Reset),
    ]
}

fn methods() -> Vec<Case> {
    let of = |name: &str, method: &str, scheme: &str, authority: &str, path: &str, expected| {
        case(name, &with(method, scheme, authority, path, &[]), b"", expected)
    };
    let connect = |more: Headers<'_>| {
        let headers = [&[(":method", "CONNECT"), (":authority", "h:80")], more].concat();
        headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect::<Vec<_>>()
    };
    let extended = [(":protocol", "websocket"), (":scheme", "http"), (":path", "/public")];
    vec![
        of("T8 another scheme", "GET", "ftp", "h", "/public", Status(400)),
        of("T20 a scheme that goes on", "GET", "http://h/admin?", "h", "/public", Reset),
        of("T9 a good host", "GET", "http", "good", "/host", Status(200)),
        of("T9 an evil one", "GET", "http", "evil", "/host", Status(403)),
        of("T9 a user", "GET", "http", "evil@good", "/host", Status(400)),
        of("T11 PUT", "PUT", "http", "h", "/public", Status(403)),
        of("T11 get", "get", "http", "h", "/public", Status(403)),
        case("T19 CONNECT", &connect(&[]), b"GET /admin HTTP/1.1\r\n\r\n", Status(403)),
        case("T19 a protocol that was not offered", &connect(&extended), b"", Reset),
        coalesced(),
    ]
}

/// Another host on the connection of one that is allowed.
fn coalesced() -> Case {
    let mut case = case("T10", &with("GET", "http", "good", "/host", &[]), b"", Status(200));
    let evil = block(&with("GET", "http", "evil", "/host", &[]));
    frame(&mut case.bytes, HEADERS, END_HEADERS | END_STREAM, 3, &evil);
    case
}

fn trailers() -> Vec<Case> {
    let of = |name: &str, header: (&str, &str), expected| {
        let mut bytes = opened();
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &block(&upload(&[])));
        frame(&mut bytes, DATA, 0, 1, b"hello");
        let trailers = block(&[(header.0.to_owned(), header.1.to_owned())]);
        frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 1, &trailers);
        Case { name: format!("HTTP/2 T21 {name}"), bytes, expected }
    };
    vec![
        // nginx takes none, and may have answered by then.
        of("trailers", ("x-checksum", "1"), Whatever),
        of("trailers that a rule looks at", ("x-role", "admin"), Whatever),
        of("trailers that authenticate", ("authorization", "admin"), Whatever),
    ]
}

/// Frames that lie about themselves, behind the head of an upload.
fn lies() -> Vec<Case> {
    let of = |name: &str, kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut bytes = opened();
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &block(&upload(&[])));
        frame(&mut bytes, kind, flags, stream, payload);
        Case { name: format!("HTTP/2 T17 {name}"), bytes, expected: Gone }
    };
    vec![
        of("more padding than there is", DATA, 8, 1, b"\x09admin"),
        of("DATA of no stream", DATA, 0, 0, b"admin"),
        of("DATA of a stream that nobody opened", DATA, 0, 7, b"admin"),
        of("a stream of the server's", HEADERS, END_HEADERS | END_STREAM, 2, &block(&get("/admin", &[]))),
        of("a head that goes on elsewhere", 9, END_HEADERS, 1, &block(&get("/admin", &[]))),
    ]
}

fn heads() -> Vec<Case> {
    let many = vec![("x", "1"); 129];
    vec![case("T22 many lines", &get("/public", &many), b"", Status(400))]
}

/// Connections of a few streams, made up of pieces; the same for the same seed.
pub(crate) fn made_up(seed: u64) -> impl Iterator<Item = Vec<u8>> {
    const PATHS: [&str; 8] = [
        "/public/x",
        "/upload",
        "/role",
        "/host",
        "/admin",
        "/public/..%2fadmin",
        "//public",
        "/public;/../admin",
    ];
    const LINES: [(&str, &str); 12] = [
        ("x-role", "user"),
        ("x-role", "admin"),
        ("x_role", "admin"),
        ("host", "good"),
        ("content-length", "5"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
        ("te", "trailers"),
        ("connection", "close"),
        (":path", "/admin"),
        ("cookie", "a=1"),
        ("x", "a\r\nx-role: admin"),
    ];
    let mut below = below(seed);
    std::iter::from_fn(move || {
        let mut bytes = opened();
        let begin = bytes.len();
        for number in 0..=below(3) as u32 {
            let (stream, path) = (2 * number + 1, PATHS[below(PATHS.len())]);
            let lines: Vec<_> = (0..below(3)).map(|_| LINES[below(LINES.len())]).collect();
            let method = if path == "/upload" { "POST" } else { ["GET", "GET", "GET", "PUT"][below(4)] };
            let mut headers = with(method, "http", ["h", "good", "evil"][below(3)], path, &lines);
            if below(5) == 0 {
                let (one, other) = (below(headers.len()), below(headers.len()));
                headers.swap(one, other);
            }
            let end = [END_STREAM, 0][below(2)];
            frame(&mut bytes, HEADERS, END_HEADERS | end, stream, &block(&headers));
            if end == 0 {
                frame(&mut bytes, DATA, [END_STREAM, END_STREAM, 0][below(3)], stream, b"hello");
            }
        }
        if below(3) == 0 {
            let at = begin + below(bytes.len() - begin);
            bytes[at] = below(256) as u8;
        }
        Some(bytes)
    })
}

fn case(name: &str, headers: &[(String, String)], body: &[u8], expected: Expected) -> Case {
    let mut bytes = opened();
    let end = if body.is_empty() { END_STREAM } else { 0 };
    frame(&mut bytes, HEADERS, END_HEADERS | end, 1, &block(headers));
    if !body.is_empty() {
        frame(&mut bytes, DATA, END_STREAM, 1, body);
    }
    Case { name: format!("HTTP/2 {name}"), bytes, expected }
}

/// What each connection begins with.
fn opened() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    bytes
}

/// Literals that are never indexed, with their names.
fn block(headers: &[(String, String)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0x10);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
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

/// Whether that is what was said first of stream 1, or of the connection as a whole.
pub(crate) fn is(expected: &Expected, mut answer: &[u8]) -> bool {
    if matches!(expected, Whatever) {
        return true;
    }
    while let [a, b, c, kind, _, _, _, _, stream, rest @ ..] = answer {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(payload) = rest.get(..length) else { return false };
        match (*kind, *stream, expected) {
            (HEADERS, 1, Status(code)) => return status(payload) == Some(*code),
            (RST_STREAM, 1, expected) => return matches!(expected, Reset),
            // One without an error says that no more streams are taken.
            (GOAWAY, 0, expected) if payload.get(4..8) != Some(&[0; 4]) => return matches!(expected, Gone),
            (HEADERS, 1, _) => return false,
            _ => {}
        }
        answer = &rest[length..];
    }
    matches!(expected, Expected::Nothing)
}

/// `:status` as it stands first in a block: numbers 8 and 12 of the static table, or written after its name, in Huffman's code
/// or not.
fn status(block: &[u8]) -> Option<u16> {
    match block {
        [0x88, ..] => Some(200),
        [0x8c, ..] => Some(400),
        [0x48, 0x83, 0x68, 0x0c, 0xff, ..] | [0x48, 3, b'4', b'0', b'3', ..] => Some(403),
        _ => None,
    }
}
