//! What a burst has taken of its workload's budget of bytes is given back after it, though the connection goes on for hours.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file: they are how a test fails")]

mod harness;

use std::time::Duration;

use harness::{Bench, anybody, expect, local, rule, send};
use l7_proxy::stage::admit::Kind;
use mesh::l7::L7Access;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::sleep;

const REQUEST: &str = "GET /events HTTP/1.1\r\nHost: h\r\n\r\n";
const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const BURST: usize = 1 << 20;
/// Nothing stays for longer than the timer of a connection sleeps.
const LATER: Duration = Duration::from_secs(31);

fn bytes(bench: &Bench) -> u64 {
    bench.worker.budgets.tenants().iter().map(|tenant| tenant.budgets[Kind::Bytes as usize].used).sum()
}

/// As much as fills the buffer of that way, and more.
async fn burst(from: &mut DuplexStream, to: &mut DuplexStream) {
    let (said, mut heard) = (vec![b'x'; BURST], vec![0; BURST]);
    let (written, read) = tokio::join!(from.write_all(&said), to.read_exact(&mut heard));
    written.unwrap();
    read.unwrap();
}

/// Bytes have gone each way: they are paid for now, not when nothing more has come for a while, and what comes then passes.
async fn rests(bench: &Bench, client: &mut DuplexStream, server: &mut DuplexStream) {
    assert!(bytes(bench) >= 60 << 10, "{}", bytes(bench));
    sleep(LATER).await;
    assert_eq!(bytes(bench), 0);
    burst(server, client).await;
    // A little now and then is no reason to keep what much has taken.
    for _ in 0..LATER.as_secs() {
        sleep(Duration::from_secs(1)).await;
        send(server, ":").await;
        expect(client, ":").await;
    }
    assert_eq!(bytes(bench), 0);
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_silent_after_a_burst_holds_nothing() {
    let bench = Bench::with(vec![L7Access { peers: None, http: None }], false);
    local(async {
        let (mut client, mut servers) = bench.open();
        let mut server = servers.next().await;
        burst(&mut client, &mut server).await;
        burst(&mut server, &mut client).await;
        rests(&bench, &mut client, &mut server).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_websocket_that_is_silent_after_a_burst_holds_nothing() {
    let bench = Bench::with(anybody(vec![rule("GET", "/.*")]), false);
    local(async {
        let (mut client, mut server) = bench.asked(UPGRADE).await;
        send(&mut server, SWITCHED).await;
        expect(&mut client, SWITCHED).await;
        burst(&mut server, &mut client).await;
        rests(&bench, &mut client, &mut server).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn events_that_go_on_for_hours_hold_nothing_between_bursts() {
    let bench = Bench::with(anybody(vec![rule("GET", "/.*")]), false);
    local(async {
        let (mut client, mut server) = bench.asked(REQUEST).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
        send(&mut server, head).await;
        expect(&mut client, head).await;
        burst(&mut server, &mut client).await;
        rests(&bench, &mut client, &mut server).await;
    })
    .await;
}
