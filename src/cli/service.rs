//! `ferromesh service`: what can be called by VIP and name, and who answers.

use std::process::ExitCode;

use mesh::policy::protocol;
use mesh::service::Backend;
use node_api::{Reply, Request, ServiceView};

use super::output::{FormatArg, Paint, Tone};
use super::table::{Cell, fields, table};
use super::{Agent, CliError};

/// Backends of a frontend that `list` shows, unless it is told to show all.
const SHOWN: usize = 16;

/// Show services: what can be called by VIP and name, and which backends answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the frontends of all services with their backends.
    #[command(after_help = "\
Examples:
  ferromesh service list
  ferromesh service list --all                 Every backend of services with many
  ferromesh service list -o json | jq '.[] | select(.backends == []) | .service'

A frontend without backends refuses calls at once. `(draining)`: terminating or not ready, keeps the connections
that it has and gets no new ones. The first column is what `ferromesh lb list` shows in the kernel; 0 is not there.")]
    List {
        /// All backends, however many.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show one service: its frontends, ports, affinity, all backends.
    #[command(after_help = "\
Examples:
  ferromesh service get deathstar                In namespace default
  ferromesh service get kube-system/kube-dns
  ferromesh service get deathstar -o json | jq '.[].backends'")]
    Get {
        /// `[namespace/]name`.
        #[arg(value_name = "NAME")]
        which: String,
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let rows = |reply| match reply {
        Reply::Services(rows) => Some(rows),
        _ => None,
    };
    let services = agent.rows(Request::Services, rows).await?;
    match args.verb {
        Verb::List { all, format } => {
            let shown = if all { usize::MAX } else { SHOWN };
            format.print(&services, |paint| list(&services, shown, paint))
        }
        Verb::Get { which, format } => {
            let found = find(&services, &which)?;
            format.print(&found, |paint| details(&found, paint))
        }
    }
}

/// The frontends of one service; there is at least one.
fn find<'a>(services: &'a [ServiceView], which: &str) -> Result<Vec<&'a ServiceView>, CliError> {
    let full = if which.contains('/') { which.to_owned() } else { format!("default/{which}") };
    let found: Vec<_> = services.iter().filter(|view| view.service.to_string() == full).collect();
    if found.is_empty() {
        return Err(CliError::Failed(format!(
            "service {full}: has no frontend on this node; see `ferromesh service list`, and `ferromesh policy \
             list` for what is wrong with it. Headless services and external names have none by nature"
        )));
    }
    Ok(found)
}

fn list(services: &[ServiceView], shown: usize, paint: Paint) -> String {
    let row = |view: &ServiceView| {
        [
            view.id.into(),
            view.frontend.into(),
            view.kind.as_str().into(),
            backends(view, shown),
            (&view.service).into(),
        ]
    };
    let heading = ["ID", "Frontend", "Service Type", "Backend", "Service"];
    table(heading, services.iter().map(row).collect(), paint)
}

fn details(frontends: &[&ServiceView], paint: Paint) -> String {
    let each = |view: &&ServiceView| {
        let affinity = match view.affinity {
            None => "none".to_owned(),
            Some(seconds) => format!("ClientIP, {seconds} s"),
        };
        let port = if view.port_name.is_empty() { "-" } else { &view.port_name };
        let rows = vec![
            ("Service", (&view.service).into()),
            ("Type", view.kind.as_str().into()),
            ("Frontend", view.frontend.into()),
            ("ID", view.id.into()),
            ("Port name", port.into()),
            ("Affinity", affinity.into()),
            ("Backends", backends(view, usize::MAX)),
        ];
        fields(rows, paint)
    };
    frontends.iter().map(each).collect::<Vec<_>>().join("\n")
}

/// `1 => ADDRESS:PORT/TCP`, a line each.
fn backends(view: &ServiceView, shown: usize) -> Cell {
    let protocol = protocol::name(view.frontend.protocol).unwrap_or("?");
    let line = |(number, (backend, state)): (usize, (&Backend, &str))| {
        format!("{} => {backend}/{protocol}{state}", number.saturating_add(1))
    };
    let active = view.backends.iter().map(|backend| (backend, ""));
    let draining = view.draining.iter().map(|backend| (backend, " (draining)"));
    let mut lines: Vec<_> = active.chain(draining).enumerate().take(shown).map(line).collect();
    let count = view.backends.len().saturating_add(view.draining.len());
    if count > lines.len() {
        lines.push(format!("and {} more: see --all", count.saturating_sub(lines.len())));
    }
    let tone = if view.backends.is_empty() { Tone::Warning } else { Tone::Plain };
    if lines.is_empty() { Cell::toned(tone, "none: refused") } else { Cell::toned(tone, lines.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn services_are_listed_in_ciliums_columns() {
        golden("service-list", &list(&golden::services(), SHOWN, Paint::NONE));
        golden("service-list.json", &serde_json::to_string_pretty(&golden::services()).unwrap());
    }

    #[test]
    fn a_service_is_shown_whole() {
        let services = golden::services();
        golden("service-get", &details(&find(&services, "deathstar").unwrap(), Paint::NONE));
    }

    #[test]
    fn of_very_many_backends_the_list_shows_the_first() {
        let text = list(&golden::services(), 1, Paint::NONE);
        assert!(text.contains("1 => 10.1.0.3:8080/TCP") && text.contains("and 2 more: see --all"), "{text}");
        assert!(!text.contains("10.1.0.4"), "{text}");
    }

    #[test]
    fn a_service_is_found_by_name_in_the_default_namespace_or_another() {
        let services = golden::services();
        for (which, count) in [("deathstar", 2), ("default/deathstar", 2), ("kube-system/kube-dns", 1)] {
            assert_eq!(find(&services, which).unwrap().len(), count, "{which}");
        }
        let error = find(&services, "yoda").unwrap_err().to_string();
        assert!(error.starts_with("service default/yoda: has no frontend on this node; see"), "{error}");
    }
}
