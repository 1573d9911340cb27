//! What a person is told who got a file wrong: exact lines, for the wording is the feature.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up has failed")]

mod configuration;
mod nodes;
mod policy;
mod secrets;
mod services;
mod tls;

use std::fs;
use std::path::Path;

use control::{Severity, analyze};

/// The lines of an analysis of one file, hints left out.
fn say(yaml: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rule1.yaml");
    fs::write(&path, yaml).unwrap();
    let analysis = analyze(&[path]);
    let told = analysis.findings.iter().filter(|located| located.finding.severity > Severity::Hint);
    told.map(|located| strip(&located.to_string(), directory.path())).collect()
}

fn strip(line: &str, directory: &Path) -> String {
    line.replace(&format!("{}/", directory.display()), "")
}

fn cilium(spec: &str) -> String {
    let head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: rule1}\nspec:\n";
    format!("{head}  endpointSelector: {{matchLabels: {{org: empire}}}}\n{spec}")
}

#[track_caller]
fn says(yaml: &str, expected: &[&str]) {
    assert_eq!(say(yaml), expected, "for\n{yaml}");
}
