//! Questions about names that are not ours, on their way to another server and back.
//!
//! Promise: an answer is believed only if it came from the address that was asked, to the port it was asked from, with
//! the id and the question that were sent; port and id are drawn anew for each attempt (RFC 5452). A bounded number is
//! under way, and no client has more than its share of that. Nothing is kept: caches are the upstream server's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use domain::base::Message;
use domain::base::iana::Rcode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{self, Query};
use super::metrics::{Metrics, Trouble};
use super::places::{Place, Places};
use super::upstreams::Upstreams;

/// How many questions may be under way: each is a socket.
const IN_FLIGHT: usize = 256;
/// Of these, for one client.
const IN_FLIGHT_EACH: usize = 64;
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// How long all attempts may take: glibc asks again after five seconds.
const ALL_ATTEMPTS: Duration = Duration::from_millis(4500);
/// How often each server is asked, should packets be lost.
const ROUNDS: usize = 2;
/// After so many answers to something else an attempt is given up.
const MISMATCHES: usize = 32;
/// More than we say that we take; a datagram that fills it is taken as cut.
const BUFFER: usize = 4096;

/// An answer of another server.
pub(super) struct Told {
    /// What it was asked.
    pub(super) asked: Vec<u8>,
    /// What it said.
    pub(super) packet: Vec<u8>,
}

/// Asks other servers.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Upstreams,
    places: Arc<Places>,
    /// Which of the servers answered last; it is asked first.
    preferred: AtomicUsize,
    metrics: Metrics,
}

impl Forwarder {
    pub(super) fn new(upstreams: Upstreams, metrics: Metrics) -> Self {
        let places = Places::new(IN_FLIGHT, IN_FLIGHT_EACH);
        Self { upstreams, places, preferred: AtomicUsize::new(0), metrics }
    }

    /// A place for a question of `client`; to be held until it is answered.
    pub(super) fn place(&self, client: IpAddr) -> Option<Place> {
        let place = self.places.take(client);
        if place.is_none() {
            self.metrics.trouble(Trouble::Overload);
        }
        place
    }

    /// The answer of the first server that has one.
    pub(super) async fn ask(&self, query: &Query) -> Option<Told> {
        let servers = self.upstreams.list().await;
        if servers.is_empty() {
            self.metrics.trouble(Trouble::None);
            return None;
        }
        let mut told = None;
        if timeout(ALL_ATTEMPTS, self.ask_each(query, &servers, &mut told)).await.is_err() {
            self.metrics.trouble(Trouble::Silent);
        }
        told
    }

    /// Leaves the best answer so far in `told`: one that says that its server cannot tell is passed on only if no
    /// other has a better one.
    async fn ask_each(&self, query: &Query, servers: &[SocketAddr], told: &mut Option<Told>) {
        let preferred = self.preferred.load(Ordering::Relaxed);
        for attempt in 0..servers.len() * ROUNDS {
            let number = (preferred + attempt) % servers.len();
            let Some(server) = servers.get(number) else { continue };
            match timeout(ATTEMPT, self.attempt(query, *server)).await {
                Ok(Ok(answer)) => {
                    let able = is_able(&answer.packet);
                    *told = Some(answer);
                    if able {
                        return self.preferred.store(number, Ordering::Relaxed);
                    }
                    self.metrics.trouble(Trouble::Unable);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "dns: upstream server failed");
                    self.metrics.trouble(Trouble::Silent);
                }
                Err(_) => self.metrics.trouble(Trouble::Silent),
            }
        }
    }

    async fn attempt(&self, query: &Query, server: SocketAddr) -> io::Result<Told> {
        let asked = query.ask(random()?);
        let packet = match self.by_udp(query, server, &asked).await? {
            Some(packet) => packet,
            None => self.by_tcp(query, server, &asked).await?,
        };
        Ok(Told { asked, packet })
    }

    /// Its answer, unless that is too long for a datagram.
    async fn by_udp(&self, query: &Query, server: SocketAddr, asked: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        // From here on the kernel takes nothing from other addresses.
        socket.connect(server).await?;
        socket.send(asked).await?;
        let mut packet = vec![0; BUFFER];
        for _ in 0..MISMATCHES {
            let length = socket.recv(&mut packet).await?;
            let received = packet.get(..length).unwrap_or_default();
            if message::answers(asked, received, &query.question) {
                let cut =
                    length == BUFFER || Message::from_slice(received).is_ok_and(|all| all.header().tc());
                return Ok((!cut).then(|| received.to_vec()));
            }
            self.metrics.trouble(Trouble::Mismatched);
        }
        Err(io::Error::other("too many packets that answer something else"))
    }

    async fn by_tcp(&self, query: &Query, server: SocketAddr, asked: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(&message::framed(asked)).await?;
        let length = stream.read_u16().await?;
        let mut packet = vec![0; length.into()];
        stream.read_exact(&mut packet).await?;
        if message::answers(asked, &packet, &query.question) {
            return Ok(packet);
        }
        self.metrics.trouble(Trouble::Mismatched);
        Err(io::Error::other("its answer by TCP is to something else"))
    }
}

/// Whether a server could say something: that a name does not exist is something.
fn is_able(packet: &[u8]) -> bool {
    let rcode = Message::from_slice(packet).map(|message| message.header().rcode());
    rcode.is_ok_and(|rcode| [Rcode::NOERROR, Rcode::NXDOMAIN].contains(&rcode))
}

/// A number nobody can guess.
fn random() -> io::Result<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u16::from_ne_bytes(bytes))
}
