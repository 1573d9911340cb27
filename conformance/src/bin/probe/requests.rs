//! HTTP clients that ask over and over, each on one connection that it keeps for as long as the server lets it: where an
//! answer says that it is the last, or GOAWAY says that no stream is taken, the next request goes on another one, as with
//! every client of that kind. Whatever else ends a connection has broken a request.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::PATIENCE;
use crate::{http2, tls, websocket};

/// Between two requests of a connection.
const PAUSE: Duration = Duration::from_millis(1);
/// How long all connections together may take to ask everything once more.
const ROUND: Duration = Duration::from_secs(10);

/// What is asked, in turn: method and path.
pub(crate) type Request = (String, String);

/// What has been answered since somebody asked.
#[derive(Default)]
struct Seen {
    /// Statuses by request.
    statuses: BTreeMap<String, BTreeSet<u16>>,
    /// Connections that have asked everything at least once.
    rounds: BTreeSet<usize>,
}

struct Shared {
    /// What was asked before it last moved counts no more.
    epoch: AtomicU64,
    seen: Mutex<Seen>,
    /// Why connections have ended; none should.
    broken: Mutex<Vec<String>>,
}

/// One request, and the status it is answered with.
pub(crate) fn one(address: SocketAddr, request: &str) -> io::Result<String> {
    let (method, path) = split(request)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n")?;
    answer(&mut BufReader::new(stream)).map(|(status, _)| status.to_string())
}

fn split(text: &str) -> io::Result<Request> {
    let (method, path) = text.split_once(':').ok_or_else(|| io::Error::other("METHOD:PATH is wanted"))?;
    Ok((method.to_owned(), path.to_owned()))
}

/// One HTTP/1.1 connection that is kept: each line of standard input is asked on it; its status is told, and `last` if the
/// connection ends with the answer.
pub(crate) fn keep(address: SocketAddr) -> io::Result<()> {
    let mut client = Client { address, open: Some(connect(address)?) };
    println!("open");
    for line in io::stdin().lock().lines() {
        let request = split(&line?)?;
        let asked = if client.open.is_some() {
            client.ask(&request)
        } else {
            Err(io::ErrorKind::NotConnected.into())
        };
        match asked {
            Ok(status) if client.open.is_some() => println!("{status}"),
            Ok(status) => println!("{status} last"),
            Err(error) => println!("{error}"),
        }
    }
    Ok(())
}

/// How a fleet speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
    /// Over HTTP/2; statuses are those of gRPC.
    Grpc,
    /// One socket, opened by the first path; each request is a message that comes back: 101.
    WebSocket,
    /// One connection, the first path is the server's name; each request is a word that comes back: 200.
    Tls,
}

/// Makes a request; its status.
pub(crate) type Asks = Box<dyn FnMut(&Request) -> io::Result<u16> + Send>;

/// So many clients, each of which asks `METHOD:PATH` after `METHOD:PATH`. Each line of standard input asks what was
/// answered from then on until every connection has asked everything, and which connections have ever ended. The line
/// `before` asks the same of all since the last line.
pub(crate) fn requests(
    version: Version,
    address: SocketAddr,
    count: usize,
    requests: &[&str],
) -> io::Result<()> {
    let requests: Arc<[Request]> =
        requests.iter().map(|text| split(text)).collect::<io::Result<Vec<_>>>()?.into();
    let shared =
        Arc::new(Shared { epoch: AtomicU64::new(0), seen: Mutex::default(), broken: Mutex::default() });
    for number in 0..count {
        let (shared, requests) = (Arc::clone(&shared), Arc::clone(&requests));
        let mut ask: Asks = match version {
            Version::Http1 => {
                let mut client = Client { address, open: Some(connect(address)?) };
                Box::new(move |request| client.ask(request))
            }
            Version::Http2 | Version::Grpc => {
                let mut client = http2::Client::open(address, version == Version::Grpc)?;
                Box::new(move |(method, path)| client.ask(method, path))
            }
            Version::WebSocket => websocket::repeat(address, first(&requests)?)?,
            Version::Tls => tls::repeat(address, first(&requests)?)?,
        };
        std::thread::spawn(move || {
            let Err(error) = go_on(&mut ask, number, &requests, &shared);
            shared.broken.lock().push(error.to_string());
        });
    }
    println!("open");
    for line in io::stdin().lock().lines() {
        if line? != "before" {
            let mut seen = shared.seen.lock();
            shared.epoch.fetch_add(1, Ordering::SeqCst);
            *seen = Seen::default();
        }
        println!("{}", shared.told(count));
    }
    Ok(())
}

fn first(requests: &[Request]) -> io::Result<&str> {
    let (_, path) = requests.first().ok_or_else(|| io::Error::other("what is asked for is missing"))?;
    Ok(path)
}

/// Asks until a request is broken.
fn go_on(
    ask: &mut impl FnMut(&Request) -> io::Result<u16>,
    number: usize,
    requests: &[Request],
    shared: &Shared,
) -> io::Result<std::convert::Infallible> {
    loop {
        let begun = shared.epoch.load(Ordering::SeqCst);
        for request in requests {
            let epoch = shared.epoch.load(Ordering::SeqCst);
            let status = ask(request)?;
            let mut seen = shared.seen.lock();
            if epoch == shared.epoch.load(Ordering::SeqCst) {
                let (method, path) = request;
                seen.statuses.entry(format!("{method}:{path}")).or_default().insert(status);
            }
        }
        let mut seen = shared.seen.lock();
        if begun == shared.epoch.load(Ordering::SeqCst) {
            seen.rounds.insert(number);
        }
        drop(seen);
        std::thread::park_timeout(PAUSE);
    }
}

fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE * 10)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ROUND))?;
    Ok(BufReader::new(stream))
}

/// One that keeps its connection.
struct Client {
    address: SocketAddr,
    open: Option<BufReader<TcpStream>>,
}

impl Client {
    fn ask(&mut self, (method, path): &Request) -> io::Result<u16> {
        let mut reader = match self.open.take() {
            Some(open) => open,
            None => connect(self.address)?,
        };
        let (address, mut writer) = (self.address, reader.get_ref());
        write!(writer, "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n")?;
        let (status, closes) = answer(&mut reader)?;
        self.open = (!closes).then_some(reader);
        Ok(status)
    }
}

/// Reads an answer whose length is said; its status, and whether the connection ends with it.
fn answer(reader: &mut impl BufRead) -> io::Result<(u16, bool)> {
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "not an answer");
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(garbled)?;
    let (mut length, mut closes) = (0, false);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(|_| garbled())?;
            }
            Some((name, value)) if name.eq_ignore_ascii_case("connection") => {
                closes |= value.trim().eq_ignore_ascii_case("close");
            }
            Some(_) => {}
        }
    }
    if io::copy(&mut reader.take(length), &mut io::sink())? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((status, closes))
}

impl Shared {
    /// Waits until every connection that lives has asked everything, and tells.
    fn told(&self, count: usize) -> String {
        let end = Instant::now() + ROUND;
        loop {
            let broken = self.broken.lock().clone();
            let seen = self.seen.lock();
            if seen.rounds.len() + broken.len() >= count || Instant::now() > end {
                let statuses = seen.statuses.iter().map(|(request, statuses)| {
                    let statuses: Vec<_> = statuses.iter().map(ToString::to_string).collect();
                    format!("{request} {}", statuses.join("|"))
                });
                let ended = match broken.first() {
                    None => "0 broken".to_owned(),
                    Some(first) => format!("{} broken: {first}", broken.len()),
                };
                return statuses.chain([ended]).collect::<Vec<_>>().join(", ");
            }
            drop(seen);
            std::thread::park_timeout(PAUSE);
        }
    }
}
