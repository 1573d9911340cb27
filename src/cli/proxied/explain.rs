//! `ferromesh proxy explain`.

use std::process::ExitCode;
use std::str::FromStr;

use mesh::flow::{TrafficDirection, Verdict};
use mesh::l7::{HeaderRule, HttpRule, Mismatch};
use node_api::proxy::{
    ExplainQuery, ExplainedEnd, KernelSays, KernelWay, ProxyExplained, ProxyGrant, ProxyJudge, ProxyNear,
    ProxyReading, ProxyReply, ProxyRule, ProxySays, SupposedRequest,
};
use node_api::{Reply, Request};

use super::super::output::{FormatArg, Paint, Tone};
use super::super::table::{Cell, fields};
use super::super::{Agent, CliError};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Who calls: workload `[namespace/]name`, address, or reserved identity.
    #[arg(long, value_name = "FROM")]
    from: String,
    /// Whom: the same, or a service: `name.namespace.svc` or its VIP.
    #[arg(long, value_name = "TO")]
    to: String,
    /// Destination port.
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// `Host`, or `:authority` of HTTP/2, with its port if it has one; if left out, the called address.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Header of the request. May be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<Header>,
    /// HTTP/2 and not HTTP/1.1.
    #[arg(long)]
    http2: bool,
    /// A call of gRPC: HTTP/2, with its content-type.
    #[arg(long)]
    grpc: bool,
    /// Method: `GET`.
    method: String,
    /// Path with its query.
    path: String,
    #[command(flatten)]
    format: FormatArg,
}

/// A header as it is written in a request.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Header(String, String);

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once(':').ok_or_else(|| "expected NAME: VALUE, as 'X-Role: pilot'".to_owned())?;
        Ok(Self(name.to_owned(), value.trim().to_owned()))
    }
}

pub(super) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let Args { from, to, port, host, headers, http2, grpc, method, path, format } = args;
    let mut headers: Vec<_> = headers.into_iter().map(|Header(name, value)| (name, value)).collect();
    if grpc && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        headers.push(("content-type".to_owned(), "application/grpc".to_owned()));
    }
    let asked = SupposedRequest { http2: http2 || grpc, method, path, host, headers };
    let query = Box::new(ExplainQuery { from, to, port, asked });
    let Reply::ProxyExplained(explained) = agent.ask(Request::ProxyExplain(query)).await? else {
        return Err(CliError::Unexpected);
    };
    let printed = format.print(&explained, |paint| text(&explained, paint))?;
    Ok(if explained.allowed { printed } else { ExitCode::FAILURE })
}

fn text(explained: &ProxyExplained, paint: Paint) -> String {
    let ProxyExplained { from, to, port, request, kernel, proxy, notes, .. } = explained;
    let called = end(to, Some(*port));
    let mut rows: Vec<(&str, Cell)> = vec![
        ("From", end(from, None).into()),
        ("To", called.into()),
        ("Request", sent(request).into()),
        ("Kernel", said_by_kernel(kernel)),
    ];
    for judge in proxy.iter().flat_map(|says| &says.judges) {
        let side = match judge.direction {
            TrafficDirection::Egress => "Egress",
            TrafficDirection::Ingress => "Ingress",
        };
        rows.push((side, said_by(judge).into()));
    }
    if let Some(says) = proxy {
        rows.extend(goes_on(says).map(|text| ("Server gets", text.into())));
    }
    rows.push(("Verdict", verdict(explained)));
    rows.extend(notes.iter().map(|note| ("Note", Cell::toned(Tone::Warning, note))));
    fields(rows, paint)
}

fn end(end: &ExplainedEnd, port: Option<u16>) -> String {
    let ExplainedEnd { name, address, identity, .. } = end;
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    match address.map(|address| address.to_string()) {
        Some(address) if address != *name => format!("{name}{port} ({address}, identity {identity})"),
        Some(_) | None => format!("{name}{port} (identity {identity})"),
    }
}

fn sent(request: &SupposedRequest) -> String {
    let SupposedRequest { http2, method, path, host, headers } = request;
    let protocol = if *http2 { "HTTP/2" } else { "HTTP/1.1" };
    let host = host.iter().map(|host| format!("Host: {host}"));
    let headers = headers.iter().map(|(name, value)| format!("{name}: {value}"));
    let lines = host.chain(headers).map(|line| format!("\n{line}")).collect::<String>();
    format!("{method} {path} {protocol}{lines}")
}

fn said_by_kernel(kernel: &KernelSays) -> Cell {
    let (tone, way) = match kernel.way {
        KernelWay::Proxy => (Tone::Plain, "the connection goes by the L7 proxy"),
        KernelWay::Direct => {
            (Tone::Plain, "the connection does not go by the L7 proxy: no request is judged")
        }
        KernelWay::Dropped => {
            (Tone::Bad, "the connection is not made: `ferromesh policy trace` says it, too")
        }
    };
    let lines = kernel.lines.iter().map(|line| format!("\n{line}")).collect::<String>();
    Cell::toned(tone, format!("{way}{lines}"))
}

fn said_by(judge: &ProxyJudge) -> String {
    let ProxyJudge { endpoint, workload, audit, grant, asked, reason, allowed, rules, .. } = judge;
    let whose = workload.clone().unwrap_or_else(|| format!("endpoint {endpoint}"));
    let rules = match rules {
        1 => "the one rule for this peer".to_owned(),
        count => format!("the {count} rules for this peer"),
    };
    let says = match (grant, allowed, reason) {
        (ProxyGrant::NoRules, ..) => "no rules of HTTP at this port".to_owned(),
        (ProxyGrant::Anything, ..) => "this peer may do anything".to_owned(),
        (ProxyGrant::Tls, _, None) => "TLS to named servers alone may pass".to_owned(),
        (_, _, Some(reason)) => format!("denied: {reason}"),
        (ProxyGrant::Http, Some(true), None) => "allowed".to_owned(),
        (ProxyGrant::Http, _, None) => format!("{rules} were not asked"),
        (ProxyGrant::Nothing, _, None) => "nothing may pass".to_owned(),
    };
    let audit = if *audit { " (audit mode: reported, not enforced)" } else { "" };
    let late = if *asked { "" } else { " (the request does not come so far)" };
    let mut lines = vec![format!("{whose}: {says}{audit}{late}")];
    lines.extend(judge.refused.iter().map(|why| format!("its latest rules are not in force: {why}")));
    lines.extend(judge.readings.iter().map(reading));
    if judge.readings.iter().any(|reading| reading.rule.is_none()) {
        lines.extend(judge.nearest.iter().map(near));
    }
    lines.extend(judge.edits.iter().map(|edit| format!("  {edit}")));
    lines.join("\n")
}

fn reading(reading: &ProxyReading) -> String {
    let ProxyReading { path, rule } = reading;
    let by = rule.as_ref().map_or_else(|| "by no rule".to_owned(), |it| format!("by {}", named(it)));
    format!("  {path}: {by}")
}

fn near(near: &ProxyNear) -> String {
    format!("    not by {}: other {}", named(&near.rule), near.differs.join(", "))
}

/// `default/rule1 http[0] (method POST, path /v1/request-landing)`.
fn named(rule: &ProxyRule) -> String {
    let places: Vec<_> =
        rule.places.iter().map(|place| format!("{} http[{}]", place.policy, place.http)).collect();
    let places = if places.is_empty() { "a rule".to_owned() } else { places.join(", ") };
    format!("{places} ({})", parts(&rule.rule))
}

fn parts(rule: &HttpRule) -> String {
    let HttpRule { path, method, host, headers } = rule;
    let named = [("method", method), ("path", path), ("host", host)];
    let named = named.into_iter().filter_map(|(name, part)| Some(format!("{name} {}", part.as_ref()?.0)));
    let headers = headers.iter().map(|HeaderRule { name, value, mismatch }| {
        let value = value.as_ref().map(|value| format!(": {value}")).unwrap_or_default();
        let mismatch = match mismatch {
            Mismatch::Deny => "",
            Mismatch::Log => ", or LOG",
            Mismatch::Add => ", or ADD",
            Mismatch::Delete => ", or DELETE",
            Mismatch::Replace => ", or REPLACE",
        };
        format!("header {name}{value}{mismatch}")
    });
    let parts: Vec<_> = named.chain(headers).collect();
    if parts.is_empty() { "any request".to_owned() } else { parts.join(", ") }
}

/// What goes to the server.
fn goes_on(says: &ProxySays) -> Option<String> {
    match (says.relayed, says.verdict, says.changed) {
        (_, Verdict::Dropped, _) => None,
        (true, ..) => Some("all bytes as they come: no request is looked at".to_owned()),
        (false, _, false) => Some("the request as it came".to_owned()),
        (false, _, true) => Some(says.forwarded.join("\n")),
    }
}

fn verdict(explained: &ProxyExplained) -> Cell {
    let Some(says) = &explained.proxy else {
        return match explained.allowed {
            true => Cell::toned(Tone::Good, "FORWARDED, not judged by this node's L7 proxy"),
            false => Cell::toned(Tone::Bad, "DROPPED by the kernel"),
        };
    };
    let reason = says.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match says.verdict {
        Verdict::Forwarded => Cell::toned(Tone::Good, format!("FORWARDED{reason}")),
        Verdict::Audit => Cell::toned(Tone::Warning, format!("AUDIT, forwarded all the same{reason}")),
        Verdict::Dropped => Cell::toned(Tone::Bad, format!("DROPPED{reason}\n{}", answered(says))),
    }
}

fn answered(says: &ProxySays) -> String {
    match &says.answer {
        Some(ProxyReply { status, grpc_status: Some(grpc), body }) => {
            format!("answered {status}, grpc-status {grpc} ({body})")
        }
        Some(ProxyReply { status, grpc_status: None, body }) => format!("answered {status} ({body})"),
        None => "closed, or the stream reset, without an answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mesh::l7::Expression;
    use mesh::workload::EndpointId;
    use node_api::proxy::RulePlace;

    use super::super::super::golden::{golden, identity, policy};
    use super::*;

    fn rule(method: &str, path: &str, http: usize) -> ProxyRule {
        let part = |text: &str| Some(Expression(text.to_owned()));
        let rule = HttpRule { method: part(method), path: part(path), ..HttpRule::default() };
        ProxyRule { rule, places: vec![RulePlace { policy: policy("rule1"), http }] }
    }

    fn judge(direction: TrafficDirection, grant: ProxyGrant) -> ProxyJudge {
        let workload = match direction {
            TrafficDirection::Egress => "default/tiefighter",
            TrafficDirection::Ingress => "default/deathstar",
        };
        ProxyJudge {
            endpoint: EndpointId::new(3).unwrap(),
            workload: Some(workload.to_owned()),
            direction,
            audit: false,
            grant,
            asked: true,
            reason: None,
            allowed: Some(true),
            readings: Vec::new(),
            edits: Vec::new(),
            nearest: Vec::new(),
            rules: 0,
            refused: None,
        }
    }

    fn explained(method: &str, path: &str, says: Option<ProxySays>) -> ProxyExplained {
        let end = |name: &str, number: u32, last| ExplainedEnd {
            name: name.to_owned(),
            address: Some([10, 1, 0, last].into()),
            identity: identity(number),
            here: true,
        };
        let way = if says.is_some() { KernelWay::Proxy } else { KernelWay::Dropped };
        let line = match way {
            KernelWay::Proxy => "allowed, by HTTP rules: by rule1, for tiefighter at 80/TCP",
            KernelWay::Direct | KernelWay::Dropped => {
                "denied: rule1 selects deathstar, no rule matches org=alliance"
            }
        };
        ProxyExplained {
            allowed: says.as_ref().is_some_and(|says| says.verdict != Verdict::Dropped),
            from: end("default/tiefighter", 56_650, 7),
            to: end("default/deathstar", 17_839, 3),
            port: 80,
            request: SupposedRequest {
                http2: false,
                method: method.to_owned(),
                path: path.to_owned(),
                host: Some("10.1.0.3".to_owned()),
                headers: vec![("X-Role".to_owned(), "guest".to_owned())],
            },
            kernel: KernelSays { way, lines: vec![line.to_owned()] },
            proxy: says,
            notes: Vec::new(),
        }
    }

    fn says(verdict: Verdict, judges: Vec<ProxyJudge>) -> ProxySays {
        ProxySays {
            client_identity: Some(identity(56_650)),
            server_identity: Some(identity(17_839)),
            verdict,
            reason: None,
            by: None,
            answer: None,
            relayed: false,
            forwarded: Vec::new(),
            changed: false,
            judges,
        }
    }

    fn both(name: &str, explained: &ProxyExplained) {
        golden(name, &text(explained, Paint::NONE));
        golden(&format!("{name}.json"), &serde_json::to_string_pretty(explained).unwrap());
    }

    #[test]
    fn what_passes_is_told_with_its_rules_and_what_is_changed() {
        let by = |path: &str| ProxyReading { path: path.to_owned(), rule: Some(rule("POST", "/v1/.*", 0)) };
        let ingress = ProxyJudge {
            readings: vec![by("/v1/a%2Fb"), by("/v1/a/b")],
            edits: vec!["- x-role".to_owned(), "+ x-role: pilot".to_owned()],
            rules: 1,
            ..judge(TrafficDirection::Ingress, ProxyGrant::Http)
        };
        let judges = vec![judge(TrafficDirection::Egress, ProxyGrant::NoRules), ingress];
        let forwarded = ["POST /v1/a%2Fb HTTP/1.1", "Host: 10.1.0.3", "x-role: pilot"];
        let forwarded = forwarded.map(str::to_owned).to_vec();
        let says = ProxySays { changed: true, forwarded, ..says(Verdict::Forwarded, judges) };
        both("proxy-explain", &explained("POST", "/v1/./a%2Fb", Some(says)));
    }

    #[test]
    fn a_denial_is_told_with_the_rules_that_come_near() {
        let reason = Some("no rule lets it through".to_owned());
        let egress = ProxyJudge {
            allowed: Some(false),
            reason: reason.clone(),
            readings: vec![ProxyReading { path: "/v1/exhaust-port".to_owned(), rule: None }],
            nearest: vec![ProxyNear {
                rule: rule("POST", "/v1/request-landing", 0),
                differs: vec!["method".to_owned(), "path".to_owned()],
            }],
            rules: 1,
            ..judge(TrafficDirection::Egress, ProxyGrant::Http)
        };
        let ingress = ProxyJudge {
            asked: false,
            refused: Some("ingress.ports[0].access[0].http[2].path: too long".to_owned()),
            ..judge(TrafficDirection::Ingress, ProxyGrant::Anything)
        };
        let answer = ProxyReply { status: 403, grpc_status: None, body: "Access denied".to_owned() };
        let by = Some(TrafficDirection::Egress);
        let says =
            ProxySays { reason, by, answer: Some(answer), ..says(Verdict::Dropped, vec![egress, ingress]) };
        let notes = vec!["default/deathstar is not on this node".to_owned()];
        let told = ProxyExplained { notes, ..explained("PUT", "/v1/exhaust-port", Some(says)) };
        both("proxy-explain-denied", &told);
    }

    #[test]
    fn what_does_not_come_to_the_proxy_is_said_to_be_the_kernels() {
        both("proxy-explain-kernel", &explained("GET", "/", None));
    }

    #[test]
    fn headers_are_read_as_they_are_written() {
        let header = |name: &str, value: &str| Ok(Header(name.to_owned(), value.to_owned()));
        assert_eq!("X-Role: pilot".parse(), header("X-Role", "pilot"));
        assert_eq!("x:a:b".parse(), header("x", "a:b"));
        assert_eq!("x".parse::<Header>(), Err("expected NAME: VALUE, as 'X-Role: pilot'".to_owned()));
    }
}
