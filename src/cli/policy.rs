//! `ferromesh policy`: what is in force, what is broken, and may A reach B?

use std::process::ExitCode;
use std::str::FromStr;

use mesh::policy::protocol;
use node_api::{PolicyView, Reply, Request, Trace, TraceQuery};

use super::output::{FormatArg, Paint, Tone, plain};
use super::table::{Cell, table};
use super::{Agent, CliError};

/// Show policies, what is wrong with them, and what they decide.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List all policies: valid or not, whom they select, and what is wrong where.
    #[command(after_help = "\
Examples:
  ferromesh policy list
  ferromesh policy list -o json | jq '.[] | select(.valid | not) | .message'

An object that is not valid keeps its last valid version in force; the others are not affected.
`ferromesh analyze FILE...` checks files before they are put in place.")]
    List {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Ask whether one end may reach the other, and why.
    #[command(after_help = "\
Examples:
  ferromesh policy trace default/xwing default/deathstar:80/tcp
  ferromesh policy trace reserved:world default/deathstar:80
  ferromesh policy trace deathstar '[2001:db8::1]:53/udp'
  ferromesh policy trace reserved:host deathstar:8/icmp      An echo request: ICMP has a type for a port

Exit code 0 only if it is allowed.")]
    Trace {
        /// Workload `[namespace/]name`, address, or reserved identity.
        from: String,
        /// Likewise, with destination port and protocol (tcp if left out).
        #[arg(value_name = "TO:PORT[/PROTOCOL]")]
        to: Target,
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    match args.verb {
        Verb::List { format } => {
            let Reply::Policies(policies) = agent.ask(Request::Policies).await? else {
                return Err(CliError::Unexpected);
            };
            format.print(&policies, |paint| list(&policies, paint))
        }
        Verb::Trace { from, to: Target { to, port, protocol }, format } => {
            let query = TraceQuery { from, to, port, protocol };
            let Reply::Trace(trace) = agent.ask(Request::Trace(query)).await? else {
                return Err(CliError::Unexpected);
            };
            let printed = format.print(&trace, |paint| explanation(&trace, paint))?;
            Ok(if trace.allowed { printed } else { ExitCode::FAILURE })
        }
    }
}

fn list(policies: &[PolicyView], paint: Paint) -> String {
    let row = |view: &PolicyView| {
        let valid = if view.valid { (Tone::Good, "True") } else { (Tone::Bad, "False") };
        [
            Cell::toned(valid.0, valid.1),
            view.policy.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string).into(),
            view.policy.as_ref().map_or("-", |name| name.kind.as_str()).into(),
            view.selected.into(),
            // One cell: `file:line message` is what compilers print and editors jump to.
            format!("{} {}", view.location, view.message).into(),
        ]
    };
    table(
        ["VALID", "POLICY", "KIND", "SELECTS", "LOCATION MESSAGE"],
        policies.iter().map(row).collect(),
        paint,
    )
}

/// The agent's lines, which begin with the verdict they explain, the one that decided first.
fn explanation(trace: &Trace, paint: Paint) -> String {
    let line = |line: &String| {
        let line = plain(line);
        let verdicts = [(Tone::Good, "allowed"), (Tone::Bad, "denied")];
        let found =
            verdicts.into_iter().find_map(|(tone, word)| Some((tone, word, line.strip_prefix(word)?)));
        found.map_or_else(|| line.clone(), |(tone, word, rest)| paint.tint(tone, word) + rest) + "\n"
    };
    trace.lines.iter().map(line).collect()
}

/// The far end of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    to: String,
    port: u16,
    protocol: u8,
}

/// Protocols by the names people use here.
const PROTOCOLS: [(&str, u8); 5] = [
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("sctp", protocol::SCTP),
    ("icmp", protocol::ICMP),
    ("icmpv6", protocol::ICMPV6),
];

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage =
            || "expected TO:PORT[/PROTOCOL], as default/deathstar:80/tcp or [fd00::1]:53/udp".to_owned();
        let (to, service) = text.rsplit_once(':').ok_or_else(usage)?;
        let bare = to.strip_prefix('[').and_then(|to| to.strip_suffix(']')).unwrap_or(to);
        let (port, name) = service.split_once('/').unwrap_or((service, "tcp"));
        if bare.is_empty() || (bare == to && to.parse::<std::net::Ipv6Addr>().is_ok()) {
            return Err(usage());
        }
        let port = port.parse().map_err(|_| format!("port {port:?}: expected a number from 0 to 65535"))?;
        let found = PROTOCOLS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
        let protocol = found.map(|(_, number)| *number).ok_or_else(|| {
            format!("protocol {name:?}: expected one of {}", PROTOCOLS.map(|(known, _)| known).join(", "))
        })?;
        Ok(Self { to: bare.to_owned(), port, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn a_broken_policy_is_listed_with_place_and_cure() {
        let text = list(&golden::policies(), Paint::NONE);
        golden("policy-list", &text);
        golden("policy-list.json", &serde_json::to_string_pretty(&golden::policies()).unwrap());
        let promised = "rule1.yaml:12 spec.ingress[0].fromEndpoint: unknown, did you mean fromEndpoints; \
                        previous version in force";
        assert!(text.contains(promised), "{text}");
    }

    #[test]
    fn a_trace_is_told_in_the_agents_lines() {
        let lines = [
            "denied: rule1 selects deathstar, no rule matches org=alliance",
            "  rule1 allows org=empire at 80/TCP: other peer",
            "allowed: no policy restricts egress of xwing",
        ];
        let trace = Trace { allowed: false, lines: lines.map(str::to_owned).to_vec() };
        golden("policy-trace", &explanation(&trace, Paint::NONE));
        golden("policy-trace.json", &serde_json::to_string_pretty(&trace).unwrap());
    }

    #[test]
    fn targets_are_read_and_mistakes_explained() {
        let target = |to: &str, port, protocol| Ok(Target { to: to.to_owned(), port, protocol });
        let usage = "expected TO:PORT[/PROTOCOL], as default/deathstar:80/tcp or [fd00::1]:53/udp";
        let cases = [
            ("default/deathstar:80/tcp", target("default/deathstar", 80, protocol::TCP)),
            ("deathstar:80", target("deathstar", 80, protocol::TCP)),
            ("[fd00::1]:53/UDP", target("fd00::1", 53, protocol::UDP)),
            ("reserved:host:8/icmp", target("reserved:host", 8, protocol::ICMP)),
            ("10.1.0.1:128/icmpv6", target("10.1.0.1", 128, protocol::ICMPV6)),
            ("deathstar", Err(usage.to_owned())),
            (":80", Err(usage.to_owned())),
            ("fd00::1:53", Err(usage.to_owned())),
            ("deathstar:http", Err("port \"http\": expected a number from 0 to 65535".to_owned())),
            (
                "deathstar:80/quic",
                Err("protocol \"quic\": expected one of tcp, udp, sctp, icmp, icmpv6".to_owned()),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Target>(), expected, "{text}");
        }
    }
}
