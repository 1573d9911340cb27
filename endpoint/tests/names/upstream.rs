//! Servers to be asked: one that is honest, and those to beware of.

use std::net::SocketAddr;
use std::sync::Arc;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::A;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;

/// What a server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behaviour {
    /// Knows `www.example.com`.
    Honest,
    /// Says nothing.
    Silent,
    /// Says nothing until it is released.
    Held,
    /// Refuses.
    Unable,
    /// Before its answer comes one under another id.
    WrongId,
    /// Before its answer comes one to another question.
    WrongQuestion,
    /// Before its answer comes one from another address.
    WrongAddress,
    /// Before its answer comes the question itself.
    Question,
    /// Remembers id and port of each question.
    NotesOrigin,
    /// Has a long answer.
    Huge,
    /// Its answers are no messages.
    Garbage,
}

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// What it was asked.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    gate: Arc<Semaphore>,
}

impl Upstream {
    pub(crate) fn release(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

pub(crate) async fn upstream(address: &str, behaviour: Behaviour) -> Upstream {
    let address: SocketAddr = address.parse().unwrap();
    let udp = Arc::new(UdpSocket::bind(address).await.unwrap());
    let tcp = TcpListener::bind(address).await.unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Semaphore::new(0));
    tokio::spawn(by_udp(udp, behaviour, Arc::clone(&asked), Arc::clone(&gate)));
    tokio::spawn(by_tcp(tcp, behaviour, Arc::clone(&asked)));
    Upstream { address, asked, gate }
}

async fn by_udp(
    socket: Arc<UdpSocket>,
    behaviour: Behaviour,
    asked: Arc<Mutex<Vec<String>>>,
    gate: Arc<Semaphore>,
) {
    let mut packet = vec![0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut packet).await.unwrap();
        let question = Message::from_octets(packet[..length].to_vec()).unwrap();
        asked.lock().push(match behaviour {
            Behaviour::NotesOrigin => format!("{} {}", question.header().id(), client.port()),
            _ => note(&question),
        });
        let honest = answer(&question, behaviour, false);
        match behaviour {
            Behaviour::Silent => continue,
            Behaviour::Held => {
                let (socket, gate) = (Arc::clone(&socket), Arc::clone(&gate));
                tokio::spawn(async move {
                    gate.acquire().await.unwrap().forget();
                    socket.send_to(&honest, client).await.unwrap();
                });
                continue;
            }
            Behaviour::Garbage => {
                for length in 0..honest.len() {
                    socket.send_to(&honest[length..], client).await.unwrap();
                    socket.send_to(&honest[..length], client).await.unwrap();
                }
                continue;
            }
            Behaviour::WrongAddress => {
                let other = UdpSocket::bind((socket.local_addr().unwrap().ip(), 0)).await.unwrap();
                other.send_to(&lie(&question, None), client).await.unwrap();
            }
            Behaviour::WrongId => {
                let mut packet = lie(&question, None);
                packet[1] ^= 1;
                socket.send_to(&packet, client).await.unwrap();
            }
            Behaviour::WrongQuestion => {
                let packet = lie(&question, Some("www.example.net"));
                socket.send_to(&packet, client).await.unwrap();
            }
            Behaviour::Question => {
                socket.send_to(question.as_slice(), client).await.unwrap();
            }
            Behaviour::Honest | Behaviour::Unable | Behaviour::NotesOrigin | Behaviour::Huge => {}
        }
        socket.send_to(&honest, client).await.unwrap();
    }
}

async fn by_tcp(listener: TcpListener, behaviour: Behaviour, asked: Arc<Mutex<Vec<String>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut packet = vec![0; length.into()];
        stream.read_exact(&mut packet).await.unwrap();
        let question = Message::from_octets(packet).unwrap();
        asked.lock().push(format!("{} by TCP", note(&question)));
        let answer = answer(&question, behaviour, true);
        stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    }
}

fn note(question: &Message<Vec<u8>>) -> String {
    let question = question.sole_question().unwrap();
    format!("{} {}", question.qname(), question.qtype())
}

fn answer(message: &Message<Vec<u8>>, behaviour: Behaviour, tcp: bool) -> Vec<u8> {
    let question = message.sole_question().unwrap();
    let known = question.qname().to_string().eq_ignore_ascii_case("www.example.com");
    let rcode = match behaviour {
        Behaviour::Unable => Rcode::REFUSED,
        _ if known => Rcode::NOERROR,
        _ => Rcode::NXDOMAIN,
    };
    let mut answer = MessageBuilder::new_vec().start_answer(message, rcode).unwrap();
    let cut = behaviour == Behaviour::Huge && !tcp;
    answer.header_mut().set_tc(cut);
    if rcode == Rcode::NOERROR && question.qtype() == Rtype::A && !cut {
        let count = if behaviour == Behaviour::Huge { 2000 } else { 1 };
        for _ in 0..count {
            answer.push((question.qname(), 60, A::from_octets(192, 0, 2, 80))).unwrap();
        }
    }
    answer.finish()
}

/// A false address, for the name of the question or another.
fn lie(message: &Message<Vec<u8>>, name: Option<&str>) -> Vec<u8> {
    let question = message.sole_question().unwrap();
    let name: Name<Vec<u8>> = match name {
        Some(name) => name.parse().unwrap(),
        None => question.qname().to_string().parse().unwrap(),
    };
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(message.header().id());
    builder.header_mut().set_qr(true);
    let mut section = builder.question();
    section.push((&name, question.qtype())).unwrap();
    let mut section = section.answer();
    section.push((&name, 60, A::from_octets(203, 0, 113, 66))).unwrap();
    section.finish()
}
