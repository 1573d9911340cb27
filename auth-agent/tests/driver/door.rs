//! Who is let in, and who is not.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use auth_agent::message::{Message, VERSION};
use certs::bundle::Bundles;
use certs::svid::Svid;
use certs::tls::{client_config, server_config, server_name};
use certs::verify::Expected;
use mesh::auth::Refusal;
use node_api::auth::{AuthAnswer, AuthQuestion, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::world::{Ca, Node, auth_node, inside, until};

/// Node b, which waits to be called by a.
async fn callee() -> (Ca, Node) {
    let ca = Ca::start(&[("a", &["client"]), ("b", &["server"]), ("c", &[])]).await;
    let mut b = Node::start(&ca, "b", 2).await;
    let a = Node::start(&ca, "a", 1).await;
    b.tell(1, b.plan(&ca, "server", &a, "client")).await;
    until("node b has joined", async || b.has("node.pem").then_some(())).await;
    (ca, b)
}

fn bundles(ca: &Ca) -> Arc<Bundles> {
    Arc::new(Bundles::new(ca.authority().bundle().clone()))
}

/// Calls a node as the owner of a certificate, and hears its first message.
async fn call(ca: &Ca, address: SocketAddr, svid: &Svid) -> io::Result<(TlsStream<TcpStream>, Message)> {
    let expected = Expected::Id(ca.domain.node("b").unwrap());
    let config = client_config(svid, expected, &bundles(ca), &certs::system_clock()).unwrap();
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(config).connect(server_name(), stream).await?;
    let message = hear(&mut stream).await?;
    Ok((stream, message))
}

async fn hear(stream: &mut TlsStream<TcpStream>) -> io::Result<Message> {
    let length = stream.read_u32().await?;
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(postcard::from_bytes(&bytes).unwrap())
}

#[test]
fn a_node_of_the_plan_is_let_in_and_nobody_else() {
    inside(async || {
        let (ca, mut b) = callee().await;
        let stranger = Ca::start(&[]).await;
        let node = |ca: &Ca, name| ca.svid(&ca.domain.node(name).unwrap());
        let good = until("node a is let in", async || call(&ca, b.address, &node(&ca, "a")).await.ok()).await;
        assert!(matches!(good.1, Message::Hello { version: VERSION, .. }));
        let workload = ca.svid(&ca.domain.workload("default", "client").unwrap());
        let others = [node(&ca, "c"), node(&ca, "b"), node(&stranger, "a"), workload];
        for svid in others {
            let refused = call(&ca, b.address, &svid).await;
            assert!(refused.is_err(), "{svid:?}");
        }
        let mut garbage = TcpStream::connect(b.address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // Each is counted, by why: c, b itself, the workload; the stranger; who speaks no TLS.
        let expected = [(Refusal::WrongId, 3), (Refusal::Untrusted, 1), (Refusal::Protocol, 1)];
        until("all are counted", async || match b.ask(AuthQuestion::Counters).await {
            AuthAnswer::Counters(counters) => {
                let callers = counters.refusals.get(&Step::Caller)?;
                expected.iter().all(|(why, count)| callers.get(why) == Some(count)).then_some(())
            }
            other => panic!("{other:?}"),
        })
        .await;
    });
}

#[test]
fn a_session_that_breaks_the_framing_is_closed_and_another_is_let_in() {
    inside(async || {
        let (ca, b) = callee().await;
        let svid = ca.svid(&ca.domain.node("a").unwrap());
        let connect = async || until("let in", async || call(&ca, b.address, &svid).await.ok()).await.0;
        for bytes in [&[0, 1, 0, 1][..], &[0, 0, 0, 1, 0xff], &[0xff; 4]] {
            let mut stream = connect().await;
            stream.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            // With or without an alert: it is over.
            let _ = stream.read_to_end(&mut rest).await;
        }
        connect().await;
    });
}

#[test]
fn a_crowd_that_says_nothing_keeps_no_node_out() {
    inside(async || {
        let (ca, b) = callee().await;
        let svid = ca.svid(&ca.domain.node("a").unwrap());
        until("let in", async || call(&ca, b.address, &svid).await.ok()).await;
        let mut crowd = Vec::new();
        for number in 0..100u8 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            // Many from one address, and some from many.
            let from = if number < 50 { 1 } else { number };
            socket.bind(SocketAddr::from(([127, 0, 1, from], 0))).unwrap();
            crowd.push(socket.connect(b.address).await.unwrap());
        }
        until("let in all the same", async || call(&ca, b.address, &svid).await.ok()).await;
        // The oldest were sent away for those that came after.
        let mut byte = [0];
        assert_eq!(crowd[0].read(&mut byte).await.unwrap_or(0), 0);
    });
}

#[test]
fn a_node_that_shows_another_certificate_than_the_one_called_is_left() {
    inside(async || {
        let ca = Ca::start(&[("a", &["client"]), ("b", &["server"])]).await;
        let mut a = Node::start(&ca, "a", 1).await;
        let b = Node::start(&ca, "b", 2).await;
        let listener = TcpListener::bind("127.0.0.9:4250").await.unwrap();
        let impostor = ca.svid(&ca.domain.node("c").unwrap());
        let anybody = Expected::Node(ca.domain.clone());
        let config = server_config(&impostor, anybody, &bundles(&ca), &certs::system_clock()).unwrap();
        let mut plan = a.plan(&ca, "client", &b, "server");
        plan.nodes = [("b".to_owned(), auth_node(&ca, "b", listener.local_addr().unwrap()))].into();
        a.tell(1, plan).await;
        let (stream, _) = listener.accept().await.unwrap();
        let _ = TlsAcceptor::from(config).accept(stream).await;
        let problem = until("it is said", async || match a.ask(AuthQuestion::Nodes).await {
            AuthAnswer::Nodes(nodes) => nodes
                .into_iter()
                .find_map(|node| node.problem.filter(|problem| problem.contains("127.0.0.9"))),
            other => panic!("{other:?}"),
        })
        .await;
        assert!(problem.contains("spiffe://td/ferromesh/node/c"), "{problem}");
        assert!(a.marks(&b).is_empty());
    });
}
