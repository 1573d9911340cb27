//! What the programs take of the verifier, against `l4-datapath/verifier-budget.txt`. The gate is a test; this tells.

use std::process::Command;

use super::plan::Plan;
use super::report::{Row, Target};
use crate::lab::{Outcome, binary};

/// Columns of `program_cost verifier` behind the program's name, and their units.
const COLUMNS: [(&str, &str); 3] =
    [("instructions", ""), ("stack", "bytes"), ("stack of its largest function", "bytes")];

/// Measures the rows that are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    const ID: &str = "l4.verifier";
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let said = Outcome::of(Command::new(binary("examples/program_cost")).arg("verifier")).success();
    let mut rows = Vec::new();
    for line in said.lines() {
        let mut fields = line.split('\t');
        let program = fields.next().unwrap_or_default();
        let numbers: Vec<f64> = fields.map(|field| field.parse().expect("a number")).collect();
        for ((what, unit), pair) in COLUMNS.into_iter().zip(numbers.chunks_exact(2)) {
            if pair[1] > 0.0 {
                // Nothing of this is noise: a quick run judges it as well.
                let row = Row::new(ID, format!("{program}, {what}"), pair[0], unit);
                rows.push(row.judge(Target::AtMost(pair[1]), None));
            }
        }
    }
    rows
}
