//! What became of a request and its answer, or of a connection that was none of HTTP: what access logs and metrics are made
//! of.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::flow::Verdict;
use crate::identity::Identity;

/// An exchange that is over, as the proxy saw it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exchange {
    /// Its first byte, nanoseconds since 1970, UTC.
    pub start: i64,
    /// Who opened the connection.
    pub client: SocketAddr,
    /// Whom it called.
    pub server: SocketAddr,
    /// The client's identity.
    pub client_identity: Option<Identity>,
    /// The server's.
    pub server_identity: Option<Identity>,
    /// Whether anything of it went to the server.
    pub is_passed: bool,
    /// The request was inside TLS that the proxy has ended: its scheme is `https`, of all others `http`.
    #[serde(default)]
    pub is_https: bool,
    /// Empty where there was no request.
    pub method: String,
    /// As the request names it; empty if it names none.
    pub authority: String,
    /// With its query.
    pub path: String,
    /// `HTTP/1.1`, `HTTP/2`; empty where it is not known.
    pub protocol: String,
    /// The name of the server that a TLS client has said.
    pub server_name: Option<String>,
    /// Of the answer; `None`: there was none.
    pub code: Option<u16>,
    /// What became of it; forwarded, too, if the server did not answer.
    pub verdict: Verdict,
    /// Why there was no answer of the server's, in a few words.
    pub reason: Option<String>,
    /// The same for machines.
    pub flag: Option<Flag>,
    /// Bytes of the request's body, framing included.
    pub received: u64,
    /// Bytes of the answer's.
    pub sent: u64,
    /// From its first byte to its end, nanoseconds.
    pub duration: u64,
    /// From its first byte to the first of the answer, nanoseconds.
    pub answered: Option<u64>,
    /// From the moment it went to the server to the first byte of the server's answer, nanoseconds.
    pub served: Option<u64>,
    /// Those headers of the request that were asked for, names in lower case; only the first line of each.
    pub request_headers: Vec<(String, String)>,
    /// The answer's.
    pub response_headers: Vec<(String, String)>,
}

/// What an allocation takes beyond what was asked for, bytes: its own length, and what it is rounded up by.
const ALLOCATION: usize = 16;

impl Exchange {
    /// How much it takes where such wait, bytes. It counts twice for itself: a vector that grows has up to as much room again.
    pub fn size(&self) -> usize {
        let texts = [&self.method, &self.authority, &self.path, &self.protocol];
        let texts = texts.into_iter().chain(&self.server_name).chain(&self.reason);
        let headers = [&self.request_headers, &self.response_headers];
        let kept = headers.into_iter().flatten().flat_map(|(name, value)| [name, value]);
        let texts: usize = texts.chain(kept).map(|text| allocated(text.capacity())).sum();
        let lists = headers.map(|list| allocated(list.capacity() * size_of::<(String, String)>()));
        2 * size_of::<Self>() + texts + lists.into_iter().sum::<usize>()
    }
}

/// What an allocation of so many bytes takes; of none there is none.
fn allocated(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { bytes + ALLOCATION }
}

/// Why an exchange was not as it should be: Envoy's `%RESPONSE_FLAGS%`, those that can happen here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Flag {
    /// The server was not reached.
    Uf,
    /// The server closed before its answer was complete.
    Uc,
    /// The server has not answered in time.
    Ut,
    /// The server reset the stream.
    Ur,
    /// The server's answer is malformed.
    Upe,
    /// The client went away.
    Dc,
    /// What the client sent is no request.
    Dpe,
    /// No byte came for too long.
    Si,
    /// Nothing says what may pass there.
    Nr,
    /// The proxy has ended it, because rules have changed.
    Lr,
    /// The workload has too much under way.
    Om,
}

impl Flag {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Uf,
        Self::Uc,
        Self::Ut,
        Self::Ur,
        Self::Upe,
        Self::Dc,
        Self::Dpe,
        Self::Si,
        Self::Nr,
        Self::Lr,
        Self::Om,
    ];

    /// As Envoy writes it.
    pub fn short(self) -> &'static str {
        match self {
            Self::Uf => "UF",
            Self::Uc => "UC",
            Self::Ut => "UT",
            Self::Ur => "UR",
            Self::Upe => "UPE",
            Self::Dc => "DC",
            Self::Dpe => "DPE",
            Self::Si => "SI",
            Self::Nr => "NR",
            Self::Lr => "LR",
            Self::Om => "OM",
        }
    }
}

/// `%RESPONSE_CODE_DETAILS%`: a reason as one word, `no_rule_lets_it_through`.
pub fn details(reason: &str) -> String {
    let mut word = String::with_capacity(reason.len());
    for part in reason.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        if !word.is_empty() {
            word.push('_');
        }
        word.push_str(&part.to_ascii_lowercase());
    }
    word
}

/// Bounds of latencies, seconds.
pub const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Bounds of sizes of bodies, bytes.
pub const BYTES: [f64; 9] =
    [0.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 16_777_216.0];

/// How many values there were below each of some bounds, and their sum.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Distribution {
    /// Between the bound before and this one, which belongs to it; the last: above all bounds. Empty: no values.
    pub buckets: Vec<u64>,
    /// Of all values.
    pub sum: f64,
}

impl Distribution {
    /// One value more; the bounds ascend and are the same each time.
    pub fn observe(&mut self, value: f64, bounds: &[f64]) {
        self.buckets.resize(bounds.len() + 1, 0);
        let at = bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
        }
        self.sum += value;
    }

    /// Those of another one of the same bounds, too.
    pub fn add(&mut self, other: &Self) {
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.sum += other.sum;
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// One end of a pair, as the proxy knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its identity.
    pub identity: Option<Identity>,
}

/// What has happened between two ends since it was told last.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PairCounts {
    /// Client and server; `None`: all pairs that there was no room to tell apart.
    pub ends: Option<[End; 2]>,
    /// Exchanges, each kind once.
    pub exchanges: Vec<(Kind, u64)>,
    /// From a request's first byte to its answer's, by [`SECONDS`].
    pub latency: Distribution,
    /// Bodies of requests, by [`BYTES`].
    pub received: Distribution,
    /// Bodies of answers, by [`BYTES`].
    pub sent: Distribution,
}

/// Methods that are told apart.
pub const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];

/// What is counted together of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kind {
    /// Which of [`METHODS`]; `None`: another.
    pub method: Option<u8>,
    /// Of the answer; 0: none.
    pub code: u16,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was not as it should be.
    pub flag: Option<Flag>,
}

impl Kind {
    /// As metrics call the method.
    pub fn method(&self) -> &'static str {
        let method = self.method.and_then(|method| METHODS.get(usize::from(method)).copied());
        method.unwrap_or("other")
    }
}

impl PairCounts {
    /// Kinds that are told apart; a server may answer with any code.
    pub const MOST_KINDS: usize = 64;

    /// So many more of a kind; without a code where there is no room to tell it apart.
    pub fn count(&mut self, kind: Kind, more: u64) {
        let is_full = self.exchanges.len() >= Self::MOST_KINDS;
        let rest = Kind { method: None, code: 0, ..kind };
        let mut places = self.exchanges.iter_mut();
        if let Some((_, count)) = places.find(|(other, _)| *other == kind) {
            *count += more;
            return;
        }
        let kind = if is_full { rest } else { kind };
        match self.exchanges.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, count)) => *count += more,
            // Of those without a code there are few.
            None => self.exchanges.push((kind, more)),
        }
    }

    /// What another one has of the same pair.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.exchanges {
            self.count(*kind, *count);
        }
        self.latency.add(&other.latency);
        self.received.add(&other.received);
        self.sent.add(&other.sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_as_they_are_sent() {
        for flag in Flag::ALL {
            assert_eq!(format!("{flag:?}").to_uppercase(), flag.short());
        }
    }

    /// Whatever of it is there, and though there is more room than there are bytes.
    #[test]
    fn an_exchange_is_no_smaller_than_all_that_it_has_allocated() {
        let end = SocketAddr::from(([10, 0, 0, 1], 80));
        let text = |length: usize| {
            let mut text = String::with_capacity(2 * length);
            text.extend(std::iter::repeat_n('a', length));
            text
        };
        let headers = |count: usize| {
            let mut headers = Vec::with_capacity(4 * count);
            headers.extend((0..count).map(|_| (text(12), text(30))));
            headers
        };
        let mut exchange = Exchange {
            start: 0,
            client: end,
            server: end,
            client_identity: None,
            server_identity: None,
            is_passed: false,
            is_https: false,
            method: String::new(),
            authority: String::new(),
            path: String::new(),
            protocol: String::new(),
            server_name: None,
            code: None,
            verdict: Verdict::Forwarded,
            reason: None,
            flag: None,
            received: 0,
            sent: 0,
            duration: 0,
            answered: None,
            served: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        };
        let bare = exchange.size();
        assert_eq!(bare, 2 * size_of::<Exchange>());
        exchange.method = text(7);
        exchange.authority = text(40);
        exchange.path = text(500);
        exchange.protocol = text(8);
        exchange.server_name = Some(text(60));
        exchange.reason = Some(text(50));
        exchange.request_headers = headers(3);
        exchange.response_headers = headers(2);
        let all =
            2 * (7 + 40 + 500 + 8 + 60 + 50) + 2 * 5 * (12 + 30) + 4 * 5 * size_of::<(String, String)>();
        assert_eq!(exchange.size() - bare, all + (6 + 10 + 2) * ALLOCATION);
    }

    #[test]
    fn a_reason_becomes_a_word() {
        assert_eq!(details("no rule lets it through"), "no_rule_lets_it_through");
        assert_eq!(details("malformed HTTP/2 answer"), "malformed_http_2_answer");
        assert_eq!(details("method, of more than 32 bytes."), "method_of_more_than_32_bytes");
    }

    #[test]
    fn values_are_counted_in_the_bucket_whose_bound_they_do_not_exceed() {
        let mut some = Distribution::default();
        for value in [0.0, 1.0, 1.5, 2.0, 9.0] {
            some.observe(value, &[1.0, 2.0]);
        }
        assert_eq!((some.buckets.as_slice(), some.sum, some.count()), ([2, 2, 1].as_slice(), 13.5, 5));
        let mut all = Distribution::default();
        all.add(&some);
        all.add(&some);
        assert_eq!((all.buckets.as_slice(), all.sum), ([4, 4, 2].as_slice(), 27.0));
    }

    #[test]
    fn a_server_with_every_code_takes_no_room_without_end_and_nothing_is_lost() {
        let mut pair = PairCounts::default();
        for code in 100..600 {
            pair.count(Kind { method: Some(0), code, verdict: Verdict::Forwarded, flag: None }, 2);
        }
        assert_eq!(pair.exchanges.len(), PairCounts::MOST_KINDS + 1);
        assert_eq!(pair.exchanges.iter().map(|(_, count)| count).sum::<u64>(), 1000);
    }
}
