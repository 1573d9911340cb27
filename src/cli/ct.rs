//! `ferromesh ct`: the connections that the kernel tracks.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use ipnet::IpNet;
use mesh::policy::protocol;
use node_api::{ConnectionView, Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::{Cell, table};
use super::{Agent, CliError};

/// Connections that are shown, unless all are asked for.
const SHOWN: usize = 1000;

/// Show the connections that the kernel tracks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List connections: who opened them to whom, what they called, under which address they leave.
    #[command(after_help = "\
Examples:
  ferromesh ct list
  ferromesh ct list --protocol udp --port 53
  ferromesh ct list --ip 10.42.0.3 --all           Either end, also where it is translated
  ferromesh ct list -o json | jq '[.[] | select(.masqueraded)] | length'

SERVICE is what the opener called where packets are translated; where its socket is, packets carry the backend's
address all along. MASQUERADED is what the opener is known by beyond the node. A flag given several times matches
any of its values; different flags must all match.")]
    List {
        #[command(flatten)]
        filter: Filter,
        /// All of them, however many; text shows the first 1000 otherwise.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        format: FormatArg,
    },
}

#[derive(Debug, Default, clap::Args)]
struct Filter {
    /// tcp, udp, sctp, icmp, icmpv6.
    #[arg(long, value_parser = number)]
    protocol: Vec<u8>,
    /// Either end is this address, or within this prefix.
    #[arg(long, value_name = "IP|PREFIX", value_parser = prefix)]
    ip: Vec<IpNet>,
    /// Either end has this port.
    #[arg(long)]
    port: Vec<u16>,
}

impl Filter {
    fn admits(&self, view: &ConnectionView) -> bool {
        let ends = [Some(view.source), Some(view.destination), view.called, view.masqueraded];
        let either = |holds: &dyn Fn(SocketAddr) -> bool| ends.into_iter().flatten().any(holds);
        any(&self.protocol, |protocol| *protocol == view.protocol)
            && any(&self.ip, |prefix| either(&|end| prefix.contains(&end.ip())))
            && any(&self.port, |port| either(&|end| end.port() == *port))
    }
}

/// An empty flag matches everything.
fn any<T>(values: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(holds)
}

fn number(text: &str) -> Result<u8, String> {
    let names = (0..=u8::MAX).filter_map(|number| Some((number, protocol::name(number)?)));
    let mut found = names.clone().filter(|(_, name)| name.eq_ignore_ascii_case(text));
    found.next().map(|(number, _)| number).ok_or_else(|| {
        let known: Vec<_> = names.map(|(_, name)| name.to_lowercase()).collect();
        format!("expected one of {}", known.join(", "))
    })
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let whole = text.parse().map(|address: IpAddr| address.into());
    whole.or_else(|_| text.parse()).map_err(|_| "expected an address or a prefix, as 10.0.0.0/8".to_owned())
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let rows = |reply| match reply {
        Reply::Connections(rows) => Some(rows),
        _ => None,
    };
    let Verb::List { filter, all, format } = args.verb;
    let mut rows = agent.rows(Request::Connections, rows).await?;
    rows.retain(|view| filter.admits(view));
    rows.sort_by_key(|view| (view.protocol, view.source, view.destination));
    let shown = if all { usize::MAX } else { SHOWN };
    format.print(&rows, |paint| list(&rows, shown, paint))
}

fn list(rows: &[ConnectionView], shown: usize, paint: Paint) -> String {
    let heading = [
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "STATE",
        "EXPIRES",
        "SERVICE",
        "MASQUERADED",
        "ENDPOINT",
        "REVISION",
    ];
    let text = table(heading, rows.iter().take(shown).map(row).collect(), paint);
    match rows.len().saturating_sub(shown) {
        0 => text,
        more => format!("{text}and {more} more: see --all, or filter\n"),
    }
}

fn row(view: &ConnectionView) -> [Cell; 9] {
    let name = protocol::name(view.protocol).map_or_else(|| view.protocol.to_string(), str::to_owned);
    let audited = if view.audited { " (audit)" } else { "" };
    [
        name.into(),
        view.source.into(),
        view.destination.into(),
        format!("{}{audited}", view.state).into(),
        format!("{} s", view.expires).into(),
        or_dash(view.called),
        or_dash(view.masqueraded),
        or_dash(view.charged),
        view.generation.into(),
    ]
}

fn or_dash(value: Option<impl ToString>) -> Cell {
    value.map_or_else(|| "-".into(), |value| value.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn connections_are_listed_with_what_was_called_and_what_they_leave_as() {
        golden("ct-list", &list(&golden::connections(), SHOWN, Paint::NONE));
        golden("ct-list.json", &serde_json::to_string_pretty(&golden::connections()).unwrap());
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        let text = list(&golden::connections(), 1, Paint::NONE);
        assert!(text.ends_with("\nand 2 more: see --all, or filter\n"), "{text}");
    }

    #[test]
    fn a_filter_admits_by_either_end_of_it_and_by_what_was_called() {
        let filter = |protocol: &[&str], ip: &[&str], port: &[u16]| Filter {
            protocol: protocol.iter().map(|text| number(text).unwrap()).collect(),
            ip: ip.iter().map(|text| prefix(text).unwrap()).collect(),
            port: port.to_vec(),
        };
        let cases = [
            ("everything", Filter::default(), 3),
            ("a protocol", filter(&["UDP"], &[], &[]), 1),
            ("one of two", filter(&["udp", "tcp"], &[], &[]), 2),
            ("an address of one end", filter(&[], &["10.1.0.3"], &[]), 1),
            ("a prefix", filter(&[], &["10.1.0.0/16"], &[]), 2),
            ("the service", filter(&[], &["10.96.0.7"], &[]), 1),
            ("the masqueraded port", filter(&[], &[], &[61_001]), 1),
            ("all must match", filter(&["tcp"], &[], &[53]), 0),
        ];
        for (case, filter, count) in cases {
            let admitted = golden::connections().into_iter().filter(|view| filter.admits(view)).count();
            assert_eq!(admitted, count, "{case}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_would() {
        assert_eq!(number("quic").unwrap_err(), "expected one of icmp, tcp, udp, icmpv6, sctp");
        assert_eq!(prefix("10.0").unwrap_err(), "expected an address or a prefix, as 10.0.0.0/8");
    }
}
