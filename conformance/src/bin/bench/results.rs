//! The file of results: the rows of this run, and those of earlier ones that were not measured again.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use conformance::bench::plan::Selection;
use conformance::bench::report::{self, Row};

use crate::GROUPS;
use crate::machine::Machine;

/// Rows in the order of their groups, each with when and where it was taken.
#[derive(Default)]
pub(crate) struct Results(Vec<Row>);

impl Results {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let problem =
            |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| problem(&error))?;
        serde_json::from_str(&text).map(Self).map_err(|error| problem(&error))
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        report::write(&self.0, path)
    }

    /// Puts measured rows in the place of the group's earlier ones, of which only those not asked for stay.
    pub(crate) fn replace(&mut self, group: &str, selected: &Selection, rows: &[Row], machine: &Machine) {
        self.0.retain(|row| group_of(&row.id) != Some(group) || !selected.wants(&row.id));
        self.0.extend(rows.iter().cloned().map(|row| Row { taken: Some(machine.brief()), ..row }));
        self.0.sort_by_key(|row| GROUPS.iter().position(|group| Some(group.id) == group_of(&row.id)));
    }

    /// A table for each group.
    pub(crate) fn markdown(&self) -> String {
        let tables = GROUPS.iter().filter_map(|group| self.table(group.id, |_| true));
        tables.collect::<Vec<_>>().join("\n")
    }

    /// A page with its tables brought up to date: what stands between `<!-- begin ID -->`, or `<!-- begin ID judged -->`
    /// for the rows that promise something, or `<!-- begin ID told -->` for the others, and `<!-- end -->`. A table of which
    /// nothing was measured stays as it is.
    pub(crate) fn fill(&self, page: &str) -> String {
        let mut filled = String::new();
        let mut rest = page;
        while let Some((before, after)) = rest.split_once("<!-- begin ") {
            let Some((name, (old, behind))) = after
                .split_once(" -->\n")
                .and_then(|(name, after)| Some((name, after.split_once("<!-- end -->")?)))
            else {
                break;
            };
            let (group, part) = name.split_once(' ').unwrap_or((name, ""));
            let table = self.table(group, |row| match part {
                "judged" => row.target.is_some(),
                "told" => row.target.is_none(),
                _ => true,
            });
            let table = table.unwrap_or_else(|| old.to_owned());
            let _ = write!(filled, "{before}<!-- begin {name} -->\n{table}<!-- end -->");
            rest = behind;
        }
        filled + rest
    }

    fn table(&self, group: &str, wanted: impl Fn(&Row) -> bool) -> Option<String> {
        let of_group = |row: &&Row| group_of(&row.id) == Some(group) && wanted(row);
        let rows: Vec<_> = self.0.iter().filter(of_group).collect();
        let taken = rows.first()?.taken.as_deref().unwrap_or("unknown");
        let suite = group.split('.').next().unwrap_or_default();
        let mut text = format!("`make bench-{suite} ONLY={group}` · {taken}\n\n");
        text += "| id | what | figure | against | ratio | target | met |\n|---|---|---|---|---|---|---|\n";
        for row in rows {
            let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
            let met = match (row.met, &row.target) {
                (Some(true), _) => "yes",
                (Some(false), _) => "**no**",
                (None, Some(_)) => "not judged",
                (None, None) => "",
            };
            let [against, target] = [&row.against, &row.target].map(|text| text.as_deref().unwrap_or(""));
            let figure = figure(row.value);
            let Row { id, what, unit, .. } = row;
            let _ = writeln!(
                text,
                "| `{id}` | {what} | {figure} {unit} | {against} | {ratio} | {target} | {met} |"
            );
        }
        Some(text)
    }
}

fn group_of(id: &str) -> Option<&'static str> {
    let within =
        |group: &str| id.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    GROUPS.iter().map(|group| group.id).find(|group| within(group))
}

/// Three digits that say something, whole numbers as they are.
fn figure(value: f64) -> String {
    let digits = if value.fract() == 0.0 || value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(results: &Results) -> Vec<(&str, f64)> {
        results.0.iter().map(|row| (row.id.as_str(), row.value)).collect()
    }

    #[test]
    fn rows_that_were_not_measured_again_stay() {
        let (mut results, machine) = (Results::default(), Machine::this());
        let row = |id: &str, value| Row::new(id, "what", value, "ns");
        results.replace(
            "l4.tc",
            &Selection::default(),
            &[row("l4.tc.rr", 1.0), row("l4.tc.crr", 2.0)],
            &machine,
        );
        results.replace("l4.program", &Selection::default(), &[row("l4.program.new", 3.0)], &machine);
        results.replace("l4.tc", &Selection::new(["l4.tc.rr"]), &[row("l4.tc.rr", 4.0)], &machine);
        assert_eq!(ids(&results), [("l4.program.new", 3.0), ("l4.tc.crr", 2.0), ("l4.tc.rr", 4.0)]);
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("bench/l4.json");
        let mut results = Results::default();
        let row = Row::new("l4.run", "100 at once", 12.5, "ms").against("by hand", 10.0);
        results.replace("l4.run", &Selection::default(), &[row], &Machine::this());
        results.write(&path).expect("it is written");
        let read = Results::read(&path).expect("it is read");
        assert_eq!(read.0, results.0);
        assert!(read.markdown().contains("| `l4.run` | 100 at once | 12.5 ms | by hand | 1.25× |  |  |"));
    }

    #[test]
    fn a_page_gets_the_tables_that_were_measured_and_keeps_the_rest() {
        let mut results = Results::default();
        let promising =
            Row { target: Some("≤ 9".to_owned()), ..Row::new("l4.tc.rr", "promising", 1.0, "µs") };
        let rows = [promising, Row::new("l4.tc.rr", "other", 2.0, "µs")];
        results.replace("l4.tc", &Selection::default(), &rows, &Machine::this());
        let page = "a\n<!-- begin l4.tc judged -->\nold\n<!-- end -->\nb\n<!-- begin l4.run -->\nkept\n<!-- end -->\nc\n";
        let told = results.fill(&page.replace("judged", "told"));
        assert!(told.contains("| other |") && !told.contains("| promising |"), "{told}");
        let filled = results.fill(page);
        assert!(
            filled.starts_with("a\n<!-- begin l4.tc judged -->\n`make bench-l4 ONLY=l4.tc` · "),
            "{filled}"
        );
        assert!(filled.contains("| promising |") && !filled.contains("| other |") && !filled.contains("old"));
        assert!(
            filled.ends_with("<!-- end -->\nb\n<!-- begin l4.run -->\nkept\n<!-- end -->\nc\n"),
            "{filled}"
        );
    }
}
