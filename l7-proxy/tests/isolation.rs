//! What one workload can do to its worker: budgets, and what is broken, slow or dead at either end. Each is survived, costs
//! no more than its part, and leaves a flow that names the budget.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use std::cell::Cell;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use harness::http2::{END_HEADERS, END_STREAM, GET, Raw, block, client, frame, origin, request};
use harness::wire::{Cut, wire};
use harness::{Bench, CLIENT, SERVER, anybody, expect, local, rest, rule, send};
use http::HeaderValue;
use l7_proxy::runtime::{BOUNDS, Called, ConnectError, serve};
use l7_proxy::stage::admit::{Amounts, Kind};
use mesh::l7::{HttpRule, L7Access};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const REQUEST: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn all() -> Vec<HttpRule> {
    vec![rule("GET|POST", "/.*")]
}

fn bounded(change: impl FnOnce(&mut Amounts)) -> Bench {
    let mut bounds = BOUNDS;
    change(&mut bounds);
    Bench::bounded(anybody(all()), false, bounds)
}

fn client_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, number)
}

/// What the worker's workloads have of a kind together, and how often one was refused.
fn used(bench: &Bench, kind: Kind) -> (u64, u64) {
    let tenants = bench.worker.budgets.tenants();
    let of = tenants.iter().map(|tenant| tenant.budgets[kind as usize]);
    of.fold((0, 0), |(used, refused), budget| (used + budget.used, refused + budget.refused))
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_a_part_are_closed_and_told_and_others_find_places() {
    let bench = bounded(|bounds| bounds[0] = 12);
    local(async {
        let mut held = Vec::new();
        // A third of all for one client: as many as half of what is left.
        for _ in 0..4 {
            let (client, server) = bench.asked(REQUEST).await;
            held.push((client, server));
        }
        let (mut refused, mut servers) = bench.open();
        assert_eq!(rest(&mut refused).await, "");
        servers.none().await;
        assert_eq!(
            bench.flows().last().unwrap(),
            "request DROPPED (over the client's budget of connections)"
        );
        // Half of all for one workload, here the server.
        let others = [1, 2].map(|number| bench.open_from(client_address(number)));
        let (mut refused, _) = bench.open_from(client_address(3));
        assert_eq!(rest(&mut refused).await, "");
        assert_eq!(
            bench.flows().last().unwrap(),
            "request DROPPED (over the workload's budget of connections)"
        );
        // Another workload: who calls, if he is of this node.
        bench.identify(client_address(4), 300, Some(4));
        let (mut local, mut servers) = bench.open_from(client_address(4));
        send(&mut local, REQUEST).await;
        let mut server = servers.next().await;
        expect(&mut server, REQUEST).await;
        send(&mut server, OK).await;
        expect(&mut local, OK).await;
        let tenants = bench.worker.budgets.tenants();
        let seen = |address: Ipv4Addr| {
            let tenant = tenants.iter().find(|tenant| tenant.address == address).unwrap();
            let budget = tenant.budgets[Kind::Connections as usize];
            (budget.used, budget.refused)
        };
        assert_eq!((seen(SERVER), seen(client_address(4))), ((6, 2), (1, 0)));
        // Those that are open go on, and leave their places.
        for (mut client, mut server) in held {
            send(&mut server, OK).await;
            expect(&mut client, OK).await;
        }
        drop(others);
        let (mut again, mut servers) = bench.open();
        send(&mut again, REQUEST).await;
        expect(&mut servers.next().await, REQUEST).await;
    })
    .await;
    assert!(bench.worker.budgets.tenants().is_empty());
    assert_eq!(bench.worker.budgets.refused(), [2, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn heads_that_trickle_in_have_a_budget_and_whole_ones_need_none() {
    let bench = bounded(|bounds| bounds[1] = 4);
    let (half, rest_of_it) = REQUEST.split_at(20);
    local(async {
        let mut slow = Vec::new();
        for _ in 0..2 {
            let (mut client, servers) = bench.open();
            send(&mut client, half).await;
            slow.push((client, servers));
        }
        let (mut client, mut servers) = bench.open();
        send(&mut client, half).await;
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        servers.none().await;
        let reason = "over the workload's budget of unfinished heads";
        assert_eq!(
            bench.flows(),
            [format!("request DROPPED ({reason})"), format!("response FORWARDED 503 ({reason})")]
        );
        let (mut client, mut servers) = bench.open();
        send(&mut client, REQUEST).await;
        expect(&mut servers.next().await, REQUEST).await;
        // One that gets ready makes room.
        let (mut client, mut servers) = slow.pop().unwrap();
        send(&mut client, rest_of_it).await;
        expect(&mut servers.next().await, REQUEST).await;
        let (mut client, mut servers) = bench.open();
        send(&mut client, half).await;
        send(&mut client, rest_of_it).await;
        expect(&mut servers.next().await, REQUEST).await;
        // To a client of this node it is his own doing.
        bench.identify(client_address(1), 300, Some(4));
        let mut own = Vec::new();
        let answer = loop {
            let (mut client, _servers) = bench.open_from(client_address(1));
            send(&mut client, half).await;
            tokio::task::yield_now().await;
            if used(&bench, Kind::Heads).1 > 1 || own.len() > 4 {
                break rest(&mut client).await;
            }
            own.push((client, _servers));
        };
        assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn large_heads_have_a_budget_of_bytes_and_bodies_make_do_without() {
    let bench = bounded(|bounds| bounds[3] = 16 << 10);
    let large = format!("GET /a HTTP/1.1\r\nHost: h\r\nCookie: {}\r\n\r\n", "c".repeat(20 << 10));
    let body = "x".repeat(1 << 20);
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, &large).await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 503 "));
        servers.none().await;
        assert!(bench.flows()[0].ends_with("(over the workload's budget of buffered bytes)"));
        // The same in an answer.
        let (mut client, mut servers) = bench.open();
        send(&mut client, REQUEST).await;
        let mut server = servers.next().await;
        send(&mut server, &large.replacen("GET /a HTTP/1.1", "HTTP/1.1 200 OK", 1)).await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 503 "));
        drop(server);
        // Bodies pass through what there is.
        let (mut client, mut servers) = bench.open();
        let head = format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        let uploads = async {
            send(&mut client, &head).await;
            send(&mut client, &body).await;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            expect(&mut client, &answer).await;
            expect(&mut client, &body).await;
        };
        let serves = async {
            let mut server = servers.next().await;
            expect(&mut server, &head).await;
            expect(&mut server, &body).await;
            assert!(used(&bench, Kind::Bytes).0 <= 8 << 10);
            send(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
            send(&mut server, &body).await;
            server
        };
        let ((), _server) = tokio::join!(uploads, serves);
    })
    .await;
}

/// Who does not take what he asked for costs his buffers and no more; they are his own.
#[tokio::test(start_paused = true)]
async fn slow_readers_cost_their_buffers() {
    let bench = bounded(|bounds| bounds[3] = 1 << 20);
    local(async {
        let mut slow = Vec::new();
        for _ in 0..20 {
            let (mut client, mut servers) = bench.open();
            send(&mut client, REQUEST).await;
            let mut server = servers.next().await;
            let length = 100 << 20;
            send(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
            let writes = tokio::task::spawn_local(async move {
                let body = vec![b'x'; 64 << 10];
                while server.write_all(&body).await.is_ok() {}
            });
            slow.push((client, writes));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (bytes, _) = used(&bench, Kind::Bytes);
        assert!((300 << 10..=512 << 10).contains(&bytes), "{bytes}");
        // Another's buffers.
        bench.identify(client_address(1), 300, Some(4));
        let (mut client, mut servers) = bench.open_from(client_address(1));
        let large = format!("GET /a HTTP/1.1\r\nHost: h\r\nCookie: {}\r\n\r\n", "c".repeat(40 << 10));
        send(&mut client, &large).await;
        expect(&mut servers.next().await, &large).await;
        // They are left after a while.
        for (client, writes) in slow {
            writes.await.unwrap();
            drop(client);
        }
    })
    .await;
    assert!(bench.ended.borrow().iter().filter(|ended| **ended == Cut::Client).count() >= 20);
}

#[tokio::test(start_paused = true)]
async fn streams_have_a_budget_over_all_connections_of_a_workload() {
    let bench = bounded(|bounds| bounds[2] = 4);
    local(async {
        let (mut first, mut servers) = client(&bench).await;
        let (mut second, mut others) = client(&bench).await;
        let asked =
            [&mut first, &mut second].map(|client| client.send.send_request(request("GET", "/a"), true));
        let mut open = Vec::new();
        for servers in [&mut servers, &mut others] {
            let mut origin = origin(servers).await;
            let stream = origin.next().await;
            open.push((origin, stream));
        }
        let refused = first.ask(request("GET", "/b")).await.unwrap();
        assert_eq!((refused.status, refused.body.as_str()), (503, "Service unavailable\r\n"));
        let mut call = request("POST", "/c");
        call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let refused = second.ask(call).await.unwrap();
        assert_eq!((refused.status, refused.headers["grpc-status"].as_bytes()), (200, &b"14"[..]));
        let flows = bench.flows();
        let of = "request DROPPED GET http://h/b (over the workload's budget of streams)";
        assert!(flows.iter().any(|flow| flow == of), "{flows:?}");
        // One that ends makes room.
        harness::http2::answer(&mut open[0].1.1, 200, "");
        let [one, _] = asked;
        assert_eq!(one.unwrap().0.await.unwrap().status(), 200);
        let (again, _) = first.send.send_request(request("GET", "/d"), true).unwrap();
        let (_, mut respond) = open[0].0.next().await;
        harness::http2::answer(&mut respond, 204, "");
        assert_eq!(again.await.unwrap().status(), 204);
    })
    .await;
    assert_eq!(bench.worker.budgets.refused(), [0, 0, 2, 0]);
}

/// A client that gives its streams no window is not sent their bodies: they wait with h2, though nobody serves them.
#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_keep_their_place() {
    let bench = bounded(|bounds| bounds[2] = 8);
    let denied = [(":method", "PUT"), (":scheme", "http"), (":authority", "h"), (":path", "/a")];
    local(async {
        let (mut client, _servers) = Raw::open(&bench).await;
        let no_window = [0, 4, 0, 0, 0, 0];
        client.write(&frame(4, 0, 0, &no_window)).await;
        let mut asked = async |stream, streams| {
            client.headers(stream, END_STREAM, &denied).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(used(&bench, Kind::Streams), streams);
        };
        asked(1, (1, 0)).await;
        asked(3, (2, 0)).await;
        asked(5, (3, 0)).await;
        asked(7, (4, 0)).await;
        asked(9, (4, 1)).await;
        // One is read, one is given up.
        client.write(&frame(8, 0, 1, &[0, 0, 1, 0])).await;
        client.write(&frame(3, 0, 3, &[0, 0, 0, 8])).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(used(&bench, Kind::Streams), (2, 1));
        tokio::time::sleep(Duration::from_secs(290)).await;
        assert_eq!(used(&bench, Kind::Streams), (2, 1));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(bench.flows().pop().unwrap(), "request DROPPED (answers that nobody reads)");
        assert_eq!(client.end().await, Some(11));
    })
    .await;
    assert!(bench.worker.budgets.tenants().is_empty());
}

/// What is read slowly is not given up, and a connection that drains ends when all of it has been read.
#[tokio::test(start_paused = true)]
async fn answers_that_are_read_slowly_arrive_whole() {
    let bench = bounded(|_| ());
    local(async {
        let (mut client, mut servers) = Raw::open(&bench).await;
        let (window, size) = (100_u32, 1000_usize);
        client.write(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
        client.headers(1, END_STREAM, &GET).await;
        let mut origin = origin(&mut servers).await;
        let (_, mut respond) = origin.next().await;
        harness::http2::answer(&mut respond, 200, Box::leak("x".repeat(size).into_boxed_str()));
        let mut read = 0;
        for part in 0..10 {
            if part == 5 {
                bench.worker.published.drain();
            }
            tokio::time::sleep(Duration::from_secs(100)).await;
            client.write(&frame(8, 0, 1, &window.to_be_bytes())).await;
            let data = client.until(0).await;
            assert_eq!(data.payload.len(), window as usize);
            read += data.payload.len();
        }
        assert_eq!(read, size);
        // That it drains it has said before.
        assert_eq!(client.end().await, None);
    })
    .await;
    assert!(bench.worker.budgets.tenants().is_empty());
}

#[tokio::test(start_paused = true)]
async fn header_blocks_that_trickle_in_have_the_budget_of_heads() {
    let bench = bounded(|bounds| bounds[1] = 2);
    local(async {
        let (mut slow, _servers) = Raw::open(&bench).await;
        slow.write(&frame(1, 0, 1, &block(&GET))).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(used(&bench, Kind::Heads), (1, 0));
        let (mut next, _servers) = Raw::open(&bench).await;
        next.write(&frame(1, 0, 1, &block(&GET))).await;
        assert_eq!(next.end().await, Some(11));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let last = bench.flows().pop().unwrap();
        assert_eq!(last, "request DROPPED (over the workload's budget of unfinished heads)");
        slow.write(&frame(9, END_HEADERS, 1, &[])).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(used(&bench, Kind::Heads).0, 0);
    })
    .await;
}

/// A connection to a real server that says this and resets the connection; what the client was sent, and whether that is cut.
async fn reset_after(said: &'static str, asked: &str) -> (String, bool, Vec<String>) {
    let bench = Bench::new(all());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (mut client, down, is_cut) = wire();
    let called =
        Called { client: SocketAddr::new(CLIENT.into(), 40000), server: SocketAddr::new(SERVER.into(), 80) };
    let connect = async || {
        let stream = TcpStream::connect(at).await.map_err(|_| ConnectError::Refused)?;
        Ok((stream, None))
    };
    let has_begun = Rc::new(Cell::new(false));
    let origin = async {
        let (mut server, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 1024];
        let _ = server.read(&mut head).await.unwrap();
        server.write_all(said.as_bytes()).await.unwrap();
        // Only once the proxy has read it: a reset overtakes what is not read.
        poll_fn(|cx| {
            if has_begun.get() {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        server.set_zero_linger().unwrap();
    };
    let asks = async {
        send(&mut client, asked).await;
        let mut begin = vec![0; said.len()];
        client.read_exact(&mut begin).await.unwrap();
        has_begun.set(true);
        let more = rest(&mut client).await;
        String::from_utf8(begin).unwrap() + &more
    };
    let serves = serve(down, called, &bench.worker, connect);
    let ((), answer, ()) = tokio::join!(origin, asks, serves);
    (answer, is_cut.get(), bench.flows())
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    for (version, said) in [
        ("1.1", "HTTP/1.1 200 OK\r\n\r\nthe begin"),
        ("1.0", "HTTP/1.0 200 OK\r\n\r\nthe begin"),
        ("1.0", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe begin"),
        ("1.1", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nthe begin"),
        ("1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99\r\nthe begin"),
    ] {
        let asked = format!("GET /a HTTP/{version}\r\nHost: h\r\n\r\n");
        let (answer, is_cut, flows) = reset_after(said, &asked).await;
        assert_eq!((answer.as_str(), is_cut), (said, true), "{said:?}");
        let last = flows.last().unwrap();
        assert_eq!(last, "response DROPPED 200 GET http://h/a (message that ends before its end)");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_server_ends_is_whole_if_it_ends_by_that() {
    for (said, how) in [
        ("HTTP/1.1 200 OK\r\n\r\nall of it", Cut::Neither),
        ("HTTP/1.0 200 OK\r\n\r\nall of it", Cut::Neither),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall of it", Cut::Neither),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nall of it", Cut::Client),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nall of it\r\n", Cut::Client),
    ] {
        let bench = Bench::new(all());
        local(async {
            let (mut client, mut servers) = bench.open();
            send(&mut client, REQUEST).await;
            let mut server = servers.next().await;
            send(&mut server, said).await;
            drop(server);
            let answer = rest(&mut client).await;
            match how {
                Cut::Neither => assert_eq!(answer, said),
                // The last of it need not have been on its way.
                _ => assert!(said.starts_with(&answer) && answer.contains("200 OK"), "{answer:?}"),
            }
            drop(client);
            while bench.ended.borrow().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        assert_eq!(*bench.ended.borrow(), [how], "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_relayed_and_withdrawn_does_not_look_whole() {
    let mut bench = Bench::with(vec![L7Access { peers: None, http: None }], false);
    local(async {
        let (mut client, mut servers) = bench.open();
        let mut server = servers.next().await;
        send(&mut server, "begin").await;
        expect(&mut client, "begin").await;
        bench.enforce(anybody(all()), false);
        assert_eq!(rest(&mut client).await, "");
    })
    .await;
    assert_eq!(*bench.ended.borrow(), [Cut::Both]);
}

/// What the client sends meanwhile may not destroy the answer before: it is read, and has no answer.
#[tokio::test(start_paused = true)]
async fn a_server_that_closes_an_idle_connection_ends_it_gently() {
    let bench = Bench::new(all());
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, REQUEST).await;
        let mut server = servers.next().await;
        send(&mut server, OK).await;
        expect(&mut client, OK).await;
        drop(server);
        assert_eq!(rest(&mut client).await, "");
        send(&mut client, REQUEST).await;
        servers.none().await;
    })
    .await;
    assert_eq!(*bench.ended.borrow(), [Cut::Neither]);
}

#[tokio::test(start_paused = true)]
async fn clients_and_servers_that_go_in_the_middle_leave_nothing() {
    let bench = Bench::new(all());
    let post = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nbegin";
    local(async {
        // The client in the middle of its body.
        let (client, mut server) = bench.asked(post).await;
        drop(client);
        assert_eq!(rest(&mut server).await, "");
        // The server, before it has answered.
        let (mut client, mut servers) = bench.open();
        send(&mut client, post).await;
        drop(servers.next().await);
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 502 "));
        // The client, in the middle of the answer.
        let (mut client, mut servers) = bench.open();
        send(&mut client, REQUEST).await;
        let mut server = servers.next().await;
        send(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin").await;
        expect(&mut client, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin").await;
        drop(client);
        while bench.ended.borrow().len() < 3 {
            let _ = server.write_all(b"x").await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(bench.worker.budgets.tenants().is_empty() && bench.worker.connections.lock().is_empty());
}

/// It accepts the connection and never reads: what waits for it has a bound, and an end.
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_is_given_up() {
    let bench = bounded(|bounds| bounds[3] = 1 << 20);
    local(async {
        let (client, mut servers) = bench.open();
        let (mut reads, mut writes) = tokio::io::split(client);
        let uploads = tokio::task::spawn_local(async move {
            let head = format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 100 << 20);
            writes.write_all(head.as_bytes()).await.unwrap();
            let body = vec![b'x'; 64 << 10];
            while writes.write_all(&body).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let _server = servers.next().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(used(&bench, Kind::Bytes).0 <= 2 * (68 << 10));
        let mut answer = Vec::new();
        let _ = reads.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 504 "));
        uploads.await.unwrap();
    })
    .await;
    assert_eq!(bench.flows().last().unwrap(), "response FORWARDED 504 POST http://h/a (no answer in time)");
}
