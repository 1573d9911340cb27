//! Clients that speak DNS themselves.

use std::net::{IpAddr, SocketAddr};

use domain::base::iana::{Rcode, Rtype};
use domain::base::name::ParsedName;
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::AllRecordData;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::node::soon;

pub(crate) type Answer = Message<Vec<u8>>;

/// The id of every question here.
const ID: u16 = 0x4242;

/// From any address of the host.
pub(crate) async fn ask(server: &str, tcp: bool, name: &str, rtype: Rtype) -> Answer {
    let any = if server.contains(':') { "::" } else { "0.0.0.0" };
    ask_from(any, server, tcp, name, rtype).await.expect("an answer")
}

pub(crate) async fn rcode(server: &str, name: &str) -> Rcode {
    ask(server, false, name, Rtype::A).await.header().rcode()
}

/// None if there is no answer: the connection is closed, or a question asked later was answered first.
pub(crate) async fn ask_from(own: &str, server: &str, tcp: bool, name: &str, rtype: Rtype) -> Option<Answer> {
    if tcp {
        let mut stream = connect(own, server).await;
        let question = framed(&question(name, rtype, None));
        soon(stream.write_all(&question)).await.ok()?;
        return soon(read(&mut stream)).await;
    }
    let socket = socket(own, server).await;
    socket.send(&question(name, rtype, None)).await.unwrap();
    let mut packet = vec![0; 65536];
    if own.parse::<IpAddr>().unwrap().is_unspecified() || is_forwarded(name) {
        let length = soon(socket.recv(&mut packet)).await.unwrap();
        return Some(sound(&packet[..length]));
    }
    let later = self::socket(server, server).await;
    later.send(&question("cluster.local", Rtype::NS, None)).await.unwrap();
    soon(later.recv(&mut packet)).await.unwrap();
    let length = socket.try_recv(&mut packet).ok()?;
    Some(sound(&packet[..length]))
}

fn is_forwarded(name: &str) -> bool {
    !name.ends_with("cluster.local")
}

/// With an extension record that gives the size of datagrams.
pub(crate) async fn ask_with(server: &str, name: &str, rtype: Rtype, size: Option<u16>) -> Answer {
    let socket = socket(server, server).await;
    socket.send(&question(name, rtype, size)).await.unwrap();
    let mut packet = vec![0; 65536];
    let length = soon(socket.recv(&mut packet)).await.unwrap();
    sound(&packet[..length])
}

/// On a connection that stays open.
pub(crate) async fn ask_on(stream: &mut TcpStream, name: &str, rtype: Rtype) -> Answer {
    stream.write_all(&framed(&question(name, rtype, None))).await.unwrap();
    soon(read(stream)).await.expect("an answer")
}

pub(crate) async fn connect(own: &str, server: &str) -> TcpStream {
    let own = SocketAddr::new(own.parse().unwrap(), 0);
    let socket = if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.bind(own).unwrap();
    soon(socket.connect(SocketAddr::new(server.parse().unwrap(), 53))).await.unwrap()
}

pub(crate) async fn is_closed(mut stream: TcpStream) -> bool {
    stream.read_u8().await.is_err()
}

/// Many questions at once.
pub(crate) struct Flood(UdpSocket);

pub(crate) async fn flood(own: &str, server: &str, count: usize) -> Flood {
    let socket = socket(own, server).await;
    for _ in 0..count {
        socket.send(&question("www.example.com", Rtype::A, None)).await.unwrap();
    }
    Flood(socket)
}

impl Flood {
    pub(crate) async fn answer(&self) -> Answer {
        let mut packet = vec![0; 65536];
        let length = self.0.recv(&mut packet).await.unwrap();
        sound(&packet[..length])
    }
}

/// Data of the answers, in order.
pub(crate) fn said(answer: &Answer) -> Vec<String> {
    let records = answer.answer().unwrap().into_records::<AllRecordData<_, ParsedName<_>>>();
    records.map(|record| record.unwrap().data().to_string()).collect()
}

/// Sends packets that are nearly questions; returns when the server has read all of them.
pub(crate) async fn mutations(server: &str, count: u32) {
    let seeds = [
        question("deathstar.default.svc.cluster.local", Rtype::A, Some(1232)),
        question("_http._tcp.deathstar.default.svc.cluster.local", Rtype::SRV, None),
        question("7.0.96.10.in-addr.arpa", Rtype::PTR, None),
        question("www.example.com", Rtype::AAAA, Some(0)),
    ];
    let socket = socket(server, server).await;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    for number in 0..count {
        let mut packet = seeds[random(seeds.len())].clone();
        for _ in 0..=random(4) {
            let at = random(packet.len());
            match random(4) {
                0 => packet[at] ^= 1 << random(8),
                1 => packet[at] = u8::try_from(random(256)).unwrap(),
                2 => packet.truncate(at.max(1)),
                _ => packet.extend_from_within(at..),
            }
        }
        socket.send(&packet).await.unwrap();
        if number % 64 == 0 {
            ask(server, number % 128 == 0, "cluster.local", Rtype::SOA).await;
        }
    }
}

async fn socket(own: &str, server: &str) -> UdpSocket {
    let own: IpAddr = own.parse().unwrap();
    let socket = UdpSocket::bind((own, 0)).await.unwrap();
    let server: IpAddr = server.parse().unwrap();
    socket.connect((server, 53)).await.unwrap();
    socket
}

fn question(name: &str, rtype: Rtype, size: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(ID);
    builder.header_mut().set_rd(true);
    let mut section = builder.question();
    section.push((Name::vec_from_str(name).unwrap(), rtype)).unwrap();
    let mut section = section.additional();
    if let Some(size) = size {
        section
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
    }
    section.finish()
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&u16::try_from(packet.len()).unwrap().to_be_bytes(), packet].concat()
}

async fn read(stream: &mut TcpStream) -> Option<Answer> {
    let length = stream.read_u16().await.ok()?;
    let mut packet = vec![0; length.into()];
    stream.read_exact(&mut packet).await.ok()?;
    Some(sound(&packet))
}

/// An answer to our question of which every record can be read.
fn sound(packet: &[u8]) -> Answer {
    let answer = Message::from_octets(packet.to_vec()).unwrap();
    assert_eq!(answer.header().id(), ID);
    assert!(answer.header().qr());
    for record in answer.iter() {
        let (record, _) = record.unwrap();
        record.to_any_record::<AllRecordData<_, ParsedName<_>>>().unwrap();
    }
    answer
}
