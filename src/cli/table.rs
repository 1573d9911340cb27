//! Tables without lines, as Cilium's tools print them: columns three spaces apart, a cell may have several lines.

use super::output::{Paint, Tone, plain};

/// Space between columns.
const GAP: usize = 3;

/// Text and its tone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Text that means something.
    pub(crate) fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: plain(&text.into()), tone }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(Tone::Plain, text.to_string())
    }
}

/// A table; each row has as many cells as the heading.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: Vec<[Cell; N]>, paint: Paint) -> String {
    self::rows(std::iter::once(heading.map(Cell::from)).chain(rows).collect(), paint)
}

/// A table without a heading.
pub(crate) fn rows<const N: usize>(rows: Vec<[Cell; N]>, paint: Paint) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.text.lines().map(|line| line.chars().count()).chain([*width]).max().unwrap_or(0);
        }
    }
    rows.iter().map(|row| lines(row, &widths, paint)).collect()
}

/// `Key: value` rows with the values below each other; a value's further lines are indented to it.
pub(crate) fn fields(rows: Vec<(&str, Cell)>, paint: Paint) -> String {
    let width = rows.iter().map(|(key, _)| key.chars().count() + 1).max().unwrap_or(0);
    let row = |(key, cell): (&str, Cell)| lines(&[Cell::from(format!("{key}:")), cell], &[width, 0], paint);
    rows.into_iter().map(row).collect()
}

fn lines(row: &[Cell], widths: &[usize], paint: Paint) -> String {
    let height = row.iter().map(|cell| cell.text.lines().count()).max().unwrap_or(0);
    let line = |number| {
        let mut line = String::new();
        let mut pad = 0;
        for (cell, width) in row.iter().zip(widths) {
            let text = cell.text.lines().nth(number).unwrap_or_default();
            // Space is put before a cell, not after it, so that no line ends with any.
            if !text.is_empty() {
                line.push_str(&" ".repeat(pad));
                line.push_str(&paint.tint(cell.tone, text));
                pad = 0;
            }
            pad += width.saturating_sub(text.chars().count()) + GAP;
        }
        line + "\n"
    };
    (0..height).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_lines_end_without_space() {
        let rows = vec![
            ["1".into(), "a\nlonger".into(), Cell::toned(Tone::Good, "ready")],
            ["20".into(), "".into(), "x".into()],
        ];
        let expected = "\
ID   TEXT     STATUS
1    a        ready
     longer
20            x
";
        assert_eq!(table(["ID", "TEXT", "STATUS"], rows, Paint::NONE), expected);
    }

    #[test]
    fn fields_align_their_values() {
        let rows = vec![("Node", "n1".into()), ("Degraded", "one\ntwo".into())];
        assert_eq!(fields(rows, Paint::NONE), "Node:       n1\nDegraded:   one\n            two\n");
    }
}
