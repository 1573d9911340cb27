//! What breaks off does not look whole: neither end takes the begin of a message, or of a stream of bytes, for all of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use harness::wire::Cut;
use harness::{Bench, CLIENT, SERVER, expect, local, rest, rule, send};
use l7_proxy::runtime::{Called, ConnectError, serve};
use mesh::l7::{HttpRule, L7Access};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const LENGTH: &str = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n";
const CHUNKED: &str = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";

fn all() -> Vec<HttpRule> {
    vec![rule("GET|POST", "/.*")]
}

async fn ended(bench: &Bench) -> Cut {
    while bench.ended.borrow().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.ended.borrow_mut().remove(0)
}

#[tokio::test(start_paused = true)]
async fn a_body_whose_client_goes_away_is_cut_if_it_is_not_all_there() {
    let bench = Bench::new(all());
    for (head, body, cut) in [
        (LENGTH, "", Cut::Server),
        (LENGTH, "begin", Cut::Server),
        (LENGTH, "all of it", Cut::Neither),
        (CHUNKED, "", Cut::Server),
        (CHUNKED, "5\r\nbeg", Cut::Server),
        (CHUNKED, "5\r\nbegin\r\n", Cut::Server),
        (CHUNKED, "5\r\nbegin\r\n0\r\n", Cut::Server),
        (CHUNKED, "9\r\nall of it\r\n0\r\n\r\n", Cut::Neither),
        ("GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "", Cut::Neither),
    ] {
        local(async {
            let (mut client, mut server) = bench.asked(head).await;
            send(&mut client, body).await;
            drop(client);
            assert!(body.starts_with(&rest(&mut server).await), "{head}{body}");
            drop(server);
            assert_eq!(ended(&bench).await, cut, "{head}{body}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_proxy_gives_up_is_cut() {
    let bench = Bench::new(all());
    let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    for (what, head, body, answer, told) in [
        ("no more of it comes", LENGTH, "begin", "", "HTTP/1.1 408 "),
        ("what comes is no body", CHUNKED, "x\r\n", "", "HTTP/1.1 400 "),
        ("the server wants no more", LENGTH, "begin", last, last),
        ("the answer is none", LENGTH, "begin", "none\r\n\r\n", "HTTP/1.1 502 "),
    ] {
        local(async {
            let (mut client, mut server) = bench.asked(head).await;
            send(&mut client, body).await;
            send(&mut server, answer).await;
            let heard = rest(&mut client).await;
            assert!(heard.starts_with(told), "{what}: {heard}");
            drop(client);
            assert_eq!(ended(&bench).await, Cut::Server, "{what}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn both_are_cut_where_both_messages_break_off() {
    let bench = Bench::new(all());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, LENGTH).await;
        let mut server = servers.next().await;
        send(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin").await;
        expect(&mut client, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin").await;
        drop(server);
        assert_eq!(rest(&mut client).await, "");
        assert_eq!(ended(&bench).await, Cut::Both);
    })
    .await;
}

/// How a client goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goes {
    Closes,
    Resets,
}

/// A client says this, hears that, and goes away: how what the server reads ends. All of them have real sockets.
async fn read(bench: &Bench, said: &str, answer: &str, goes: Goes) -> Result<usize, ErrorKind> {
    let [front, back] = [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await];
    let (front, back) = (front.unwrap(), back.unwrap());
    let origin = back.local_addr().unwrap();
    let called =
        Called { client: SocketAddr::new(CLIENT.into(), 40000), server: SocketAddr::new(SERVER.into(), 80) };
    let connect = async || {
        let stream = TcpStream::connect(origin).await.map_err(|_| ConnectError::Refused)?;
        Ok((stream, None))
    };
    let mut client = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
    let (down, _) = front.accept().await.unwrap();
    let (arrived, has_arrived) = oneshot::channel();
    let asks = async move {
        client.write_all(said.as_bytes()).await.unwrap();
        client.read_exact(&mut vec![0; answer.len()]).await.unwrap();
        // A reset overtakes what is not read.
        has_arrived.await.unwrap();
        if goes == Goes::Resets {
            client.set_zero_linger().unwrap();
        }
    };
    let answers = async move {
        let (mut server, _) = back.accept().await.unwrap();
        let mut came = vec![0; said.len()];
        server.read_exact(&mut came).await.unwrap();
        server.write_all(answer.as_bytes()).await.unwrap();
        arrived.send(()).unwrap();
        server.read_to_end(&mut Vec::new()).await.map_err(|error| error.kind())
    };
    let serves = serve(down, called, &bench.worker, connect);
    let ((), read, ()) = tokio::join!(asks, answers, serves);
    read
}

#[tokio::test]
async fn a_server_is_told_by_a_reset_that_there_is_no_more() {
    let relayed = Bench::with(vec![L7Access { peers: None, http: None }], false);
    let judged = Bench::new(all());
    let upgrade = "GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let [begin, whole] = ["begin", "all of it"].map(|body| format!("{LENGTH}{body}"));
    for (bench, said, answer, goes, is_reset) in [
        (&relayed, "anything", "", Goes::Closes, false),
        (&relayed, "anything", "", Goes::Resets, true),
        (&judged, upgrade, switched, Goes::Closes, false),
        (&judged, upgrade, switched, Goes::Resets, true),
        (&judged, &whole, "", Goes::Closes, false),
        (&judged, &begin, "", Goes::Closes, true),
        (&judged, &begin, "", Goes::Resets, true),
    ] {
        let expected = if is_reset { Err(ErrorKind::ConnectionReset) } else { Ok(0) };
        assert_eq!(read(bench, said, answer, goes).await, expected, "{said}: {goes:?}");
    }
}
