//! The deathstar of the demo: an HTTP server with a landing bay, an exhaust port and plans that take long to read.
//!
//! `deathstar [PORT]` listens on every address of its namespace, both families, and says `serving` when it does.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Body = BoxBody<Bytes, Infallible>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(80);
    // An IPv6 wildcard socket takes IPv4 too (RFC 3493 section 3.7).
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await?;
    println!("serving");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
            // A client that goes away in mid-answer is its own business.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<hyper::body::Incoming>) -> Response<Body> {
    let text = |text: &'static str| Full::new(Bytes::from_static(text.as_bytes())).boxed();
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/request-landing") => Response::new(text("Ship landed\n")),
        (&Method::PUT, "/v1/exhaust-port") => {
            let mut response = Response::new(text("Panic: deathstar exploded\n"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
        (&Method::GET, "/v1/plans") => Response::new(plans()),
        (&Method::GET, "/v1" | "/v1/") => Response::new(text(
            "POST /v1/request-landing\nPUT /v1/exhaust-port\nGET /v1/plans (one line in 100 ms, for two minutes)\n",
        )),
        _ => {
            let mut response = Response::new(text("No such door\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    }
}

/// A download that lasts: something to watch while the agent is killed or a rule is edited.
fn plans() -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        for sheet in 1..=1200 {
            tick.tick().await;
            if sender.send(Bytes::from(format!("plan, sheet {sheet}\n"))).await.is_err() {
                return;
            }
        }
    });
    let sheets = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let sheet = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(sheet)), receiver))
    });
    StreamBody::new(sheets).boxed()
}
