//! Streams of HTTP/2 through the whole proxy, and each that reaches the server written as HTTP/1.1, as gateways do that speak
//! to older servers.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use tokio::task::spawn_local;

use super::harness::http2::{END_HEADERS, END_STREAM, Raw, block, frame};
use super::harness::{Bench, Servers, local, rule};
use super::http1::{self, End, Manner};
use super::run;
use super::stream::{is_allowed, public};

type Lines = Vec<(Vec<u8>, Vec<u8>)>;

thread_local! {
    /// Where rules look at paths, and where none does.
    static BENCHES: [Bench; 2] = [Bench::new(public()), Bench::new(vec![rule("[A-Z]+", "")])];
}

/// A request as the server has it.
#[derive(Debug)]
struct Received {
    head: Parts,
    body: Vec<u8>,
    trailers: HeaderMap,
    is_whole: bool,
}

/// One stream: lines of a head, `name: value`, an empty line, a body, an empty line, lines of trailers. What no line can have
/// is written as Rust escapes it. Each that passes is the same request in HTTP/1.1, and may pass. Whether any did.
pub fn lists(text: &[u8]) -> bool {
    let parts = sections(text);
    let [head, body, trailers] = [0, 1, 2].map(|at| parts.get(at).copied().unwrap_or_default());
    let (head, body, trailers) = (lines(head), unescaped(body), lines(trailers));
    let end = |is_last: bool| if is_last { END_STREAM } else { 0 };
    let mut bytes = frame(1, END_HEADERS | end(body.is_empty() && trailers.is_empty()), 1, &block(&head));
    if !body.is_empty() {
        bytes.extend(frame(0, end(trailers.is_empty()), 1, &body));
    }
    if !trailers.is_empty() {
        bytes.extend(frame(1, END_HEADERS | END_STREAM, 1, &block(&trailers)));
    }
    frames(&bytes)
}

/// Up to three parts with an empty line between them.
fn sections(text: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = text;
    while parts.len() < 2
        && let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n")
    {
        parts.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    parts.push(rest);
    parts
}

fn lines(text: &[u8]) -> Lines {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let parted = lines.map(|line| {
        let colon = line.windows(2).skip(1).position(|pair| pair == b": ").map(|at| at + 1);
        match colon {
            Some(colon) => (unescaped(&line[..colon]), unescaped(&line[colon + 2..])),
            None => (unescaped(line), Vec::new()),
        }
    });
    parted.collect()
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let (byte, length) = match (first, tail) {
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'0', ..]) => (0, 2),
            (b'\\', [b'x', digits @ ..]) => {
                let digits = digits.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    Some(byte) => (byte, 4),
                    None => (b'\\', 1),
                }
            }
            (first, _) => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    bytes
}

/// Whatever frames a client sends behind its preface and settings. Whether any request passed.
pub fn frames(bytes: &[u8]) -> bool {
    BENCHES.with(|[ruled, free]| {
        let some = run(converse(ruled, bytes));
        for received in &some {
            let target = target(&received.head);
            assert!(is_allowed(received.head.method.as_str().as_bytes(), target.as_bytes()), "{received:?}");
        }
        let more = run(converse(free, bytes));
        for received in some.iter().chain(&more) {
            is_same_in_http1(received);
        }
        !more.is_empty()
    })
}

fn target(head: &Parts) -> String {
    match head.uri.path_and_query() {
        Some(target) if head.method != Method::CONNECT => target.to_string(),
        _ => head.uri.authority().map(ToString::to_string).unwrap_or_default(),
    }
}

/// Lines of a message; blanks around a value are no part of it in HTTP/1.
fn plain(headers: &HeaderMap) -> Lines {
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().as_bytes().to_vec(), value.as_bytes().trim_ascii().to_vec())
    };
    headers.iter().map(line).collect()
}

/// Written as HTTP/1.1 it is one request, with the same lines, to every reader.
fn is_same_in_http1(received: &Received) {
    let Received { head, body, trailers, is_whole } = received;
    // More lines than HTTP/1 has room for, and what has no form there.
    if !is_whole || head.headers.len() > 120 || head.extensions.get::<h2::ext::Protocol>().is_some() {
        return;
    }
    let target = target(head);
    let authority = head.uri.authority().expect("a request has an authority").as_str();
    assert!(!head.headers.contains_key("host"), "it stands in one place: {received:?}");
    let mut expected = vec![(b"host".to_vec(), authority.as_bytes().to_vec())];
    expected.extend(plain(&head.headers));
    let has_length = head.headers.contains_key("content-length");
    let is_chunked =
        !has_length && head.method != Method::CONNECT && !(body.is_empty() && trailers.is_empty());
    if is_chunked {
        expected.push((b"transfer-encoding".to_vec(), b"chunked".to_vec()));
    }
    let mut bytes = format!("{} {target} HTTP/1.1\r\n", head.method).into_bytes();
    write(&expected, &mut bytes);
    if is_chunked {
        if !body.is_empty() {
            bytes.extend([format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat());
        }
        bytes.extend(b"0\r\n");
        write(&plain(trailers), &mut bytes);
    } else if has_length {
        bytes.extend(body);
    }
    let read = http1::holds(
        &bytes,
        |cuts| http1::requests(&bytes, &[], cuts),
        |manner: Manner| manner.requests(&bytes),
    );
    let shown = || format!("{received:?} is {}", bytes.escape_ascii());
    let end = if head.method == Method::CONNECT { End::Switched } else { End::Whole };
    assert_eq!(read.end, end, "{}", shown());
    let [message] = &read.messages[..] else { panic!("{}", shown()) };
    assert_eq!(
        (&message.what[..], &message.target[..]),
        (head.method.as_str().as_bytes(), target.as_bytes())
    );
    assert_eq!(message.headers, expected, "{}", shown());
    assert_eq!((message.end, message.is_whole), (bytes.len(), true), "{}", shown());
}

fn write(lines: &Lines, to: &mut Vec<u8>) {
    for (name, value) in lines {
        to.extend([&name[..], b": ", value, b"\r\n"].concat());
    }
    to.extend(b"\r\n");
}

/// All that reaches the server, which answers each request at its end.
async fn converse(bench: &Bench, bytes: &[u8]) -> Vec<Received> {
    let received = local(async {
        let (mut raw, servers) = Raw::open(bench).await;
        let received = Rc::default();
        spawn_local(serve(servers, Rc::clone(&received)));
        raw.write(bytes).await;
        // Until nothing moves any more.
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(raw);
        tokio::time::sleep(Duration::from_secs(10)).await;
        received.take()
    })
    .await;
    bench.flows();
    received
}

async fn serve(mut servers: Servers, all: Rc<RefCell<Vec<Received>>>) {
    while let Some(stream) = servers.try_next().await {
        let mut builder = h2::server::Builder::new();
        let Ok(mut connection) = builder.enable_connect_protocol().handshake::<_, Bytes>(stream).await else {
            continue;
        };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let (head, mut body) = request.into_parts();
            let number = all.borrow().len();
            all.borrow_mut().push(Received {
                head,
                body: Vec::new(),
                trailers: HeaderMap::new(),
                is_whole: false,
            });
            let all = Rc::clone(&all);
            spawn_local(async move {
                let ended = take(&mut body, |data| all.borrow_mut()[number].body.extend(data)).await;
                if let Ok(trailers) = ended {
                    let received = &mut all.borrow_mut()[number];
                    (received.trailers, received.is_whole) = (trailers.unwrap_or_default(), true);
                }
                let _ = respond.send_response(Response::new(()), true);
            });
        }
    }
}

async fn take(body: &mut RecvStream, mut keep: impl FnMut(Bytes)) -> Result<Option<HeaderMap>, h2::Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        keep(data);
    }
    body.trailers().await
}
