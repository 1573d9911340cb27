//! `/metrics` and `/healthz` over HTTP/1.1, on loopback.
//!
//! Promise: read-only, bounded in connections, header size and time; a caller that stalls costs one of
//! [`MAX_CONNECTIONS`] places for [`PATIENCE`] at most. Numbers only; of workloads no
//! more than the names of those whose judgement dropped packets.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Connections served at once; others wait in the listen queue.
pub const MAX_CONNECTIONS: usize = 16;

/// How long a connection may take from its first byte to its last.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What Prometheus calls the format `prometheus-client` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Metrics would be visible from outside.
    #[error("metrics address {0}: expected a loopback address, as 127.0.0.1:9962 or [::1]:9962")]
    NotLoopback(SocketAddr),
    /// The system refused.
    #[error("metrics address {address}: {error}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

/// Opens the port, loopback only.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    if !is_loopback(address.ip()) {
        return Err(ServeError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|error| ServeError::Io { address, error })
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    serve_patiently(listener, registry, PATIENCE).await;
}

async fn serve_patiently(listener: TcpListener, registry: Arc<Registry>, patience: Duration) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "metrics: cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let registry = Arc::clone(&registry);
        connections.spawn(async move {
            if timeout(patience, converse(stream, registry)).await.is_err() {
                debug!("metrics: connection closed, it took too long");
            }
            drop(place);
        });
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, registry: Arc<Registry>) {
    let answers = service_fn(move |request| answer(request, Arc::clone(&registry)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_headers(64)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answers);
    if let Err(error) = connection.await {
        debug!(%error, "metrics: connection failed");
    }
}

async fn answer(
    request: Request<Incoming>,
    registry: Arc<Registry>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (&Method::GET, "/metrics") => match scrape(registry).await {
            Some(text) => (StatusCode::OK, OPENMETRICS, text),
            None => {
                (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "metrics could not be read\n".to_owned())
            }
        },
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "text/plain", "see /metrics or /healthz\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
    }
    Ok(response)
}

/// On a thread of its own: collectors read kernel maps, which must not hold up the agent's other work.
async fn scrape(registry: Arc<Registry>) -> Option<String> {
    let scrape = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).ok().map(|()| text)
    });
    scrape.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    async fn served(patience: Duration) -> SocketAddr {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let registry = Arc::new(crate::metrics::registry("0.1.0", "abc", 1));
        tokio::spawn(serve_patiently(listener, registry, patience));
        address
    }

    /// Sends bytes, returns everything until the server closes.
    async fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the server closes");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn each_path_and_method_gets_its_answer() {
        let address = served(SOON).await;
        let cases = [
            ("GET /metrics", "200 OK", "ferromesh_build_info{"),
            ("GET /metrics?x=y", "200 OK", "# EOF"),
            ("GET /healthz", "200 OK", "ok\n"),
            ("GET /", "404 Not Found", "see /metrics or /healthz"),
            ("POST /metrics", "405 Method Not Allowed", "allow: GET"),
        ];
        for (line, status, content) in cases {
            let answer = exchange(address, format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{line}: {answer}");
            assert!(answer.contains(content), "{line}: {answer}");
        }
    }

    #[tokio::test]
    async fn garbage_and_floods_of_headers_are_refused() {
        let address = served(SOON).await;
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(64 * 1024));
        for request in ["\u{0}\u{1}\r\n\r\n", &many, &long] {
            let answer = exchange(address, request.as_bytes()).await;
            assert!(!answer.contains("ferromesh"), "{answer}");
        }
    }

    #[tokio::test]
    async fn callers_that_stall_do_not_keep_others_out() {
        let address = served(Duration::from_millis(50)).await;
        let mut stalled = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 4 {
            stalled.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = exchange(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.ends_with("ok\n"), "{answer}");
    }

    #[tokio::test]
    async fn only_loopback_is_served() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
            let refused = bind(address.parse().unwrap()).await;
            assert!(matches!(refused, Err(ServeError::NotLoopback(_))), "{address}");
        }
        assert!(bind("[::1]:0".parse().unwrap()).await.is_ok());
    }
}
