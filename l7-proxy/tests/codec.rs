//! What is accepted as HTTP/1, and what is refused, by which name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows only functions marked as tests to be tests"
)]

use l7_proxy::codec::{Asked, Body, Fault, Form, Framing, MAX_HEAD, RequestHead, ResponseHead, Scan};

/// A request head, given at once.
fn request(input: &[u8]) -> Result<RequestHead, Fault> {
    let (start, end) = Scan::default().find(input)?.expect("a whole head");
    let mut head = RequestHead::default();
    head.parse(input, start, end).map(|()| head)
}

/// A request of these header lines, which ends with an empty one.
fn with(lines: &str) -> Result<RequestHead, Fault> {
    request(format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n").as_bytes())
}

fn response(input: &str, is_head: bool) -> Result<ResponseHead, Fault> {
    let (start, end) = Scan::default().find(input.as_bytes())?.expect("a whole head");
    let mut head = ResponseHead::default();
    head.parse(input.as_bytes(), start, end, Asked { is_head, is_connect: false }).map(|()| head)
}

#[test]
fn a_head_is_spans_into_what_came() {
    let input =
        b"\r\nPOST /v1/x?q=1 HTTP/1.1\r\nHost: deathstar:80\r\nX-A:  1 \r\nContent-Length: 12\r\n\r\nbody";
    let head = request(input).unwrap();
    assert_eq!(head.whole.bytes(input), &input[2..input.len() - 4]);
    assert_eq!(head.method.bytes(input), b"POST");
    assert_eq!(head.path.bytes(input), b"/v1/x?q=1");
    assert_eq!(head.authority.bytes(input), b"deathstar:80");
    assert_eq!(head.values(input, "x-a").collect::<Vec<_>>(), [b"1"]);
    assert_eq!((head.form, head.framing, head.minor), (Form::Origin, Framing::Length(12), 1));
}

#[test]
fn a_head_is_found_however_it_trickles_in() {
    let input = b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\nGET";
    let mut scan = Scan::default();
    for length in 0..input.len() - 3 {
        assert_eq!(scan.find(&input[..length]), Ok(None));
    }
    assert_eq!(scan.find(&input[..input.len() - 3]), Ok(Some((2, input.len() - 3))));
}

#[test]
fn what_frames_a_body_has_one_reading() {
    let cases: [(&str, Result<Framing, Fault>); 27] = [
        ("", Ok(Framing::None)),
        ("Content-Length: 0\r\n", Ok(Framing::None)),
        ("Content-Length:5\r\n", Ok(Framing::Length(5))),
        ("content-LENGTH: 0005\r\n", Ok(Framing::Length(5))),
        ("Transfer-Encoding: chunked\r\n", Ok(Framing::Chunked)),
        ("transfer-encoding:CHUNKED\r\n", Ok(Framing::Chunked)),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Err(Fault::LengthAndCoding)),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Err(Fault::LengthAndCoding)),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", Err(Fault::LengthTwice)),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", Err(Fault::LengthTwice)),
        ("Content-Length: +5\r\n", Err(Fault::Length)),
        ("Content-Length: -5\r\n", Err(Fault::Length)),
        ("Content-Length: 5, 5\r\n", Err(Fault::Length)),
        ("Content-Length: 0x5\r\n", Err(Fault::Length)),
        ("Content-Length: 5 \r\n", Err(Fault::Length)),
        ("Content-Length:\r\n", Err(Fault::Length)),
        ("Content-Length: 99999999999999999999\r\n", Err(Fault::Length)),
        ("Transfer-Encoding: xchunked\r\n", Err(Fault::Coding)),
        ("Transfer-Encoding: ,chunked\r\n", Err(Fault::Coding)),
        ("Transfer-Encoding: gzip, chunked\r\n", Err(Fault::Coding)),
        ("Transfer-Encoding: chunked, identity\r\n", Err(Fault::Coding)),
        ("Transfer-Encoding: identity\r\n", Err(Fault::Coding)),
        ("Transfer-Encoding:\tchunked\r\n", Err(Fault::Coding)),
        ("Transfer-Encoding: chunked \r\n", Err(Fault::Coding)),
        ("Transfer-Encoding: \x0bchunked\r\n", Err(Fault::HeaderValue)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(Fault::Coding)),
        ("Transfer-Encoding : chunked\r\n", Err(Fault::SpaceBeforeColon)),
    ];
    for (lines, expected) in cases {
        assert_eq!(with(lines).map(|head| head.framing), expected, "{lines:?}");
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(request(old).unwrap_err(), Fault::CodingInOldVersion);
}

#[test]
fn lines_end_with_both_and_begin_with_a_name() {
    let cases: [(&[u8], Fault); 16] = [
        (b"GET / HTTP/1.1\nHost: h\r\n\r\n", Fault::BareLineFeed),
        (b"GET / HTTP/1.1\r\nHost: h\n\r\n", Fault::BareLineFeed),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\n", Fault::BareLineFeed),
        (b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", Fault::BareLineFeed),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", Fault::LeadingLines),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\n b\r\n\r\n", Fault::Folded),
        (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", Fault::Folded),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA : 1\r\n\r\n", Fault::SpaceBeforeColon),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\0\r\n\r\n", Fault::HeaderValue),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r2\r\n\r\n", Fault::HeaderValue),
        (b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n", Fault::HeaderName),
        (b"GET / HTTP/1.1\r\nHost: h\r\n: 1\r\n\r\n", Fault::HeaderName),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", Fault::RequestLine),
        (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", Fault::RequestLine),
        (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", Fault::Version),
        (b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", Fault::RequestLine),
    ];
    for (input, expected) in cases {
        assert_eq!(request(input).unwrap_err(), expected, "{:?}", input.escape_ascii().to_string());
    }
}

#[test]
fn heads_have_a_bound_and_large_cookies_fit() {
    let cookie = format!("Cookie: {}\r\n", "c".repeat(48 << 10));
    assert!(with(&cookie).is_ok());
    let mut scan = Scan::default();
    assert_eq!(scan.find(&vec![b'a'; MAX_HEAD]), Err(Fault::HeadTooLong));
    assert_eq!(with(&format!("A: {}\r\n", "a".repeat(MAX_HEAD))).unwrap_err(), Fault::HeadTooLong);
    assert!(with(&"A: 1\r\n".repeat(127)).is_ok());
    assert_eq!(with(&"A: 1\r\n".repeat(128)).unwrap_err(), Fault::TooManyHeaders);
}

#[test]
fn targets_have_four_forms_and_one_host() {
    let of = |line: &str, lines: &str| request(format!("{line} HTTP/1.1\r\n{lines}\r\n").as_bytes());
    let form = |line: &str, lines: &str| of(line, lines).map(|head| head.form);
    let host = "Host: h\r\n";
    assert_eq!(form("GET /", host), Ok(Form::Origin));
    assert_eq!(form("OPTIONS *", host), Ok(Form::Asterisk));
    assert_eq!(form("GET *", host), Err(Fault::Target));
    assert_eq!(form("GET a", host), Err(Fault::Target));
    assert_eq!(form("GET https://h/", host), Err(Fault::Target));
    assert_eq!(form("GET /a#b", host), Err(Fault::Fragment));
    assert_eq!(form("GET http://H:80/a", host), Ok(Form::Absolute));
    assert_eq!(form("GET http://other/a", host), Err(Fault::HostDiffers));
    assert_eq!(form("GET http://u@h/a", host), Err(Fault::Host));
    assert_eq!(form("CONNECT h:443", "Host: h:443\r\n"), Ok(Form::Authority));
    assert_eq!(form("CONNECT h:443", "Host: g:443\r\n"), Err(Fault::HostDiffers));
    assert_eq!(form("CONNECT /a", host), Err(Fault::Target));
    assert_eq!(form("GET /", ""), Err(Fault::HostMissing));
    assert_eq!(form("GET /", "Host: h\r\nHost: h\r\n"), Err(Fault::HostTwice));
    for bad in ["Host: u@h\r\n", "Host: a b\r\n", "Host: a/b\r\n", "Host: a,b\r\n", "Host: h?\r\n"] {
        assert_eq!(form("GET /", bad), Err(Fault::Host), "{bad:?}");
    }
    assert_eq!(request(b"GET / HTTP/1.0\r\n\r\n").map(|head| head.form), Ok(Form::Origin));
    let absolute = b"GET http://h/p?q HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(request(absolute).unwrap().path.bytes(absolute), b"/p?q");
}

#[test]
fn connection_options_name_no_header_of_the_message() {
    let close = with("Connection: keep-alive, close\r\n").unwrap();
    assert!(close.close);
    assert!(with("Connection: TE\r\nTE: trailers\r\n").is_ok());
    assert!(with("Connection: x-absent\r\n").is_ok());
    assert_eq!(
        with("Connection: close, authorization\r\nAuthorization: Basic x\r\n").unwrap_err(),
        Fault::ConnectionOption
    );
    assert_eq!(
        with("Connection: Content-Length\r\nContent-Length: 3\r\n").unwrap_err(),
        Fault::ConnectionOption
    );
    let upgrade = with("Connection: Upgrade\r\nUpgrade: websocket\r\n").unwrap();
    assert!(upgrade.upgrade && !upgrade.upgrade_carries_requests);
    assert!(
        with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n")
            .unwrap()
            .upgrade_carries_requests
    );
    assert!(!with("Upgrade: websocket\r\n").unwrap().upgrade);
}

#[test]
fn responses_are_framed_by_what_was_asked() {
    let framing = |input: &str, is_head| response(input, is_head).map(|head| head.framing);
    assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false), Ok(Framing::Length(3)));
    assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true), Ok(Framing::None));
    assert_eq!(framing("HTTP/1.1 304 NM\r\nContent-Length: 3\r\n\r\n", false), Ok(Framing::None));
    assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", false), Ok(Framing::Close));
    assert_eq!(framing("HTTP/1.1 204 NC\r\nContent-Length: 0\r\n\r\n", false), Ok(Framing::None));
    assert_eq!(
        framing("HTTP/1.1 100 C\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        Err(Fault::BodyWhereNone)
    );
    assert_eq!(
        framing("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        Err(Fault::CodingInOldVersion)
    );
    assert_eq!(
        framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        Err(Fault::LengthAndCoding)
    );
    assert_eq!(framing("\r\nHTTP/1.1 200 OK\r\n\r\n", false), Err(Fault::StatusLine));
    assert_eq!(framing("HTTP/1.1 099 OK\r\n\r\n", false), Err(Fault::StatusLine));
    assert!(response("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false).is_ok());
    assert!(response("HTTP/1.1 103 Early\r\n\r\n", false).unwrap().is_interim());
    assert!(!response("HTTP/1.1 101 S\r\n\r\n", false).unwrap().is_interim());
}

/// What real servers send and all clients read alike must pass, though no request may look like that.
#[test]
fn answers_of_real_servers_pass() {
    let cases = [
        ("200 OK\r\nContent-Length:  5\r\n", Framing::Length(5)),
        ("200 OK\r\nContent-Length:5\r\n", Framing::Length(5)),
        ("200 OK\r\nContent-Length:\t5 \t\r\n", Framing::Length(5)),
        ("200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n", Framing::Length(5)),
        ("200 OK\r\nContent-Length: 5\r\nX: 1\r\ncontent-length:  05\r\n", Framing::Length(5)),
        ("200 OK\r\nTransfer-Encoding:  Chunked \r\n", Framing::Chunked),
        ("200 OK\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", Framing::Chunked),
        ("200 OK\r\nConnection: close, Set-Cookie\r\nSet-Cookie: a\r\n", Framing::Close),
        ("200\r\nContent-Length: 5\r\n", Framing::Length(5)),
        ("200 \r\nContent-Length: 5\r\n", Framing::Length(5)),
        ("204 No Content\r\nTransfer-Encoding: chunked\r\n", Framing::None),
        ("204 No Content\r\nContent-Length: 5\r\n", Framing::None),
        ("304 Not Modified\r\nTransfer-Encoding: chunked\r\n", Framing::None),
        ("304 Not Modified\r\nContent-Length: 5\r\nContent-Length: 5\r\n", Framing::None),
        ("999 Request denied\r\nContent-Length: 5\r\n", Framing::Length(5)),
        ("600 Own\r\n", Framing::Close),
    ];
    for (lines, expected) in cases {
        let found = response(&format!("HTTP/1.1 {lines}\r\n"), false).map(|head| head.framing);
        assert_eq!(found, Ok(expected), "{lines:?}");
    }
    for (lines, fault) in [
        ("Content-Length: 5\r\nContent-Length: 6\r\n", Fault::LengthTwice),
        ("Content-Length: 5, 5\r\n", Fault::Length),
        ("Content-Length: 5 5\r\n", Fault::Length),
        ("Content-Length:\r\n", Fault::Length),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Fault::Coding),
        ("Transfer-Encoding: gzip, chunked\r\n", Fault::Coding),
    ] {
        assert_eq!(
            response(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n"), false).unwrap_err(),
            fault,
            "{lines:?}"
        );
    }
}

#[test]
fn chunks_of_answers_may_have_blanks_around_their_size() {
    let answer = |input: &[u8], piece| counted_of(Body::answer(Framing::Chunked), input, piece);
    let padded = b"5     \r\nhello\r\n 3\t\r\nabc\r\n1 ; a=b \r\nx\r\n0  \r\n\r\nHTTP";
    for piece in [1, 2, 3, 100] {
        assert_eq!(answer(padded, piece), Ok((padded.len() - 4, true)), "{piece}");
        for (input, fault) in [
            (&b"5 5\r\nhello"[..], Fault::ChunkSize),
            (b"  \r\nhello", Fault::ChunkSize),
            (b"5\x0b\r\nhello", Fault::ChunkSize),
            (b"+5 \r\nhello", Fault::ChunkSize),
            (b"5 \nhello", Fault::BareLineFeed),
        ] {
            assert_eq!(answer(input, piece), Err(fault), "{:?}", input.escape_ascii().to_string());
        }
    }
}

/// What is counted of a request's body that arrives in pieces of each size, and how it ends.
fn counted(framing: Framing, input: &[u8], piece: usize) -> Result<(usize, bool), Fault> {
    counted_of(Body::new(framing), input, piece)
}

fn counted_of(mut body: Body, input: &[u8], piece: usize) -> Result<(usize, bool), Fault> {
    let mut at = 0;
    let mut seen = 0;
    while seen < input.len() {
        seen = (seen + piece).min(input.len());
        at += body.advance(&input[at..seen], &["x-role".into()])?;
        assert!(at <= seen);
    }
    Ok((at, body.is_done()))
}

#[test]
fn a_body_ends_where_it_says() {
    let chunked = b"5\r\nhello\r\n00a;x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET /next";
    for piece in [1, 2, 3, 7, 100] {
        assert_eq!(counted(Framing::Chunked, chunked, piece), Ok((chunked.len() - 9, true)), "{piece}");
        assert_eq!(counted(Framing::Length(3), b"abcGET", piece), Ok((3, true)));
        assert_eq!(counted(Framing::Length(9), b"abc", piece), Ok((3, false)));
        assert_eq!(counted(Framing::Close, b"abc", piece), Ok((3, false)));
        assert_eq!(counted(Framing::None, b"abc", piece), Ok((0, true)));
        assert_eq!(counted(Framing::Chunked, b"0\r\n\r\n0", piece), Ok((5, true)));
    }
}

/// Whoever writes a rule is told by the same word which methods there are.
#[test]
fn rules_may_ask_for_the_methods_that_requests_may_have() {
    let mut store = expression::Expressions::default();
    let is_read = |method: &[u8]| request(&[method, b" /a HTTP/1.1\r\nHost: h\r\n\r\n"].concat()).is_ok();
    for byte in 0..=u8::MAX {
        let matcher = store.matcher(&format!("\\x{byte:02x}"), false).unwrap();
        assert_eq!(matcher.may_be_a_method(), is_read(&[byte]), "{}", byte.escape_ascii());
    }
    for length in [1, 32, 33] {
        let method = "A".repeat(length);
        assert_eq!(store.matcher(&method, false).unwrap().may_be_a_method(), is_read(method.as_bytes()));
    }
}

#[test]
fn chunks_have_one_reading() {
    let long = format!("5;{}\r\nhello\r\n", "x".repeat(300));
    let cases: [(&[u8], Fault); 19] = [
        (b"0x5\r\nhello\r\n0\r\n\r\n", Fault::ChunkSize),
        (b"0_2e\r\n", Fault::ChunkSize),
        (b"\r\n", Fault::ChunkSize),
        (b"+5\r\nhello", Fault::ChunkSize),
        (b" 5\r\nhello", Fault::ChunkSize),
        (b"5 \r\nhello", Fault::ChunkSize),
        (b"10000000000000000\r\n", Fault::ChunkSize),
        (b"fffffffffffffffff\r\n", Fault::ChunkSize),
        (b"5\nhello\r\n", Fault::BareLineFeed),
        (b"5;a\nhello\r\n", Fault::BareLineFeed),
        (b"5;a\rb\r\nhello\r\n", Fault::ChunkExtension),
        (b"5\r\nhello!\r\n", Fault::ChunkEnd),
        (b"5\r\nhello\n", Fault::ChunkEnd),
        (long.as_bytes(), Fault::ChunkExtension),
        (b"0\r\nContent-Length: 5\r\n\r\n", Fault::Trailers),
        (b"0\r\nX-Role: admin\r\n\r\n", Fault::Trailers),
        (b"0\r\nX_Role: admin\r\n\r\n", Fault::Trailers),
        (b"0\r\nTransfer.Encoding: x\r\n\r\n", Fault::Trailers),
        (b"0\r\nbad line\r\n\r\n", Fault::Trailers),
    ];
    for (input, expected) in cases {
        for piece in [1, 5, 1000] {
            assert_eq!(
                counted(Framing::Chunked, input, piece),
                Err(expected),
                "{:?}",
                input.escape_ascii().to_string()
            );
        }
    }
    let many = "1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n".repeat(100);
    assert_eq!(counted(Framing::Chunked, many.as_bytes(), 64), Err(Fault::ChunkExtension));
}
