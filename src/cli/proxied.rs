//! `ferromesh proxy`: what goes by the node's L7 proxy, what workloads have of it, what it would say of a request, and
//! another process in its place.

mod budgets;
mod explain;

use std::process::ExitCode;

use node_api::proxy::{ProxyConnection, ProxyRestarted};
use node_api::{Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::{Cell, table};
use super::{Agent, CliError};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// List the connections that the L7 proxy stands in: who opened them to whom, and how much was asked.
    #[command(after_help = "\
Examples:
  ferromesh proxy connections
  ferromesh proxy connections -o json | jq '.[] | select(.requests == 0) | {client, server, age}'

UPSTREAM is the address of the proxy's own connection to the server, whose source is the client's; there is none before
the first request that may pass. PROXY says which process it is with: the one that takes connections, or one before it
that ends with those it has. Requests themselves: ferromesh observe --protocol http.")]
    Connections {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show what workloads have of the L7 proxy, as much as each could have, and how often one was refused more.
    #[command(after_help = "\
Examples:
  ferromesh proxy budgets
  ferromesh proxy budgets -o json | jq '.[] | select(.connections.refused > 0) | .workload'

Each cell is what is used of what could be, on all workers together. Nobody may have more of anything than is left of it for
others, so the bound of each falls as others take more. HEADS are heads of requests that are not all there, STREAMS those of
HTTP/2, BUFFERS what is buffered of HTTP/1.1 and relays beyond 4 KB each. REFUSED counts since the process began:
those requests were answered 429 or 503, those connections closed. A workload is here that has a connection, or was refused
something; the last row of each process is all of them together. PROXY is as in `ferromesh proxy connections`.")]
    Budgets {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Ask the running L7 proxy what it would do with a request, and why. Nothing is sent.
    #[command(after_help = "\
Examples:
  ferromesh proxy explain --from tiefighter --to deathstar POST /v1/request-landing
  ferromesh proxy explain --from default/tiefighter --to default/deathstar PUT /v1/exhaust-port
  ferromesh proxy explain --from xwing --to deathstar.default.svc --port 8080 --host deathstar -H 'X-Role: pilot' GET '/a?b=c'
  ferromesh proxy explain --from tiefighter --to deathstar --grpc POST /ships.Port/Land
  ferromesh proxy explain --from reserved:world --to 10.1.0.3 GET / -o json | jq .proxy.judges

The request goes through the stages that real ones go through, by the rules that are in force: who the ends are, the forms
of its path, the rules of either end, changes of headers. A rule is named by its policy and its number in rules.http, from 0.
Whether the kernel sends the connection to the proxy at all is told by the lines of `ferromesh policy trace`. What a
policy would change that is not in force yet: ferromesh policy trace --with FILE.

Exit code 0 only if the request would reach the server.")]
    Explain(explain::Args),
    /// Start the L7 proxy anew: another process takes its place, and no request fails.
    #[command(after_help = "\
Example:
  sudo ferromesh proxy restart && ferromesh status

Returns when the new process has its rules and takes connections. The one before takes none any more, says with its next
answer on each connection that it ends, and ends with the last of them. A new build of ferromesh does the same by itself
when its agent starts.")]
    Restart {
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(super) async fn run(agent: &Agent, verb: Verb) -> Result<ExitCode, CliError> {
    let format = match verb {
        Verb::Connections { format } => format,
        Verb::Budgets { format } => return budgets::run(agent, &format).await,
        Verb::Explain(args) => return explain::run(agent, args).await,
        Verb::Restart { format } => return restart(agent, format).await,
    };
    let rows = |reply| match reply {
        Reply::ProxyConnections(rows) => Some(rows),
        _ => None,
    };
    let mut rows = agent.rows(Request::ProxyConnections, rows).await?;
    rows.sort_by_key(|row| (row.client, row.server));
    format.print(&rows, |paint| connections(&rows, paint))
}

async fn restart(agent: &Agent, format: FormatArg) -> Result<ExitCode, CliError> {
    match agent.ask(Request::ProxyRestart).await? {
        Reply::ProxyRestarted(restarted) => format.print(&restarted, |_| said(restarted)),
        _ => Err(CliError::Unexpected),
    }
}

fn said(ProxyRestarted { from, to, idle, within }: ProxyRestarted) -> String {
    format!(
        "process {to} takes the connections of the L7 proxy now\nprocess {from} ends with those it has: each with its next \
         answer; {idle} s from now those that wait for a request, {within} s from now all\n"
    )
}

fn connections(rows: &[ProxyConnection], paint: Paint) -> String {
    let heading = ["CLIENT", "SERVER", "UPSTREAM", "PROTOCOL", "REQUESTS", "AGE", "PROXY"];
    table(heading, rows.iter().map(row).collect(), paint)
}

fn row(connection: &ProxyConnection) -> [Cell; 7] {
    let ProxyConnection { client, server, upstream, protocol, requests, age, draining } = connection;
    [
        (*client).into(),
        (*server).into(),
        upstream.map_or_else(|| "-".into(), Cell::from),
        // The proxy's word for it, not the client's.
        protocol.as_deref().unwrap_or("-").into(),
        requests.to_string().into(),
        format!("{age} s").into(),
        if *draining { "draining" } else { "serving" }.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::golden::golden;
    use super::*;

    #[test]
    fn connections_are_listed_with_both_of_their_legs() {
        let connection =
            |client: &str, upstream: Option<&str>, protocol: Option<&str>, requests| ProxyConnection {
                client: client.parse().unwrap(),
                server: "10.1.0.3:80".parse().unwrap(),
                upstream: upstream.map(|text| text.parse().unwrap()),
                protocol: protocol.map(str::to_owned),
                requests,
                age: 12,
                draining: upstream.is_none(),
            };
        let rows = [
            connection("10.1.0.7:49446", Some("10.1.0.7:35001"), Some("HTTP/1.1"), 3),
            connection("10.1.0.8:50000", None, None, 0),
        ];
        golden("proxy-connections", &connections(&rows, Paint::NONE));
        let restarted = ProxyRestarted { from: 4711, to: 4800, idle: 60, within: 600 };
        golden("proxy-restart", &said(restarted));
        golden("proxy-connections.json", &serde_json::to_string_pretty(&rows).unwrap());
    }
}
