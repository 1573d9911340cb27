//! The tree is the architecture: a crate imports only from rows below its own, never a neighbour.

use std::collections::BTreeMap;
use std::process::Command;

/// The rows of DESIGN, from the floor up. A crate that stands in none of them has no place in the house.
const ROWS: [&[&str]; 5] = [
    &["abi", "linux"],
    &["mesh"],
    &["certs", "expression", "maps", "node-api"],
    &["auth-agent", "control", "endpoint", "l4-datapath", "l7-proxy", "observe"],
    &["ferromesh", "conformance"],
];

#[test]
fn a_crate_imports_only_from_rows_below() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let row: BTreeMap<&str, usize> = ROWS
        .iter()
        .enumerate()
        .flat_map(|(row, crates)| crates.iter().map(move |name| (*name, row)))
        .collect();

    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let Some(own) = row.get(name) else {
            faults.push(format!("{name} stands in no row of conformance/tests/layers.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let imported = dependency["name"].as_str().expect("name");
            if imported != name && row.get(imported).is_some_and(|below| below >= own) {
                faults.push(format!("{name} imports {imported}, which is not below it"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
