//! `ferromesh observe`: flows, with the flags and the lines of `hubble observe`.

use std::process::ExitCode;
use std::str::FromStr;

use clap::ValueEnum;
use jiff::{SignedDuration, Timestamp};
use mesh::flow::{Flow, Verdict};
use node_api::{FlowFilter, ObserveQuery, Reply, Request};

use super::output::{Paint, Tone};
use super::{Agent, CliError, output};

/// Flows shown if nothing says how many, as Hubble does.
const LAST: usize = 20;

/// Show what the node has seen: new connections and every drop, with the policy that denied.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferromesh observe                                   The last 20 flows
  ferromesh observe -f --verdict DROPPED              Each drop as it happens
  ferromesh observe --pod deathstar --since 5m        Everything to or from deathstar* of the last five minutes
  ferromesh observe --label org=alliance --port 80 --protocol tcp
  ferromesh observe --drop-reason 'Policy denied' -o json | jq -r '.drop.policies[].name'

A flag given several times matches any of its values; different flags must all match.")]
pub(crate) struct Args {
    /// Either end is this pod: `[namespace/]name-prefix`, or `namespace/`.
    #[arg(long, value_name = "POD")]
    pod: Vec<String>,
    /// What became of the packet: FORWARDED, DROPPED, AUDIT.
    #[arg(long)]
    verdict: Vec<String>,
    /// Either end has these labels: `key=value,...`, all of them.
    #[arg(long, short = 'l', value_name = "LABELS")]
    label: Vec<String>,
    /// Either end is this address, or within this prefix.
    #[arg(long, value_name = "IP|PREFIX")]
    ip: Vec<String>,
    /// Either end has this port.
    #[arg(long)]
    port: Vec<u16>,
    /// tcp, udp, sctp, icmp (both families), icmpv4, icmpv6.
    #[arg(long)]
    protocol: Vec<String>,
    /// Why it was dropped, by text, number, or Hubble's name (POLICY_DENIED).
    #[arg(long, value_name = "REASON")]
    drop_reason: Vec<String>,
    /// As the judging endpoint sees it: ingress, egress.
    #[arg(long, value_name = "DIRECTION")]
    traffic_direction: Vec<String>,
    /// Not before: so long ago (`5m`), or RFC 3339.
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Not after, likewise.
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// The newest so many of the past [default: 20; 0 with --follow; all with --since or --until].
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// How to print a flow: one line each.
    #[arg(short, long, value_enum, default_value = "compact", value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    Compact,
    Json,
}

/// A moment as people give it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Moment {
    Ago(SignedDuration),
    At(Timestamp),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ago = text.parse().map(Self::Ago).ok();
        let at = || text.parse().map(Self::At).ok();
        ago.or_else(at).ok_or_else(|| "expected so long ago, as 90s, 5m, 1h30m, or RFC 3339".to_owned())
    }
}

impl Moment {
    /// Nanoseconds since 1970; what is out of range is as far away as can be said.
    fn nanoseconds(self, now: Timestamp) -> i64 {
        let nanoseconds = match self {
            Self::Ago(ago) => now.as_nanosecond().saturating_sub(ago.as_nanos()),
            Self::At(time) => time.as_nanosecond(),
        };
        i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
    }
}

impl Args {
    fn query(self, now: Timestamp) -> ObserveQuery {
        let last = match self.last {
            Some(last) => last,
            None if self.since.is_some() || self.until.is_some() => usize::MAX,
            None if self.follow => 0,
            None => LAST,
        };
        let filter = FlowFilter {
            pods: self.pod,
            verdicts: self.verdict,
            labels: self.label,
            ips: self.ip,
            ports: self.port,
            protocols: self.protocol,
            drop_reasons: self.drop_reason,
            directions: self.traffic_direction,
            since: self.since.map(|moment| moment.nanoseconds(now)),
            until: self.until.map(|moment| moment.nanoseconds(now)),
        };
        ObserveQuery { filter, last, follow: self.follow }
    }
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let (format, paint) = (args.output, Paint::for_stdout());
    let request = Request::Observe(args.query(Timestamp::now()));
    let mut replies = agent.connect().await?.stream(&request).await?;
    loop {
        match replies.next().await? {
            Reply::Flow(flow) => output::write(&line(&flow, format, paint)?)?,
            Reply::Lost(count) => output::note(&format!("EVENTS LOST: {count}")),
            Reply::Done => return Ok(ExitCode::SUCCESS),
            _ => return Err(CliError::Unexpected),
        }
    }
}

fn line(flow: &Flow, format: Format, paint: Paint) -> Result<String, CliError> {
    let tone = |verdict| match verdict {
        Verdict::Forwarded => Tone::Good,
        Verdict::Dropped => Tone::Bad,
        Verdict::Audit => Tone::Warning,
    };
    let mut line = match format {
        Format::Compact => observe::compact::line(flow, |verdict, word| paint.tint(tone(verdict), word)),
        Format::Json => serde_json::to_string(flow)?,
    };
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::golden::{self, golden};
    use super::super::{Cli, Verb};
    use super::*;

    fn query(arguments: &str) -> ObserveQuery {
        let all = ["ferromesh", "observe"].into_iter().chain(arguments.split_whitespace());
        let Verb::Observe(args) = Cli::try_parse_from(all).unwrap().verb else { panic!("observe") };
        args.query("2026-01-02T03:04:05Z".parse().unwrap())
    }

    #[test]
    fn a_drop_in_both_formats() {
        let lines = |format| line(&golden::flow(), format, Paint::NONE).unwrap();
        golden("observe", &lines(Format::Compact));
        golden("observe.json", &lines(Format::Json));
    }

    #[test]
    fn how_many_of_the_past_depends_on_what_was_asked() {
        let cases = [
            ("", 20, false),
            ("--follow", 0, true),
            ("-f --last 5", 5, true),
            ("--since 5m", usize::MAX, false),
            ("--since 5m --last 3", 3, false),
        ];
        for (arguments, last, follow) in cases {
            let query = query(arguments);
            assert_eq!((query.last, query.follow), (last, follow), "{arguments}");
        }
    }

    #[test]
    fn every_flag_reaches_its_filter() {
        let query = query(
            "--pod a --pod b/ --verdict DROPPED --label x=y,z --ip fd00::/8 --port 80 --protocol tcp \
             --drop-reason 133 --traffic-direction ingress --since 1m --until 2026-01-02T03:04:05Z",
        );
        let text = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>();
        let now = 1_767_323_045_000_000_000;
        let expected = FlowFilter {
            pods: text(&["a", "b/"]),
            verdicts: text(&["DROPPED"]),
            labels: text(&["x=y,z"]),
            ips: text(&["fd00::/8"]),
            ports: vec![80],
            protocols: text(&["tcp"]),
            drop_reasons: text(&["133"]),
            directions: text(&["ingress"]),
            since: Some(now - 60_000_000_000),
            until: Some(now),
        };
        assert_eq!(query.filter, expected);
    }

    #[test]
    fn a_moment_that_means_nothing_is_explained() {
        let error = "yesterday".parse::<Moment>().unwrap_err();
        assert_eq!(error, "expected so long ago, as 90s, 5m, 1h30m, or RFC 3339");
    }
}
