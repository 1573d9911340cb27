//! `ferromesh status`: is this node well?

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use node_api::{
    AuthStatus, ClientError, L7Status, MapUse, Masquerading, ProgramView, Reply, Request, ServiceCounts,
    Status,
};

use super::auth::span;
use super::output::{FormatArg, Paint, Tone};
use super::table::{Cell, fields, table};
use super::{Agent, CliError, output};

/// Show whether this node is well: endpoints, policies, what is degraded, what was changed on this host.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferromesh status
  ferromesh status --verbose             Changes to this host, kernel capabilities, programs, maps, memory
  ferromesh status -o json | jq .degraded

Exit code 1 if the agent does not answer.")]
pub(crate) struct Args {
    /// Also list each change to this host, what the kernel offers, the programs, and how full the maps are.
    #[arg(short, long)]
    verbose: bool,
    /// Where the kernel's maps are pinned; looked at only if the agent does not answer.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/ferromesh")]
    pins: PathBuf,
    #[command(flatten)]
    format: FormatArg,
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let status = match agent.ask(Request::Status).await {
        Ok(Reply::Status(status)) => *status,
        Ok(_) => return Err(CliError::Unexpected),
        Err(error @ ClientError::NotRunning { .. }) => {
            output::note(&format!("ferromesh: {error}{}", left_in_kernel(&args.pins)));
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    };
    args.format.print(&status, |paint| render(&status, args.verbose, paint))
}

/// What still works without an agent, if the pins show that something does.
fn left_in_kernel(pins: &Path) -> String {
    let links = pins.join(format!("v{}", abi::SCHEMA)).join("links");
    let attached = std::fs::read_dir(links).is_ok_and(|mut entries| entries.next().is_some());
    if !attached {
        return String::new();
    }
    format!(
        "\npolicy stays in force in the kernel ({}): established connections and existing policy go on, \
         new workloads do not start and edits wait for the agent",
        pins.display()
    )
}

fn render(status: &Status, verbose: bool, paint: Paint) -> String {
    let mut text = fields(summary(status, verbose), paint);
    if verbose {
        let capabilities = status.capabilities.iter();
        let capabilities = capabilities.map(|(name, found)| [name.into(), found.into()]).collect();
        let programs = status.programs.iter().map(program_row).collect();
        let maps = status.maps.iter().map(|(name, fill)| map_row(name, *fill)).collect();
        let _ = write!(text, "\n{}", table(["CAPABILITY", "THIS KERNEL"], capabilities, paint));
        let heading = ["PROGRAM", "ID", "ATTACHED", "VERIFIED INSTRUCTIONS", "MEMORY"];
        let _ = write!(text, "\n{}", table(heading, programs, paint));
        let _ = write!(text, "\n{}", table(["MAP", "USED", "CAPACITY", "PRESSURE", "MEMORY"], maps, paint));
    }
    text
}

fn summary(status: &Status, verbose: bool) -> Vec<(&'static str, Cell)> {
    let Status { endpoints, ingress_enforced, egress_enforced, adopted, .. } = status;
    let mut rows = vec![
        ("Node", status.node.as_str().into()),
        ("Agent", Cell::toned(Tone::Good, format!("OK, build {}, pid {}", status.build, status.pid))),
        ("Configuration", status.config.display().into()),
        ("Kernel", format!("schema {}, policy revision {}", status.schema, status.revision).into()),
        (
            "Endpoints",
            format!(
                "{endpoints} (enforced: ingress {ingress_enforced}, egress {egress_enforced}; adopted {adopted})"
            )
            .into(),
        ),
        ("Policies", policies(status)),
        ("Services", services(status)),
        ("Masquerading", masquerading(&status.masquerading)),
        ("Authentication", authentication(status.authentication.as_ref())),
        ("L7 proxy", proxy(status.l7.as_ref())),
        ("DNS", list(&status.dns).unwrap_or_else(|| "off".to_owned()).into()),
        ("Lost events", count(status.lost_events, Tone::Warning, "")),
        ("Degraded", degraded(status)),
        ("Host changes", host_changes(&status.host_changes, verbose)),
    ];
    if verbose {
        rows.push(("Kernel memory", memory(status).into()));
    }
    rows
}

fn memory(status: &Status) -> String {
    let maps = status.maps.values().fold(0u64, |sum, map| sum.saturating_add(map.bytes));
    let programs = status.programs.iter().fold(0u64, |sum, program| sum.saturating_add(program.bytes));
    format!("{} in maps, {} in programs", kibibytes(maps), kibibytes(programs))
}

fn kibibytes(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}

fn policies(status: &Status) -> Cell {
    let in_force = format!("{} in force", status.policies);
    match status.invalid {
        0 => in_force.into(),
        invalid => {
            Cell::toned(Tone::Bad, format!("{in_force}, {invalid} invalid: see `ferromesh policy list`"))
        }
    }
}

fn services(status: &Status) -> Cell {
    let ServiceCounts { services, frontends, backends } = status.services;
    format!("{services} (frontends {frontends}, backends {backends})").into()
}

fn masquerading(masquerading: &Masquerading) -> Cell {
    let Masquerading { ipv4, ipv6, ports: (first, last), devices } = masquerading;
    let families = match (ipv4, ipv6) {
        (false, false) => return "off".into(),
        (true, false) => "IPv4",
        (false, true) => "IPv6",
        (true, true) => "IPv4 and IPv6",
    };
    match list(devices) {
        Some(devices) => format!("{families} on {devices}, ports {first}-{last}").into(),
        None => Cell::toned(Tone::Warning, format!("{families}, but no interface leads out of this node")),
    }
}

fn authentication(status: Option<&AuthStatus>) -> Cell {
    let Some(AuthStatus { trust_domain, required, marks, nodes, sessions, first_expiry, problem }) = status
    else {
        return "off: no policy requires it".into();
    };
    if let Some(problem) = problem {
        return Cell::toned(Tone::Bad, format!("{trust_domain}: {problem}"));
    }
    let expiry = first_expiry.map(|seconds| format!("; first certificate ends in {}", span(seconds)));
    let text = format!(
        "{trust_domain}: {marks} proven, for {required} pairs of identities; {sessions} of {nodes} nodes connected{}",
        expiry.unwrap_or_default()
    );
    Cell::toned(if *sessions < *nodes as u64 { Tone::Warning } else { Tone::Plain }, text)
}

fn proxy(status: Option<&L7Status>) -> Cell {
    let Some(L7Status { workers, endpoints, refused, draining, problem }) = status else {
        return "off: no policy with L7 rules is about an endpoint here".into();
    };
    match (problem, refused) {
        (Some(problem), _) => Cell::toned(Tone::Bad, format!("{problem}: what must go by it is refused")),
        (None, 0) => {
            let before = match draining {
                0 => String::new(),
                count => format!("; {count} before it still with connections"),
            };
            format!("{endpoints} endpoints with L7 rules, {workers} workers{before}").into()
        }
        (None, refused) => Cell::toned(
            Tone::Bad,
            format!(
                "{endpoints} endpoints with L7 rules, {refused} of them with rules not in force: see `ferromesh policy list`"
            ),
        ),
    }
}

/// None of none.
fn list(values: &[impl ToString]) -> Option<String> {
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn count(number: u64, tone: Tone, more: &str) -> Cell {
    Cell::toned(if number == 0 { Tone::Plain } else { tone }, format!("{number}{more}"))
}

fn degraded(status: &Status) -> Cell {
    match status.degraded.as_slice() {
        [] => Cell::toned(Tone::Good, "nothing"),
        sentences => Cell::toned(Tone::Warning, sentences.join("\n")),
    }
}

fn host_changes(changes: &[String], verbose: bool) -> Cell {
    match changes {
        [] => "none".into(),
        changes if verbose => changes.join("\n").into(),
        changes => format!("{}, undone by `ferromesh down`: see --verbose", changes.len()).into(),
    }
}

fn map_row(name: &str, MapUse { used, capacity, bytes }: MapUse) -> [Cell; 5] {
    let percent = used.and_then(|used| used.saturating_mul(100).checked_div(capacity));
    let pressure = match percent {
        None => Cell::from("-"),
        Some(percent @ 90..) => Cell::toned(Tone::Bad, format!("{percent}%")),
        Some(percent) => format!("{percent}%").into(),
    };
    [
        name.into(),
        used.map_or_else(|| "-".to_owned(), |used| used.to_string()).into(),
        capacity.into(),
        pressure,
        kibibytes(bytes).into(),
    ]
}

fn program_row(program: &ProgramView) -> [Cell; 5] {
    let ProgramView { name, id, attached, verified, bytes } = program;
    [
        name.into(),
        id.into(),
        attached.into(),
        verified.map_or_else(|| "-".to_owned(), |verified| verified.to_string()).into(),
        kibibytes(*bytes).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn a_node_that_is_well() {
        golden("status", &render(&golden::status(), false, Paint::NONE));
        golden("status.json", &serde_json::to_string_pretty(&golden::status()).unwrap());
    }

    #[test]
    fn verbose_lists_changes_capabilities_and_maps() {
        golden("status-verbose", &render(&golden::status(), true, Paint::NONE));
    }

    #[test]
    fn a_degraded_node_says_what_and_where_to_look() {
        let mut status = golden::status();
        status.invalid = 1;
        status.lost_events = 12;
        status.degraded = vec![
            "policy default/rule2: rules.http needs the L7 proxy, which does not exist yet: denied"
                .to_owned(),
            "map RULES: 91% full".to_owned(),
        ];
        golden("status-degraded", &render(&status, false, Paint::NONE));
    }

    #[test]
    fn masquerading_is_off_partly_on_or_without_a_way_out() {
        let with = |ipv4, ipv6, devices: &[&str]| Masquerading {
            ipv4,
            ipv6,
            ports: (49_152, 65_535),
            devices: devices.iter().map(ToString::to_string).collect(),
        };
        let cases = [
            (with(false, false, &["eth0"]), "off"),
            (with(true, false, &["eth0", "eth1"]), "IPv4 on eth0, eth1, ports 49152-65535"),
            (with(true, true, &[]), "IPv4 and IPv6, but no interface leads out of this node"),
        ];
        for (state, expected) in cases {
            let text = fields(vec![("Masquerading", masquerading(&state))], Paint::NONE);
            assert_eq!(text, format!("Masquerading:   {expected}\n"));
        }
    }

    #[test]
    fn without_an_agent_the_pinned_links_show_what_stays() {
        let directory = golden::directory();
        assert_eq!(left_in_kernel(directory.path()), "");
        let links = directory.path().join(format!("v{}/links", abi::SCHEMA));
        std::fs::create_dir_all(&links).unwrap();
        assert_eq!(left_in_kernel(directory.path()), "", "nothing is attached");
        std::fs::write(links.join("fm1-from_pod"), "").unwrap();
        assert!(left_in_kernel(directory.path()).starts_with("\npolicy stays in force in the kernel"));
    }
}
