//! `ferromesh metrics`: what `/metrics` serves, for people.

use std::process::ExitCode;

use node_api::{MetricView, Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::table;
use super::{Agent, CliError};

/// Show the agent's metrics.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List metrics with their labels and values.
    #[command(after_help = "\
Examples:
  ferromesh metrics list
  ferromesh metrics list map_pressure      Those with this in their name
  ferromesh metrics list -o json | jq '.[] | select(.name == \"ferromesh_drop_total\")'

The same numbers as `/metrics` serves to Prometheus at the address that `ferromesh config view` names. Of histograms
text shows count and sum; JSON has the buckets too.")]
    List {
        /// Part of the names.
        pattern: Option<String>,
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let rows = |reply| match reply {
        Reply::Metrics(rows) => Some(rows),
        _ => None,
    };
    let mut rows = agent.rows(Request::Metrics, rows).await?;
    let Verb::List { pattern, format } = args.verb;
    if let Some(pattern) = pattern {
        rows.retain(|row| row.name.contains(&pattern));
        if rows.is_empty() {
            let hint = "see `ferromesh metrics list` for those there are";
            return Err(CliError::Failed(format!("no metric has {pattern:?} in its name; {hint}")));
        }
    }
    format.print(&rows, |paint| list(&rows, paint))
}

fn list(rows: &[MetricView], paint: Paint) -> String {
    let shown = rows.iter().filter(|row| !row.name.ends_with("_bucket"));
    let row = |row: &MetricView| {
        let labels: Vec<_> = row.labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        [row.name.as_str().into(), labels.join(" ").into(), number(row.value).into()]
    };
    table(["METRIC", "LABELS", "VALUE"], shown.map(row).collect(), paint)
}

/// Six digits behind the point, as far as they say something.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn metrics_are_listed_in_ciliums_columns_without_buckets() {
        golden("metrics-list", &list(&golden::metrics(), Paint::NONE));
        golden("metrics-list.json", &serde_json::to_string_pretty(&golden::metrics()).unwrap());
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (1_200.0, "1200"),
            (0.25, "0.25"),
            (0.000_366_21, "0.000366"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(number(value), expected);
        }
    }
}
