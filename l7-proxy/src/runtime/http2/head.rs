//! A request's head on HTTP/2: what of it is judged, and what of it is forwarded.
//!
//! Promise: the authority is one, and said in one place; what is sent is what was judged.

use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use crate::codec::{Fault, MAX_HEADERS, MAX_METHOD, is_authority, is_name, is_same_authority};
use crate::index::{Edit, Subject};
use crate::runtime::verdict::Judged;
use crate::stage::normalise::{Looks, Path, TargetFault};

/// A head that can be judged.
#[derive(Debug)]
pub(in crate::runtime) struct Head {
    method: Method,
    scheme: Scheme,
    authority: Authority,
    /// As it came; `None`: CONNECT.
    target: Option<PathAndQuery>,
    path: Path,
    /// What an extended CONNECT asks for.
    protocol: Option<Protocol>,
    headers: HeaderMap,
}

impl Head {
    /// Reads what h2 has read. It has refused before what is malformed by itself (RFC 9113 section 8): pseudo-headers that
    /// are missing, unknown or there twice, connection-specific headers, names in upper case.
    pub(in crate::runtime) fn read(parts: Parts) -> Result<Self, &'static str> {
        let Parts { method, uri, mut headers, mut extensions, .. } = parts;
        let uri = uri.into_parts();
        let protocol = extensions.remove::<Protocol>();
        if method.as_str().len() > MAX_METHOD {
            return Err("method of more than 32 bytes");
        }
        if headers.len() > MAX_HEADERS {
            return Err(Fault::TooManyHeaders.text());
        }
        if !headers.keys().all(|name| is_name(name.as_str())) {
            return Err(Fault::HeaderName.text());
        }
        if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
            return Err(Fault::LengthTwice.text());
        }
        // h2 has seen to it that there are only digits.
        if headers.get(CONTENT_LENGTH).is_some_and(HeaderValue::is_empty) {
            return Err(Fault::Length.text());
        }
        let authority = authority(uri.authority, &mut headers)?;
        let scheme = uri.scheme.unwrap_or(Scheme::HTTP);
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err("scheme other than http and https");
        }
        let is_tunnel = method == Method::CONNECT;
        if is_tunnel && headers.contains_key(CONTENT_LENGTH) {
            return Err(Fault::BodyWhereNone.text());
        }
        let target = match is_tunnel && protocol.is_none() {
            true if !authority.as_str().contains(':') => return Err(Fault::Target.text()),
            true => None,
            false => Some(target(&method, uri.path_and_query)?),
        };
        join_cookies(&mut headers);
        Ok(Self { method, scheme, authority, target, path: Path::default(), protocol, headers })
    }

    /// It goes to a server that is spoken TLS to, or not.
    pub(in crate::runtime) fn lead_to(&mut self, is_tls: bool) {
        self.scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
    }

    /// Of whom it is asked.
    pub(in crate::runtime) fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// Whether nothing is known of how long the connection between its ends stays silent.
    pub(in crate::runtime) fn is_tunnel(&self) -> bool {
        self.method == Method::CONNECT
    }

    /// Whether a protocol is asked for.
    pub(in crate::runtime) fn is_extended(&self) -> bool {
        self.protocol.is_some()
    }

    /// The request that goes to the server.
    pub(in crate::runtime) fn forward(&self) -> Result<Request<()>, &'static str> {
        let mut parts = http::uri::Parts::default();
        parts.authority = Some(self.authority.clone());
        if let Some(target) = &self.target {
            let canonical = || PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(self.path.canonical()));
            let target = if self.path.is_changed() { canonical().ok() } else { Some(target.clone()) };
            (parts.scheme, parts.path_and_query) = (Some(self.scheme.clone()), target);
        }
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Fault::Target.text())?;
        *request.method_mut() = self.method.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        if let Some(protocol) = &self.protocol {
            request.extensions_mut().insert(protocol.clone());
        }
        Ok(request)
    }
}

/// Of whom it is asked. Host says the same or nothing, and is not passed on beside `:authority`.
fn authority(named: Option<Authority>, headers: &mut HeaderMap) -> Result<Authority, &'static str> {
    if headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(Fault::HostTwice.text());
    }
    let host = headers.remove(HOST);
    let authority = match (named, host) {
        (None, None) => return Err("neither :authority nor Host"),
        (Some(named), None) => named,
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| Fault::Host.text())?,
        (Some(named), Some(host)) => {
            if !is_same_authority(named.as_str().as_bytes(), host.as_bytes()) {
                return Err("Host differs from :authority");
            }
            named
        }
    };
    match authority.as_str().bytes().all(is_authority) {
        true => Ok(authority),
        false => Err(Fault::Host.text()),
    }
}

fn target(method: &Method, target: Option<PathAndQuery>) -> Result<PathAndQuery, &'static str> {
    let target = target.ok_or(Fault::Target.text())?;
    let is_known = match target.as_str().as_bytes() {
        [b'/', ..] => true,
        b"*" => method == Method::OPTIONS,
        _ => false,
    };
    if is_known { Ok(target) } else { Err(Fault::Target.text()) }
}

/// Cookies may come in several lines, which are one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    // Parts that may stand in a value are one when they are joined.
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Whether a message is one of gRPC.
pub(in crate::runtime) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return false };
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    matches!(rest, Some([] | [b'+' | b';' | b' ', ..]))
}

impl Subject for &Head {
    fn method(&self) -> &[u8] {
        self.method.as_str().as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.canonical()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_str().as_bytes()
    }

    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let host = (name == "host").then_some(self.authority.as_str().as_bytes());
        host.into_iter().chain(self.headers.get_all(name).iter().map(HeaderValue::as_bytes))
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.keys().map(|name| name.as_str().as_bytes())
    }
}

impl Judged for Head {
    fn subject(&self) -> impl Subject {
        self
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn normalise(&mut self, looks: Looks) -> Result<(), &'static str> {
        match self.target.as_ref().map(PathAndQuery::as_str) {
            None => self.path.keep(b""),
            Some("*") => self.path.keep(b"*"),
            Some(target) => self.path.take(target.as_bytes(), looks).map_err(TargetFault::text)?,
        }
        Ok(())
    }

    fn edit(&mut self, edits: &[Edit<'_>]) -> Result<(), &'static str> {
        for edit in edits {
            match edit {
                Edit::Delete(name) => {
                    self.headers.remove(*name);
                }
                Edit::Add(name, value) => {
                    let name = HeaderName::try_from(*name).map_err(|_| Fault::HeaderName.text())?;
                    let value = HeaderValue::try_from(*value).map_err(|_| Fault::HeaderValue.text())?;
                    self.headers.append(name, value);
                }
            }
        }
        Ok(())
    }
}
