//! `ferromesh policy`: what is in force, what is broken, may A reach B, and what would an edit change?

mod changes;
mod get;
mod selectors;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use mesh::policy::{PortMatch, protocol};
use node_api::{Listed, PolicyView, PortRange, Reply, Request, Trace, TraceQuery, WhatIf};

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
    /// Show what policy comes to: the rules an endpoint is judged by, or a policy as it is understood.
    #[command(after_help = "\
Examples:
  ferromesh policy get deathstar             An endpoint of namespace default: the rules that its packets meet
  ferromesh policy get 3                     By number, as `endpoint list` shows it
  ferromesh policy get rule1                 A policy: whom it selects, what it allows, and who that is now
  ferromesh policy get cnp/default/rule1     KIND/NAMESPACE/NAME, where two kinds have one of this name
  ferromesh policy get                       All policies
  ferromesh policy get deathstar -o json | jq '.ingress.entries[] | select(.allow)'

A kind is netpol (NetworkPolicy), cnp (CiliumNetworkPolicy), ccnp (CiliumClusterwideNetworkPolicy) or endpoint (ep);
without a namespace, it is default. Where an endpoint and a policy have the same name, say which with the kind.
Of a list of identities the first 1000 are told, and how many there are in all.")]
    Get {
        /// `[endpoint/][NAMESPACE/]NAME` or number, or `[KIND/][NAMESPACE/]NAME` of a policy.
        #[arg(value_name = "ENDPOINT|POLICY")]
        what: Option<String>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// List all selectors that policies use, and the identities they mean now.
    #[command(after_help = "\
Examples:
  ferromesh policy selectors
  ferromesh policy selectors -o json | jq '.[] | select(.identities.total == 0) | .selector'   Who is meant by no one?

ROLE is subject (whom a rule is about: identities of this node's endpoints) or peer (with whom they may speak: anyone's
identities). USERS counts policies. Of a list of identities the first 1000 are told, and how many there are in all.")]
    Selectors {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Ask whether one end may reach the other, and why; and what an edit would change before it is made.
    #[command(after_help = "\
Examples:
  ferromesh policy trace default/xwing default/deathstar:80/tcp
  ferromesh policy trace reserved:world default/deathstar:80
  ferromesh policy trace deathstar '[2001:db8::1]:53/udp'
  ferromesh policy trace reserved:host deathstar:8/icmp      An echo request: ICMP has a type for a port
  ferromesh policy trace --with rule2.yaml                   What would this file change, for all endpoints?
  ferromesh policy trace --with rule2.yaml xwing deathstar:80    Would it be allowed then, and why?
  ferromesh policy trace --without cnp/default/rule1         What if this policy were gone?
  kubectl get cnp -o yaml rule2 | ferromesh policy trace --with -

With --with or --without, nothing is applied: the objects of FILE are laid over those in force (one of the same kind and
name is replaced, any other added; workloads, namespaces, services and the configuration count too), and the result is
planned as an edit would be. Without FROM and TO, each flow between an endpoint of this node and anyone it can meet
that would be judged otherwise is listed: at most 1000 rows, 50 names each; `-o json` has all of these, text the first 40
rows. What is judged on other nodes is not asked.

Exit code 0 only if it is allowed, be it after authentication; with --with and --without: if it would be; for the list
of changes 0 whatever it holds. 1 also if a file would not be accepted: then each error is told as `ferromesh analyze`
does.")]
    Trace {
        /// Workload `[namespace/]name`, address, or reserved identity.
        #[arg(required_unless_present_any = ["with", "without"], requires = "to")]
        from: Option<String>,
        /// Likewise, with destination port and protocol (tcp if left out).
        #[arg(value_name = "TO:PORT[/PROTOCOL]")]
        to: Option<Target>,
        /// File of objects that are not applied; `-` is standard input. May be given several times.
        #[arg(long, value_name = "FILE")]
        with: Vec<PathBuf>,
        /// Policy to be taken away, `[KIND/][NAMESPACE/]NAME`. May be given several times.
        #[arg(long, value_name = "POLICY")]
        without: Vec<String>,
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
        Verb::Get { what, format } => get::run(agent, what, &format).await,
        Verb::Selectors { format } => selectors::run(agent, &format).await,
        Verb::Trace { from, to, with, without, format } => {
            let trace = from.zip(to).map(|(from, Target { to, port, protocol })| TraceQuery {
                from,
                to,
                port,
                protocol,
            });
            match trace {
                Some(query) if with.is_empty() && without.is_empty() => {
                    trace_now(agent, query, &format).await
                }
                trace => {
                    let with = changes::read(&with)?;
                    changes::run(agent, WhatIf { with, without, trace }, &format).await
                }
            }
        }
    }
}

async fn trace_now(agent: &Agent, query: TraceQuery, format: &FormatArg) -> Result<ExitCode, CliError> {
    let Reply::Trace(trace) = agent.ask(Request::Trace(query)).await? else {
        return Err(CliError::Unexpected);
    };
    let printed = format.print(&trace, |paint| explanation(&trace, paint))?;
    Ok(if trace.allowed { printed } else { ExitCode::FAILURE })
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
        let verdicts = [
            (Tone::Good, "allowed, authentication required"),
            (Tone::Good, "allowed"),
            (Tone::Bad, "denied"),
        ];
        let found =
            verdicts.into_iter().find_map(|(tone, word)| Some((tone, word, line.strip_prefix(word)?)));
        found.map_or_else(|| line.clone(), |(tone, word, rest)| paint.tint(tone, word) + rest) + "\n"
    };
    trace.lines.iter().map(line).collect()
}

/// The far end of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) to: String,
    pub(super) port: u16,
    pub(super) protocol: u8,
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

/// The first of these, a line each, and how many more there are.
fn some<T: ToString>(listed: &Listed<T>, most: usize) -> String {
    let mut lines: Vec<String> = listed.items.iter().take(most).map(ToString::to_string).collect();
    if listed.total > lines.len() {
        lines.push(format!("and {} more", listed.total - lines.len()));
    }
    lines.join("\n")
}

/// `80/TCP`, `any but TCP`, `ICMP type 8`.
fn ports(range: &PortRange) -> String {
    let PortRange { protocol, except, first, last } = range;
    let named = |protocol: u8| PortMatch::Protocol(protocol).to_string();
    let whole = (*first, *last) == (0, u16::MAX);
    match *protocol {
        None if except.is_empty() => "any".to_owned(),
        None => format!(
            "any but {}",
            except.iter().map(|protocol| named(*protocol)).collect::<Vec<_>>().join(", ")
        ),
        Some(icmp @ (protocol::ICMP | protocol::ICMPV6)) => match (whole, first == last) {
            (true, _) => named(icmp),
            (false, true) => format!("{} type {first}", named(icmp)),
            (false, false) => format!("{} types {first}-{}", named(icmp), last.min(&255)),
        },
        Some(other) if protocol::WITH_PORTS.contains(&other) => {
            PortMatch::Range { protocol: Some(other), first: *first, last: *last }.to_string()
        }
        Some(other) => named(other),
    }
}

#[cfg(test)]
mod tests {
    use mesh::policy::Authentication;

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
        let trace = Trace {
            allowed: false,
            authentication: Authentication::None,
            lines: lines.map(str::to_owned).to_vec(),
        };
        golden("policy-trace", &explanation(&trace, Paint::NONE));
        golden("policy-trace.json", &serde_json::to_string_pretty(&trace).unwrap());
    }

    #[test]
    fn a_trace_tells_who_must_authenticate() {
        let lines = [
            "allowed, authentication required: by rule1, for tiefighter at 80/TCP",
            "  rule1 allows, once authenticated, org=empire at 80/TCP: matches",
            "allowed: no policy restricts egress of tiefighter",
        ];
        let trace = Trace {
            allowed: true,
            authentication: Authentication::Required,
            lines: lines.map(str::to_owned).to_vec(),
        };
        golden("policy-trace-authenticated", &explanation(&trace, Paint::NONE));
        golden("policy-trace-authenticated.json", &serde_json::to_string_pretty(&trace).unwrap());
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
