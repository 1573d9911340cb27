//! HTTP/2 at both ends of the proxy: with h2 where it is well-formed, frame by frame where it is not.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode};
use mesh::l7::HttpRule;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinHandle, spawn_local};

use super::{Bench, Servers, local};

/// A client with a connection of its own.
pub struct Client {
    pub send: SendRequest<Bytes>,
    pub driver: JoinHandle<Result<(), h2::Error>>,
}

pub async fn client(bench: &Bench) -> (Client, Servers) {
    client_with(bench, &h2::client::Builder::new()).await
}

pub async fn client_with(bench: &Bench, builder: &h2::client::Builder) -> (Client, Servers) {
    let (stream, servers) = bench.open();
    let (send, connection) = builder.handshake(stream).await.unwrap();
    (Client { send, driver: spawn_local(connection) }, servers)
}

pub fn request(method: &str, path: &str) -> Request<()> {
    let uri = format!("http://h{path}");
    Request::builder().method(method).uri(uri).version(http::Version::HTTP_2).body(()).unwrap()
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Client {
    /// Asks without a body, and takes the whole answer.
    pub async fn ask(&mut self, request: Request<()>) -> Result<Answer, h2::Error> {
        poll_fn(|cx| self.send.poll_ready(cx)).await?;
        let (answer, _) = self.send.send_request(request, true)?;
        take(answer.await?).await
    }

    /// Asks with a body that is sent at once.
    pub async fn post(&mut self, request: Request<()>, body: &str) -> Result<Answer, h2::Error> {
        poll_fn(|cx| self.send.poll_ready(cx)).await?;
        let (answer, mut to) = self.send.send_request(request, false)?;
        to.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
        take(answer.await?).await
    }
}

pub async fn take(answer: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (parts, mut body) = answer.into_parts();
    let text = read(&mut body).await?;
    let trailers = body.trailers().await?;
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body: text, trailers })
}

/// The rest of a body.
pub async fn read(body: &mut RecvStream) -> Result<String, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// A stream as the server has it.
pub type Called = (Request<RecvStream>, SendResponse<Bytes>);

/// The server's end: streams as they come.
pub struct Origin {
    streams: tokio::sync::mpsc::UnboundedReceiver<Called>,
    pub driver: JoinHandle<Result<(), h2::Error>>,
    close: Option<tokio::sync::oneshot::Sender<()>>,
}

pub async fn origin(servers: &mut Servers) -> Origin {
    origin_with(servers, &h2::server::Builder::new()).await
}

pub async fn origin_with(servers: &mut Servers, builder: &h2::server::Builder) -> Origin {
    let mut connection = builder.handshake::<_, Bytes>(servers.next().await).await.unwrap();
    let (opened, streams) = tokio::sync::mpsc::unbounded_channel();
    let (close, mut closed) = tokio::sync::oneshot::channel::<()>();
    let driver = spawn_local(async move {
        let mut is_closing = false;
        loop {
            tokio::select! {
                stream = connection.accept() => match stream {
                    Some(stream) => drop(opened.send(stream?)),
                    None => return Ok(()),
                },
                asked = &mut closed, if !is_closing => {
                    is_closing = true;
                    if asked.is_ok() {
                        connection.graceful_shutdown();
                    }
                }
            }
        }
    });
    Origin { streams, driver, close: Some(close) }
}

impl Origin {
    pub async fn next(&mut self) -> Called {
        self.streams.recv().await.expect("a stream")
    }

    /// No more streams come, ever.
    pub async fn none(&mut self) {
        assert!(self.streams.recv().await.is_none(), "a stream");
    }

    /// Lets the client open no more streams.
    pub fn close(&mut self) {
        let _ = self.close.take().unwrap().send(());
    }
}

pub fn answer(respond: &mut SendResponse<Bytes>, status: u16, body: &'static str) {
    let head = Response::builder().status(status).body(()).unwrap();
    let mut to = respond.send_response(head, body.is_empty()).unwrap();
    if !body.is_empty() {
        to.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
    }
}

/// Serves every stream: takes what comes and answers 200; what was asked is kept.
pub fn serve_all(mut servers: Servers) -> Rc<RefCell<Vec<String>>> {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let all = Rc::clone(&asked);
    spawn_local(async move {
        while let Some(stream) = servers.try_next().await {
            let Ok(mut connection) = h2::server::handshake(stream).await else { continue };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let all = Rc::clone(&all);
                spawn_local(async move {
                    let (parts, mut body) = request.into_parts();
                    let body = read(&mut body).await;
                    let mut headers: Vec<_> = parts.headers.iter().collect();
                    headers.sort_by_key(|(name, _)| name.as_str());
                    let headers: String = headers
                        .iter()
                        .map(|(name, value)| format!(" {name}={}", String::from_utf8_lossy(value.as_bytes())))
                        .collect();
                    let body = body.map_or(" (broken)".to_owned(), |body| {
                        if body.is_empty() { String::new() } else { format!(" [{body}]") }
                    });
                    all.borrow_mut().push(format!("{} {}{headers}{body}", parts.method, parts.uri));
                    let _ = respond.send_response(Response::new(()), true);
                });
            }
        }
    });
    asked
}

/// What came of one request.
#[derive(Debug)]
pub struct Asked {
    /// Its status, or the code that its stream was reset with.
    pub came: Result<u16, Reason>,
    pub received: Vec<String>,
    pub flows: Vec<String>,
}

impl Asked {
    /// Why it did not pass.
    pub fn reason(&self) -> &str {
        let dropped = self.flows.iter().find(|flow| flow.contains(" DROPPED"));
        dropped.and_then(|flow| flow.split_once(" (")?.1.strip_suffix(')')).unwrap_or_default()
    }
}

/// One request to a server that is pleased with everything.
pub async fn ask(rules: Vec<HttpRule>, request: Request<()>, body: &str) -> Asked {
    let bench = Bench::new(rules);
    local(async {
        let (mut client, servers) = client(&bench).await;
        let received = serve_all(servers);
        let answer = match body {
            "" => client.ask(request).await,
            body => client.post(request, body).await,
        };
        let came = answer.map(|answer| answer.status).map_err(|error| error.reason().unwrap());
        drop(client.send);
        client.driver.await.unwrap().unwrap();
        Asked { came, received: received.take(), flows: bench.flows() }
    })
    .await
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// An end that writes frames by hand.
pub struct Raw {
    pub stream: DuplexStream,
}

/// A frame as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == 7 { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals without Huffman coding.
pub fn block(headers: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            match text.len() {
                length @ ..127 => block.push(length as u8),
                mut length => {
                    block.push(127);
                    length -= 127;
                    while length >= 128 {
                        block.push((length % 128) as u8 | 128);
                        length /= 128;
                    }
                    block.push(length as u8);
                }
            }
            block.extend_from_slice(text);
        }
    }
    block
}

pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "/public")];

impl Raw {
    /// Sends the preface and empty settings.
    pub async fn open(bench: &Bench) -> (Self, Servers) {
        let (stream, servers) = bench.open();
        let mut raw = Self { stream };
        raw.write(PREFACE).await;
        raw.write(&frame(4, 0, 0, &[])).await;
        (raw, servers)
    }

    /// The server's end, from the client's preface on.
    pub async fn server(servers: &mut Servers) -> Self {
        let mut raw = Self { stream: servers.next().await };
        raw.stream.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        raw
    }

    /// Writes; that the other end has closed is no matter.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    pub async fn headers(&mut self, stream: u32, flags: u8, headers: &[(&str, &str)]) {
        self.write(&frame(1, flags | END_HEADERS, stream, &block(headers))).await;
    }

    /// The next frame; none: the end.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of a kind.
    pub async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("a frame");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The code that the connection ends with; none: it ends without a word.
    pub async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == 7 {
                code = Some(frame.code());
            }
        }
        code
    }
}

pub fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}
