//! What `l7load` is asked, and what it answers: the words between the benchmark and the load program, each a line of JSON.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, `GET`.
    H1,
    /// HTTP/2 by prior knowledge, `GET`.
    H2,
    /// A unary call of gRPC.
    Grpc,
}

impl Protocol {
    /// As it stands in rows' ids.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
            Self::Grpc => "grpc",
        }
    }
}

/// When the next request is made.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// As soon as one is answered.
    Closed,
    /// So many a second, whatever is answered; latencies count from when they were due.
    Open(f64),
    /// One on each connection, and no more; the connections stay until the next order.
    Once,
}

/// One run of load.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What is spoken.
    pub protocol: Protocol,
    /// The server, or who stands before it.
    pub to: SocketAddr,
    /// The target of each request.
    pub path: String,
    /// Length of the answer's body, without what gRPC puts before it.
    pub body: usize,
    /// The status of the answer that is wanted; of HTTP/1.1, others want 200.
    pub status: u16,
    /// How many bytes of headers are added.
    pub padding: usize,
    /// All of it in TLS, whatever the server shows.
    #[serde(default)]
    pub tls: bool,
    /// Connections.
    pub connections: usize,
    /// Requests at a time on each; one, of HTTP/1.1.
    pub streams: usize,
    /// How long, about, after a quarter of it that is not counted.
    pub seconds: f64,
    /// When the next one is made.
    pub pace: Pace,
    /// Whose time is told: the CPU of the proxy.
    pub cpu: usize,
    /// More failures than that end the run; none: it goes on whatever happens.
    pub failures: Option<u64>,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Requests that were answered as they should be.
    pub requests: u64,
    /// Those that were not, and connections that ended.
    pub failed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Seconds of the CPU in which it was not idle, by the kernel's clock.
    pub busy: f64,
    /// Shares of that, as the kernel samples them: user time.
    pub user: f64,
    /// System time.
    pub system: f64,
    /// Time in soft and hard interrupts.
    pub interrupts: f64,
    /// Latencies in microseconds.
    pub p50: f64,
    /// Likewise.
    pub p99: f64,
}

/// A port that `l7load serve` listens at: `h1:8000:1024`; or `sink:8000`, which reads and answers nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    /// What is spoken; none: nothing is answered.
    pub protocol: Option<Protocol>,
    /// The number.
    pub number: u16,
    /// Length of each answer's body.
    pub body: usize,
}

impl std::str::FromStr for Port {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || format!("{word:?} is no PROTOCOL:PORT:BODY");
        let mut parts = word.split(':');
        let protocol = match parts.next() {
            Some("h1") => Some(Protocol::H1),
            Some("h2") => Some(Protocol::H2),
            Some("grpc") => Some(Protocol::Grpc),
            Some("sink") => None,
            _ => return Err(wrong()),
        };
        let number = parts.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
        let body = parts.next().map_or(Ok(0), |word| word.parse().map_err(|_| wrong()))?;
        Ok(Self { protocol, number, body })
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "{}:{}:{}", self.protocol.map_or("sink", Protocol::word), self.number, self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_as_it_was_written() {
        for word in ["h1:8000:1024", "h2:1:0", "grpc:65535:7", "sink:9:0"] {
            assert_eq!(word.parse::<Port>().unwrap().to_string(), word);
        }
        for wrong in ["", "h3:1:1", "h1", "h1:x:1", "h1:1:x"] {
            assert!(wrong.parse::<Port>().is_err(), "{wrong}");
        }
    }
}
