//! The real binary against a socket that answers like an agent. Needs no privileges.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mesh::flow::{Flow, Peer, TrafficDirection, Verdict};
use mesh::labels::LabelSet;
use mesh::policy::Authentication;
use node_api::{
    Changes, ConnectionView, DropView, EventType, EventView, Listed, MetricView, Predicted, Prediction,
    Reply, ReplySink, Request, Server, Trace,
};

fn ferromesh(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferromesh"));
    command.arg("--socket").arg(socket).args(arguments).env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn flow(time: i64) -> Flow {
    let end = |address: &str, port| Peer {
        address: Some(address.parse().unwrap()),
        port: Some(port),
        identity: None,
        workload: None,
        labels: LabelSet::new(),
    };
    Flow {
        time,
        node: "n".to_owned(),
        verdict: Verdict::Forwarded,
        drop: None,
        direction: TrafficDirection::Egress,
        source: end("10.1.0.1", 4000),
        destination: end("2001:db8::1", 53),
        protocol: 17,
        tcp_flags: 0,
        icmp_type: None,
        is_reply: Some(false),
        length: 60,
        interface: "fm1".to_owned(),
        authentication: None,
        l7: None,
        trace: false,
    }
}

fn connection(last: u8) -> ConnectionView {
    ConnectionView {
        protocol: 17,
        source: ([10, 0, 0, last], 4000).into(),
        destination: ([10, 0, 0, 9], 53).into(),
        called: None,
        masqueraded: None,
        state: "opening".to_owned(),
        expires: 60,
        generation: 1,
        audited: false,
        charged: None,
    }
}

fn metric(name: &str) -> MetricView {
    MetricView { name: name.to_owned(), labels: [].into(), value: 3.0 }
}

fn event() -> EventView {
    EventView {
        time: 0,
        kind: 1,
        reason: 133,
        direction: 0,
        flags: 0,
        ifindex: 7,
        endpoint: Some(1),
        from: None,
        to: Some(1),
        source_identity: 2,
        destination_identity: 300,
        ruleset: 1,
        cookie: 0,
        ethertype: 0x0800,
        source: Some([192, 0, 2, 1].into()),
        destination: Some([10, 0, 0, 1].into()),
        protocol: 17,
        source_port: 4000,
        destination_port: 53,
        tcp_flags: 0,
        length: 60,
        authentication: 0,
    }
}

/// An agent that has seen two flows and lost three, and endless ones for a follower.
struct Agent {
    _directory: tempfile::TempDir,
    socket: PathBuf,
}

impl Agent {
    /// On a thread of its own, which ends with the test process.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let (bound, listening) = std::sync::mpsc::channel();
        let path = socket.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(&path, "another build", None).unwrap();
                bound.send(()).unwrap();
                server.serve(|_, request, replies| answer(request, replies)).await;
            });
        });
        listening.recv().expect("the socket is open");
        Self { _directory: directory, socket }
    }

    fn told(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        told(&ferromesh(&self.socket, arguments).output().unwrap())
    }
}

async fn answer(request: Request, mut replies: ReplySink) {
    match request {
        Request::Observe(query) if query.follow => {
            for time in 0.. {
                if replies.send(&Reply::Flow(Box::new(flow(time)))).await.is_err() {
                    return;
                }
            }
        }
        Request::Observe(_) => {
            let past = [flow(0), flow(1_000_000)].map(|flow| Reply::Flow(Box::new(flow)));
            for reply in past.iter().chain([&Reply::Lost(3), &Reply::Done]) {
                let _ = replies.send(reply).await;
            }
        }
        Request::Trace(query) => {
            let allowed = query.port == 80;
            let verdict = if allowed { "allowed" } else { "denied" };
            let lines = vec![format!("{verdict}: {}", query.to)];
            let trace = Trace { allowed, authentication: Authentication::None, lines };
            let _ = replies.send(&Reply::Trace(trace)).await;
        }
        Request::WhatIf(query) => {
            let trace = |allowed, line: &str| Trace {
                allowed,
                authentication: Authentication::None,
                lines: vec![line.to_owned()],
            };
            let file = query.with.first().map(|file| format!("{}={}", file.name, file.text));
            let predicted = match query.trace {
                Some(asked) => Predicted::Trace {
                    now: trace(true, "allowed: now"),
                    then: trace(asked.port == 80, "judged: then"),
                },
                None => Predicted::Changes(Changes {
                    endpoints: 1,
                    peers: 2,
                    rows: Listed::first(1, []),
                    complete: true,
                }),
            };
            let notes = file.into_iter().chain(query.without).collect();
            let prediction = Prediction { edits: Vec::new(), notes, predicted };
            let _ = replies.send(&Reply::Prediction(Box::new(prediction))).await;
        }
        Request::Connections => {
            let pieces = [vec![connection(2)], vec![connection(1), connection(3)]];
            for reply in pieces.map(Reply::Connections).iter().chain([&Reply::Done]) {
                let _ = replies.send(reply).await;
            }
        }
        Request::Drops => {
            let row = DropView {
                number: 133,
                reason: "Policy denied".to_owned(),
                direction: "ingress".to_owned(),
                workload: None,
                ifindex: 7,
                packets: 2,
                bytes: 148,
                meaning: "A policy.".to_owned(),
            };
            for reply in [Reply::Drops(vec![row]), Reply::Done] {
                let _ = replies.send(&reply).await;
            }
        }
        Request::Metrics => {
            let rows = ["ferromesh_drop_total", "ferromesh_policy_revision"].map(metric).into();
            for reply in [Reply::Metrics(rows), Reply::Done] {
                let _ = replies.send(&reply).await;
            }
        }
        Request::Monitor(query) => {
            assert_eq!(query.types, [EventType::Drop]);
            for reply in [Reply::Listening, Reply::Event(event()), Reply::Lost(2)] {
                let _ = replies.send(&reply).await;
            }
        }
        Request::Endpoints => drop(replies.send(&Reply::Endpoints(Vec::new())).await),
        _ => drop(replies.send(&Reply::Error("map RULES: full".to_owned())).await),
    }
}

#[test]
fn without_an_agent_each_verb_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let pins = directory.path().to_str().unwrap();
    let expected = format!(
        "ferromesh: agent is not running (no answer at {}); start it with `ferromesh up`\n",
        socket.display()
    );
    for verb in
        [&["status", "--pins", pins][..], &["endpoint", "list"], &["observe"], &["plan", "-o", "json"]]
    {
        let output = ferromesh(&socket, verb).output().unwrap();
        assert_eq!(told(&output), (Some(1), String::new(), expected.clone()), "{verb:?}");
    }
}

#[test]
fn status_says_that_policy_stays_in_force_when_its_programs_are_pinned() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join(format!("v{}/links/fm1", abi::SCHEMA))).unwrap();
    let pins = directory.path().to_str().unwrap();
    let output = ferromesh(&directory.path().join("none"), &["status", "--pins", pins]).output().unwrap();
    let (code, stdout, stderr) = told(&output);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("is not running") && stderr.contains("policy stays in force"), "{stderr}");
}

#[test]
fn without_an_agent_version_still_answers() {
    let directory = tempfile::tempdir().unwrap();
    let output = ferromesh(&directory.path().join("none"), &["version"]).output().unwrap();
    let (code, stdout, stderr) = told(&output);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("Agent:     not running"), "{stdout}");
}

#[test]
fn flows_are_printed_and_losses_said_beside_them() {
    let agent = Agent::start();
    let (code, stdout, stderr) = agent.told(&["observe"]);
    let expected = "\
Jan  1 00:00:00.000: 10.1.0.1:4000 (unknown) -> [2001:db8::1]:53 (unknown) from-endpoint FORWARDED (UDP)
Jan  1 00:00:00.001: 10.1.0.1:4000 (unknown) -> [2001:db8::1]:53 (unknown) from-endpoint FORWARDED (UDP)
";
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), expected, "EVENTS LOST: 3\n"));
    let (_, json, _) = agent.told(&["observe", "-o", "json"]);
    let flows: Vec<Flow> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(flows, [flow(0), flow(1_000_000)]);
}

#[test]
fn a_reader_that_goes_away_ends_a_verb_quietly() {
    let agent = Agent::start();
    let mut child = ferromesh(&agent.socket, &["observe", "-f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("Jan  1 00:00:00.000"));
    drop(lines);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn the_exit_code_of_a_trace_is_its_verdict() {
    let agent = Agent::start();
    let allowed = agent.told(&["policy", "trace", "xwing", "default/deathstar:80"]);
    assert_eq!(allowed, (Some(0), "allowed: default/deathstar\n".to_owned(), String::new()));
    let denied = agent.told(&["policy", "trace", "xwing", "default/deathstar:81/udp"]);
    assert_eq!(denied, (Some(1), "denied: default/deathstar\n".to_owned(), String::new()));
}

#[test]
fn files_that_are_not_applied_are_sent_and_the_exit_code_is_the_verdict_then() {
    let agent = Agent::start();
    let file = agent._directory.path().join("rule2.yaml");
    std::fs::write(&file, "kind: X").unwrap();
    let path = file.to_str().unwrap();
    let (code, stdout, stderr) = agent.told(&["policy", "trace", "--with", path, "--without", "cnp/rule1"]);
    let expected = format!("{path}=kind: X\ncnp/rule1\n\nnothing changes between 1 endpoint and 2 peers\n");
    assert_eq!((code, stdout, stderr), (Some(0), expected, String::new()));
    let denied = agent.told(&["policy", "trace", "--without", "rule1", "xwing", "deathstar:81"]);
    assert_eq!(denied.0, Some(1), "{denied:?}");
    let allowed = agent.told(&["policy", "trace", "--without", "rule1", "xwing", "deathstar:80"]);
    assert_eq!(allowed.0, Some(0), "{allowed:?}");
    for incomplete in [&["policy", "trace"][..], &["policy", "trace", "xwing"]] {
        assert_eq!(agent.told(incomplete).0, Some(2), "{incomplete:?}: a mistake of the command line");
    }
    let missing = agent.told(&["policy", "trace", "--with", "/nowhere.yaml"]);
    let error = "ferromesh: /nowhere.yaml: No such file or directory (os error 2)\n";
    assert_eq!(missing, (Some(1), String::new(), error.to_owned()));
}

#[test]
fn rows_that_come_in_pieces_are_one_list_in_order() {
    let agent = Agent::start();
    let (code, stdout, _) = agent.told(&["ct", "list"]);
    let sources: Vec<_> = stdout.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!((code, sources), (Some(0), vec!["10.0.0.1:4000", "10.0.0.2:4000", "10.0.0.3:4000"]));
    let (_, json, _) = agent.told(&["ct", "list", "--ip", "10.0.0.2", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Vec<ConnectionView>>(&json).unwrap(), [connection(2)]);
    let (code, _, stderr) = agent.told(&["lb", "list"]);
    assert_eq!((code, stderr.as_str()), (Some(1), "ferromesh: map RULES: full\n"));
}

#[test]
fn what_the_agent_refuses_is_said_in_its_words() {
    let agent = Agent::start();
    assert_eq!(agent.told(&["plan"]), (Some(1), String::new(), "ferromesh: map RULES: full\n".to_owned()));
    let (code, _, stderr) = agent.told(&["endpoint", "get", "yoda"]);
    assert_eq!(code, Some(1));
    assert!(stderr.ends_with("this node has none\n"), "{stderr}");
}

#[test]
fn completions_are_scripts_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = ferromesh(Path::new("/nowhere"), &["completions", shell]).output().unwrap();
        let (code, stdout, _) = told(&output);
        assert_eq!(code, Some(0));
        assert!(stdout.contains("observe") && stdout.contains("verdict"), "{shell}");
        for value in ["POLICY_DENIED", "FORWARDED", "policy-verdict"] {
            assert!(stdout.contains(value), "{shell} completes {value}");
        }
    }
}

#[test]
fn bash_completes_verbs_flags_and_values() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("ferromesh.bash");
    let printed = ferromesh(Path::new("/nowhere"), &["completions", "bash"]).output().unwrap();
    std::fs::write(&script, printed.stdout).unwrap();
    let complete = |line: &str| -> Vec<String> {
        let words: Vec<_> = line.split(' ').collect();
        let (last, before) = (words.last().unwrap(), words.len().checked_sub(2).unwrap());
        let call = r#"source "$1"; current=$2 previous=$3; shift 3
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            _ferromesh ferromesh "$current" "$previous" && printf '%s\n' "${COMPREPLY[@]}""#;
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", call, "bash"]).arg(&script).args([last, words[before]]).args(&words);
        let (code, stdout, stderr) = told(&bash.output().unwrap());
        assert_eq!(code, Some(0), "{line}: {stderr}");
        stdout.lines().map(str::to_owned).collect()
    };
    for (line, expected) in [
        ("ferromesh mon", "monitor"),
        ("ferromesh policy tr", "trace"),
        ("ferromesh observe --from-p", "--from-pod"),
        ("ferromesh observe --drop-reason POLICY_DENIED", "POLICY_DENIED"),
        ("ferromesh observe --verdict D", "DROPPED"),
        ("ferromesh monitor --type pol", "policy-verdict"),
        ("ferromesh drops --output j", "json"),
    ] {
        let offered = complete(line);
        assert!(offered.iter().any(|offer| offer == expected), "{line}: {offered:?}");
    }
}

#[test]
fn drops_and_metrics_are_rows_and_events_come_until_the_agent_ends() {
    let agent = Agent::start();
    let (code, stdout, _) = agent.told(&["drops"]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("133      Policy denied   ingress     2         148"), "{stdout}");
    let (code, stdout, _) = agent.told(&["metrics", "list", "drop", "-o", "json"]);
    let metrics: Vec<MetricView> = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, metrics), (Some(0), vec![metric("ferromesh_drop_total")]));
    let (code, _, stderr) = agent.told(&["metrics", "list", "yoda"]);
    let expected =
        "ferromesh: no metric has \"yoda\" in its name; see `ferromesh metrics list` for those there are\n";
    assert_eq!((code, stderr.as_str()), (Some(1), expected));
    let (code, stdout, stderr) = agent.told(&["monitor", "--type", "drop"]);
    assert_eq!((code, stdout.lines().count()), (Some(1), 1));
    assert!(stdout.starts_with("xx drop (Policy denied) flow 0x"), "{stdout}");
    assert!(stderr.contains("Listening for events") && stderr.contains("EVENTS LOST: 2"), "{stderr}");
}

#[test]
fn a_table_of_what_is_still_to_come_is_refused() {
    let output = ferromesh(Path::new("/nowhere"), &["observe", "-f", "-o", "table"]).output().unwrap();
    let (code, _, stderr) = told(&output);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("--output table: not with --follow"), "{stderr}");
}
