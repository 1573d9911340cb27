//! What would become of a request that nobody sends: it goes through the stages of those that come, up to where it would be
//! sent on.
//!
//! Promise: ends, rules, normalisation and verdict are those of connections, asked by the same functions; nothing is sent,
//! counted or recorded. What it takes is bounded as the judgement of a request is. Where the proxy ends TLS the client is
//! taken to have begun with it, and to have said the host's name.

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request as Message, Uri, Version};
use mesh::flow::Verdict;
use mesh::l7::{Expression, HeaderRule, HttpRule};
use node_api::proxy::{
    ProxyGrant, ProxyJudge, ProxyNear, ProxyReading, ProxyReply, ProxyRule, ProxySays, ProxySupposed,
    SupposedEnd, SupposedRequest,
};

use super::ends::{Ends, Found, Identities, Opening};
use super::http2::head::{Head, is_grpc};
use super::reply::Reply;
use super::request::Request;
use super::verdict::{Hears, Judged, Noted, Refused, authorize_heard};
use super::worker::Published;
use crate::codec::Scan;
use crate::index::{Edit, Grant, MAX_WORK, Rule, Subject, Work};
use crate::stage::authorize::{Judge, NOT_TLS};
use crate::stage::detect::{Protocol, detect};

/// Rules that are named because they come near.
const NEAREST: usize = 5;
/// What a rule takes to be held against a request beside its path, about.
const RULE: usize = 256;

/// What would become of it now.
pub fn explain<I: Identities + ?Sized>(
    asked: &ProxySupposed,
    published: &Published,
    identities: &I,
) -> ProxySays {
    let known = Known { identities, supposed: [asked.client, asked.server] };
    let client = SocketAddr::new(asked.client.address, 0);
    let server = SocketAddr::new(asked.server.address, asked.port);
    let mut ends = Ends::default();
    ends.refresh(client, server, published, &known);
    ends.suppose(asked.request.host.as_deref().unwrap_or_default());
    let mut hearing = Hearing::new(&ends);
    let mut says = match ends.opening() {
        Opening::Refused(reason) => says(Verdict::Dropped, Some(reason)),
        Opening::Relayed => ProxySays { relayed: true, ..says(Verdict::Forwarded, None) },
        Opening::Judged if ends.is_for_tls() => foreign(&ends, NOT_TLS),
        Opening::Judged => judged(&asked.request, &ends, &mut hearing),
    };
    (says.client_identity, says.server_identity) = (ends.client, ends.server);
    says.judges = hearing.judges.into_iter().flatten().collect();
    says
}

/// Identities as they are known, and those of ends that are only supposed.
struct Known<'a, I: ?Sized> {
    identities: &'a I,
    supposed: [SupposedEnd; 2],
}

impl<I: Identities + ?Sized> Identities for Known<'_, I> {
    fn generation(&self) -> u64 {
        self.identities.generation()
    }

    fn find(&self, address: IpAddr) -> Found {
        let supposed = self.supposed.iter().find(|end| end.address == address && end.identity.is_some());
        match supposed {
            Some(end) => Found { identity: end.identity, instance: None },
            None => self.identities.find(address),
        }
    }
}

fn says(verdict: Verdict, reason: Option<&str>) -> ProxySays {
    ProxySays {
        client_identity: None,
        server_identity: None,
        verdict,
        reason: reason.map(str::to_owned),
        by: None,
        answer: None,
        relayed: false,
        forwarded: Vec::new(),
        changed: false,
        judges: Vec::new(),
    }
}

/// What is not what may pass.
fn foreign(ends: &Ends, reason: &str) -> ProxySays {
    let by = ends.strict().map(|judge| judge.direction);
    match ends.plain() {
        true => ProxySays { by, relayed: true, ..says(Verdict::Audit, Some(reason)) },
        false => ProxySays { by, ..says(Verdict::Dropped, Some(reason)) },
    }
}

/// A request that passes.
struct Passed {
    noted: Noted,
    /// Its head as it goes to the server.
    head: Vec<String>,
    changed: bool,
}

/// Why one does not.
enum Stopped {
    Refused(Refused),
    /// Nothing of it is HTTP.
    Foreign(&'static str),
    /// The stream is reset before it is a request.
    Reset(&'static str),
}

impl From<Refused> for Stopped {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

fn judged(request: &SupposedRequest, ends: &Ends, hearing: &mut Hearing) -> ProxySays {
    let passes = |ends: &Ends, hearing: &mut Hearing| match request.http2 {
        true => http2(request, ends, hearing),
        false => http1(request, ends, hearing),
    };
    let passed = passes(ends, hearing);
    // Whoever is not asked, for somebody has said no before, would say this.
    hearing.asked = false;
    for by in 0..ends.judges.len() {
        let mut alone = ends.clone();
        alone.judges.iter_mut().take(by).for_each(|before| *before = None);
        // What comes of it is in the hearing.
        let _ = passes(&alone, hearing);
    }
    let direction = |by: Option<usize>| Some(ends.judges.get(by?)?.as_ref()?.direction);
    match passed {
        Ok(Passed { noted, head, changed }) => ProxySays {
            by: direction(noted.by),
            forwarded: head,
            changed,
            ..says(noted.verdict, noted.reason)
        },
        Err(Stopped::Foreign(reason)) => foreign(ends, reason),
        Err(Stopped::Reset(reason)) => says(Verdict::Dropped, Some(reason)),
        Err(Stopped::Refused(refused)) => ProxySays {
            by: direction(refused.by),
            answer: Some(reply(refused.reply, request)),
            ..says(Verdict::Dropped, Some(refused.reason))
        },
    }
}

fn reply(reply: Reply, request: &SupposedRequest) -> ProxyReply {
    let is_call = request.http2 && fields(request).is_some_and(|headers| is_grpc(&headers));
    let body = reply.body().trim_end();
    let body = if request.method == "HEAD" { "" } else { body }.to_owned();
    match is_call {
        true => ProxyReply { status: 200, grpc_status: reply.grpc().parse().ok(), body },
        false => ProxyReply { status: reply.code(), grpc_status: None, body },
    }
}

fn http1(asked: &SupposedRequest, ends: &Ends, hearing: &mut Hearing) -> Result<Passed, Stopped> {
    let mut input = format!("{} {} HTTP/1.1\r\n", asked.method, asked.path);
    let host = asked.host.iter().map(|host| ("Host", host.as_str()));
    let others = asked.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in host.chain(others) {
        input.extend([name, ": ", value, "\r\n"]);
    }
    input.push_str("\r\n");
    let input = input.as_bytes();
    match detect(input) {
        Some(Protocol::Http1) => {}
        other => return Err(Stopped::Foreign(other.unwrap_or(Protocol::Unknown).refusal())),
    }
    let found = Scan::default().find(input).map_err(|fault| Refused::malformed(fault.text()))?;
    let (start, end) = found.unwrap_or((0, input.len()));
    let mut request = Request::default();
    request.parse(input, start, end).map_err(|fault| Refused::malformed(fault.text()))?;
    let noted = request.authorize_heard(input, ends, hearing)?;
    let came = input.get(start..end).unwrap_or_default();
    let goes = if request.lead().is_empty() { came } else { request.lead() };
    let head = text(goes).split("\r\n").filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Ok(Passed { noted, head, changed: goes != came })
}

fn http2(asked: &SupposedRequest, ends: &Ends, hearing: &mut Hearing) -> Result<Passed, Stopped> {
    let parts = parts(asked).ok_or(Stopped::Reset("malformed HTTP/2 request"))?;
    let came = lines(&parts);
    let mut head = Head::read(parts).map_err(Refused::malformed)?;
    let noted = authorize_heard(&mut head, ends, hearing)?;
    let goes = head.forward().map_err(Refused::malformed)?;
    let head = lines(&goes.into_parts().0);
    Ok(Passed { noted, changed: head != came, head })
}

/// As h2 reads it, which resets the streams of others.
fn parts(asked: &SupposedRequest) -> Option<Parts> {
    let mut uri = http::uri::Parts::default();
    let method = Method::from_bytes(asked.method.as_bytes()).ok()?;
    if method == Method::CONNECT {
        uri.authority = Some(asked.path.parse::<Authority>().ok()?);
    } else {
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(asked.host.as_deref().unwrap_or_default().parse::<Authority>().ok()?);
        uri.path_and_query = Some(asked.path.parse::<PathAndQuery>().ok()?);
    }
    let mut request = Message::new(());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = fields(asked)?;
    Some(request.into_parts().0)
}

/// Headers that are none of HTTP/2 (RFC 9113 section 8.2.2).
const OF_CONNECTIONS: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

fn fields(asked: &SupposedRequest) -> Option<http::HeaderMap> {
    let mut headers = http::HeaderMap::new();
    for (name, value) in &asked.headers {
        let name = name.parse::<HeaderName>().ok()?;
        let is_foreign = OF_CONNECTIONS.contains(&name.as_str()) || name == "te" && value != "trailers";
        if is_foreign {
            return None;
        }
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(headers)
}

fn lines(parts: &Parts) -> Vec<String> {
    let uri = &parts.uri;
    let pseudo = [
        (":method", Some(parts.method.as_str())),
        (":scheme", uri.scheme_str()),
        (":authority", uri.authority().map(Authority::as_str)),
        (":path", uri.path_and_query().map(PathAndQuery::as_str)),
    ];
    let pseudo = pseudo.into_iter().filter_map(|(name, value)| Some(format!("{name}: {}", value?)));
    let headers = parts.headers.iter().map(|(name, value)| format!("{name}: {}", text(value.as_bytes())));
    pseudo.chain(headers).collect()
}

/// What either end has said.
struct Hearing {
    judges: [Option<ProxyJudge>; 2],
    /// Whether it is the request that is judged, and not what would be said if it came so far.
    asked: bool,
}

impl Hearing {
    fn new(ends: &Ends) -> Self {
        Self { judges: ends.judges.each_ref().map(|judge| judge.as_ref().map(view)), asked: true }
    }
}

fn view(judge: &Judge) -> ProxyJudge {
    let grant = match &judge.grant {
        Grant::Open => ProxyGrant::NoRules,
        Grant::Plain => ProxyGrant::Anything,
        Grant::Http(_) => ProxyGrant::Http,
        Grant::Nothing(_) if judge.is_for_tls() => ProxyGrant::Tls,
        Grant::Nothing(_) => ProxyGrant::Nothing,
    };
    ProxyJudge {
        endpoint: judge.endpoint,
        workload: None,
        direction: judge.direction,
        audit: judge.audit,
        grant,
        asked: true,
        reason: None,
        allowed: None,
        readings: Vec::new(),
        edits: Vec::new(),
        nearest: Vec::new(),
        rules: judge.sets().iter().map(|set| set.rules().len()).sum(),
        refused: None,
    }
}

impl Hears for Hearing {
    fn hear(
        &mut self,
        by: usize,
        judge: &Judge,
        request: &impl Judged,
        said: Result<Option<&Rule>, &'static str>,
    ) {
        let Some(Some(view)) = self.judges.get_mut(by) else { return };
        if view.allowed.is_some() {
            return;
        }
        let (subject, path) = (request.subject(), request.path());
        view.asked = self.asked;
        view.allowed = Some(said.is_ok());
        view.reason = said.err().map(str::to_owned);
        view.edits = Judge::edits(said.ok().flatten(), &subject).into_iter().map(edit).collect();
        if judge.sets().is_empty() {
            return;
        }
        let mut unmatched = None;
        for reading in std::iter::once(path.canonical()).chain(path.readings()) {
            let rule = judge.find(&subject, reading, &mut Work::default()).ok().flatten();
            unmatched = unmatched.or(rule.is_none().then_some(reading));
            view.readings.push(ProxyReading { path: text(reading), rule: rule.map(written) });
        }
        view.nearest = unmatched.map(|reading| nearest(judge, &subject, reading)).unwrap_or_default();
    }
}

/// The rules that differ least, the first of those that differ as much.
fn nearest(judge: &Judge, subject: &impl Subject, path: &[u8]) -> Vec<ProxyNear> {
    let rules = judge.sets().iter().flat_map(|set| set.rules()).take(MAX_WORK / (path.len() + RULE));
    let mut nearest: Vec<(Vec<String>, &Rule)> = Vec::new();
    for rule in rules {
        let differs = rule.differs(subject, path);
        let place = nearest.partition_point(|(other, _)| other.len() <= differs.len());
        nearest.insert(place, (differs, rule));
        nearest.truncate(NEAREST);
    }
    nearest.into_iter().map(|(differs, rule)| ProxyNear { rule: written(rule), differs }).collect()
}

/// A rule as it is written.
fn written(rule: &Rule) -> ProxyRule {
    let part = |matcher: &Option<std::sync::Arc<expression::Matcher>>| {
        matcher.as_ref().map(|matcher| Expression(matcher.text().to_string()))
    };
    let headers = rule.headers.iter().map(|header| HeaderRule {
        name: header.name.to_string(),
        value: header.value.as_deref().map(str::to_owned),
        mismatch: header.mismatch,
    });
    let rule = HttpRule {
        path: part(&rule.path),
        method: part(&rule.method),
        host: part(&rule.host),
        headers: headers.collect(),
    };
    ProxyRule { rule, places: Vec::new() }
}

fn edit(edit: Edit<'_>) -> String {
    match edit {
        Edit::Add(name, value) => format!("+ {name}: {value}"),
        Edit::Delete(name) => format!("- {name}"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
