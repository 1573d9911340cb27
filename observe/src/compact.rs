//! The compact line, as `hubble observe` prints it:
//!
//! ```text
//! Oct 26 15:15:46.416: default/xwing:49446 (ID:13058) <> default/deathstar:80 (ID:17839) Policy denied DROPPED (TCP Flags: SYN)
//! ```
//!
//! Time is UTC. The arrow is `->`, `<-` for a reply (the ends then stand in the order of the conversation, not of the
//! packet) and `<>` where the direction is not known, as on every drop. The one addition stands behind the line and
//! leaves it intact: ` by default/rule1`, the policies that denied, and of a refused proof ` (the certificate has expired:
//! spiffe://mesh/ns/default/sa/xwing)`, why and whose.

use std::fmt;

use jiff::Timestamp;
use mesh::flow::{Authentication, Drop, Flow, Peer, TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::l7::{HttpFlow, HttpKind, L7Flow, TlsFlow};
use mesh::policy::protocol;

use crate::filter::TCP_FLAGS;

/// The line, without newline. `paint` may colour the word of the verdict.
pub fn line(flow: &Flow, paint: impl Fn(Verdict, &str) -> String) -> String {
    let (source, destination) = (End(&flow.source), End(&flow.destination));
    let (left, arrow, right) = match flow.is_reply {
        None => (source, "<>", destination),
        Some(false) => (source, "->", destination),
        Some(true) => (destination, "<-", source),
    };
    let time = Time(flow.time);
    let verdict = paint(flow.verdict, verdict(flow.verdict));
    let (kind, summary, by) = (Kind(flow), Summary(flow), By(flow.drop.as_ref()));
    format!("{time}: {left} {arrow} {right} {kind} {verdict} ({summary}){by}{}", Why(flow))
}

/// The same in pieces: time, source, destination, type, verdict, summary. The ends stand as in the packet.
pub fn columns(flow: &Flow) -> [String; 6] {
    [
        Time(flow.time).to_string(),
        End(&flow.source).to_string(),
        End(&flow.destination).to_string(),
        format!("{}{}{}", Kind(flow), By(flow.drop.as_ref()), Why(flow)),
        verdict(flow.verdict).to_owned(),
        summary(flow),
    ]
}

/// Layer 4 in a few words.
pub(crate) fn summary(flow: &Flow) -> String {
    Summary(flow).to_string()
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forwarded => "FORWARDED",
        Verdict::Dropped => "DROPPED",
        Verdict::Audit => "AUDITED",
    }
}

/// Go's `time.StampMilli`, in UTC.
struct Time(i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_nanosecond(self.0.into()) {
            Ok(time) => time.strftime("%b %e %H:%M:%S.%3f").fmt(f),
            Err(_) => f.write_str("N/A"),
        }
    }
}

/// `host:port (identity)`.
struct End<'a>(&'a Peer);

impl fmt::Display for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Peer { address, port, identity, workload, .. } = self.0;
        match (workload, address, port) {
            (Some(name), _, Some(port)) => write!(f, "{name}:{port}")?,
            (Some(name), _, None) => name.fmt(f)?,
            (None, Some(address), Some(port)) => std::net::SocketAddr::new(*address, *port).fmt(f)?,
            (None, Some(address), None) => address.fmt(f)?,
            (None, None, _) => f.write_str("-")?,
        }
        match identity {
            None => f.write_str(" (unknown)"),
            Some(reserved) if is_reserved(*reserved) => write!(f, " ({reserved})"),
            Some(number) => write!(f, " (ID:{})", number.number()),
        }
    }
}

fn is_reserved(identity: Identity) -> bool {
    Identity::RESERVED.iter().any(|(reserved, _)| *reserved == identity)
}

/// What kind of event: a drop's reason, or where the packet was seen.
struct Kind<'a>(&'a Flow);

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flow { verdict, direction, drop, .. } = self.0;
        match &self.0.l7 {
            Some(L7Flow::Http(HttpFlow { kind: HttpKind::Request, .. })) => {
                return f.write_str("http-request");
            }
            Some(L7Flow::Http(HttpFlow { kind: HttpKind::Response, .. })) => {
                return f.write_str("http-response");
            }
            Some(L7Flow::Tls(_)) => return f.write_str("tls-hello"),
            None => {}
        }
        match (verdict, direction, drop) {
            (Verdict::Audit, TrafficDirection::Ingress, _) => f.write_str("policy-verdict:none INGRESS"),
            (Verdict::Audit, TrafficDirection::Egress, _) => f.write_str("policy-verdict:none EGRESS"),
            (_, _, Some(drop)) => f.write_str(&drop.text),
            (_, TrafficDirection::Ingress, None) => f.write_str("to-endpoint"),
            (_, TrafficDirection::Egress, None) => f.write_str("from-endpoint"),
        }
    }
}

/// Layer 4 in a few words, as Hubble's parser writes them.
struct Summary<'a>(&'a Flow);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.0.drop.as_ref().map(|drop| drop.text.as_str());
        match &self.0.l7 {
            // No request: a connection that is none of HTTP.
            Some(L7Flow::Http(http)) if http.method.is_empty() && http.kind == HttpKind::Request => {
                return f.write_str(why.unwrap_or("not HTTP"));
            }
            Some(L7Flow::Http(http)) => return Request(http).fmt(f),
            Some(L7Flow::Tls(tls)) => return Hello(tls, why).fmt(f),
            None => {}
        }
        let Flow { protocol, tcp_flags, icmp_type, .. } = *self.0;
        match (protocol, icmp_type) {
            (protocol::TCP, _) => write!(f, "TCP Flags: {}", TcpFlags(tcp_flags)),
            (protocol::ICMP, Some(number)) => write!(f, "ICMPv4 {}", icmp_name(protocol, number)),
            (protocol::ICMPV6, Some(number)) => write!(f, "ICMPv6 {}", icmp_name(protocol, number)),
            (number, _) => match protocol::name(number) {
                Some(name) => f.write_str(name),
                None => write!(f, "IP protocol {number}"),
            },
        }
    }
}

/// `HTTP/1.1 PUT http://…`, and of an answer `HTTP/1.1 403 0ms (PUT http://…)`.
struct Request<'a>(&'a HttpFlow);

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HttpFlow { kind, method, url, protocol, code, latency, note: _ } = self.0;
        // Clients and servers have chosen these: they must not command the terminal.
        let [method, url, protocol] = [method, url, protocol].map(|text| tame(text));
        match kind {
            HttpKind::Request => write!(f, "{protocol} {method} {url}"),
            HttpKind::Response => {
                let (code, milliseconds) = (code.unwrap_or(0), latency.unwrap_or(0) / 1_000_000);
                write!(f, "{protocol} {code} {milliseconds}ms ({method} {url})")
            }
        }
    }
}

/// `TLS a.example`, and where it does not pass why: `TLS a.example: no rule names this server`.
struct Hello<'a>(&'a TlsFlow, Option<&'a str>);

impl fmt::Display for Hello<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TLS")?;
        if let Some(name) = &self.0.server_name {
            write!(f, " {}", tame(name))?;
        }
        match self.1 {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

fn tame(text: &str) -> std::borrow::Cow<'_, str> {
    match text.chars().any(char::is_control) {
        true => text.escape_debug().to_string().into(),
        false => text.into(),
    }
}

/// Flags after commas, `none` of none.
pub(crate) struct TcpFlags(pub(crate) u8);

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set: Vec<_> =
            TCP_FLAGS.iter().filter(|(_, bit)| self.0 & bit != 0).map(|(name, _)| *name).collect();
        f.write_str(if set.is_empty() { "none" } else { "" })?;
        f.write_str(&set.join(", "))
    }
}

const ICMPV4_TYPES: [(u8, &str); 5] = [
    (0, "EchoReply"),
    (3, "DestinationUnreachable"),
    (8, "EchoRequest"),
    (11, "TimeExceeded"),
    (12, "ParameterProblem"),
];

const ICMPV6_TYPES: [(u8, &str); 10] = [
    (1, "DestinationUnreachable"),
    (2, "PacketTooBig"),
    (3, "TimeExceeded"),
    (4, "ParameterProblem"),
    (128, "EchoRequest"),
    (129, "EchoReply"),
    (133, "RouterSolicitation"),
    (134, "RouterAdvertisement"),
    (135, "NeighborSolicitation"),
    (136, "NeighborAdvertisement"),
];

/// Name of an ICMP type, or `type N`.
pub(crate) fn icmp_name(protocol: u8, number: u8) -> String {
    let types = if protocol == protocol::ICMP { &ICMPV4_TYPES[..] } else { &ICMPV6_TYPES };
    let known = types.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("type {number}"), |(_, name)| (*name).to_owned())
}

struct By<'a>(Option<&'a Drop>);

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policies = self.0.map_or(&[][..], |drop| &drop.policies);
        for (position, policy) in policies.iter().enumerate() {
            // The one name here that is not checked to be a DNS name: it must not command the terminal.
            let name = policy.to_string();
            write!(f, "{}{}", if position == 0 { " by " } else { ", " }, name.escape_debug())?;
        }
        Ok(())
    }
}

/// Why a proof was refused, or what else there is to say of a request.
struct Why<'a>(&'a Flow);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = self.0.l7.as_ref().and_then(|l7| l7.http()?.note.as_deref());
        match (self.0.authentication.as_ref().and_then(Authentication::refusal), note) {
            (Some(why), _) => write!(f, " ({why})"),
            (None, Some(note)) => write!(f, " ({note})"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mesh::auth::Refusal;
    use mesh::labels::LabelSet;
    use mesh::policy::{PolicyKind, PolicyName};

    use super::*;

    fn peer(address: &str, port: u16, identity: u32, name: &str, labels: &str) -> Peer {
        Peer {
            address: Some(address.parse().unwrap()),
            port: Some(port),
            identity: Identity::new(identity),
            workload: Some(name.parse().unwrap()),
            labels: labels.parse().unwrap(),
        }
    }

    /// The seed's line.
    pub(crate) fn dropped() -> Flow {
        let rule1 = PolicyName {
            kind: PolicyKind::CiliumNetworkPolicy,
            namespace: Some("default".to_owned()),
            name: "rule1".to_owned(),
        };
        Flow {
            time: 1_698_333_346_416_000_000,
            node: "node-1".to_owned(),
            verdict: Verdict::Dropped,
            drop: Some(Drop { reason: 133, text: "Policy denied".to_owned(), policies: vec![rule1] }),
            direction: TrafficDirection::Ingress,
            source: peer("10.1.0.3", 49_446, 13_058, "xwing", "org=alliance,class=xwing"),
            destination: peer("10.1.0.1", 80, 17_839, "deathstar", "org=empire,class=deathstar"),
            protocol: protocol::TCP,
            tcp_flags: 2,
            icmp_type: None,
            is_reply: None,
            length: 74,
            interface: "fm1".to_owned(),
            authentication: None,
            l7: None,
            trace: false,
        }
    }

    /// The seed's request.
    pub(crate) fn request() -> Flow {
        let http = HttpFlow {
            kind: HttpKind::Request,
            method: "PUT".to_owned(),
            url: "http://deathstar.default.svc.cluster.local/v1/exhaust-port".to_owned(),
            protocol: "HTTP/1.1".to_owned(),
            code: None,
            latency: None,
            note: None,
        };
        let source = peer("10.1.0.2", 49_920, 56_650, "tiefighter", "org=empire,class=tiefighter");
        Flow {
            source,
            l7: Some(L7Flow::Http(http)),
            is_reply: Some(false),
            tcp_flags: 0,
            length: 0,
            ..dropped()
        }
    }

    /// The answer to it.
    pub(crate) fn response() -> Flow {
        let asked = request();
        let http = HttpFlow {
            kind: HttpKind::Response,
            code: Some(403),
            latency: Some(400_000),
            ..asked.l7.as_ref().and_then(L7Flow::http).unwrap().clone()
        };
        Flow {
            verdict: Verdict::Forwarded,
            drop: None,
            source: asked.destination,
            destination: asked.source,
            is_reply: Some(true),
            l7: Some(L7Flow::Http(http)),
            ..dropped()
        }
    }

    /// TLS that no rule lets pass.
    pub(crate) fn hello(server_name: Option<&str>) -> Flow {
        let text = server_name.map_or("no server name", |_| "no rule names this server").to_owned();
        let drop = dropped().drop.map(|drop| Drop { text, ..drop });
        let tls = TlsFlow { server_name: server_name.map(str::to_owned) };
        Flow { l7: Some(L7Flow::Tls(tls)), drop, ..request() }
    }

    #[test]
    fn tls_is_told_with_the_servers_name_and_why_it_does_not_pass() {
        let ends =
            "Oct 26 15:15:46.416: default/tiefighter:49920 (ID:56650) -> default/deathstar:80 (ID:17839)";
        let (named, unnamed) = (hello(Some("a.example")), hello(None));
        assert_eq!(
            plain(&named),
            format!("{ends} tls-hello DROPPED (TLS a.example: no rule names this server) by default/rule1")
        );
        assert_eq!(
            plain(&unnamed),
            format!("{ends} tls-hello DROPPED (TLS: no server name) by default/rule1")
        );
        let passed = Flow { verdict: Verdict::Forwarded, drop: None, ..named };
        assert_eq!(plain(&passed), format!("{ends} tls-hello FORWARDED (TLS a.example)"));
    }

    #[test]
    fn requests_are_told_as_hubble_tells_them() {
        let ends = |arrow| {
            format!(
                "Oct 26 15:15:46.416: default/tiefighter:49920 (ID:56650) {arrow} default/deathstar:80 (ID:17839)"
            )
        };
        let url = "http://deathstar.default.svc.cluster.local/v1/exhaust-port";
        let (out, back) = (ends("->"), ends("<-"));
        let by = " by default/rule1";
        assert_eq!(plain(&request()), format!("{out} http-request DROPPED (HTTP/1.1 PUT {url}){by}"));
        assert_eq!(
            plain(&response()),
            format!("{back} http-response FORWARDED (HTTP/1.1 403 0ms (PUT {url}))")
        );
        let of = |change: fn(HttpFlow) -> HttpFlow| {
            let l7 = request().l7.map(|l7| L7Flow::Http(change(l7.http().unwrap().clone())));
            Flow { l7, ..request() }
        };
        let note = |http| HttpFlow { note: Some("header other than it should be".to_owned()), ..http };
        let noted = Flow { verdict: Verdict::Forwarded, drop: None, ..of(note) };
        assert_eq!(
            plain(&noted),
            format!("{out} http-request FORWARDED (HTTP/1.1 PUT {url}) (header other than it should be)")
        );
        let none = of(|http| HttpFlow { method: String::new(), url: String::new(), ..http });
        assert_eq!(plain(&none), format!("{out} http-request DROPPED (Policy denied){by}"));
        let odd = of(|http| HttpFlow { url: "http://a/\u{1b}[2J".to_owned(), ..http });
        assert!(!plain(&odd).contains('\u{1b}'), "{}", plain(&odd));
    }

    pub(crate) fn forwarded() -> Flow {
        Flow { verdict: Verdict::Forwarded, drop: None, is_reply: Some(false), ..dropped() }
    }

    fn outside(address: &str, port: Option<u16>, identity: Option<Identity>) -> Peer {
        let labels = LabelSet::new();
        Peer { address: Some(address.parse().unwrap()), port, identity, workload: None, labels }
    }

    fn plain(flow: &Flow) -> String {
        line(flow, |_, word| word.to_owned())
    }

    #[test]
    fn lines_are_hubbles() {
        let icmp = |protocol, icmp_type, address: &str| Flow {
            protocol,
            icmp_type: Some(icmp_type),
            source: outside(address, None, Some(Identity::HOST)),
            destination: Peer { port: None, ..dropped().destination },
            ..forwarded()
        };
        let cases = [
            (
                dropped(),
                "Oct 26 15:15:46.416: default/xwing:49446 (ID:13058) <> default/deathstar:80 (ID:17839) \
                 Policy denied DROPPED (TCP Flags: SYN) by default/rule1",
            ),
            (
                Flow {
                    drop: Some(Drop {
                        reason: 235,
                        text: "Authentication refused".to_owned(),
                        policies: dropped().drop.unwrap().policies,
                    }),
                    authentication: Some(Authentication::Refused {
                        reason: Refusal::Expired,
                        id: Some("spiffe://mesh/ns/default/sa/xwing".parse().unwrap()),
                        shown: None,
                    }),
                    ..dropped()
                },
                "Oct 26 15:15:46.416: default/xwing:49446 (ID:13058) <> default/deathstar:80 (ID:17839) \
                 Authentication refused DROPPED (TCP Flags: SYN) by default/rule1 \
                 (the certificate has expired: spiffe://mesh/ns/default/sa/xwing)",
            ),
            (
                forwarded(),
                "Oct 26 15:15:46.416: default/xwing:49446 (ID:13058) -> default/deathstar:80 (ID:17839) \
                 to-endpoint FORWARDED (TCP Flags: SYN)",
            ),
            (
                // A reply: the packet runs from deathstar to xwing, the line from xwing to deathstar.
                Flow {
                    source: dropped().destination,
                    destination: dropped().source,
                    is_reply: Some(true),
                    tcp_flags: 0b1_0010,
                    direction: TrafficDirection::Egress,
                    ..forwarded()
                },
                "Oct 26 15:15:46.416: default/xwing:49446 (ID:13058) <- default/deathstar:80 (ID:17839) \
                 from-endpoint FORWARDED (TCP Flags: SYN, ACK)",
            ),
            (
                Flow { verdict: Verdict::Audit, is_reply: Some(false), ..dropped() },
                "Oct 26 15:15:46.416: default/xwing:49446 (ID:13058) -> default/deathstar:80 (ID:17839) \
                 policy-verdict:none INGRESS AUDITED (TCP Flags: SYN) by default/rule1",
            ),
            (
                icmp(protocol::ICMP, 8, "192.0.2.1"),
                "Oct 26 15:15:46.416: 192.0.2.1 (host) -> default/deathstar (ID:17839) to-endpoint FORWARDED \
                 (ICMPv4 EchoRequest)",
            ),
            (
                icmp(protocol::ICMPV6, 2, "2001:db8::1"),
                "Oct 26 15:15:46.416: 2001:db8::1 (host) -> default/deathstar (ID:17839) to-endpoint FORWARDED \
                 (ICMPv6 PacketTooBig)",
            ),
            (
                Flow {
                    source: outside("2001:db8::1", Some(53), Some(Identity::WORLD_IPV6)),
                    destination: outside("fd00::9", Some(5353), None),
                    protocol: protocol::UDP,
                    drop: Some(Drop { reason: 231, text: "No such endpoint".to_owned(), policies: vec![] }),
                    time: 1_701_765_000_007_999_999,
                    ..dropped()
                },
                "Dec  5 08:30:00.007: [2001:db8::1]:53 (world-ipv6) <> [fd00::9]:5353 (unknown) \
                 No such endpoint DROPPED (UDP)",
            ),
            (
                Flow {
                    source: Peer { address: None, port: None, ..dropped().source },
                    destination: Peer { address: None, workload: None, ..outside("::", None, None) },
                    protocol: 47,
                    ..dropped()
                },
                "Oct 26 15:15:46.416: default/xwing (ID:13058) <> - (unknown) Policy denied DROPPED \
                 (IP protocol 47) by default/rule1",
            ),
        ];
        for (flow, expected) in cases {
            assert_eq!(plain(&flow), expected);
        }
    }

    #[test]
    fn only_the_verdict_is_painted() {
        let painted = line(&forwarded(), |verdict, word| format!("<{verdict:?}|{word}>"));
        assert!(painted.contains(" to-endpoint <Forwarded|FORWARDED> (TCP Flags: SYN)"), "{painted}");
    }

    #[test]
    fn all_tcp_flags_in_hubbles_order_and_none() {
        assert_eq!(TcpFlags(0xff).to_string(), "SYN, ACK, RST, FIN, PSH, URG, ECE, CWR");
        assert_eq!(TcpFlags(0).to_string(), "none");
    }
}
