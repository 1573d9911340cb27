//! `ferromesh monitor`: the kernel's events as it reports them, with the flags and lines of `cilium-dbg monitor`.

use std::process::ExitCode;

use clap::ValueEnum;
use node_api::{EventType, EventView, MonitorQuery, Reply, Request};

use super::output::{Format, FormatArg};
use super::{Agent, CliError, output};

/// Show what the kernel reports, as it reports it: drops, new connections, policy verdicts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferromesh monitor --type drop
  ferromesh monitor --related-to 3 -v              Endpoint 3 of `endpoint list`, with each header
  ferromesh monitor -t policy-verdict --from 7
  ferromesh monitor -o json | jq -c '{reason, source, destination, cookie}'

Numbers are the kernel's own; `ferromesh observe` says who and which policy, and shows the past. `flow` is the same for
all packets of a conversation. There is an event for each drop and for the first packet of a connection; with
`traceLevel: trace` in the configuration for each packet. An event holds what was parsed of the headers, not the
packet's bytes: nothing beyond can be shown. A flag given several times matches any of its values; different flags
must all match.")]
pub(crate) struct Args {
    /// What to show.
    #[arg(short = 't', long = "type", value_enum, value_name = "TYPE")]
    types: Vec<Kind>,
    /// Sent by this endpoint.
    #[arg(long, value_name = "ENDPOINT")]
    from: Vec<u16>,
    /// For this endpoint.
    #[arg(long, value_name = "ENDPOINT")]
    to: Vec<u16>,
    /// Sent by this endpoint, for it, or judged by it.
    #[arg(long, value_name = "ENDPOINT")]
    related_to: Vec<u16>,
    /// Each header, and all else that an event holds.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    format: FormatArg,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    /// Packets that were dropped.
    Drop,
    /// Packets that passed.
    Trace,
    /// What policy decided: allow, audit or deny.
    PolicyVerdict,
}

impl From<Kind> for EventType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Drop => Self::Drop,
            Kind::Trace => Self::Trace,
            Kind::PolicyVerdict => Self::PolicyVerdict,
        }
    }
}

impl Args {
    fn query(&self) -> MonitorQuery {
        MonitorQuery {
            types: self.types.iter().map(|kind| (*kind).into()).collect(),
            from: self.from.clone(),
            to: self.to.clone(),
            related_to: self.related_to.clone(),
        }
    }
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let query = args.query();
    let types = query.types.clone();
    let mut replies = agent.connect().await?.stream(&Request::Monitor(query)).await?;
    loop {
        match replies.next().await? {
            Reply::Event(event) => {
                output::write(&text(&event, &types, args.verbose, args.format.output)?)?;
            }
            Reply::Listening => output::note("Listening for events; press Ctrl-C to quit"),
            Reply::Lost(count) => output::note(&format!("EVENTS LOST: {count}")),
            _ => return Err(CliError::Unexpected),
        }
    }
}

fn text(event: &EventView, types: &[EventType], verbose: bool, format: Format) -> Result<String, CliError> {
    Ok(match format {
        Format::Json => serde_json::to_string(event)? + "\n",
        Format::Text if verbose => observe::dissect::layers(event),
        Format::Text => observe::dissect::line(event, types) + "\n",
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::golden::{self, golden};
    use super::super::{Cli, Verb};
    use super::*;

    #[test]
    fn a_drop_in_a_line_in_layers_and_in_json() {
        let event = golden::event();
        let print = |types: &[EventType], verbose, format| text(&event, types, verbose, format).unwrap();
        golden("monitor", &print(&[], false, Format::Text));
        golden("monitor-verdict", &print(&[EventType::PolicyVerdict], false, Format::Text));
        golden("monitor-verbose", &print(&[], true, Format::Text));
        golden("monitor.json", &print(&[], false, Format::Json));
    }

    #[test]
    fn every_flag_reaches_the_query() {
        let arguments =
            "ferromesh monitor -t drop --type policy-verdict --from 1 --to 2 --related-to 3 --related-to 4";
        let Verb::Monitor(args) = Cli::try_parse_from(arguments.split(' ')).unwrap().verb else {
            panic!("monitor")
        };
        let expected = MonitorQuery {
            types: vec![EventType::Drop, EventType::PolicyVerdict],
            from: vec![1],
            to: vec![2],
            related_to: vec![3, 4],
        };
        assert_eq!(args.query(), expected);
    }
}
