//! The load tool tells the truth about a server that stalls. Needs root: its loopback is a namespace's.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::time::Duration;

use conformance::bench::load::Sample;
use conformance::lab::{Node, Session, binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Server and client, ready, where nobody else's load is.
fn pair(node: &Node) -> (Session, Session) {
    let server = Session::start(node.inside(binary("load")).args(["serve", "9000", "1"]));
    assert_eq!(server.line(), "serving");
    let client = Session::start(node.inside(binary("load")).args(["drive", "0"]));
    assert_eq!(client.line(), "open");
    (server, client)
}

/// Of a run of two seconds, the server is stopped for half a second: a quarter of all that was due waited up to that long,
/// whatever was sent meanwhile. A tool that counts from the sending would have seen one slow operation of hundreds.
#[test]
fn a_stopped_server_shows_in_the_percentiles_of_an_open_loop() {
    let node = Node::new();
    let (server, mut client) = pair(&node);
    for mode in ["rr", "crr"] {
        client.say(&format!("{mode} [::1]:9000 2 500"));
        let signal = |signal| kill(Pid::from_raw(server.pid().cast_signed()), signal).unwrap();
        std::thread::park_timeout(Duration::from_millis(700));
        signal(Signal::SIGSTOP);
        std::thread::park_timeout(Duration::from_millis(500));
        signal(Signal::SIGCONT);
        let line = client.line();
        let sample: Sample = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{mode}: {line}"));
        assert!(sample.operations >= 900, "every operation that was due was done: {sample:?}");
        assert!(sample.p99 >= 400_000.0 && sample.p90 >= 20_000.0, "{mode} hides the stall: {sample:?}");
        assert!(sample.p50 < sample.p90 && sample.p90 < sample.p99, "{mode}: {sample:?}");
    }
}

#[test]
fn each_mode_answers_with_figures_and_a_wrong_line_with_why() {
    let node = Node::new();
    let (_server, mut client) = pair(&node);
    for address in ["127.0.0.1", "[::1]"] {
        for mode in ["rr", "crr", "stream"] {
            let line = client.ask(&format!("{mode} {address}:9000 0.05"));
            let sample: Sample = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{mode}: {line}"));
            assert!(sample.operations > 0 && sample.seconds >= 0.05, "{mode}: {sample:?}");
            assert_eq!(sample.p50 > 0.0, mode != "stream", "{mode}: {sample:?}");
        }
    }
    assert!(client.ask("rr 127.0.0.1:1 0.05").starts_with("failed: "), "nobody listens");
    assert!(client.ask("rr nowhere 0.05").starts_with("failed: "), "no address");
}
