//! WebSocket over HTTP/1.1 in memory: a real handshake, frames of every kind both ways, allowed, denied, and edited under load.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use harness::wire::Cut;
use harness::{Bench, anybody, expect, local, rest, rule, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// RFC 6455, 1.3.
const ASKED: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n\
                     Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
const DENIED: &str =
    "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\nAccess denied\r\n";

/// A frame: first byte (FIN and kind), payload, masked as clients must.
fn frame(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mut bytes = vec![first];
    let bit = if masked { 0x80 } else { 0 };
    match payload.len() {
        length @ ..126 => bytes.push(bit | length as u8),
        length @ ..65_536 => {
            bytes.push(bit | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(bit | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    if masked {
        bytes.extend(mask);
    }
    bytes.extend(payload.iter().zip(mask.into_iter().cycle()).map(
        |(byte, mask)| {
            if masked { byte ^ mask } else { *byte }
        },
    ));
    bytes
}

async fn crosses(from: &mut DuplexStream, to: &mut DuplexStream, bytes: &[u8]) {
    from.write_all(bytes).await.unwrap();
    let mut came = vec![0; bytes.len()];
    to.read_exact(&mut came).await.unwrap();
    assert!(came == bytes);
}

/// An open socket.
async fn open(bench: &Bench) -> (DuplexStream, DuplexStream) {
    let (mut client, mut server) = bench.asked(ASKED).await;
    send(&mut server, ACCEPTED).await;
    expect(&mut client, ACCEPTED).await;
    (client, server)
}

#[tokio::test(start_paused = true)]
async fn frames_of_every_kind_and_length_cross_untouched() {
    let bench = Bench::new(vec![rule("GET", "/chat")]);
    local(async {
        let (mut client, mut server) = open(&bench).await;
        // Text, binary, ping, pong; a message in pieces with a ping between them; what looks like a request.
        for (first, payload) in [
            (0x81, &b"Hello"[..]),
            (0x82, &[0; 125]),
            (0x82, &[1; 126]),
            (0x82, &[2; 70_000]),
            (0x89, b""),
            (0x8a, b"pong"),
            (0x01, b"Hel"),
            (0x89, b"between"),
            (0x80, b"lo"),
            (0x81, b"GET /admin HTTP/1.1\r\nHost: h\r\n\r\n"),
        ] {
            crosses(&mut client, &mut server, &frame(first, payload, true)).await;
            crosses(&mut server, &mut client, &frame(first, payload, false)).await;
        }
        // Cut at every byte.
        for byte in frame(0x81, b"slowly", true) {
            crosses(&mut client, &mut server, &[byte]).await;
        }
        // Nobody says anything for a day.
        tokio::time::sleep(std::time::Duration::from_secs(86_400)).await;
        crosses(&mut server, &mut client, &frame(0x81, b"still there", false)).await;
    })
    .await;
    assert_eq!(
        bench.flows(),
        [
            "request FORWARDED GET http://server.example.com/chat",
            "response FORWARDED 101 GET http://server.example.com/chat"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn frames_that_come_with_the_handshake_are_passed_on_behind_it() {
    let bench = Bench::new(vec![rule("GET", "/chat")]);
    local(async {
        let (mut client, mut server) = bench.asked(ASKED).await;
        let first = frame(0x81, b"welcome", false);
        server.write_all(&[ACCEPTED.as_bytes(), &first].concat()).await.unwrap();
        expect(&mut client, ACCEPTED).await;
        let mut came = vec![0; first.len()];
        client.read_exact(&mut came).await.unwrap();
        assert_eq!(came, first);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_close_and_a_half_close_pass_in_either_direction() {
    let close = |masked| frame(0x88, &1000_u16.to_be_bytes(), masked);
    let bench = Bench::new(vec![rule("GET", "/chat")]);
    local(async {
        let (mut client, mut server) = open(&bench).await;
        crosses(&mut client, &mut server, &close(true)).await;
        crosses(&mut server, &mut client, &close(false)).await;
        // The server closes first, as the document asks for.
        server.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, "");
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut server).await, "");

        let (mut client, mut server) = open(&bench).await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut server).await, "");
        crosses(&mut server, &mut client, &frame(0x81, b"last words", false)).await;
        drop(server);
        assert_eq!(rest(&mut client).await, "");
    })
    .await;
}

/// What a client has been told is an answer like any other: it may ask for something else on the same connection.
#[tokio::test(start_paused = true)]
async fn a_denied_socket_is_answered_and_the_connection_goes_on() {
    let bench = Bench::new(vec![rule("GET", "/chat")]);
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, &ASKED.replace("/chat", "/admin")).await;
        expect(&mut client, DENIED).await;
        send(&mut client, ASKED).await;
        let mut server = servers.next().await;
        expect(&mut server, ASKED).await;
        send(&mut server, ACCEPTED).await;
        expect(&mut client, ACCEPTED).await;
        crosses(&mut client, &mut server, &frame(0x81, b"Hello", true)).await;
    })
    .await;
    let flows = bench.flows();
    assert_eq!(
        flows[..2],
        [
            "request DROPPED GET http://server.example.com/admin (no rule lets it through)",
            "response FORWARDED 403 GET http://server.example.com/admin"
        ]
    );
}

/// Frames behind the handshake of a denied socket are no request, and reach nobody.
#[tokio::test(start_paused = true)]
async fn frames_behind_a_denied_handshake_reach_nobody() {
    let bench = Bench::new(vec![rule("GET", "/chat")]);
    local(async {
        let (mut client, mut servers) = bench.open();
        let asked = ASKED.replace("/chat", "/admin");
        client.write_all(&[asked.as_bytes(), &frame(0x81, b"Hello", true)].concat()).await.unwrap();
        expect(&mut client, DENIED).await;
        client.shutdown().await.unwrap();
        rest(&mut client).await;
        servers.none().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_open_socket_is_cut_when_the_proxy_ends() {
    let bench = Bench::new(vec![rule("GET", "/chat")]);
    local(async {
        let (mut client, mut server) = open(&bench).await;
        bench.published.drain();
        bench.published.end_idle();
        crosses(&mut client, &mut server, &frame(0x81, b"Hello", true)).await;
        bench.published.end_all();
        assert_eq!(rest(&mut client).await, "");
        assert_eq!(rest(&mut server).await, "");
    })
    .await;
    assert_eq!(*bench.ended.borrow(), [Cut::Both]);
    let flows = bench.flows();
    assert_eq!(flows.last().unwrap(), "request DROPPED GET http://server.example.com/chat (proxy ended)");
}

/// Edits while frames fly: what concerns the socket ends it, whole frames on either side or not; what does not is not felt.
#[tokio::test(start_paused = true)]
async fn edits_under_load_end_the_sockets_that_they_are_about_and_no_others() {
    let mut bench = Bench::new(vec![rule("GET", "/chat")]);
    local(async {
        let mut sockets = Vec::new();
        for _ in 0..20 {
            sockets.push(open(&bench).await);
        }
        let others = [vec![rule("GET", "/chat"), rule("PUT", "/")], vec![rule("", ""), rule("GET", "/more")]];
        for round in 0..20 {
            bench.enforce(anybody(others[round % 2].clone()), false);
            for (client, server) in &mut sockets {
                crosses(client, server, &frame(0x82, &[3; 1000], true)).await;
                crosses(server, client, &frame(0x82, &[4; 1000], false)).await;
            }
        }
        bench.enforce(anybody(vec![rule("GET", "/more")]), false);
        for (mut client, mut server) in sockets {
            // What was under way may arrive or not; nothing that is sent now does.
            let _ = client.write_all(&frame(0x81, b"too late", true)).await;
            assert_eq!(rest(&mut server).await, "");
            assert_eq!(rest(&mut client).await, "");
        }
        let (mut client, mut servers) = bench.open();
        send(&mut client, ASKED).await;
        expect(&mut client, DENIED).await;
        client.shutdown().await.unwrap();
        rest(&mut client).await;
        servers.none().await;
    })
    .await;
    let ended = bench.flows();
    let ended = ended.iter().filter(|flow| flow.ends_with("/chat (not allowed any more)"));
    assert_eq!(ended.count(), 20);
}
