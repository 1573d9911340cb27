//! The socket as both sides see it, over real unix sockets. Needs no privileges.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use node_api::{BindError, Client, ClientError, PeerCredentials, Reply, ReplySink, Request, Server, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The bound of every wait in these tests.
const SOON: Duration = Duration::from_secs(20);

struct Scene {
    _directory: tempfile::TempDir,
    socket: PathBuf,
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    Scene { _directory: directory, socket }
}

fn serve<F>(
    server: Server,
    answer: impl Fn(PeerCredentials, Request, ReplySink) -> F + Send + Sync + 'static,
) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(server.serve(answer))
}

/// Answers every request with an empty list of endpoints.
async fn no_endpoints(_: PeerCredentials, _: Request, mut replies: ReplySink) {
    let _ = replies.send(&Reply::Endpoints(Vec::new())).await;
}

async fn raw(socket: &Path, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

fn framed(json: &str) -> Vec<u8> {
    [&u32::try_from(json.len()).unwrap().to_be_bytes()[..], json.as_bytes()].concat()
}

fn hello(version: u32) -> Vec<u8> {
    framed(&format!(r#"{{"version":{version},"build":"0.1.0 (test)"}}"#))
}

/// Everything the server says until it closes the connection, within the bound.
async fn until_closed(mut stream: UnixStream) -> String {
    let mut said = Vec::new();
    match timeout(SOON, stream.read_to_end(&mut said)).await.expect("the server closes the connection") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&said).into_owned()
}

async fn still_answers(socket: &Path) {
    let client = Client::connect(socket, "test").await.unwrap();
    assert_eq!(client.ask(&Request::Endpoints).await.unwrap(), Reply::Endpoints(Vec::new()));
}

#[tokio::test]
async fn a_question_gets_its_answer_and_the_caller_is_known() {
    let Scene { socket, _directory } = scene();
    let (seen, mut peers) = mpsc::unbounded_channel();
    serve(Server::bind(&socket, "0.1.0 (agent)", None).unwrap(), move |peer, request, mut replies| {
        let seen = seen.clone();
        async move {
            seen.send((peer, request)).unwrap();
            let _ = replies.send(&Reply::Done).await;
        }
    });
    let client = Client::connect(&socket, "0.1.0 (client)").await.unwrap();
    assert_eq!(client.agent_build(), "0.1.0 (agent)");
    assert_eq!(client.ask(&Request::Status).await.unwrap(), Reply::Done);
    let (peer, request) = peers.recv().await.unwrap();
    assert_eq!(request, Request::Status);
    assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
}

#[tokio::test]
async fn an_error_of_the_agent_is_said_in_its_own_words() {
    let Scene { socket, _directory } = scene();
    serve(Server::bind(&socket, "a", None).unwrap(), |_, _, mut replies| async move {
        let _ = replies.send(&Reply::Error("workload default/x: in use".to_owned())).await;
    });
    let client = Client::connect(&socket, "b").await.unwrap();
    let error = client.ask(&Request::Plan).await.unwrap_err();
    assert_eq!(error.to_string(), "workload default/x: in use");
}

#[tokio::test]
async fn without_an_agent_the_error_says_how_to_start_one() {
    let Scene { socket, _directory } = scene();
    let expected =
        format!("agent is not running (no answer at {}); start it with `ferromesh up`", socket.display());
    assert_eq!(Client::connect(&socket, "b").await.unwrap_err().to_string(), expected);
    // A socket that a killed agent left behind.
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(Client::connect(&socket, "b").await.unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn an_agent_that_answers_is_not_replaced_and_a_dead_ones_socket_is() {
    let Scene { socket, _directory } = scene();
    drop(UnixListener::bind(&socket).unwrap());
    let server = Server::bind(&socket, "a", None).unwrap();
    assert!(matches!(Server::bind(&socket, "a", None), Err(BindError::InUse(_))));
    serve(server, no_endpoints);
    still_answers(&socket).await;
}

#[tokio::test]
async fn what_is_not_a_socket_is_left_alone() {
    let Scene { socket, _directory } = scene();
    std::fs::write(&socket, "precious").unwrap();
    assert!(matches!(Server::bind(&socket, "a", None), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
}

#[tokio::test]
async fn the_socket_is_closed_to_others_and_the_only_file_that_is_made() {
    use std::os::unix::fs::PermissionsExt;
    let Scene { socket, _directory } = scene();
    let _server = Server::bind(&socket, "a", None).unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(std::fs::read_dir(socket.parent().unwrap()).unwrap().count(), 1);
}

#[tokio::test]
async fn an_agent_that_ends_late_leaves_its_successors_socket_alone() {
    let Scene { socket, _directory } = scene();
    let earlier = Server::bind(&socket, "a", None).unwrap();
    std::fs::remove_file(&socket).unwrap();
    serve(Server::bind(&socket, "a", None).unwrap(), no_endpoints);
    drop(earlier);
    still_answers(&socket).await;
}

#[tokio::test]
async fn different_versions_say_so_and_stop() {
    let Scene { socket, _directory } = scene();
    serve(Server::bind(&socket, "a", None).unwrap(), |_, _, _| async { panic!("must not be asked") });
    // An older command meets this agent: it gets the greeting it needs to explain itself, and nothing else.
    let said = until_closed(raw(&socket, &hello(node_api::VERSION + 1)).await).await;
    let greeting = format!(r#"{{"version":{},"build":"a"}}"#, node_api::VERSION);
    assert!(said.ends_with(&greeting), "{said}");

    // This command meets a newer agent.
    let other = socket.with_file_name("newer.sock");
    let listener = UnixListener::bind(&other).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&hello(node_api::VERSION + 1)).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = Client::connect(&other, "b").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "this command speaks version {} of the node socket, the agent at {} speaks version {} (build 0.1.0 \
             (test)); use the command installed with it, or restart the agent",
            node_api::VERSION,
            other.display(),
            node_api::VERSION + 1
        )
    );
}

#[test]
fn different_builds_are_named_and_equal_ones_are_not() {
    assert_eq!(node_api::build_difference("x", "x"), None);
    assert_eq!(
        node_api::build_difference("1 (a)", "1 (b)").unwrap(),
        "this command is build 1 (a), the agent is build 1 (b); restart the agent to run what is installed"
    );
}

#[tokio::test]
async fn bad_callers_are_told_and_harm_no_one() {
    let Scene { socket, _directory } = scene();
    serve(Server::bind(&socket, "a", None).unwrap(), no_endpoints);
    let greeted = |rest: &[u8]| [hello(node_api::VERSION), rest.to_vec()].concat();
    let deep = framed(&format!(r#"{{"request":"trace","from":{}"#, "[".repeat(60_000)));
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("garbage instead of a greeting", framed("xyzzy"), "not a request"),
        ("a frame that claims 4 GiB", u32::MAX.to_be_bytes().to_vec(), "frame of more than 1048576 bytes"),
        ("an oversize request", greeted(&1_048_577u32.to_be_bytes()), "frame of more than 1048576 bytes"),
        ("an unknown request", greeted(&framed(r#"{"request":"reboot"}"#)), "unknown variant `reboot`"),
        ("bytes that are not UTF-8", greeted(&[0, 0, 0, 2, 0xff, 0xfe]), "not a request"),
        ("nesting that would overflow a stack", greeted(&deep), "recursion limit"),
    ];
    for (name, bytes, expected) in cases {
        let said = until_closed(raw(&socket, &bytes).await).await;
        assert!(said.contains(expected), "{name}: {said}");
        still_answers(&socket).await;
    }
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_closed() {
    let Scene { socket, _directory } = scene();
    let server = Server::bind(&socket, "a", None).unwrap().with_patience(Duration::from_millis(20));
    serve(server, no_endpoints);
    until_closed(raw(&socket, &[]).await).await;
    until_closed(raw(&socket, &hello(node_api::VERSION)).await).await;
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_closed() {
    let Scene { socket, _directory } = scene();
    let (ended, mut end) = mpsc::unbounded_channel();
    let server = Server::bind(&socket, "a", None).unwrap().with_patience(Duration::from_millis(50));
    serve(server, move |_, _, mut replies| {
        let ended = ended.clone();
        async move {
            let long = Reply::Error("x".repeat(1 << 20));
            while replies.send(&long).await.is_ok() {}
            ended.send(()).unwrap();
        }
    });
    let client = Client::connect(&socket, "b").await.unwrap();
    let _unread = client.stream(&Request::Observe(Box::default())).await.unwrap();
    timeout(SOON, end.recv()).await.expect("the stream ends").unwrap();
}

#[tokio::test]
async fn the_agent_notices_a_caller_that_vanishes() {
    let Scene { socket, _directory } = scene();
    let (ended, mut end) = mpsc::unbounded_channel();
    serve(Server::bind(&socket, "a", None).unwrap(), move |_, _, mut replies| {
        let ended = ended.clone();
        async move {
            replies.send(&Reply::Lost(7)).await.unwrap();
            replies.closed().await;
            ended.send(()).unwrap();
        }
    });
    let client = Client::connect(&socket, "b").await.unwrap();
    let mut lease = client.stream(&Request::Observe(Box::default())).await.unwrap();
    assert_eq!(lease.next().await.unwrap(), Reply::Lost(7));
    assert!(end.try_recv().is_err(), "the lease holds while the caller lives");
    drop(lease);
    timeout(SOON, end.recv()).await.expect("the agent notices").unwrap();
}

#[tokio::test]
async fn an_agent_that_dies_within_a_stream_is_said() {
    let Scene { socket, _directory } = scene();
    let agent = serve(Server::bind(&socket, "a", None).unwrap(), |_, _, mut replies| async move {
        let _ = replies.send(&Reply::Lost(1)).await;
        std::future::pending::<()>().await;
    });
    let client = Client::connect(&socket, "b").await.unwrap();
    let mut replies = client.stream(&Request::Observe(Box::default())).await.unwrap();
    assert_eq!(replies.next().await.unwrap(), Reply::Lost(1));
    agent.abort();
    assert!(matches!(replies.next().await, Err(ClientError::Closed { .. })));
}

#[tokio::test]
async fn an_answer_too_long_for_a_frame_is_refused_not_cut() {
    let Scene { socket, _directory } = scene();
    serve(Server::bind(&socket, "a", None).unwrap(), |_, _, mut replies| async move {
        let plan = serde_json::Value::String("x".repeat(node_api::MAX_REPLY));
        let _ = replies.send(&Reply::Plan(plan)).await;
    });
    let client = Client::connect(&socket, "b").await.unwrap();
    let error = client.ask(&Request::Plan).await.unwrap_err().to_string();
    assert_eq!(error, format!("the answer cannot be sent: frame of more than {} bytes", node_api::MAX_REPLY));
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_a_place_that_is_freed_serves_again() {
    let Scene { socket, _directory } = scene();
    let (ended, mut end) = mpsc::unbounded_channel();
    serve(Server::bind(&socket, "a", None).unwrap(), move |_, _, mut replies| {
        let ended = ended.clone();
        async move {
            let _ = replies.send(&Reply::Endpoints(Vec::new())).await;
            replies.closed().await;
            let _ = ended.send(());
        }
    });
    let mut held = Vec::new();
    for _ in 0..server::MAX_CONNECTIONS {
        let client = Client::connect(&socket, "b").await.unwrap();
        let mut replies = client.stream(&Request::Endpoints).await.unwrap();
        replies.next().await.unwrap();
        held.push(replies);
    }
    let surplus = Client::connect(&socket, "b").await.unwrap();
    let error = surplus.ask(&Request::Endpoints).await.unwrap_err().to_string();
    let told = format!("the agent serves {} connections already", server::MAX_CONNECTIONS);
    assert!(error.starts_with(&told), "{error}");
    held.pop();
    timeout(SOON, end.recv()).await.unwrap().unwrap();
    // The place is free once the task that held it is gone, a moment after it said so.
    timeout(SOON, async {
        loop {
            let client = Client::connect(&socket, "b").await.unwrap();
            if client.ask(&Request::Endpoints).await.is_ok() {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the place is free again");
}
