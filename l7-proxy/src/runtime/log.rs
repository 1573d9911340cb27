//! *record*: what was seen, kept until the agent is told. Nothing is allocated for a request: text goes into one vector.

use std::net::SocketAddr;

use linux::clock;
use mesh::flow::{TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::l7::{HttpFlow, HttpKind, L7Flow, TlsFlow};
use mesh::workload::EndpointId;
use node_api::proxy::ProxyFlow;
use parking_lot::Mutex;

use super::ends::Ends;
use crate::stage::authorize::Judge;

/// The most entries, and bytes of text, that wait.
const MAX_ENTRIES: usize = 8192;
const MAX_TEXT: usize = 2 << 20;
/// What is kept of a URL.
const MAX_URL: usize = 2048;

/// What a worker has seen and nobody has taken yet.
#[derive(Debug, Default)]
pub struct FlowLog(Mutex<Log>);

#[derive(Debug, Default)]
struct Log {
    entries: Vec<Entry>,
    text: Vec<u8>,
    lost: u64,
}

#[derive(Debug)]
struct Entry {
    time: i64,
    ends: [SocketAddr; 2],
    identities: [Option<Identity>; 2],
    endpoint: EndpointId,
    direction: TrafficDirection,
    verdict: Verdict,
    reason: Option<&'static str>,
    is_tls: bool,
    kind: HttpKind,
    protocol: &'static str,
    code: Option<u16>,
    latency: Option<u64>,
    /// Lengths of method and URL, which follow those of the entry before; of TLS the server's name stands for the URL.
    method: usize,
    url: usize,
}

/// A request, or the begin of TLS, as it is described.
#[derive(Debug, Default)]
pub(super) struct Described {
    is_tls: bool,
    pub(super) protocol: &'static str,
    text: Vec<u8>,
    method: usize,
}

impl Described {
    /// Takes method, authority and path; of whom it is asked where the request does not say is the called address.
    pub(super) fn set(
        &mut self,
        method: &[u8],
        authority: &[u8],
        path: &[u8],
        server: SocketAddr,
        protocol: &'static str,
    ) {
        self.clear();
        self.protocol = protocol;
        self.text.extend_from_slice(method);
        self.method = method.len();
        self.text.extend_from_slice(b"http://");
        if authority.is_empty() {
            self.text.extend_from_slice(server.to_string().as_bytes());
        } else {
            self.text.extend_from_slice(authority);
        }
        self.text.extend_from_slice(path);
        self.text.truncate(self.method + MAX_URL);
    }

    /// It is TLS, to a server of this name.
    pub(super) fn set_tls(&mut self, server: Option<&str>) {
        self.clear();
        self.is_tls = true;
        self.text.extend_from_slice(server.unwrap_or_default().as_bytes());
    }

    /// Nothing is known of the request.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        (self.is_tls, self.method, self.protocol) = (false, 0, "");
    }
}

/// What is said of a request or a response.
pub(super) struct Said<'a> {
    pub(super) ends: [SocketAddr; 2],
    pub(super) who: &'a Ends,
    /// By whose rules; `None`: no rules are about it, and nobody is told.
    pub(super) judge: Option<&'a Judge>,
    pub(super) request: &'a Described,
    pub(super) verdict: Verdict,
    pub(super) reason: Option<&'static str>,
    /// Status and latency, of a response.
    pub(super) answer: Option<(u16, u64)>,
}

impl FlowLog {
    pub(super) fn record(&self, said: &Said<'_>) {
        let Some(judge) = said.judge else { return };
        let mut log = self.0.lock();
        if log.entries.len() >= MAX_ENTRIES || log.text.len() + said.request.text.len() > MAX_TEXT {
            log.lost += 1;
            return;
        }
        log.text.extend_from_slice(&said.request.text);
        log.entries.push(Entry {
            time: i64::try_from(clock::realtime()).unwrap_or_default(),
            ends: said.ends,
            identities: [said.who.client, said.who.server],
            endpoint: judge.endpoint,
            direction: judge.direction,
            verdict: said.verdict,
            reason: said.reason,
            is_tls: said.request.is_tls,
            kind: if said.answer.is_some() { HttpKind::Response } else { HttpKind::Request },
            protocol: said.request.protocol,
            code: said.answer.map(|(code, _)| code),
            latency: said.answer.map(|(_, latency)| latency),
            method: said.request.method,
            url: said.request.text.len() - said.request.method,
        });
    }

    /// Takes what is there, and how much was lost because nobody took it.
    pub fn take(&self) -> (Vec<ProxyFlow>, u64) {
        let log = std::mem::take(&mut *self.0.lock());
        let mut text = log.text.as_slice();
        let flows = log.entries.into_iter().map(|entry| {
            let (method, rest) = text.split_at_checked(entry.method).unwrap_or_default();
            let (url, rest) = rest.split_at_checked(entry.url).unwrap_or_default();
            text = rest;
            entry.flow(method, url)
        });
        (flows.collect(), log.lost)
    }
}

impl Entry {
    fn flow(self, method: &[u8], url: &[u8]) -> ProxyFlow {
        let [client, server] = self.ends;
        let [client_identity, server_identity] = self.identities;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let l7 = match self.is_tls {
            true => L7Flow::Tls(TlsFlow { server_name: (!url.is_empty()).then(|| text(url)) }),
            false => L7Flow::Http(HttpFlow {
                kind: self.kind,
                method: text(method),
                url: text(url),
                protocol: self.protocol.to_owned(),
                code: self.code,
                latency: self.latency,
                note: None,
            }),
        };
        ProxyFlow {
            time: self.time,
            client,
            server,
            client_identity,
            server_identity,
            endpoint: self.endpoint,
            direction: self.direction,
            verdict: self.verdict,
            reason: self.reason.map(str::to_owned),
            l7,
        }
    }
}
