//! `ferromesh proxy`: what goes by the node's L7 proxy.

use std::process::ExitCode;

use node_api::proxy::ProxyConnection;
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
the first request that may pass. Requests themselves: ferromesh observe --protocol http.")]
    Connections {
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(super) async fn run(agent: &Agent, verb: Verb) -> Result<ExitCode, CliError> {
    let Verb::Connections { format } = verb;
    let rows = |reply| match reply {
        Reply::ProxyConnections(rows) => Some(rows),
        _ => None,
    };
    let mut rows = agent.rows(Request::ProxyConnections, rows).await?;
    rows.sort_by_key(|row| (row.client, row.server));
    format.print(&rows, |paint| connections(&rows, paint))
}

fn connections(rows: &[ProxyConnection], paint: Paint) -> String {
    let heading = ["CLIENT", "SERVER", "UPSTREAM", "PROTOCOL", "REQUESTS", "AGE"];
    table(heading, rows.iter().map(row).collect(), paint)
}

fn row(connection: &ProxyConnection) -> [Cell; 6] {
    let ProxyConnection { client, server, upstream, protocol, requests, age } = connection;
    [
        (*client).into(),
        (*server).into(),
        upstream.map_or_else(|| "-".into(), Cell::from),
        // The proxy's word for it, not the client's.
        protocol.as_deref().unwrap_or("-").into(),
        requests.to_string().into(),
        format!("{age} s").into(),
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
            };
        let rows = [
            connection("10.1.0.7:49446", Some("10.1.0.7:35001"), Some("HTTP/1.1"), 3),
            connection("10.1.0.8:50000", None, None, 0),
        ];
        golden("proxy-connections", &connections(&rows, Paint::NONE));
        golden("proxy-connections.json", &serde_json::to_string_pretty(&rows).unwrap());
    }
}
