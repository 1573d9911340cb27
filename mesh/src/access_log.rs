//! Formats of access logs: Envoy's text operators, `%NAME(ARGUMENT):LENGTH%`, and which headers they ask for.
//!
//! Promise: what is parsed can be written; what is not known is refused with its name and position.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest text of a format, bytes.
pub const MAX_FORMAT: usize = 4096;
/// Headers that the formats of a node may ask for, of requests and of answers.
pub const MAX_HEADERS: usize = 32;

/// Envoy's, when none is configured; without its line feed.
pub const DEFAULT_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"";

/// Fields of JSON, when none are configured, in their order.
pub const DEFAULT_JSON: [(&str, &str); 25] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("response_duration", "%RESPONSE_DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("trace_id", "%TRACE_ID%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("source_workload", "%SOURCE_WORKLOAD%"),
    ("source_identity", "%SOURCE_IDENTITY%"),
    ("destination_workload", "%DESTINATION_WORKLOAD%"),
    ("destination_identity", "%DESTINATION_IDENTITY%"),
];

/// The header that [`Operator::TraceId`] is read from.
pub const TRACE_PARENT: &str = "traceparent";

/// A format. Its text is what is sent and compared.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Format {
    text: String,
    parts: Vec<Part>,
}

/// A piece of a format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// Itself.
    Text(String),
    /// What an operator says, of that at most so many characters.
    Field(Operator, Option<usize>),
}

/// What can be said of an exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operator {
    /// When it began; by default with milliseconds, in UTC.
    StartTime(Option<String>),
    /// A header of the request, or the other where that is not there; names in lower case.
    Request(String, Option<String>),
    /// A header of the answer.
    Response(String, Option<String>),
    /// One of those without an argument.
    Plain(Plain),
}

/// Operators without an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "they are Envoy's, and docs/l7-proxy.md says what they mean here")]
pub enum Plain {
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    BytesReceived,
    BytesSent,
    Duration,
    ResponseDuration,
    UpstreamHost,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    RequestedServerName,
    TraceId,
    Hostname,
    SourceWorkload,
    SourceIdentity,
    DestinationWorkload,
    DestinationIdentity,
    Verdict,
}

const PLAIN: [(Plain, &str); 22] = [
    (Plain::Protocol, "PROTOCOL"),
    (Plain::ResponseCode, "RESPONSE_CODE"),
    (Plain::ResponseFlags, "RESPONSE_FLAGS"),
    (Plain::ResponseCodeDetails, "RESPONSE_CODE_DETAILS"),
    (Plain::BytesReceived, "BYTES_RECEIVED"),
    (Plain::BytesSent, "BYTES_SENT"),
    (Plain::Duration, "DURATION"),
    (Plain::ResponseDuration, "RESPONSE_DURATION"),
    (Plain::UpstreamHost, "UPSTREAM_HOST"),
    (Plain::DownstreamRemoteAddress, "DOWNSTREAM_REMOTE_ADDRESS"),
    (Plain::DownstreamRemoteAddressWithoutPort, "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT"),
    (Plain::DownstreamLocalAddress, "DOWNSTREAM_LOCAL_ADDRESS"),
    (Plain::DownstreamLocalAddressWithoutPort, "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT"),
    (Plain::DownstreamLocalPort, "DOWNSTREAM_LOCAL_PORT"),
    (Plain::RequestedServerName, "REQUESTED_SERVER_NAME"),
    (Plain::TraceId, "TRACE_ID"),
    (Plain::Hostname, "HOSTNAME"),
    (Plain::SourceWorkload, "SOURCE_WORKLOAD"),
    (Plain::SourceIdentity, "SOURCE_IDENTITY"),
    (Plain::DestinationWorkload, "DESTINATION_WORKLOAD"),
    (Plain::DestinationIdentity, "DESTINATION_IDENTITY"),
    (Plain::Verdict, "VERDICT"),
];

/// What may be in the argument of `START_TIME`.
const TIMES: [&str; 13] = ["%Y", "%m", "%d", "%H", "%M", "%S", "%s", "%z", "%T", "%F", "%3f", "%6f", "%9f"];

/// What is wrong with a format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormatError {
    /// Byte of the text, from 1.
    pub position: usize,
    /// What is found there and what to write instead.
    pub problem: String,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}: {}", self.position, self.problem)
    }
}

impl std::error::Error for FormatError {}

impl Format {
    /// The pieces, in their order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The operator that it is, if it is nothing else.
    pub fn only(&self) -> Option<&Operator> {
        match self.parts.as_slice() {
            [Part::Field(operator, None)] => Some(operator),
            _ => None,
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Field(operator, _) => Some(operator),
        })
    }
}

/// Headers that must be kept, in lower case, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Headers {
    /// Of requests.
    pub request: Vec<String>,
    /// Of answers.
    pub response: Vec<String>,
}

impl Headers {
    /// Those that these formats ask for.
    pub fn of<'a>(formats: impl IntoIterator<Item = &'a Format>) -> Self {
        let mut headers = Self::default();
        for operator in formats.into_iter().flat_map(Format::operators) {
            let (kept, names) = match operator {
                Operator::Request(name, other) => (&mut headers.request, [Some(name), other.as_ref()]),
                Operator::Response(name, other) => (&mut headers.response, [Some(name), other.as_ref()]),
                Operator::Plain(Plain::TraceId) => {
                    if !headers.request.iter().any(|kept| kept == TRACE_PARENT) {
                        headers.request.push(TRACE_PARENT.to_owned());
                    }
                    continue;
                }
                Operator::Plain(_) | Operator::StartTime(_) => continue,
            };
            for name in names.into_iter().flatten().filter(|name| !name.starts_with(':')) {
                if !kept.contains(name) {
                    kept.push(name.clone());
                }
            }
        }
        headers
    }

    /// Whether there are more than are kept.
    pub fn are_too_many(&self) -> bool {
        self.request.len().max(self.response.len()) > MAX_HEADERS
    }
}

/// How a node writes its access log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Layout {
    /// Lines of text.
    Text(Format),
    /// An object on each line.
    Json(Vec<(String, Format)>),
}

impl Layout {
    /// The formats in it.
    pub fn formats(&self) -> impl Iterator<Item = &Format> {
        let (text, json) = match self {
            Self::Text(format) => (Some(format), None),
            Self::Json(fields) => (None, Some(fields.iter().map(|(_, format)| format))),
        };
        text.into_iter().chain(json.into_iter().flatten())
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        if text.len() > MAX_FORMAT {
            let problem = format!("a format has at most {MAX_FORMAT} bytes");
            return Err(FormatError { position: MAX_FORMAT + 1, problem });
        }
        let mut parts = Vec::new();
        let (mut literal, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let position = text.len() - after.len();
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let problem = |problem| FormatError { position, problem };
            let (operator, length, left) = operator(after).map_err(problem)?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Field(operator, length));
            rest = left;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

impl TryFrom<String> for Format {
    type Error = FormatError;

    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<Format> for String {
    fn from(format: Format) -> Self {
        format.text
    }
}

/// `NAME%`, `NAME(ARGUMENT)%`, `NAME(ARGUMENT):LENGTH%`, and what follows.
fn operator(text: &str) -> Result<(Operator, Option<usize>, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
    let (name, mut rest) = text.split_at(end.unwrap_or(text.len()));
    if name.is_empty() {
        return Err("% begins an operator such as %PROTOCOL%; write %% for the character".to_owned());
    }
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        // An argument may have percent signs of its own.
        let close = inner.find(')').ok_or_else(|| format!("%{name}( has no )"))?;
        argument = inner.get(..close);
        rest = inner.get(close + 1..).unwrap_or_default();
    }
    let mut length = None;
    if let Some(after) = rest.strip_prefix(':') {
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let number = after.get(..digits).unwrap_or_default();
        length = Some(number.parse().map_err(|_| format!("%{name}: the length behind : is a number"))?);
        rest = after.get(digits..).unwrap_or_default();
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| format!("%{name} has no % at its end"))?;
    Ok((named(name, argument)?, length, rest))
}

fn named(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    let header = || {
        let argument = argument.ok_or_else(|| format!("%{name}% needs a header: %{name}(USER-AGENT)%"))?;
        let (first, second) = match argument.split_once('?') {
            Some((first, second)) => (first, Some(second)),
            None => (argument, None),
        };
        let checked = |text: &str| match is_header(text) {
            true => Ok(text.to_ascii_lowercase()),
            false => Err(format!("%{name}({argument})%: {text:?} is no name of a header")),
        };
        Ok::<_, String>((checked(first)?, second.map(checked).transpose()?))
    };
    match (name, argument) {
        ("REQ", _) => header().map(|(first, second)| Operator::Request(first, second)),
        ("RESP", _) => header().map(|(first, second)| Operator::Response(first, second)),
        ("START_TIME", None) => Ok(Operator::StartTime(None)),
        ("START_TIME", Some(format)) => times(format).map(|()| Operator::StartTime(Some(format.to_owned()))),
        _ => match (PLAIN.iter().find(|(_, known)| *known == name), argument) {
            (Some((plain, _)), None) => Ok(Operator::Plain(*plain)),
            (Some(_), Some(_)) => Err(format!("%{name}% takes no argument")),
            (None, _) => Err(format!("%{name}% is not known; docs/l7-proxy.md lists those that are")),
        },
    }
}

/// A header, or one of those that HTTP/2 has in place of the first line.
fn is_header(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    match text.strip_prefix(':') {
        Some(pseudo) => ["METHOD", "PATH", "AUTHORITY", "SCHEME", "STATUS"]
            .iter()
            .any(|it| pseudo.eq_ignore_ascii_case(it)),
        None => !text.is_empty() && text.len() <= 256 && text.bytes().all(is_token),
    }
}

fn times(format: &str) -> Result<(), String> {
    let mut rest = format;
    while let Some((_, after)) = rest.split_once('%') {
        let known = TIMES.iter().find_map(|known| after.strip_prefix(known.strip_prefix('%')?));
        rest = known.ok_or_else(|| format!("%START_TIME({format})%: expected {} in it", TIMES.join(", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str) -> String {
        text.parse::<Format>().unwrap_err().to_string()
    }

    #[test]
    fn envoys_default_format_is_understood() {
        let format: Format = DEFAULT_TEXT.parse().unwrap();
        assert_eq!(format.text(), DEFAULT_TEXT);
        let headers = Headers::of([&format]);
        assert_eq!(
            headers.request,
            ["x-envoy-original-path", "x-forwarded-for", "user-agent", "x-request-id"]
        );
        assert_eq!(headers.response, ["x-envoy-upstream-service-time"]);
    }

    #[test]
    fn the_fields_of_json_are_understood() {
        let formats: Vec<Format> = DEFAULT_JSON.iter().map(|(_, text)| text.parse().unwrap()).collect();
        assert!(formats.iter().all(|format| format.only().is_some()));
        assert!(Headers::of(&formats).request.iter().any(|name| name == TRACE_PARENT));
    }

    #[test]
    fn arguments_lengths_and_percent_signs() {
        let format: Format = "100%% %REQ(X-A?:PATH):12% %START_TIME(%s.%3f)%".parse().unwrap();
        let expected = [
            Part::Text("100% ".to_owned()),
            Part::Field(Operator::Request("x-a".to_owned(), Some(":path".to_owned())), Some(12)),
            Part::Text(" ".to_owned()),
            Part::Field(Operator::StartTime(Some("%s.%3f".to_owned())), None),
        ];
        assert_eq!(format.parts(), expected);
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_name_and_position() {
        assert_eq!(
            refused("%PROTOCOL% %UPSTREAM_CLUSTER%"),
            "at character 12: %UPSTREAM_CLUSTER% is not known; docs/l7-proxy.md lists those that are"
        );
        for (text, expected) in [
            ("5% off", "at character 2: % begins an operator such as %PROTOCOL%; write %% for the character"),
            ("%PROTOCOL", "at character 1: %PROTOCOL has no % at its end"),
            ("%REQ%", "at character 1: %REQ% needs a header: %REQ(USER-AGENT)%"),
            ("%REQ(a b)%", "at character 1: %REQ(a b)%: \"a b\" is no name of a header"),
            ("%REQ(:method", "at character 1: %REQ( has no )"),
            ("%REQ(A):x%", "at character 1: %REQ: the length behind : is a number"),
            ("%DURATION(1)%", "at character 1: %DURATION% takes no argument"),
            (
                "%START_TIME(%Q)%",
                "at character 1: %START_TIME(%Q)%: expected %Y, %m, %d, %H, %M, %S, %s, %z, %T, %F, %3f, %6f, %9f in it",
            ),
        ] {
            assert_eq!(refused(text), expected);
        }
        assert!(refused(&"x".repeat(MAX_FORMAT + 1)).starts_with("at character 4097"));
    }
}
