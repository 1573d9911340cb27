//! Lines of an access log: an exchange, by a format.
//!
//! Promise: one line each, whatever the ends have sent: control characters, quotes and backslashes of theirs are written as
//! `\xHH` in text, and as JSON has them there. What is not known is `-`, in JSON `null`.

use std::fmt::Write;
use std::net::SocketAddr;

use jiff::Timestamp;
use mesh::access_log::{Format, Layout, Operator, Part, Plain, TRACE_PARENT};
use mesh::exchange::{Exchange, details};
use mesh::flow::Peer;
use serde_json::Value;

/// An exchange, and who its ends are.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What was seen.
    pub exchange: &'a Exchange,
    /// The client.
    pub source: &'a Peer,
    /// The server.
    pub destination: &'a Peer,
    /// The node's name.
    pub node: &'a str,
}

/// What an operator says.
enum Word {
    /// Nothing.
    None,
    Number(u64),
    /// The node's own word.
    Own(String),
    /// What an end has sent.
    Theirs(String),
}

/// Appends a line with its line feed.
pub fn write(layout: &Layout, seen: &Seen<'_>, out: &mut String) {
    match layout {
        Layout::Text(format) => text(format, seen, out, true),
        Layout::Json(fields) => json(fields, seen, out),
    }
    out.push('\n');
}

fn text(format: &Format, seen: &Seen<'_>, out: &mut String, is_escaped: bool) {
    for part in format.parts() {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Field(operator, length) => {
                let word = match seen.say(operator) {
                    Word::None => "-".to_owned(),
                    Word::Number(number) => number.to_string(),
                    Word::Own(text) => text,
                    Word::Theirs(text) => {
                        let text = shortened(text, *length);
                        if is_escaped { escaped(&text) } else { text }
                    }
                };
                out.push_str(&shortened(word, length.filter(|_| !is_theirs(operator))));
            }
        }
    }
}

fn is_theirs(operator: &Operator) -> bool {
    matches!(operator, Operator::Request(..) | Operator::Response(..))
}

fn shortened(mut text: String, length: Option<usize>) -> String {
    if let Some((at, _)) = length.and_then(|length| text.char_indices().nth(length)) {
        text.truncate(at);
    }
    text
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' | '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
                // Writing to a string does not fail.
                let _ = write!(safe, "\\x{:02X}", u32::from(character));
            }
            _ => safe.push(character),
        }
    }
    safe
}

fn json(fields: &[(String, Format)], seen: &Seen<'_>, out: &mut String) {
    out.push('{');
    for (number, (name, format)) in fields.iter().enumerate() {
        let value = match format.only().map(|operator| seen.say(operator)) {
            Some(Word::None) => Value::Null,
            Some(Word::Number(number)) => number.into(),
            Some(Word::Own(text) | Word::Theirs(text)) => text.into(),
            None => {
                let mut joined = String::new();
                text(format, seen, &mut joined, false);
                joined.into()
            }
        };
        let comma = if number == 0 { "" } else { "," };
        // As above.
        let _ = write!(out, "{comma}{}:{value}", Value::from(name.as_str()));
    }
    out.push('}');
}

impl Seen<'_> {
    fn say(&self, operator: &Operator) -> Word {
        let either = |first: &String, second: &Option<String>, one: fn(&Self, &str) -> Word| match (
            one(self, first),
            second,
        ) {
            (Word::None, Some(second)) => one(self, second),
            (word, _) => word,
        };
        match operator {
            Operator::StartTime(format) => self.start(format.as_deref()),
            Operator::Request(first, second) => either(first, second, Self::request),
            Operator::Response(first, second) => either(first, second, Self::response),
            Operator::Plain(plain) => self.plain(*plain),
        }
    }

    fn start(&self, format: Option<&str>) -> Word {
        let Ok(time) = Timestamp::from_nanosecond(self.exchange.start.into()) else { return Word::None };
        Word::Own(match format {
            None => time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
            Some(format) => time.strftime(format).to_string(),
        })
    }

    fn request(&self, name: &str) -> Word {
        let exchange = self.exchange;
        let is_request = !exchange.method.is_empty();
        match name {
            ":method" => theirs(&exchange.method),
            ":path" => theirs(&exchange.path),
            ":authority" => theirs(&exchange.authority),
            ":scheme" if is_request => own(if exchange.is_https { "https" } else { "http" }),
            _ => header(&exchange.request_headers, name),
        }
    }

    fn response(&self, name: &str) -> Word {
        match name {
            ":status" => self.plain(Plain::ResponseCode),
            // Envoy's proxy sets it; here nothing is added to answers, and it is measured all the same.
            "x-envoy-upstream-service-time" => milliseconds(self.exchange.served),
            _ => header(&self.exchange.response_headers, name),
        }
    }

    fn plain(&self, plain: Plain) -> Word {
        let Self { exchange, source, destination, node } = *self;
        let reserved = |peer: &Peer| {
            let identity = peer.identity.filter(|identity| identity.reserved_labels().is_some());
            identity.map_or(Word::None, |identity| Word::Own(identity.to_string()))
        };
        let workload = |peer: &Peer| match &peer.workload {
            Some(workload) => Word::Own(workload.to_string()),
            None => reserved(peer),
        };
        let identity = |peer: &Peer| peer.identity.map_or(Word::None, |it| Word::Number(it.number().into()));
        let address = |address: SocketAddr| Word::Own(address.to_string());
        match plain {
            Plain::Protocol => own(&exchange.protocol),
            Plain::ResponseCode => Word::Number(exchange.code.unwrap_or(0).into()),
            Plain::ResponseFlags => exchange.flag.map_or(Word::None, |flag| own(flag.short())),
            Plain::ResponseCodeDetails => match (&exchange.reason, exchange.code) {
                (Some(reason), _) => own(&details(reason)),
                (None, Some(_)) => own("via_upstream"),
                (None, None) => Word::None,
            },
            Plain::BytesReceived => Word::Number(exchange.received),
            Plain::BytesSent => Word::Number(exchange.sent),
            Plain::Duration => milliseconds(Some(exchange.duration)),
            Plain::ResponseDuration => milliseconds(exchange.answered),
            Plain::UpstreamHost if exchange.is_passed => address(exchange.server),
            Plain::UpstreamHost => Word::None,
            Plain::DownstreamRemoteAddress => address(exchange.client),
            Plain::DownstreamRemoteAddressWithoutPort => Word::Own(exchange.client.ip().to_string()),
            Plain::DownstreamLocalAddress => address(exchange.server),
            Plain::DownstreamLocalAddressWithoutPort => Word::Own(exchange.server.ip().to_string()),
            Plain::DownstreamLocalPort => Word::Number(exchange.server.port().into()),
            Plain::RequestedServerName => exchange.server_name.as_deref().map_or(Word::None, theirs),
            Plain::TraceId => self.trace(),
            Plain::Hostname => own(node),
            Plain::SourceWorkload => workload(source),
            Plain::SourceIdentity => identity(source),
            Plain::DestinationWorkload => workload(destination),
            Plain::DestinationIdentity => identity(destination),
            Plain::Verdict => own(match exchange.verdict {
                mesh::flow::Verdict::Forwarded => "FORWARDED",
                mesh::flow::Verdict::Dropped => "DROPPED",
                mesh::flow::Verdict::Audit => "AUDIT",
            }),
        }
    }

    /// Of W3C's `version-traceid-parentid-flags`.
    fn trace(&self) -> Word {
        let mut headers = self.exchange.request_headers.iter();
        let parent = headers.find(|(name, _)| name == TRACE_PARENT);
        let id = parent.and_then(|(_, value)| value.split('-').nth(1));
        let is_id = |id: &&str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        id.filter(is_id).map_or(Word::None, theirs)
    }
}

fn own(text: &str) -> Word {
    if text.is_empty() { Word::None } else { Word::Own(text.to_owned()) }
}

fn theirs(text: &str) -> Word {
    if text.is_empty() { Word::None } else { Word::Theirs(text.to_owned()) }
}

fn header(headers: &[(String, String)], name: &str) -> Word {
    let found = headers.iter().find(|(kept, _)| kept == name);
    found.map_or(Word::None, |(_, value)| Word::Theirs(value.clone()))
}

fn milliseconds(nanoseconds: Option<u64>) -> Word {
    nanoseconds.map_or(Word::None, |nanoseconds| Word::Number(nanoseconds / 1_000_000))
}

#[cfg(test)]
mod tests {
    use mesh::access_log::{DEFAULT_JSON, DEFAULT_TEXT};
    use mesh::exchange::Flag;
    use mesh::flow::Verdict;
    use mesh::identity::Identity;

    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn landing() -> Exchange {
        Exchange {
            start: 1_761_491_987_742_500_000,
            client: "10.1.0.7:49920".parse().unwrap(),
            server: "10.1.0.3:80".parse().unwrap(),
            client_identity: Identity::new(56_650),
            server_identity: Identity::new(17_839),
            is_passed: true,
            is_https: false,
            method: "POST".to_owned(),
            authority: "deathstar".to_owned(),
            path: "/v1/request-landing?a=\"b\"".to_owned(),
            protocol: "HTTP/1.1".to_owned(),
            server_name: None,
            code: Some(200),
            verdict: Verdict::Forwarded,
            reason: None,
            flag: None,
            received: 4,
            sent: 12,
            duration: 7_900_000,
            answered: Some(5_000_000),
            served: Some(4_100_000),
            request_headers: pairs(&[
                ("user-agent", "curl/8"),
                ("x-request-id", "2f1a"),
                ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ]),
            response_headers: pairs(&[("content-type", "text/plain")]),
        }
    }

    fn denied() -> Exchange {
        Exchange {
            code: Some(403),
            method: "PUT".to_owned(),
            path: "/v1/exhaust-port".to_owned(),
            verdict: Verdict::Dropped,
            reason: Some("no rule lets it through".to_owned()),
            is_passed: false,
            served: None,
            ..landing()
        }
    }

    fn line(layout: &Layout, exchange: &Exchange) -> String {
        let peer = |socket: SocketAddr, identity, workload: &str| Peer {
            address: Some(socket.ip()),
            port: Some(socket.port()),
            identity,
            workload: Some(workload.parse().unwrap()),
            ..crate::compact::tests::request().source
        };
        let source = peer(exchange.client, exchange.client_identity, "default/tiefighter");
        let destination = peer(exchange.server, exchange.server_identity, "default/deathstar");
        let seen = Seen { exchange, source: &source, destination: &destination, node: "death-star-1" };
        let mut out = String::new();
        write(layout, &seen, &mut out);
        out
    }

    fn text_of(format: &str, exchange: &Exchange) -> String {
        line(&Layout::Text(format.parse().unwrap()), exchange)
    }

    #[test]
    fn envoys_default_line() {
        assert_eq!(
            text_of(DEFAULT_TEXT, &landing()),
            "[2025-10-26T15:19:47.742Z] \"POST /v1/request-landing?a=\\x22b\\x22 HTTP/1.1\" 200 - 4 12 7 4 \"-\" \
             \"curl/8\" \"2f1a\" \"deathstar\" \"10.1.0.3:80\"\n"
        );
        assert_eq!(
            text_of(DEFAULT_TEXT, &denied()),
            "[2025-10-26T15:19:47.742Z] \"PUT /v1/exhaust-port HTTP/1.1\" 403 - 4 12 7 - \"-\" \"curl/8\" \"2f1a\" \
             \"deathstar\" \"-\"\n"
        );
    }

    #[test]
    fn json_has_numbers_null_and_whose_it_is() {
        let fields = DEFAULT_JSON.map(|(name, text)| (name.to_owned(), text.parse().unwrap()));
        assert_eq!(
            line(&Layout::Json(fields.into()), &denied()),
            concat!(
                r#"{"start_time":"2025-10-26T15:19:47.742Z","method":"PUT","path":"/v1/exhaust-port","#,
                r#""authority":"deathstar","protocol":"HTTP/1.1","response_code":403,"response_flags":null,"#,
                r#""response_code_details":"no_rule_lets_it_through","bytes_received":4,"bytes_sent":12,"#,
                r#""duration":7,"response_duration":5,"upstream_service_time":null,"x_forwarded_for":null,"#,
                r#""user_agent":"curl/8","request_id":"2f1a","trace_id":"0af7651916cd43dd8448eb211c80319c","#,
                r#""upstream_host":null,"downstream_remote_address":"10.1.0.7:49920","#,
                r#""downstream_local_address":"10.1.0.3:80","requested_server_name":null,"#,
                r#""source_workload":"default/tiefighter","source_identity":56650,"#,
                r#""destination_workload":"default/deathstar","destination_identity":17839}"#,
                "\n"
            )
        );
        let joined = vec![("a".to_owned(), "%REQ(:PATH):3%|%RESPONSE_CODE%".parse().unwrap())];
        assert_eq!(line(&Layout::Json(joined), &landing()), "{\"a\":\"/v1|200\"}\n");
    }

    #[test]
    fn every_operator_says_what_it_should() {
        let mut cut = landing();
        (cut.flag, cut.reason) = (Some(Flag::Uc), Some("server closed without an answer".to_owned()));
        cut.server_name = Some("a.example".to_owned());
        for (format, expected) in [
            ("%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", "UC server_closed_without_an_answer"),
            ("%RESPONSE_DURATION%/%DURATION%", "5/7"),
            ("%REQ(X-MISSING?USER-AGENT):4%", "curl"),
            ("%REQ(:SCHEME)% %RESP(:STATUS)% %RESP(Content-Type)%", "http 200 text/plain"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%:%DOWNSTREAM_LOCAL_PORT%", "10.1.0.7:80"),
            ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS%", "10.1.0.3 10.1.0.3:80"),
            ("%REQUESTED_SERVER_NAME% %HOSTNAME% %VERDICT%", "a.example death-star-1 FORWARDED"),
            ("%START_TIME(%Y/%m/%d %s.%3f)%", "2025/10/26 1761491987.742"),
            ("%SOURCE_WORKLOAD%:2", "default/tiefighter:2"),
            ("%SOURCE_WORKLOAD:3% %PROTOCOL:4%", "def HTTP"),
        ] {
            assert_eq!(text_of(format, &cut), format!("{expected}\n"), "{format}");
        }
        cut.is_https = true;
        assert_eq!(text_of("%REQ(:SCHEME)%", &cut), "https\n");
    }

    #[test]
    fn nobody_writes_a_line_of_his_own() {
        let mut forged = landing();
        forged.path = "/\n\u{85}\u{1b}\"\\é".to_owned();
        assert_eq!(text_of("%REQ(:PATH)%", &forged), "/\\x0A\\x85\\x1B\\x22\\x5Cé\n");
        let json = vec![("path".to_owned(), "%REQ(:PATH)%".parse().unwrap())];
        let line = line(&Layout::Json(json), &forged);
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["path"], forged.path);
    }
}
