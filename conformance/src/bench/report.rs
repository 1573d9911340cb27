//! What a benchmark says: rows, printed as a table and written as `target/bench/NAME.json`.
//!
//! A row is judged only where it can be: by its measurement, and only if an A/A comparison that ran beside it shows that
//! the machine can tell such differences ([`Row::judge`]).

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One measured figure. The order of the fields is the order in JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What makes it findable, as `l4.tc.rr`.
    pub id: String,
    /// In words: what was measured, where, which family.
    pub what: String,
    /// The figure; not a number, which JSON writes as null, where it could not be measured.
    #[serde(deserialize_with = "figure_or_none")]
    pub value: f64,
    /// Of `value`.
    pub unit: Cow<'static, str>,
    /// What it is compared with.
    pub against: Option<String>,
    /// `value` by the other's; below one is better for times, above for rates.
    pub ratio: Option<f64>,
    /// The promise in words, as `≤ 1.10`.
    pub target: Option<String>,
    /// Whether it is kept. `None`: no promise, or the machine was too noisy to say.
    pub met: Option<bool>,
    /// Date, kernel and commit; set when it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<String>,
}

/// A promise about a ratio, or about a figure where nothing is compared.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    /// At most.
    AtMost(f64),
    /// At least.
    AtLeast(f64),
}

/// How far from one an A/A ratio may be for an A/B ratio to count as it is.
pub const NOISE: f64 = 0.02;

impl Target {
    fn is_met(self, measured: f64) -> bool {
        match self {
            Self::AtMost(limit) => measured <= limit,
            Self::AtLeast(limit) => measured >= limit,
        }
    }

    fn words(self) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {limit}"),
            Self::AtLeast(limit) => format!("≥ {limit}"),
        }
    }
}

impl Row {
    /// A figure by itself.
    #[must_use]
    pub fn new(id: impl Into<String>, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let (id, what) = (id.into(), what.into());
        let unit = Cow::Borrowed(unit);
        Self { id, what, value, unit, against: None, ratio: None, target: None, met: None, taken: None }
    }

    /// Beside another's figure of the same unit.
    #[must_use]
    pub fn against(mut self, name: impl Into<String>, other: f64) -> Self {
        self.against = Some(name.into());
        self.ratio = Some(self.value / other);
        self
    }

    /// Holds it against a promise: the ratio if there is one, else the figure. `noise` is the ratio of an A/A comparison
    /// that ran beside it: beyond [`NOISE`] something is said only if as much to either side would not change it.
    #[must_use]
    pub fn judge(mut self, target: Target, noise: Option<f64>) -> Self {
        let measured = self.ratio.unwrap_or(self.value);
        let noise = noise.filter(|ratio| ratio.is_nan() || (ratio - 1.0).abs() > NOISE);
        let noise = noise.map_or(1.0, |ratio| ratio.max(1.0 / ratio));
        let [low, high] = [measured / noise, measured * noise].map(|measured| target.is_met(measured));
        self.target = Some(target.words());
        self.met = (low == high && noise.is_finite()).then_some(low);
        self
    }

    /// Takes the judgement back, where something else has shown that the machine is too noisy to say.
    #[must_use]
    pub fn unless(mut self, is_noisy: bool) -> Self {
        self.met = self.met.filter(|_| !is_noisy);
        self
    }
}

fn figure_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Prints the rows as a table.
pub fn print(rows: &[Row], out: &mut impl io::Write) -> io::Result<()> {
    let width = |text: fn(&Row) -> &str| rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0);
    let (id, what) = (width(|row| &row.id), width(|row| &row.what));
    for row in rows {
        let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}×"));
        let against = row.against.as_deref().unwrap_or("");
        let target = row.target.as_deref().unwrap_or("");
        let met = match (row.met, &row.target) {
            (Some(true), _) => "met",
            (Some(false), _) => "MISSED",
            (None, Some(_)) => "not judged",
            (None, None) => "",
        };
        let line = format!(
            "{:id$}  {:what$}  {:>12.3} {:6} {ratio:>8} {against:24} {target:8} {met}",
            row.id, row.what, row.value, row.unit
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

/// Writes the rows where others read them.
pub fn write(rows: &[Row], path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, serde_json::to_string_pretty(rows)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_judged_only_where_noise_would_not_change_the_answer() {
        let row = || Row::new("l4.tc.rr", "RR", 110.0, "µs").against("routed", 100.0);
        assert_eq!(row().judge(Target::AtMost(1.1), Some(1.01)).met, Some(true));
        assert_eq!(row().judge(Target::AtMost(1.0), Some(0.99)).met, Some(false));
        // As it is, where there is hardly any.
        assert_eq!(row().judge(Target::AtMost(1.1), Some(0.981)).met, Some(true));
        for noise in [1.03, 0.97] {
            assert_eq!(row().judge(Target::AtMost(1.08), Some(noise)).met, None);
            assert_eq!(row().judge(Target::AtMost(1.0), Some(noise)).met, Some(false));
            assert_eq!(row().judge(Target::AtLeast(1.0), Some(noise)).met, Some(true));
        }
        assert_eq!(row().judge(Target::AtLeast(1.0), Some(f64::NAN)).met, None);
        assert_eq!(row().met, None);
    }

    #[test]
    fn a_figure_without_comparison_is_judged_by_itself() {
        let row = Row::new("l4.program.new", "IPv4", 900.0, "ns").judge(Target::AtMost(1000.0), None);
        assert_eq!((row.met, row.target.as_deref()), (Some(true), Some("≤ 1000")));
    }

    #[test]
    fn a_row_that_could_not_be_measured_is_read_again() {
        let text = serde_json::to_string(&Row::new("l4.x", "x: not measured", f64::NAN, "")).unwrap();
        assert!(serde_json::from_str::<Row>(&text).unwrap().value.is_nan(), "{text}");
    }

    #[test]
    fn json_has_the_promised_fields_in_order() {
        let row = Row::new("l4.x", "x", 1.5, "ns").against("y", 1.0).judge(Target::AtLeast(1.0), None);
        let expected = r#"{"id":"l4.x","what":"x","value":1.5,"unit":"ns","against":"y","ratio":1.5,"target":"≥ 1","met":true}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), expected);
    }
}
