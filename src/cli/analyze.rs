//! `ferromesh analyze`: what an agent would say of these files, without an agent.

use std::path::PathBuf;
use std::process::ExitCode;

use control::{Analysis, Severity};
use serde::Serialize;

use super::CliError;
use super::output::{FormatArg, Paint, Tone};
use super::table::{Cell, table};

/// Check YAML files and directories as an agent would read them, without one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferromesh analyze rule1.yaml
  ferromesh analyze /etc/ferromesh              A directory counts as an agent would read it
  ferromesh analyze *.yaml -o json | jq '.findings[] | select(.severity == \"error\")'

All files together count as one configuration. Exit code 1 if there is an error.")]
pub(crate) struct Args {
    /// Files and directories.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArg,
}

/// An [`Analysis`] as it is printed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct View {
    objects: usize,
    findings: Vec<FindingView>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct FindingView {
    severity: String,
    file: String,
    line: usize,
    column: usize,
    path: String,
    message: String,
}

impl From<&Analysis> for View {
    fn from(analysis: &Analysis) -> Self {
        let findings = analysis.findings.iter().map(|located| FindingView {
            severity: located.finding.severity.to_string(),
            file: located.file.clone(),
            line: located.finding.line,
            column: located.finding.column,
            path: located.finding.path.clone(),
            message: located.finding.message.clone(),
        });
        Self { objects: analysis.objects, findings: findings.collect() }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let analysis = control::analyze(&args.files);
    let printed = args.format.print(&View::from(&analysis), |paint| render(&analysis, paint))?;
    Ok(if analysis.worst() == Some(Severity::Error) { ExitCode::FAILURE } else { printed })
}

fn render(analysis: &Analysis, paint: Paint) -> String {
    let tone = |severity| match severity {
        Severity::Hint => Tone::Plain,
        Severity::Warning => Tone::Warning,
        Severity::Error => Tone::Bad,
    };
    let row = |located: &control::Located| {
        let severity = located.finding.severity;
        [Cell::toned(tone(severity), severity.to_string()), located.into()]
    };
    let count =
        |severity| analysis.findings.iter().filter(|located| located.finding.severity == severity).count();
    let [errors, warnings] = [Severity::Error, Severity::Warning].map(count);
    let sum = format!("{} objects valid, {errors} errors, {warnings} warnings\n", analysis.objects);
    match analysis.findings.as_slice() {
        [] => sum,
        findings => table(["SEVERITY", "LOCATION MESSAGE"], findings.iter().map(row).collect(), paint) + &sum,
    }
}

#[cfg(test)]
mod tests {
    use control::{Finding, Located};

    use super::super::golden::golden;
    use super::*;

    #[test]
    fn findings_are_listed_worst_in_red_with_place_and_cure() {
        let located = |severity, line, path: &str, message: &str| Located {
            file: "rule1.yaml".to_owned(),
            finding: Finding {
                severity,
                line,
                column: 5,
                path: path.to_owned(),
                message: message.to_owned(),
            },
        };
        let analysis = Analysis {
            findings: vec![
                located(Severity::Hint, 1, "spec", "default/rule1 selects none of the 4 declared workloads"),
                located(
                    Severity::Error,
                    12,
                    "spec.ingress[0].fromEndpoint",
                    "unknown, did you mean fromEndpoints",
                ),
            ],
            objects: 6,
        };
        golden("analyze", &render(&analysis, Paint::NONE));
        golden("analyze.json", &serde_json::to_string_pretty(&View::from(&analysis)).unwrap());
    }

    #[test]
    fn without_findings_only_the_sum_is_said() {
        let clean = Analysis { findings: Vec::new(), objects: 3 };
        assert_eq!(render(&clean, Paint::NONE), "3 objects valid, 0 errors, 0 warnings\n");
    }
}
