//! `ferromesh auth`: who is authenticated to whom, with what, and why not.

use std::process::ExitCode;

use jiff::Timestamp;
use node_api::auth::{AuthQuestion, AuthWhy, CertificateView, NodeView, PairState, PairView};
use node_api::{Reply, Request, TraceQuery};

use super::output::{FormatArg, Paint, Tone, write};
use super::policy::Target;
use super::table::{Cell, table};
use super::{Agent, CliError};

/// Show who is authenticated to whom, with which certificates, and why not; let nodes join.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the certificates this node holds or wants: its own, and those of its workloads.
    #[command(after_help = "\
Examples:
  ferromesh auth list
  ferromesh auth list -o json | jq '.[] | select(.serial == null) | {id, problem}'

A certificate is renewed when half of its life is over; that costs no connection.")]
    List {
        #[command(flatten)]
        format: FormatArg,
    },
    /// List pairs of endpoints that policy requires to authenticate, and what has come of it.
    #[command(after_help = "\
Examples:
  ferromesh auth pairs
  ferromesh auth pairs -o json | jq '.[] | select(.state != \"proven\")'

A pair that is idle is tried with its first packet, which waits for that. One that was refused is tried again with the
next packet, a few seconds later.")]
    Pairs {
        #[command(flatten)]
        format: FormatArg,
    },
    /// List the nodes of the mesh: which there is a session with, and how long their word is good for.
    #[command(after_help = "\
Examples:
  ferromesh auth nodes
  ferromesh auth nodes -o json | jq '.[] | select(.connected | not) | {name, problem}'

LEASE is how long marks live on without a word of that node; it is extended every second.")]
    Nodes {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Ask whether two ends are authenticated to each other and, if not, which step failed and what to do.
    #[command(after_help = "\
Examples:
  ferromesh auth why tiefighter deathstar:80
  ferromesh auth why default/tiefighter default/deathstar:80/tcp
  ferromesh auth why tiefighter deathstar:80 -o json | jq '.steps[] | select(.ok | not)'

Ask on the node of one of the two. Exit code 0 only if all steps hold.")]
    Why {
        /// Workload `[namespace/]name`, or address.
        from: String,
        /// Likewise, with destination port and protocol (tcp if left out).
        #[arg(value_name = "TO:PORT[/PROTOCOL]")]
        to: Target,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Print a token by which another node can get its first certificate from this node's CA.
    #[command(after_help = "\
Example:
  sudo ferromesh auth token node-2 > join-token     Then, on node-2: joinTokenFile in its configuration

Good once, for an hour, for that node alone; a Node object of that name must be there.")]
    Token {
        /// Name of the node that is to join.
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Print the roots of this node's CA, for other nodes to trust.
    #[command(after_help = "\
Example:
  ferromesh auth bundle > bundle.pem     Then, on another node: trustBundleFile in its configuration")]
    Bundle,
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    match args.verb {
        Verb::List { format } => {
            let rows = |reply| match reply {
                Reply::Certificates(rows) => Some(rows),
                _ => None,
            };
            let rows = agent.rows(Request::Auth(AuthQuestion::Certificates), rows).await?;
            format.print(&rows, |paint| certificates(&rows, Timestamp::now().as_second(), paint))
        }
        Verb::Pairs { format } => {
            let rows = |reply| match reply {
                Reply::Pairs(rows) => Some(rows),
                _ => None,
            };
            let rows = agent.rows(Request::Auth(AuthQuestion::Pairs), rows).await?;
            format.print(&rows, |paint| pairs(&rows, paint))
        }
        Verb::Nodes { format } => {
            let rows = |reply| match reply {
                Reply::Nodes(rows) => Some(rows),
                _ => None,
            };
            let rows = agent.rows(Request::Auth(AuthQuestion::Nodes), rows).await?;
            format.print(&rows, |paint| nodes(&rows, paint))
        }
        Verb::Why { from, to: Target { to, port, protocol }, format } => {
            let query = TraceQuery { from, to, port, protocol };
            let Reply::AuthWhy(why) = agent.ask(Request::AuthWhy(query)).await? else {
                return Err(CliError::Unexpected);
            };
            let printed = format.print(&why, |paint| explanation(&why, paint))?;
            Ok(if why.ok { printed } else { ExitCode::FAILURE })
        }
        Verb::Token { node } => print(agent, Request::JoinToken { node }).await,
        Verb::Bundle => print(agent, Request::TrustBundle).await,
    }
}

async fn print(agent: &Agent, request: Request) -> Result<ExitCode, CliError> {
    let Reply::Text(text) = agent.ask(request).await? else { return Err(CliError::Unexpected) };
    write(&format!("{}\n", text.trim_end()))?;
    Ok(ExitCode::SUCCESS)
}

fn certificates(rows: &[CertificateView], now: i64, paint: Paint) -> String {
    let row = |view: &CertificateView| {
        let workloads: Vec<_> = view.workloads.iter().map(ToString::to_string).collect();
        let ends =
            view.expires.map_or_else(|| Cell::from("-"), |expires| ends_in(expires.saturating_sub(now)));
        let problem =
            view.problem.as_deref().map_or_else(|| Cell::from(""), |text| Cell::toned(Tone::Bad, text));
        let of = if workloads.is_empty() { "this node".to_owned() } else { workloads.join("\n") };
        [(&view.id).into(), view.serial.as_deref().unwrap_or("-").into(), ends, of.into(), problem]
    };
    table(["SPIFFE ID", "SERIAL", "ENDS IN", "OF", "PROBLEM"], rows.iter().map(row).collect(), paint)
}

fn ends_in(seconds: i64) -> Cell {
    match u64::try_from(seconds) {
        Ok(seconds @ 1..) => span(seconds).into(),
        _ => Cell::toned(Tone::Bad, "ended"),
    }
}

fn pairs(rows: &[PairView], paint: Paint) -> String {
    let row = |view: &PairView| {
        let end = |workload, node: &str, id| format!("{workload} ({node})\n{id}");
        let state = match view.state {
            PairState::Idle => Cell::from("idle"),
            PairState::Proving => Cell::toned(Tone::Warning, "proving"),
            PairState::Proven => Cell::toned(Tone::Good, "proven"),
            PairState::Refused => Cell::toned(Tone::Bad, "refused"),
        };
        let mark = if view.mark == 0 { "-".to_owned() } else { view.mark.to_string() };
        let why = view.detail.clone().or_else(|| Some(view.refusal?.text().to_owned()));
        [
            end(&view.local_workload, &view.local.node, &view.local_id).into(),
            end(&view.remote_workload, &view.remote.node, &view.remote_id).into(),
            state,
            mark.into(),
            view.expires_in.map_or_else(|| "-".to_owned(), span).into(),
            why.unwrap_or_default().into(),
        ]
    };
    let heading = ["LOCAL", "PEER", "STATE", "MARK", "ENDS IN", "REASON"];
    table(heading, rows.iter().map(row).collect(), paint)
}

fn nodes(rows: &[NodeView], paint: Paint) -> String {
    let row = |view: &NodeView| {
        let session = match view.connected {
            true => Cell::toned(Tone::Good, "connected"),
            false => Cell::toned(Tone::Bad, "not connected"),
        };
        let lease = match view.lease {
            0 => Cell::toned(Tone::Bad, "ended"),
            milliseconds => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100).into(),
        };
        [
            view.name.as_str().into(),
            session,
            view.address.map_or_else(|| "-".to_owned(), |address| address.to_string()).into(),
            lease,
            view.marks.into(),
            (&view.id).into(),
            view.problem.as_deref().unwrap_or_default().into(),
        ]
    };
    let heading = ["NODE", "SESSION", "ADDRESS", "LEASE", "MARKS", "SPIFFE ID", "PROBLEM"];
    table(heading, rows.iter().map(row).collect(), paint)
}

fn explanation(why: &AuthWhy, paint: Paint) -> String {
    let row = |step: &node_api::auth::AuthStep| {
        let sign = if step.ok { Cell::toned(Tone::Good, "✓") } else { Cell::toned(Tone::Bad, "✗") };
        [sign, step.step.as_str().into(), step.text.as_str().into()]
    };
    super::table::rows(why.steps.iter().map(row).collect(), paint)
}

/// A time in its two largest units.
pub(super) fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let largest = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(units.len() - 1);
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, name) in units.iter().skip(largest).take(2) {
        if rest >= *unit || text.is_empty() {
            text.push_str(&format!("{}{name}", rest / unit));
        }
        rest %= unit;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    /// 2026-01-01T00:00:00Z.
    const NOW: i64 = 1_767_225_600;

    #[test]
    fn certificates_are_listed_with_their_ends_and_what_is_wrong() {
        golden("auth-list", &certificates(&golden::certificates(NOW), NOW, Paint::NONE));
        golden("auth-list.json", &serde_json::to_string_pretty(&golden::certificates(NOW)).unwrap());
    }

    #[test]
    fn pairs_are_listed_with_both_ends_and_why_they_are_not_proven() {
        golden("auth-pairs", &pairs(&golden::pairs(), Paint::NONE));
        golden("auth-pairs.json", &serde_json::to_string_pretty(&golden::pairs()).unwrap());
    }

    #[test]
    fn nodes_are_listed_with_their_leases() {
        golden("auth-nodes", &nodes(&golden::auth_nodes(), Paint::NONE));
        golden("auth-nodes.json", &serde_json::to_string_pretty(&golden::auth_nodes()).unwrap());
    }

    #[test]
    fn each_step_of_why_is_a_line() {
        golden("auth-why", &explanation(&golden::why(), Paint::NONE));
        golden("auth-why.json", &serde_json::to_string_pretty(&golden::why()).unwrap());
    }

    #[test]
    fn times_are_told_in_two_units() {
        let cases = [(0, "0s"), (59, "59s"), (60, "1m"), (3_120, "52m"), (3_725, "1h2m"), (90_061, "1d1h")];
        for (seconds, text) in cases {
            assert_eq!(span(seconds), text);
        }
    }
}
