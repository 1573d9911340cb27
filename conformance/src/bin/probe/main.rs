//! `probe`: the client and server of the scenarios, small enough to be obviously right.
//!
//! Outcomes are words on standard output: `answered`, `refused`, `reset`, `aborted`, `unreachable`, `silent`,
//! `garbled`.

mod call;
mod client;
mod crowd;
mod front;
mod http2;
mod netfilter;
mod raw;
mod requests;
mod serve;
mod speak;
mod tls;
mod websocket;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use requests::Version;

const USAGE: &str = "\
usage: probe MODE ARGUMENTS
servers, of both families and of TCP and UDP
  serve PORT              echo
  witness PORT NAME       answer each word with NAME and the address it came from
  ends PORT               echo over TCP; tells of each connection who opened it and how it ended: closed, reset …
  http2 PORT              answers every request over HTTP/2 without TLS
  tls-serve PORT          echo over TLS, with a certificate of its own making
  front PORT TO CERTIFICATE KEY COMMAND …
                          TLS before that command, which is to listen at TO, by an authority of this certificate and key
  chat PORT               WebSocket over HTTP/1.1: any path; what is said comes back
  sink PORT COUNT         UDP on so many ports from this one on; nothing is read, nothing answered
clients, each on a line of its own; an address is ADDRESS:PORT
  tcp ADDRESS             connect, say a word, expect it back
  udp ADDRESS             send a word, expect it back
  call HOW ADDRESS [FROM] ask a witness, over tcp, udp or unconnected (UDP); tell whom the socket thinks it talks to, who
                          answered and what; from local port FROM
  bulk ADDRESS BYTES      send so many bytes over TCP, expect them back
  http ADDRESS METHOD:PATH
                          one request over HTTP/1.1; tell the status of the answer
  tls ADDRESS NAME        TLS 1.3 to a server of this name (none: -), whatever it shows; say a word, expect it back; tell the
                          alert that comes instead
  time ADDRESS            microseconds that a TCP connection takes to open
  datagram ADDRESS BYTES  send one datagram of so many bytes, expect it back
  resolve NAME            the addresses that the workload's resolver gives
  speak ADDRESS           say each line of standard input, in hexadecimal, on a connection of its own; tell each answer
  ask                     for each line of standard input, one of the above
  later MODE ARGUMENTS    say `open`, wait for a line of standard input, then be that
clients that stay
  hold ADDRESS [FROM]     keep one TCP connection: each line of standard input is said, its outcome printed; from local
                          port FROM
  hold-tls ADDRESS NAME   the same in TLS to a server of this name
  chats ADDRESS PATH      the same on a WebSocket, in masked frames; `close`: the end of it, and of the connection
  hold-udp ADDRESS        the same on a connected UDP socket; an error is told as soon as it comes
  many ADDRESS COUNT      as many UDP sockets at a time; tells how many were answered
  pulse ADDRESS           datagrams at a steady rate; says since when they are answered, or no longer are
  flows ADDRESS FROM SOURCES PORTS
                          datagrams from each of so many ports to each of so many, round after round
  crowd ADDRESS COUNT     keep as many TCP connections, half of them busy; each line asks for `COUNT alive, COUNT dead`
  idle ADDRESS COUNT      the same, and none of them ever says anything
  last PORT               tell on each line when the last word to a TCP port came in, and how many did
  requests ADDRESS COUNT METHOD:PATH …
                          as many HTTP/1.1 clients that ask all of these over and over, each on a connection that it
                          keeps until an answer ends it; each line of standard input asks what is answered from then on
                          (`before`: since the last line), and what has broken
  requests2 ADDRESS COUNT METHOD:PATH …
                          the same over HTTP/2 without TLS
  requests-grpc ADDRESS COUNT POST:PATH …
                          the same, as calls of gRPC, whose status is told
  requests-websocket ADDRESS COUNT GET:PATH
                          the same, as messages that must come back on as many WebSockets (101); none is opened again
  requests-tls ADDRESS COUNT NAME:SERVER
                          the same, as words that must come back in TLS to a server of this name (200)
  keep ADDRESS            one such connection over HTTP/1.1; each line of standard input, METHOD:PATH, is asked on it, and
                          its status told, with `last` if the connection ends with the answer
  steady ADDRESS          connects over TCP again and again; each line of standard input asks for `COUNT good, COUNT bad`
with raw sockets
  flood IP COUNT          send a datagram to each of so many ports and source ports, each a connection of its own
  syn-flood IP COUNT      send so many first packets of TCP to port 80, each from a port of its own
  drizzle IP MILLISECONDS the same without end, one in each of so many milliseconds
  forge CASE IP [FROM]    send a packet no honest stack sends, to port 80; from its own address unless told otherwise
  complain IP ADDRESS     an ICMP error to the first about its datagram from port 40000 to the second
  ping IP                 an echo request, and its reply
  tables                  the iptables and nftables tables of this network namespace
  record FILE             write every packet of this network namespace into a file, in hexadecimal, a line each
  capture [every]         tell every TCP, UDP and SCTP packet of this network namespace, or every IP packet";

/// How long an answer may take. Refusals and answers come at once; only silence takes this long.
const PATIENCE: Duration = Duration::from_millis(700);

fn main() -> ExitCode {
    if let Err(error) = allow_many_descriptors() {
        eprintln!("probe: {error}");
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", word(&error));
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

/// As many as the hard limit allows: a thousand connections need more than the usual soft one.
fn allow_many_descriptors() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

fn run(words: &[&str]) -> io::Result<()> {
    match words {
        ["serve", port] => serve::echo(read(port)?),
        ["witness", port, name] => serve::witness(read(port)?, name),
        ["ends", port] => serve::ends(read(port)?),
        ["tls-serve", port] => tls::serve(read(port)?),
        ["front", port, to, certificate, key, command @ ..] => {
            front::serve(read(port)?, read(to)?, [*certificate, *key], command)
        }
        ["chat", port] => websocket::serve(read(port)?),
        ["sink", port, count] => serve::sink(read(port)?, read(count)?),
        ["flows", to, from, sources, ports] => {
            client::flows(read(to)?, read(from)?, read(sources)?, read(ports)?)
        }
        ["speak", address] => speak::speak(read(address)?),
        ["ask"] => client::ask(),
        ["hold", address] => client::hold(read(address)?, 0),
        ["hold", address, from] => client::hold(read(address)?, read(from)?),
        ["hold-tls", address, name] => tls::hold(read(address)?, name),
        ["chats", address, path] => websocket::hold(read(address)?, path),
        ["hold-udp", address] => client::hold_udp(read(address)?),
        ["many", address, count] => client::many(read(address)?, read(count)?),
        ["pulse", address] => client::pulse(read(address)?),
        ["crowd", address, count] => crowd::crowd(read(address)?, read(count)?, true),
        ["idle", address, count] => crowd::crowd(read(address)?, read(count)?, false),
        ["last", port] => crowd::last(read(port)?),
        ["requests", address, count, asked @ ..] => {
            requests::requests(Version::Http1, read(address)?, read(count)?, asked)
        }
        ["requests2", address, count, asked @ ..] => {
            requests::requests(Version::Http2, read(address)?, read(count)?, asked)
        }
        ["requests-grpc", address, count, asked @ ..] => {
            requests::requests(Version::Grpc, read(address)?, read(count)?, asked)
        }
        ["requests-websocket", address, count, asked @ ..] => {
            requests::requests(Version::WebSocket, read(address)?, read(count)?, asked)
        }
        ["requests-tls", address, count, asked @ ..] => {
            requests::requests(Version::Tls, read(address)?, read(count)?, asked)
        }
        ["keep", address] => requests::keep(read(address)?),
        ["http2", port] => http2::serve(read(port)?),
        ["steady", address] => client::steady(read(address)?),
        ["flood", to, count] => raw::flood(read(to)?, read(count)?),
        ["complain", to, about] => raw::complain(read(to)?, read(about)?),
        ["syn-flood", to, count] => raw::syn_flood(read(to)?, read(count)?),
        ["drizzle", to, pause] => raw::drizzle(read(to)?, read(pause)?),
        ["forge", case, to] => raw::forge(case, read(to)?, None),
        ["forge", case, to, from] => raw::forge(case, read(to)?, Some(read(from)?)),
        ["ping", to] => raw::ping(read(to)?),
        ["tables"] => netfilter::tables(),
        ["record", file] => raw::record(file),
        ["capture"] => raw::capture(false),
        ["capture", "every"] => raw::capture(true),
        ["later", words @ ..] => {
            println!("open");
            io::stdin().read_line(&mut String::new())?;
            run(words)
        }
        words => one(words).map(|said| println!("{said}")),
    }
}

/// The clients that `ask` knows too; what to print.
fn one(words: &[&str]) -> io::Result<String> {
    match words {
        ["tcp", address] => client::tcp(read(address)?).map(|()| "answered".to_owned()),
        ["udp", address] => client::udp(read(address)?).map(|()| "answered".to_owned()),
        ["bulk", address, bytes] => {
            client::bulk(read(address)?, read(bytes)?).map(|()| "answered".to_owned())
        }
        ["datagram", address, bytes] => {
            client::datagram(read(address)?, read(bytes)?).map(|()| "answered".to_owned())
        }
        ["call", how, address] => call::call(how, read(address)?, 0),
        ["call", how, address, from] => call::call(how, read(address)?, read(from)?),
        ["http", address, request] => requests::one(read(address)?, request),
        ["tls", address, name] => tls::one(read(address)?, name),
        ["time", address] => crowd::time(read(address)?),
        ["resolve", name] => client::resolve(name),
        _ => Err(io::Error::other(USAGE)),
    }
}

fn read<T: FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| io::Error::other(format!("{word:?} does not fit\n{USAGE}")))
}

fn word(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => "reset",
        ErrorKind::ConnectionAborted => "aborted",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
        ErrorKind::PermissionDenied => "prohibited",
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "silent",
        ErrorKind::InvalidData => "garbled",
        _ => "failed",
    }
}

/// The wildcard address of the other's family.
fn any(other: SocketAddr, port: u16) -> SocketAddr {
    match other {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], port)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], port)),
    }
}
