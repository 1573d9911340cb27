//! What a client sends on a connection of HTTP/1, through the whole proxy, to a server behind it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use mesh::l7::HttpRule;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::cut::Cuts;
use super::harness::{Bench, local, rest, rule};
use super::http1::{self, End, Manner, Message};
use super::{path, run};

/// All but `/admin` and what is below it: written as who has only allow rules must write it.
pub fn public() -> Vec<HttpRule> {
    vec![rule("GET", "/(public|a)(/.*)?"), rule("POST", "/upload")]
}

thread_local! {
    static BENCH: Bench = Bench::new(public());
}

/// What reaches the server is a sequence of requests of which only the last body may break off, and all that any server
/// could make of each is allowed; whatever the pieces in which the client's bytes arrive. Whether any did.
pub fn holds(input: &[u8]) -> bool {
    let received = through(input, Cuts::none());
    let whole = |messages: &[Message]| messages.iter().filter(|it| it.is_whole).cloned().collect::<Vec<_>>();
    for cuts in Cuts::ways(input) {
        assert_eq!(whole(&through(input, cuts)), whole(&received), "{}", input.escape_ascii());
    }
    !received.is_empty()
}

fn through(input: &[u8], cuts: Cuts) -> Vec<Message> {
    let raw = BENCH.with(|bench| run(converse(bench, input, cuts)));
    let shown = || format!("{} reaches the server of {}", raw.escape_ascii(), input.escape_ascii());
    let read =
        http1::holds(&raw, |cuts| http1::requests(&raw, &[], cuts), |manner: Manner| manner.requests(&raw));
    let is_partial = read.messages.last().is_some_and(|message| !message.is_whole);
    assert!(read.end == End::Whole || read.end == End::Cut && is_partial, "{:?}: {}", read.end, shown());
    for message in Manner::all().flat_map(|manner| manner.requests(&raw)).chain(read.messages.iter().cloned())
    {
        assert!(is_allowed(&message.what, &message.target), "{}", shown());
    }
    read.messages
}

/// Whether the rules allow all that a server could make of a request.
pub fn is_allowed(method: &[u8], target: &[u8]) -> bool {
    const SCHEME: &[u8] = b"http://";
    let target = match target.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            &rest[rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len())..]
        }
        _ => target,
    };
    path::every_form(target).iter().all(|form| match method {
        b"GET" => {
            [&b"/public"[..], b"/a"].contains(&&form[..])
                || [&b"/public/"[..], b"/a/"].iter().any(|it| form.starts_with(it))
        }
        b"POST" => form == b"/upload",
        _ => false,
    })
}

/// All that reaches the server, which answers each request when it is whole.
async fn converse(bench: &Bench, input: &[u8], mut cuts: Cuts) -> Vec<u8> {
    let received = local(async {
        let (mut client, mut servers) = bench.open();
        let received = Rc::new(RefCell::new(Vec::new()));
        let all = Rc::clone(&received);
        let serving = tokio::task::spawn_local(async move {
            let mut connections = 0;
            while let Some(mut server) = servers.try_next().await {
                connections += 1;
                assert_eq!(connections, 1, "a client's connection has one to the server");
                let (mut answered, mut buffer) = (0, [0; 4096]);
                while let Ok(count @ 1..) = server.read(&mut buffer).await {
                    all.borrow_mut().extend_from_slice(&buffer[..count]);
                    let read = http1::requests(&all.borrow(), &[], Cuts::none());
                    let whole = read.messages.iter().filter(|message| message.is_whole).count();
                    while answered < whole {
                        answered += 1;
                        let _ = server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    }
                }
            }
        });
        let mut sent = 0;
        loop {
            let end = cuts.next(sent, input.len());
            // It may have closed.
            if end == sent || client.write_all(&input[sent..end]).await.is_err() {
                break;
            }
            sent = end;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let _ = client.shutdown().await;
        rest(&mut client).await;
        drop(client);
        serving.await.unwrap();
        received.take()
    })
    .await;
    // What was recorded is of no interest, and would add up.
    bench.flows();
    received
}
