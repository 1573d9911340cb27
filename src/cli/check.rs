//! `ferromesh check`: may a node run here, would anything disturb it, is anything left of one.

use std::process::ExitCode;

use control::source::files::peek;
use endpoint::Host;
use l4_datapath::probe::Capabilities;
use serde::Serialize;

use super::CliError;
use super::output::{FormatArg, Paint, Tone, plain};
use super::table::{Cell, table};
use crate::directories::Directories;
use crate::teardown::leftovers;

/// Can a node run here, would anything disturb it, is anything left of one?
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ferromesh check              What this kernel offers and what on this host disturbs
  sudo ferromesh check --clean      After `down`: is anything left?
  sudo ferromesh check -o json | jq '.capabilities[] | select(.works | not)'

Exit code 1 if a node cannot run here, or with --clean if anything is left.")]
pub(super) struct Args {
    #[command(flatten)]
    directories: Directories,
    /// Only look for what is left of a node on this host; exit code 1 if anything is
    #[arg(long)]
    clean: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Found {
    capabilities: Vec<Capability>,
    /// What disturbs, a sentence each.
    conflicts: Vec<String>,
}

/// What was looked for in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Capability {
    capability: String,
    works: bool,
    /// No node runs without it.
    required: bool,
    /// What was found, or what it needs.
    found: String,
}

/// What is left of a node, a sentence each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Left {
    left: Vec<String>,
}

impl From<Capabilities> for Found {
    fn from(capabilities: Capabilities) -> Self {
        let capability = |finding: l4_datapath::probe::Finding| Capability {
            capability: finding.capability.to_owned(),
            works: finding.works,
            required: finding.required,
            found: finding.text,
        };
        Self { capabilities: capabilities.0.into_iter().map(capability).collect(), conflicts: Vec::new() }
    }
}

/// Prints what was found; the exit code is 1 where a node cannot run, or, with `--clean`, where something is left.
pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let endpoints = endpoints(&args.directories).map_err(CliError::Failed)?;
    if args.clean {
        let found = Left { left: leftovers(&args.directories, &endpoints).await.map_err(failed)? };
        let printed = args.format.print(&found, |_| left(&found.left))?;
        return Ok(if found.left.is_empty() { printed } else { ExitCode::FAILURE });
    }
    let capabilities = l4_datapath::probe::capabilities();
    let able = capabilities.check();
    let mut found = Found::from(capabilities);
    found.conflicts = Host::conflicts(&endpoints).await.map_err(failed)?;
    found.conflicts.extend(l4_datapath::foreign::programs());
    found.conflicts.extend(l4_datapath::foreign::socket_programs(&endpoints.cgroup, &args.directories.pins));
    let printed = args.format.print(&found, |paint| render(&found, paint))?;
    able.map_err(failed)?;
    Ok(printed)
}

fn render(found: &Found, paint: Paint) -> String {
    let tone = |row: &Capability| match (row.works, row.required) {
        (true, _) => Tone::Good,
        (false, true) => Tone::Bad,
        (false, false) => Tone::Warning,
    };
    let row = |row: &Capability| [row.capability.as_str().into(), Cell::toned(tone(row), row.found.as_str())];
    let text = table(["CAPABILITY", "THIS KERNEL"], found.capabilities.iter().map(row).collect(), paint);
    found.conflicts.iter().fold(text, |text, sentence| text + &format!("‼ {}\n", plain(sentence)))
}

fn failed(error: impl ToString) -> CliError {
    CliError::Failed(error.to_string())
}

fn left(found: &[String]) -> String {
    match found {
        [] => "clean: nothing of a node is left on this host\n".to_owned(),
        found => found.iter().map(|sentence| format!("left: {sentence}\n")).collect(),
    }
}

/// How the endpoints of a node in these directories are made; the defaults where there is no configuration.
pub(super) fn endpoints(directories: &Directories) -> Result<endpoint::Config, String> {
    let world =
        peek(&directories.config, &directories.state, directories.shared.as_deref()).unwrap_or_default();
    directories.endpoints(&world).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use l4_datapath::probe::Finding;

    use super::super::golden::golden;
    use super::*;

    #[test]
    fn what_the_kernel_lacks_and_what_disturbs_is_listed() {
        let finding = |capability, works, required, text: &str| Finding {
            capability,
            works,
            required,
            text: text.to_owned(),
        };
        let mut found = Found::from(Capabilities(vec![
            finding("redirect_peer", true, true, "yes"),
            finding("tcx", false, false, "no: needs Linux 6.6; clsact is used"),
            finding("ring buffer", false, true, "no: needs Linux 5.8"),
        ]));
        found.conflicts.push("firewalld is running".to_owned());
        golden("check", &render(&found, Paint::NONE));
        golden("check.json", &serde_json::to_string_pretty(&found).unwrap());
    }

    #[test]
    fn what_is_left_is_listed_or_said_to_be_nothing() {
        assert_eq!(left(&[]), "clean: nothing of a node is left on this host\n");
        assert_eq!(left(&["device fm1".to_owned()]), "left: device fm1\n");
    }
}
