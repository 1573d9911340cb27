//! `ferromesh endpoint`: the workloads of this node as the kernel has them.

use std::process::ExitCode;

use mesh::workload::WorkloadName;
use node_api::{EndpointView, Reply, Request};

use super::output::{FormatArg, Paint, Tone};
use super::table::{Cell, fields, table};
use super::{Agent, CliError};

/// Show the workloads of this node: enforcement, identity, labels, addresses.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List all endpoints.
    #[command(after_help = "\
Examples:
  ferromesh endpoint list
  ferromesh endpoint list -o json | jq '.[] | select(.ingress_enforced | not) | .endpoint.workload'")]
    List {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show everything about one endpoint: interface, addresses, identity, rulesets, policies.
    #[command(after_help = "\
Examples:
  ferromesh endpoint get deathstar             In namespace default
  ferromesh endpoint get kube-system/coredns
  ferromesh endpoint get 3                     By number, as `endpoint list` shows it")]
    Get {
        /// `[namespace/]name` or number.
        #[arg(value_name = "NAME|ID")]
        which: String,
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let Reply::Endpoints(endpoints) = agent.ask(Request::Endpoints).await? else {
        return Err(CliError::Unexpected);
    };
    match args.verb {
        Verb::List { format } => format.print(&endpoints, |paint| list(&endpoints, paint)),
        Verb::Get { which, format } => {
            let view = find(&endpoints, &which)?;
            format.print(view, |paint| details(view, paint))
        }
    }
}

fn find<'a>(endpoints: &'a [EndpointView], which: &str) -> Result<&'a EndpointView, CliError> {
    let name = which.parse::<WorkloadName>().ok();
    // A number is also a valid name; the name goes first, because numbers change.
    let named = endpoints.iter().find(|view| Some(&view.endpoint.workload) == name.as_ref());
    let numbered = || endpoints.iter().find(|view| view.endpoint.id.to_string() == which);
    named.or_else(numbered).ok_or_else(|| {
        let names: Vec<_> = endpoints.iter().map(|view| view.endpoint.workload.to_string()).collect();
        let known = if names.is_empty() { "this node has none".to_owned() } else { names.join(", ") };
        CliError::Failed(format!(
            "endpoint {which:?}: not found; accepted: [namespace/]name or number of: {known}"
        ))
    })
}

fn list(endpoints: &[EndpointView], paint: Paint) -> String {
    let heading = [
        "ENDPOINT",
        "POLICY (ingress)\nENFORCEMENT",
        "POLICY (egress)\nENFORCEMENT",
        "IDENTITY",
        "LABELS (source:key[=value])",
        "IPv6",
        "IPv4",
        "STATUS",
        "WORKLOAD",
    ];
    let row = |view: &EndpointView| {
        [
            view.endpoint.id.into(),
            enforcement(view.ingress_enforced, view.audit),
            enforcement(view.egress_enforced, view.audit),
            view.identity.number().into(),
            label_lines(view),
            view.endpoint.ipv6.into(),
            view.endpoint.ipv4.into(),
            state(view),
            (&view.endpoint.workload).into(),
        ]
    };
    table(heading, endpoints.iter().map(row).collect(), paint)
}

fn details(view: &EndpointView, paint: Paint) -> String {
    let EndpointView { endpoint, .. } = view;
    let policies: Vec<_> =
        view.policies.iter().map(|policy| format!("{policy} ({})", policy.kind.as_str())).collect();
    let direction = |enforced, ruleset| format!("{}, ruleset {ruleset}", word(enforced, view.audit)).into();
    let rows = vec![
        ("Workload", (&endpoint.workload).into()),
        ("Endpoint", format!("{} (instance {})", endpoint.id, endpoint.instance).into()),
        ("Status", state(view)),
        ("Identity", view.identity.number().into()),
        ("SPIFFE ID", view.spiffe_id.as_ref().map_or_else(|| "none".into(), Cell::from)),
        ("Labels", label_lines(view)),
        ("Service account", endpoint.service_account.as_str().into()),
        ("IPv4", endpoint.ipv4.into()),
        ("IPv6", endpoint.ipv6.into()),
        (
            "Interface",
            format!("{} (index {}, MAC {})", endpoint.interface, endpoint.ifindex, endpoint.gateway_mac)
                .into(),
        ),
        ("Workload's MAC", endpoint.mac.into()),
        ("Ingress", direction(view.ingress_enforced, view.ingress_ruleset)),
        ("Egress", direction(view.egress_enforced, view.egress_ruleset)),
        ("Policies", if policies.is_empty() { "none".into() } else { policies.join("\n").into() }),
        ("Connections", view.connections.into()),
    ];
    fields(rows, paint)
}

fn word(enforced: bool, audit: bool) -> &'static str {
    match (enforced, audit) {
        (true, false) => "Enabled",
        (true, true) => "Disabled (Audit)",
        (false, _) => "Disabled",
    }
}

fn enforcement(enforced: bool, audit: bool) -> Cell {
    let tone = if enforced && audit { Tone::Warning } else { Tone::Plain };
    Cell::toned(tone, word(enforced, audit))
}

fn state(view: &EndpointView) -> Cell {
    let tone = if view.state == "ready" { Tone::Good } else { Tone::Warning };
    Cell::toned(tone, view.state.as_str())
}

fn label_lines(view: &EndpointView) -> Cell {
    view.labels.to_string().replace(',', "\n").into()
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn endpoints_are_listed_in_ciliums_columns() {
        golden("endpoint-list", &list(&golden::endpoints(), Paint::NONE));
        golden("endpoint-list.json", &serde_json::to_string_pretty(&golden::endpoints()).unwrap());
    }

    #[test]
    fn one_endpoint_is_shown_whole() {
        golden("endpoint-get", &details(&golden::endpoints()[0], Paint::NONE));
    }

    #[test]
    fn an_endpoint_is_found_by_name_or_number() {
        let endpoints = golden::endpoints();
        for (which, expected) in [("deathstar", 3), ("default/xwing", 7), ("7", 7)] {
            assert_eq!(find(&endpoints, which).unwrap().endpoint.id.number(), expected, "{which}");
        }
    }

    #[test]
    fn one_that_is_not_there_is_said_with_those_that_are() {
        let error = find(&golden::endpoints(), "yoda").unwrap_err().to_string();
        let expected = "endpoint \"yoda\": not found; accepted: [namespace/]name or number of: \
                        default/deathstar, default/xwing";
        assert_eq!(error, expected);
        assert!(find(&[], "yoda").unwrap_err().to_string().ends_with("this node has none"));
    }
}
