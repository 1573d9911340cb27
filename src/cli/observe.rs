//! `ferromesh observe`: flows, with the flags and the lines of `hubble observe`.

mod selection;

use std::process::ExitCode;
use std::str::FromStr;

use clap::ValueEnum;
use jiff::{SignedDuration, Timestamp};
use mesh::flow::{Flow, Verdict};
use node_api::{ObserveQuery, Past, Reply, Request};

use self::selection::Selection;
use super::output::{Paint, Tone};
use super::table::{Cell, fields, table};
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
  ferromesh observe --from-label org=alliance --to-pod deathstar --to-port 80
  ferromesh observe --not --port 53 --not --namespace kube-system
  ferromesh observe --drop-reason POLICY_DENIED -o json | jq -r '.drop.policies[].name'

A filter given several times matches any of its values; different filters must all match, and what any filter after
`--not` matches is left out.")]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Not before: so long ago (`5m`), or RFC 3339.
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Not after, likewise.
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// The newest so many of the past [default: 20; 0 with --follow; all with --since or --until].
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// The oldest so many that are kept.
    #[arg(long, value_name = "N", conflicts_with_all = ["last", "all", "follow"])]
    first: Option<usize>,
    /// All that are kept.
    #[arg(long, conflicts_with = "last")]
    all: bool,
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// How to print a flow.
    #[arg(short, long, value_enum, default_value = "compact", value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// A line each, as Hubble prints it.
    Compact,
    /// A line of JSON each: the agent's answer as it is.
    Json,
    /// A line of JSON each, with the field names of Hubble.
    Jsonpb,
    /// A paragraph each.
    Dict,
    /// Columns; not with --follow.
    Table,
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
        let past = match (self.first, self.last) {
            (Some(first), _) => Past::First(first),
            (_, Some(last)) => Past::Last(last),
            _ if self.all || self.since.is_some() || self.until.is_some() => Past::Last(usize::MAX),
            _ if self.follow => Past::Last(0),
            _ => Past::Last(LAST),
        };
        ObserveQuery {
            filter: self.selection.filter,
            except: self.selection.except,
            since: self.since.map(|moment| moment.nanoseconds(now)),
            until: self.until.map(|moment| moment.nanoseconds(now)),
            past,
            follow: self.follow,
        }
    }
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let (format, paint) = (args.output, Paint::for_stdout());
    if format == Format::Table && args.follow {
        let hint = "a table's columns are as wide as its widest row; use compact or dict";
        return Err(CliError::Failed(format!("--output table: not with --follow: {hint}")));
    }
    let request = Request::Observe(Box::new(args.query(Timestamp::now())));
    let mut replies = agent.connect().await?.stream(&request).await?;
    let mut rows = Vec::new();
    loop {
        match replies.next().await? {
            Reply::Flow(flow) if format == Format::Table => rows.push(*flow),
            Reply::Flow(flow) => output::write(&text(&flow, format, paint)?)?,
            Reply::Lost(count) => output::note(&format!("EVENTS LOST: {count}")),
            Reply::Done => break,
            _ => return Err(CliError::Unexpected),
        }
    }
    if format == Format::Table {
        output::write(&columns(&rows, paint))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Forwarded => Tone::Good,
        Verdict::Dropped => Tone::Bad,
        Verdict::Audit => Tone::Warning,
    }
}

fn text(flow: &Flow, format: Format, paint: Paint) -> Result<String, CliError> {
    let compact = |flow| observe::compact::line(flow, |verdict, word| paint.tint(tone(verdict), word)) + "\n";
    Ok(match format {
        Format::Compact => compact(flow),
        Format::Json => serde_json::to_string(flow)? + "\n",
        Format::Jsonpb => observe::jsonpb::response(flow).to_string() + "\n",
        Format::Dict => dict(flow, paint),
        Format::Table => columns(std::slice::from_ref(flow), paint),
    })
}

fn dict(flow: &Flow, paint: Paint) -> String {
    let [time, source, destination, kind, verdict, summary] = observe::compact::columns(flow);
    let rows = vec![
        ("Time", time.into()),
        ("Node", flow.node.as_str().into()),
        ("Source", source.into()),
        ("Destination", destination.into()),
        ("Type", kind.into()),
        ("Verdict", Cell::toned(tone(flow.verdict), verdict)),
        ("Summary", summary.into()),
    ];
    fields(rows, paint) + "------------\n"
}

fn columns(flows: &[Flow], paint: Paint) -> String {
    let row = |flow: &Flow| {
        let [time, source, destination, kind, verdict, summary] = observe::compact::columns(flow);
        let verdict = Cell::toned(tone(flow.verdict), verdict);
        [time.into(), source.into(), destination.into(), kind.into(), verdict, summary.into()]
    };
    let heading = ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"];
    table(heading, flows.iter().map(row).collect(), paint)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use node_api::{FlowFilter, PeerFilter};

    use super::super::golden::{self, golden};
    use super::super::{Cli, Verb};
    use super::*;

    fn query(arguments: &str) -> ObserveQuery {
        let all = ["ferromesh", "observe"].into_iter().chain(arguments.split_whitespace());
        let Verb::Observe(args) = Cli::try_parse_from(all).unwrap().verb else { panic!("observe") };
        args.query("2026-01-02T03:04:05Z".parse().unwrap())
    }

    #[test]
    fn a_drop_in_every_format() {
        let print = |format| text(&golden::flow(), format, Paint::NONE).unwrap();
        golden("observe", &print(Format::Compact));
        golden("observe.json", &print(Format::Json));
        golden("observe-jsonpb.json", &print(Format::Jsonpb));
        golden("observe-dict", &print(Format::Dict));
        golden("observe-table", &print(Format::Table));
    }

    #[test]
    fn how_much_of_the_past_depends_on_what_was_asked() {
        let cases = [
            ("", Past::Last(20), false),
            ("--follow", Past::Last(0), true),
            ("-f --last 5", Past::Last(5), true),
            ("--since 5m", Past::Last(usize::MAX), false),
            ("--since 5m --last 3", Past::Last(3), false),
            ("--first 2", Past::First(2), false),
            ("--all -f", Past::Last(usize::MAX), true),
        ];
        for (arguments, past, follow) in cases {
            let query = query(arguments);
            assert_eq!((query.past, query.follow), (past, follow), "{arguments}");
        }
        for refused in ["--first 1 --last 1", "--first 1 --follow", "--all --last 1", "--pod a --not"] {
            let all = ["ferromesh", "observe"].into_iter().chain(refused.split_whitespace());
            assert!(Cli::try_parse_from(all).is_err(), "{refused}");
        }
    }

    fn peer(change: impl FnOnce(&mut PeerFilter)) -> PeerFilter {
        let mut peer = PeerFilter::default();
        change(&mut peer);
        peer
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    #[test]
    fn every_flag_reaches_its_filter() {
        let end = |side: &str| {
            format!(
                "--{side}pod a --{side}pod b/ --{side}namespace c --{side}label x=y,z --{side}ip fd00::/8 \
                 --{side}identity 9 --{side}port 80 "
            )
        };
        let query = query(
            &(["", "from-", "to-"].map(end).concat()
                + "--verdict dropped --protocol tcp --tcp-flags SYN,ACK --drop-reason 133 --drop-reason-desc TOO_BIG \
                   --traffic-direction ingress --since 1m --until 2026-01-02T03:04:05Z"),
        );
        let now = 1_767_323_045_000_000_000;
        let all = PeerFilter {
            pods: texts(&["a", "b/"]),
            namespaces: texts(&["c"]),
            labels: texts(&["x=y,z"]),
            identities: texts(&["9"]),
            ips: texts(&["fd00::/8"]),
            ports: texts(&["80"]),
        };
        let expected = FlowFilter {
            either: all.clone(),
            source: all.clone(),
            destination: all,
            verdicts: texts(&["dropped"]),
            protocols: texts(&["tcp"]),
            tcp_flags: texts(&["SYN,ACK"]),
            drop_reasons: texts(&["133", "TOO_BIG"]),
            directions: texts(&["ingress"]),
            ..FlowFilter::default()
        };
        assert_eq!((query.since, query.until), (Some(now - 60_000_000_000), Some(now)));
        assert_eq!((query.filter, query.except), (expected, vec![]));
    }

    #[test]
    fn not_turns_the_next_filter_around_and_no_other() {
        let except = |change: fn(&mut FlowFilter)| {
            let mut filter = FlowFilter::default();
            change(&mut filter);
            filter
        };
        for spelled in
            ["--pod a --not --port 53 --port 80 --not -l x", "--not --port=53 --pod=a --port=80 --not -lx"]
        {
            let query = query(spelled);
            let kept = FlowFilter {
                either: peer(|end| (end.pods, end.ports) = (texts(&["a"]), texts(&["80"]))),
                ..FlowFilter::default()
            };
            assert_eq!(query.filter, kept, "{spelled}");
            let left_out = vec![
                except(|filter| filter.either.ports = texts(&["53"])),
                except(|filter| filter.either.labels = texts(&["x"])),
            ];
            assert_eq!(query.except, left_out, "{spelled}");
        }
    }

    #[test]
    fn a_moment_that_means_nothing_is_explained() {
        let error = "yesterday".parse::<Moment>().unwrap_err();
        assert_eq!(error, "expected so long ago, as 90s, 5m, 1h30m, or RFC 3339");
    }
}
