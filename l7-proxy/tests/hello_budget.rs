//! ClientHellos, and first bytes, that are there in part have the budget of unfinished heads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;
#[path = "harness/hello.rs"]
mod hello;

use std::time::Duration;

use harness::http2::PREFACE;
use harness::{Bench, anybody, expect, local, rest, rule, send};
use l7_proxy::runtime::BOUNDS;
use l7_proxy::stage::admit::Kind;
use mesh::l7::{L7Access, L7Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
const SPENT: &str = "over the workload's budget of unfinished heads";

/// Two heads are one workload's part, and so many bytes.
fn bench(access: Vec<L7Access>, bytes: u64) -> Bench {
    let [connections, _, streams, _] = BOUNDS;
    Bench::bounded(access, false, [connections, 4, streams, bytes])
}

fn tls(bytes: u64, audit: bool) -> Bench {
    let mut bench = bench(Vec::new(), bytes);
    let names = vec!["a.example".parse().unwrap()].into();
    bench.enforce_tls(Vec::new(), vec![L7Tls { peers: None, names }], audit);
    bench
}

async fn held(bench: &Bench) -> u64 {
    // What has been sent is read first.
    tokio::time::sleep(Duration::from_millis(1)).await;
    bench.worker.budgets.tenants().iter().map(|tenant| tenant.budgets[Kind::Heads as usize].used).sum()
}

async fn told(client: &mut DuplexStream) -> Vec<u8> {
    let mut told = Vec::new();
    client.read_to_end(&mut told).await.unwrap();
    told
}

#[tokio::test(start_paused = true)]
async fn who_sends_many_hellos_in_part_is_told_an_alert_and_others_pass() {
    let bench = tls(BOUNDS[3], false);
    let whole = hello::of_rustls("a.example");
    let (begin, end) = whole.split_at(1000);
    local(async {
        let mut slow = Vec::new();
        for _ in 0..2 {
            let (mut client, servers) = bench.open();
            client.write_all(begin).await.unwrap();
            slow.push((client, servers));
        }
        assert_eq!(held(&bench).await, 2);
        let (mut client, mut servers) = bench.open();
        client.write_all(begin).await.unwrap();
        assert_eq!(told(&mut client).await, INTERNAL_ERROR);
        drop(client);
        servers.none().await;
        assert_eq!(bench.flows(), [format!("tls DROPPED ({SPENT})")]);
        assert_eq!(bench.worker.budgets.refused(), [0, 1, 0, 0]);
        // One that comes whole needs none, and one that gets ready makes room.
        let mut came = vec![0; whole.len()];
        let (mut client, mut servers) = bench.open();
        client.write_all(&whole).await.unwrap();
        servers.next().await.read_exact(&mut came).await.unwrap();
        let (mut client, mut servers) = slow.pop().unwrap();
        client.write_all(end).await.unwrap();
        let mut server = servers.next().await;
        server.read_exact(&mut came).await.unwrap();
        assert_eq!((came, held(&bench).await), (whole.clone(), 1));
        // What never gets ready gives it back as well.
        assert_eq!(told(&mut slow.pop().unwrap().0).await[6], 50);
        assert_eq!(held(&bench).await, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_has_no_room_is_told_so() {
    let bench = tls(0, false);
    let long = hello::hello(&[hello::naming(b"a.example"), hello::extension(21, &[0; 8000])]);
    local(async {
        let (mut client, mut servers) = bench.open();
        client.write_all(&long).await.unwrap();
        assert_eq!(told(&mut client).await, INTERNAL_ERROR);
        servers.none().await;
    })
    .await;
    assert_eq!(bench.flows(), ["tls DROPPED (over the workload's budget of buffered bytes)"]);
}

/// Where names are only looked at, nobody is kept away for want of room to look.
#[tokio::test(start_paused = true)]
async fn audit_mode_lets_pass_what_there_is_no_room_to_look_at() {
    let bench = tls(BOUNDS[3], true);
    let whole = hello::of_rustls("a.example");
    local(async {
        let mut slow = Vec::new();
        for _ in 0..2 {
            let (mut client, servers) = bench.open();
            client.write_all(&whole[..1000]).await.unwrap();
            slow.push((client, servers));
        }
        assert_eq!(held(&bench).await, 2);
        let (mut client, mut servers) = bench.open();
        client.write_all(&whole[..1000]).await.unwrap();
        let mut server = servers.next().await;
        client.write_all(&whole[1000..]).await.unwrap();
        let mut came = vec![0; whole.len()];
        server.read_exact(&mut came).await.unwrap();
        assert_eq!(came, whole);
        assert_eq!(bench.flows(), [format!("tls AUDIT ({SPENT})")]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn first_bytes_that_say_nothing_yet_have_it_too() {
    let request = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    for (bench, flow) in [
        (bench(anybody(vec![rule("GET", "/.*")]), BOUNDS[3]), format!("request DROPPED ({SPENT})")),
        (tls(BOUNDS[3], false), format!("tls DROPPED ({SPENT})")),
    ] {
        local(async {
            let mut slow = Vec::new();
            for begin in ["\u{16}", "GE"] {
                let (mut client, servers) = bench.open();
                send(&mut client, begin).await;
                slow.push((client, servers));
            }
            assert_eq!(held(&bench).await, 2);
            let (mut client, mut servers) = bench.open();
            send(&mut client, "P").await;
            assert_eq!(rest(&mut client).await, "");
            servers.none().await;
            assert_eq!(bench.flows(), [flow]);
            assert_eq!(bench.worker.budgets.refused(), [0, 1, 0, 0]);
            drop(slow);
            assert_eq!(held(&bench).await, 0);
        })
        .await;
    }
    // Once it is known what is spoken, only what is there in part of that counts.
    let bench = bench(anybody(vec![rule("GET", "/.*")]), BOUNDS[3]);
    local(async {
        let (mut client, mut servers) = bench.open();
        send(&mut client, &request[..2]).await;
        assert_eq!(held(&bench).await, 1);
        send(&mut client, &request[2..10]).await;
        assert_eq!(held(&bench).await, 1);
        send(&mut client, &request[10..]).await;
        expect(&mut servers.next().await, request).await;
        assert_eq!(held(&bench).await, 0);
        let (mut client, _servers) = bench.open();
        client.write_all(&PREFACE[..10]).await.unwrap();
        assert_eq!(held(&bench).await, 1);
        client.write_all(&PREFACE[10..]).await.unwrap();
        client.write_all(&harness::http2::frame(4, 0, 0, &[])).await.unwrap();
        assert_eq!(held(&bench).await, 0);
    })
    .await;
}
