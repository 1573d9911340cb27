//! *record*: what was seen, kept until the agent is told. Nothing is allocated for a request: text goes into one vector.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use linux::clock;
use mesh::access_log::Headers;
use mesh::exchange::{End, Exchange, Kind, METHODS};
use mesh::flow::{TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::l7::{HttpFlow, HttpKind, L7Flow, TlsFlow};
use mesh::workload::EndpointId;
use node_api::proxy::{ProxyFlow, ProxyReport, Record};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::ConnectError;
use super::ends::Ends;
use crate::record::{Counts, Course, REQUEST_ID, RequestIds, keep, names};
use crate::stage::authorize::Judge;

/// The most entries, and bytes of text, that wait.
const MAX_ENTRIES: usize = 8192;
const MAX_TEXT: usize = 2 << 20;
/// What is kept of a URL.
const MAX_URL: usize = 2048;
/// What exchanges that wait may take, bytes.
const MAX_EXCHANGED: usize = 8 << 20;

/// What a worker has seen and nobody has taken yet.
#[derive(Debug, Default)]
pub struct FlowLog {
    flows: Mutex<Log>,
    exchanges: Mutex<Exchanges>,
    record: ArcSwap<Record>,
    ids: Mutex<RequestIds>,
}

/// Exchanges that are over.
#[derive(Debug, Default)]
struct Exchanges {
    waiting: Vec<Exchange>,
    /// What they take, bytes.
    size: usize,
    lost: u64,
    counts: Counts,
    refused: BTreeMap<&'static str, u64>,
}

/// What was seen since the last time.
#[derive(Debug, Default)]
pub struct Log {
    entries: Vec<Entry>,
    text: Vec<u8>,
    /// How much was lost because nobody took it.
    pub lost: u64,
}

impl Log {
    /// What was seen, in its order.
    pub fn flows(&self) -> impl Iterator<Item = ProxyFlow> {
        let mut text = self.text.as_slice();
        self.entries.iter().map(move |entry| {
            let (method, rest) = text.split_at_checked(entry.method).unwrap_or_default();
            let (url, rest) = rest.split_at_checked(entry.url).unwrap_or_default();
            text = rest;
            entry.flow(method, url)
        })
    }
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

/// What a description at rest keeps for the next, bytes.
const RESTS: usize = 1024;

/// A request, or the begin of TLS, as it is described.
#[derive(Debug, Default)]
pub(super) struct Described {
    is_tls: bool,
    /// Inside TLS that the proxy has ended.
    is_opened: bool,
    pub(super) protocol: &'static str,
    text: Vec<u8>,
    method: usize,
    /// Length of the authority, where the request names one.
    authority: Option<usize>,
    course: RefCell<Course>,
}

impl Described {
    /// Gives back what a long one has taken, once it is over.
    pub(super) fn rest(&mut self) {
        if self.text.capacity() > RESTS {
            self.text = Vec::new();
        }
    }

    /// Takes method, authority and path; of whom it is asked where the request does not say is the called address.
    pub(super) fn set(
        &mut self,
        method: &[u8],
        authority: &[u8],
        path: &[u8],
        server: SocketAddr,
        protocol: &'static str,
    ) {
        self.reset();
        self.begin();
        self.protocol = protocol;
        self.text.extend_from_slice(method);
        self.method = method.len();
        self.authority = (!authority.is_empty()).then_some(authority.len());
        self.text.extend_from_slice(self.scheme());
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
        self.reset();
        self.is_tls = true;
        self.text.extend_from_slice(server.unwrap_or_default().as_bytes());
    }

    /// From now on it is of requests inside TLS that the proxy has ended.
    pub(super) fn opened(&mut self) {
        self.is_opened = true;
    }

    fn scheme(&self) -> &'static [u8] {
        if self.is_opened { b"https://" } else { b"http://" }
    }

    /// Nothing is known of the request.
    pub(super) fn clear(&mut self) {
        self.reset();
        self.begin();
    }

    fn reset(&mut self) {
        self.text.clear();
        (self.is_tls, self.method, self.protocol, self.authority) = (false, 0, "", None);
    }

    /// An exchange begins, if none is under way.
    pub(super) fn begin(&self) {
        self.course.borrow_mut().is_begun = true;
    }

    /// It goes to the server.
    pub(super) fn passes(&self) {
        self.course.borrow_mut().passed.get_or_insert_with(Instant::now);
    }

    /// The client has gone.
    pub(super) fn left(&self) {
        self.course.borrow_mut().is_left = true;
    }

    /// So many bytes of bodies have come from the client, and from the server.
    pub(super) fn moved(&self, received: u64, sent: u64) {
        let mut course = self.course.borrow_mut();
        course.received += received;
        course.sent += sent;
    }

    /// Keeps headers of the request, by what it says of a name.
    pub(super) fn request<'a>(&self, headers: Option<&Headers>, first: impl FnMut(&str) -> Option<&'a [u8]>) {
        let names = names(headers, |headers| &headers.request);
        if !names.is_empty() {
            self.course.borrow_mut().request = keep(names, first);
        }
    }

    /// The same of the answer.
    pub(super) fn response<'a>(
        &self,
        headers: Option<&Headers>,
        first: impl FnMut(&str) -> Option<&'a [u8]>,
    ) {
        let names = names(headers, |headers| &headers.response);
        if !names.is_empty() {
            self.course.borrow_mut().response = keep(names, first);
        }
    }

    /// These headers of the answer are kept.
    pub(super) fn responded(&self, kept: Vec<(String, String)>) {
        self.course.borrow_mut().response = kept;
    }

    /// The server is not reached by a connection that is relayed.
    pub(super) fn unreached(&self, error: ConnectError) {
        self.course.borrow_mut().note(Verdict::Dropped, Some(error.text()), None);
    }

    /// The request is given a number.
    pub(super) fn identified(&self, headers: Option<&Headers>, id: &str) {
        let is_kept = |headers: &Headers| headers.request.iter().any(|name| name == REQUEST_ID);
        let mut course = self.course.borrow_mut();
        let is_known = course.request.iter().any(|(name, _)| name == REQUEST_ID);
        if headers.is_some_and(is_kept) && !is_known {
            course.request.push((REQUEST_ID.to_owned(), id.to_owned()));
        }
    }

    /// Method, authority and path.
    fn parts(&self) -> [&[u8]; 3] {
        let (method, url) = self.text.split_at_checked(self.method).unwrap_or_default();
        let url = url.strip_prefix(self.scheme()).unwrap_or(url);
        match self.authority {
            Some(length) => {
                let (authority, path) = url.split_at_checked(length).unwrap_or((url, Default::default()));
                [method, authority, path]
            }
            None => {
                let path = url.iter().position(|byte| *byte == b'/').and_then(|at| url.get(at..));
                [method, &[], path.unwrap_or_default()]
            }
        }
    }
}

/// What is said of a request or a response.
pub(super) struct Said<'a> {
    pub(super) ends: [SocketAddr; 2],
    pub(super) who: &'a Ends,
    /// By whose rules; `None`: no rules are about it, and what is refused is only counted.
    pub(super) judge: Option<&'a Judge>,
    pub(super) request: &'a Described,
    pub(super) verdict: Verdict,
    pub(super) reason: Option<&'static str>,
    /// Status and latency, of a response.
    pub(super) answer: Option<(u16, u64)>,
}

/// An exchange that is over.
pub(super) struct Over<'a> {
    pub(super) ends: [SocketAddr; 2],
    pub(super) who: &'a Ends,
    pub(super) request: &'a Described,
    /// When its first byte was there.
    pub(super) since: Option<Instant>,
}

impl FlowLog {
    /// What of exchanges is recorded from now on.
    pub fn set_record(&self, record: Record) {
        self.record.store(Arc::new(record));
    }

    /// What is.
    pub(super) fn settings(&self) -> Arc<Record> {
        self.record.load_full()
    }

    /// A number for a request that has none, if it is to have one.
    pub(super) fn request_id(&self) -> Option<String> {
        self.record.load().request_id.then(|| self.ids.lock().next())
    }

    pub(super) fn record(&self, said: &Said<'_>) {
        let Said { ends, who, request, .. } = *said;
        let is_lone = said.answer.is_none() && said.verdict == Verdict::Dropped && {
            let mut course = request.course.borrow_mut();
            !std::mem::replace(&mut course.is_begun, true)
        };
        request.course.borrow_mut().note(said.verdict, said.reason, said.answer);
        self.tell(said);
        if is_lone {
            self.finish(&Over { ends, who, request, since: None });
        }
    }

    /// An exchange is over, if one was under way.
    pub(super) fn finish(&self, over: &Over<'_>) {
        let course = over.request.course.take();
        if !course.is_begun {
            return;
        }
        let now = Instant::now();
        let since = over.since.unwrap_or(now);
        let is_counted = over.request.method > 0 || course.code.is_some();
        let exchange = self.record.load().exchanges.is_some().then(|| over.exchange(&course, now, since));
        let mut log = self.exchanges.lock();
        if is_counted {
            let latency = course.answered.map(|nanoseconds| nanoseconds as f64 / 1e9);
            log.counts.count(over.pair(), over.kind(&course), latency, [course.received, course.sent]);
        }
        let Some(exchange) = exchange else { return };
        let size = exchange.size();
        if log.size + size > MAX_EXCHANGED {
            log.lost += 1;
            return;
        }
        log.size += size;
        log.waiting.push(exchange);
    }

    /// Takes the exchanges that are over, and what they add up to.
    pub fn take_exchanges(&self) -> ProxyReport {
        let taken = std::mem::take(&mut *self.exchanges.lock());
        let Exchanges { waiting: exchanges, lost, mut counts, refused, .. } = taken;
        let untold = refused.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        ProxyReport { exchanges, lost, counts: counts.take(usize::MAX), untold, ..ProxyReport::default() }
    }

    /// Something is refused that no rules are about: there is no flow of it.
    pub fn refuse(&self, reason: &'static str) {
        *self.exchanges.lock().refused.entry(reason).or_default() += 1;
    }

    fn tell(&self, said: &Said<'_>) {
        let Some(judge) = said.judge else {
            if said.verdict == Verdict::Dropped {
                self.refuse(said.reason.unwrap_or_default());
            }
            return;
        };
        let mut log = self.flows.lock();
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

    /// Takes what is there. What comes next finds as much room as this has taken.
    pub fn take(&self) -> Log {
        let mut log = self.flows.lock();
        let (entries, text) = (Vec::with_capacity(log.entries.len()), Vec::with_capacity(log.text.len()));
        std::mem::replace(&mut log, Log { entries, text, lost: 0 })
    }
}

impl Over<'_> {
    fn pair(&self) -> [End; 2] {
        let [client, server] = self.ends.map(|end| end.ip());
        [
            End { address: client, identity: self.who.client },
            End { address: server, identity: self.who.server },
        ]
    }

    fn kind(&self, course: &Course) -> Kind {
        let [method, ..] = self.request.parts();
        let known = METHODS.iter().position(|known| known.as_bytes() == method);
        Kind {
            method: known.and_then(|known| u8::try_from(known).ok()),
            code: course.code.unwrap_or(0),
            verdict: course.verdict.unwrap_or(Verdict::Forwarded),
            flag: course.flag(),
        }
    }

    fn exchange(&self, course: &Course, now: Instant, since: Instant) -> Exchange {
        let duration = now.saturating_duration_since(since);
        let start = clock::realtime() - i128::from(nanoseconds(since.elapsed()));
        let [method, authority, path] = self.request.parts().map(text);
        let is_tls = self.request.is_tls;
        let [client, server] = self.ends;
        Exchange {
            start: i64::try_from(start).unwrap_or_default(),
            client,
            server,
            client_identity: self.who.client,
            server_identity: self.who.server,
            is_passed: course.passed.is_some(),
            is_https: self.request.is_opened,
            method,
            authority,
            path,
            protocol: if is_tls { "TLS" } else { self.request.protocol }.to_owned(),
            server_name: Some(text(&self.request.text)).filter(|name| is_tls && !name.is_empty()),
            code: course.code,
            verdict: course.verdict.unwrap_or(Verdict::Forwarded),
            reason: course.reason().map(str::to_owned),
            flag: course.flag(),
            received: course.received,
            sent: course.sent,
            duration: nanoseconds(duration),
            answered: course.answered,
            served: course.served(since),
            request_headers: course.request.clone(),
            response_headers: course.response.clone(),
        }
    }
}

/// Nearly always it is text as it stands, which is found out faster than what is not.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Entry {
    fn flow(&self, method: &[u8], url: &[u8]) -> ProxyFlow {
        let [client, server] = self.ends;
        let [client_identity, server_identity] = self.identities;
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
