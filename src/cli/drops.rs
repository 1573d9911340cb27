//! `ferromesh drops`: what the kernel counts as dropped, and what to do about it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use node_api::{DropView, Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::{Cell, table};
use super::{Agent, CliError};

/// Show what was dropped: how much for each reason and direction, what the reason means, what to do.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferromesh drops
  ferromesh drops --by-endpoint                     Whose policy, or whose packets?
  watch --differences ferromesh drops               What is dropped just now?
  ferromesh drops -o json | jq 'map(.packets) | add'

The kernel counts every drop, also those that no event was kept of. A count begins with its endpoint and goes with it.
`ferromesh observe --verdict DROPPED` shows the packets.")]
pub(crate) struct Args {
    /// A row for each endpoint that judged.
    #[arg(long)]
    by_endpoint: bool,
    #[command(flatten)]
    format: FormatArg,
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let rows = |reply| match reply {
        Reply::Drops(rows) => Some(rows),
        _ => None,
    };
    let rows = agent.rows(Request::Drops, rows).await?;
    args.format.print(&rows, |paint| render(&rows, args.by_endpoint, paint))
}

fn render(rows: &[DropView], by_endpoint: bool, paint: Paint) -> String {
    if rows.is_empty() {
        return "nothing was dropped by any endpoint that is here\n".to_owned();
    }
    let text = if by_endpoint {
        let row = |row: &DropView| {
            let [number, reason, direction, packets, bytes] = cells(row, row.packets, row.bytes);
            [number, reason, direction, packets, bytes, judge(row).into()]
        };
        let heading = ["NUMBER", "REASON", "DIRECTION", "PACKETS", "BYTES", "ENDPOINT"];
        table(heading, rows.iter().map(row).collect(), paint)
    } else {
        let row = |(row, packets, bytes): &(&DropView, u64, u64)| cells(row, *packets, *bytes);
        let heading = ["NUMBER", "REASON", "DIRECTION", "PACKETS", "BYTES"];
        table(heading, sums(rows).iter().map(row).collect(), paint)
    };
    let meanings: BTreeMap<_, _> =
        rows.iter().map(|row| (row.number, format!("{}: {}\n", row.reason, row.meaning))).collect();
    meanings.into_values().fold(text + "\n", |text, meaning| text + &meaning)
}

fn cells(row: &DropView, packets: u64, bytes: u64) -> [Cell; 5] {
    [
        row.number.into(),
        row.reason.as_str().into(),
        row.direction.as_str().into(),
        packets.into(),
        bytes.into(),
    ]
}

fn judge(row: &DropView) -> String {
    row.workload.as_ref().map_or_else(|| format!("interface {}", row.ifindex), ToString::to_string)
}

/// A row for each reason and direction, with packets and bytes of all endpoints.
fn sums(rows: &[DropView]) -> Vec<(&DropView, u64, u64)> {
    let mut sums = BTreeMap::new();
    for row in rows {
        let (_, packets, bytes) = sums.entry((row.number, &row.direction)).or_insert((row, 0u64, 0u64));
        *packets = packets.saturating_add(row.packets);
        *bytes = bytes.saturating_add(row.bytes);
    }
    sums.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn drops_are_summed_over_endpoints_with_the_meaning_of_each_reason() {
        golden("drops", &render(&golden::drops(), false, Paint::NONE));
        golden("drops.json", &serde_json::to_string_pretty(&golden::drops()).unwrap());
    }

    #[test]
    fn or_listed_by_who_judged() {
        golden("drops-by-endpoint", &render(&golden::drops(), true, Paint::NONE));
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        assert_eq!(render(&[], false, Paint::NONE), "nothing was dropped by any endpoint that is here\n");
    }
}
