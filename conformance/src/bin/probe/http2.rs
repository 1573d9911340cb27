//! HTTP/2 without TLS, by prior knowledge: a server that answers everything, calls of gRPC as such, and a
//! client that asks one thing at a time.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// How long a connection, and an answer, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests whose connection ends before a server has taken them are asked again, so often.
const ATTEMPTS: usize = 5;

/// Where gRPC says how a call ended.
const STATUS: &str = "grpc-status";
const GRPC: &str = "application/grpc";

/// Answers 200 with a short body; calls of gRPC with status 0 besides.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await?;
        println!("serving");
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream));
        }
    })
}

async fn answer(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let kind = request.headers().get(CONTENT_TYPE).filter(|kind| *kind == GRPC);
        let mut answer = Response::new(());
        answer.headers_mut().extend(kind.map(|kind| (CONTENT_TYPE, kind.clone())));
        // A client that has gone needs no body.
        let Ok(mut body) = respond.send_response(answer, false) else { continue };
        match kind {
            None => drop(body.send_data(Bytes::from_static(b"answered\n"), true)),
            Some(_) => {
                // One message: not compressed, of one byte.
                let _ = body.send_data(Bytes::from_static(&[0, 0, 0, 0, 1, 7]), false);
                let status = [(HeaderName::from_static(STATUS), HeaderValue::from_static("0"))];
                let _ = body.send_trailers(status.into_iter().collect());
            }
        }
    }
}

/// What is told in place of a status where the other end has given up the stream.
const CANCELLED: u16 = 499;

/// One that keeps its connection.
pub(crate) struct Client {
    runtime: Runtime,
    address: SocketAddr,
    open: Option<SendRequest<Bytes>>,
    /// Its requests are calls of gRPC, whose status is told.
    calls: bool,
}

impl Client {
    pub(crate) fn open(address: SocketAddr, calls: bool) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let open = Some(runtime.block_on(connect(address))?);
        Ok(Self { runtime, address, open, calls })
    }

    /// The status of the answer, which is read to its end; of gRPC its own, if it has one.
    pub(crate) fn ask(&mut self, method: &str, path: &str) -> io::Result<u16> {
        let Self { runtime, address, open, calls } = self;
        runtime.block_on(async {
            for _ in 0..ATTEMPTS {
                let ready = match open.take() {
                    Some(send) => send.ready().await.ok(),
                    None => None,
                };
                // It has said that it takes no more streams.
                let mut send = match ready {
                    Some(send) => send,
                    None => connect(*address).await?.ready().await.map_err(io::Error::other)?,
                };
                let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
                if *calls {
                    request = request.header(CONTENT_TYPE, GRPC).header("te", "trailers");
                }
                let sent = send.send_request(request.body(()).map_err(io::Error::other)?, true);
                let (answer, _) = sent.map_err(io::Error::other)?;
                let answered = timeout(PATIENCE, status(answer)).await?;
                match answered {
                    Ok(status) => {
                        *open = Some(send);
                        return Ok(status);
                    }
                    Err(error) if is_untaken(&error) => {}
                    Err(error) if is_cancelled(&error) => {
                        *open = Some(send);
                        return Ok(CANCELLED);
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            Err(io::Error::other("no connection takes the request"))
        })
    }
}

async fn connect(address: SocketAddr) -> io::Result<SendRequest<Bytes>> {
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    let handshake = timeout(PATIENCE, h2::client::handshake(stream)).await?;
    let (send, connection) = handshake.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(send)
}

async fn status(answer: h2::client::ResponseFuture) -> Result<u16, h2::Error> {
    let answer = answer.await?;
    let status = answer.status().as_u16();
    let called = |headers: &HeaderMap| headers.get(STATUS)?.to_str().ok()?.parse().ok();
    let denied = called(answer.headers());
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let trailers = body.trailers().await?;
    Ok(denied.or_else(|| called(&trailers?)).unwrap_or(status))
}

/// The other end has given up this stream, and no other: what was allowed when it began is not any more.
fn is_cancelled(error: &h2::Error) -> bool {
    error.is_remote() && error.is_reset() && error.reason() == Some(Reason::CANCEL)
}

/// The other end has said that it has not looked at it (RFC 9113, section 8.7): it may be asked again.
fn is_untaken(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.reason() == Some(Reason::REFUSED_STREAM)
            || error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
}
