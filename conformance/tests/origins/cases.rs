//! What is said over HTTP/1.1, by case, and what is answered. Numbers are those of the cases that `l7-proxy/tests/adversary.rs`
//! plays in memory, with reasons; here servers are real.

/// One connection.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expected: Expected,
}

/// What the client is answered.
#[derive(Debug)]
pub(crate) enum Expected {
    /// First.
    Status(u16),
    /// The connection ends.
    Nothing,
    /// The stream of HTTP/2 is reset.
    Reset,
    /// The connection of HTTP/2 ends, and says that it does (`GOAWAY`).
    Gone,
    /// That is the server's affair; what it executes is not.
    Whatever,
}

use Expected::{Nothing, Status, Whatever};

/// All cases.
pub(crate) fn plain() -> Vec<Case> {
    [targets(), hosts(), methods(), headers(), framing(), chunks(), trailers(), upgrades()]
        .into_iter()
        .flatten()
        .collect()
}

fn case(name: &str, said: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name: name.to_owned(), bytes: said.into(), expected }
}

fn targets() -> Vec<Case> {
    let of = |(name, target, status): (&str, &str, u16)| {
        case(&format!("{name} {target}"), format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"), Status(status))
    };
    let targets = [
        ("must pass", "/public", 200),
        ("must pass", "/public/a%20b?q=%2F..%2F#".trim_end_matches('#'), 200),
        ("must pass", "/public/group%2Fproject", 200),
        ("must pass", "/public/a;jsessionid=1", 200),
        ("T1", "/%61dmin", 403),
        ("T1", "/public/%2e%2e/admin", 403),
        ("T1", "/public/%252e%252e/admin", 403),
        ("T2", "/public/..%2fadmin", 403),
        ("T2", "/public/..%5cadmin", 403),
        ("T2", "/public\\..\\admin", 400),
        ("T3", "//admin", 403),
        ("T3", "/public/../admin", 403),
        ("T3", "/public//../../admin", 403),
        ("T3", "/./admin", 403),
        ("T4", "/admin;x=1", 403),
        ("T4", "/public/..;/admin", 403),
        ("T4", "/public/.;/..;x/admin", 403),
        ("T5", "/Public/a", 403),
        ("T5", "/%50ublic/a", 403),
        ("T6", "/publicx", 403),
        ("T6", "/public%00", 400),
        ("T6", "/public%20", 403),
        ("T6", "/public#/admin", 400),
        ("T7", "/public/%c0%ae%c0%ae/admin", 400),
        ("T7", "/public/\u{e4}", 400),
        ("T8", "http://h/admin", 403),
        ("T8", "http://h/public/../admin", 403),
        ("T8", "http://other/public", 400),
    ];
    targets.into_iter().map(of).collect()
}

fn hosts() -> Vec<Case> {
    let of = |(headers, expected): (&str, u16)| {
        case(&format!("T9 {headers:?}"), format!("GET /host HTTP/1.1\r\n{headers}\r\n"), Status(expected))
    };
    let hosts = [
        ("Host: good\r\n", 200),
        ("Host: GOOD:80\r\n", 200),
        ("Host: evil\r\n", 403),
        ("Host: good.\r\n", 403),
        ("Host: good:8080\r\n", 403),
        ("", 400),
        ("Host: good\r\nHost: evil\r\n", 400),
        ("Host: evil@good\r\n", 400),
        ("Host: good, evil\r\n", 400),
    ];
    hosts.into_iter().map(of).collect()
}

fn methods() -> Vec<Case> {
    let of = |(line, expected): (&str, u16)| {
        case(&format!("T11 {line}"), format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n"), Status(expected))
    };
    let lines = [
        ("get /public", 403),
        ("PUT /public", 403),
        ("TRACE /public", 403),
        ("OPTIONS *", 403),
        ("CONNECT h:80", 403),
    ];
    lines.into_iter().map(of).collect()
}

fn headers() -> Vec<Case> {
    let of = |(name, headers, expected): (&str, &str, u16)| {
        let said = format!("GET /role HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        case(&format!("{name} {headers:?}"), said, Status(expected))
    };
    let headers = [
        ("must pass", "X-Role: user\r\n", 200),
        ("T12", "X-Role: user\r\nX-Role: admin\r\n", 403),
        ("T12", "X-Role: user,admin\r\n", 403),
        ("T13", "X-Role: user\r\nX_Role: admin\r\n", 403),
        ("T13", "X-Role: user\r\n admin\r\n", 400),
        ("T13", "X-Role : user\r\n", 400),
        ("T13", "X-Role: user\0admin\r\n", 400),
        ("T13", "X-Role: user\nX-Role: admin\r\n", 400),
        ("T14", "X-Role: user\r\nX-Forwarded-For: 10.0.0.9\r\nX-Forwarded-Client-Cert: x\r\n", 200),
        ("T14", "X-Role: admin\r\nForwarded: for=10.0.0.9\r\nX-Forwarded-Client-Cert: x\r\n", 403),
        ("T15", "X-Role: user\r\nConnection: X-Role\r\n", 400),
    ];
    headers.into_iter().map(of).collect()
}

/// A request that policy denies, for who takes a body for one.
const SMUGGLED: &str = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n";

fn framing() -> Vec<Case> {
    let upload = |(name, headers, expected): (&str, &str, Expected)| {
        let said = format!("POST /upload HTTP/1.1\r\nHost: h\r\n{headers}\r\n{SMUGGLED}");
        case(&format!("{name} {headers:?}"), said, expected)
    };
    let headers = [
        ("T16", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Status(400)),
        ("T16", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Status(400)),
        ("T16", "Content-Length: 5\r\nContent-Length: 38\r\n", Status(400)),
        ("T16", "Content-Length: +5\r\n", Status(400)),
        ("T16", "Content-Length: 0x5\r\n", Status(400)),
        ("T16", "Transfer-Encoding: xchunked\r\n", Status(400)),
        ("T16", "Transfer-Encoding: ,chunked\r\n", Status(400)),
        ("T16", "Transfer-Encoding: \x0bchunked\r\n", Status(400)),
        ("T16", "Transfer-Encoding: chunked, identity\r\n", Status(400)),
        // The request behind the body is judged as one.
        ("T16", "Transfer-Encoding: chunked\r\n", Status(200)),
        ("T16", "Content-Length: 5\r\n", Status(200)),
    ];
    let mut cases: Vec<Case> = headers.into_iter().map(upload).collect();
    cases.extend([
        case("T18 1.0", format!("POST /upload HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n{SMUGGLED}"), Status(400)),
        case(
            "T18 a body with GET",
            "GET /public HTTP/1.1\r\nHost: h\r\nContent-Length: 34\r\n\r\nGET /admin HTTP/1.1\r\nHost: hhh\r\n\r\n",
            Status(200),
        ),
        case("bare LF", "GET /public HTTP/1.1\nHost: h\n\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n", Status(400)),
        case("pipelined", "GET /public HTTP/1.1\r\nHost: h\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n", Status(200)),
        case("T22", format!("GET /public HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(70 << 10)), Status(400)),
        case("not HTTP", "SSH-2.0-OpenSSH_9.9\r\n", Nothing),
        case("TLS", *b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", Whatever),
    ]);
    cases
}

fn chunks() -> Vec<Case> {
    let of = |body: &str| {
        let said = format!("POST /upload HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        case(&format!("T17 {body:?}"), said, Whatever)
    };
    let bodies = [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "0_2e\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n",
        "\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n",
        "fffffffffffffffff\r\nadmin",
        "5\nadmin\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n",
        "2;a\nok\r\n24\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n0\r\n\r\n",
        "2\r\nok0\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n",
        "0\r\nHost: evil\r\n\r\n",
        "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n",
    ];
    bodies.into_iter().map(of).collect()
}

/// What is let through reaches the server; what a rule looks at, and what speaks for the client, does not. Whether the server
/// has answered by then is its affair.
fn trailers() -> Vec<Case> {
    let of = |trailer: &str| {
        let head = "POST /upload HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        case(&format!("T21 {trailer}"), format!("{head}2\r\nok\r\n0\r\n{trailer}: admin\r\n\r\n"), Whatever)
    };
    ["X-Checksum", "X-Role", "x_role", "X.Role", "Authorization", "Host", "Content-Length"]
        .into_iter()
        .map(of)
        .collect()
}

fn upgrades() -> Vec<Case> {
    let of = |token: &str| {
        let said = format!(
            "GET /public HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {token}\r\n\
             HTTP2-Settings: AAMAAABkAAQ\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n"
        );
        // What requests could go on in is not offered to the server; to anything else it may say what it likes.
        case(&format!("T19 {token}"), said, if token == "websocket" { Whatever } else { Status(200) })
    };
    ["h2c", "websocket", "TLS/1.2", "HTTP/2.0", "websocket, h2c"].into_iter().map(of).collect()
}

/// Numbers below a bound, the same for the same seed.
pub(crate) fn below(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    }
}

/// Streams of requests, cut up and put together again; the same for the same seed.
pub(crate) fn made_up(seed: u64) -> impl Iterator<Item = Vec<u8>> {
    const PIECES: [&str; 28] = [
        "GET /public/x HTTP/1.1\r\n",
        "GET /public/../admin HTTP/1.1\r\n",
        "POST /upload HTTP/1.1\r\n",
        "GET /admin HTTP/1.1\r\n",
        "GET http://h/public HTTP/1.1\r\n",
        "GET /role HTTP/1.1\r\n",
        "GET /host HTTP/1.1\r\n",
        "Host: h\r\n",
        "Host: good\r\n",
        "X-Role: user\r\n",
        "X-Role: admin\r\n",
        "X_Role: admin\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 34\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "\r\n",
        "\n",
        "hello",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "GET /admin HTTP/1.1\r\nHost: h\r\n\r\n",
        " ",
        "\0",
        ": ",
        "%2e",
    ];
    let mut below = below(seed);
    std::iter::from_fn(move || {
        let mut stream = Vec::new();
        for _ in 0..=below(2) {
            // A request that may pass, with up to three pieces out of their places.
            let mut parts = match below(4) {
                0 => vec!["GET /role HTTP/1.1\r\n", "Host: h\r\n", "X-Role: user\r\n", "\r\n"],
                1 => vec!["GET /host HTTP/1.1\r\n", "Host: good\r\n", "\r\n"],
                _ => vec![PIECES[[0, 2, 4][below(3)]], "Host: h\r\n", "\r\n"],
            };
            if parts[0].starts_with("POST") {
                parts.splice(1..1, [["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"][below(2)]]);
                parts.push(["hello", "5\r\nhello\r\n0\r\n\r\n"][below(2)]);
            }
            for _ in 0..below(4) {
                let at = below(parts.len());
                parts.insert(at, PIECES[below(PIECES.len())]);
            }
            stream.extend(parts.concat().into_bytes());
        }
        if below(3) == 0 {
            let at = below(stream.len());
            stream[at] = below(256) as u8;
        }
        Some(stream)
    })
}
