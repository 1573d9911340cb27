//! HTTP/2 without TLS, by prior knowledge: a server that answers everything, and a client that asks one thing at a time.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// How long a connection, and an answer, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests whose connection ends before a server has taken them are asked again, so often.
const ATTEMPTS: usize = 5;

/// Answers 200 with a short body.
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
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let answered = respond.send_response(Response::new(()), false);
        if let Ok(mut body) = answered {
            // A client that has gone needs none.
            let _ = body.send_data(Bytes::from_static(b"answered\n"), true);
        }
    }
}

/// One that keeps its connection.
pub(crate) struct Client {
    runtime: Runtime,
    address: SocketAddr,
    open: Option<SendRequest<Bytes>>,
}

impl Client {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let open = Some(runtime.block_on(connect(address))?);
        Ok(Self { runtime, address, open })
    }

    /// The status of the answer, which is read to its end.
    pub(crate) fn ask(&mut self, method: &str, path: &str) -> io::Result<u16> {
        let Self { runtime, address, open } = self;
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
                let request =
                    Request::builder().method(method).uri(format!("http://{address}{path}")).body(());
                let sent = send.send_request(request.map_err(io::Error::other)?, true);
                let (answer, _) = sent.map_err(io::Error::other)?;
                let answered = timeout(PATIENCE, status(answer)).await?;
                match answered {
                    Ok(status) => {
                        *open = Some(send);
                        return Ok(status);
                    }
                    Err(error) if is_untaken(&error) => {}
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
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok(status)
}

/// The other end has said that it has not looked at it (RFC 9113, section 8.7): it may be asked again.
fn is_untaken(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.reason() == Some(Reason::REFUSED_STREAM)
            || error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
}
