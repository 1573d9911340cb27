//! `ferromesh policy get`: what policy comes to, for an endpoint or of an object.

use std::process::ExitCode;

use mesh::l7::L7Demand;
use mesh::policy::{Authentication, Needs};
use node_api::{
    EndpointPolicy, Listed, PolicyDetails, Reply, Request, RuleEntry, RulesetView, SideView, StatementView,
};

use super::super::output::{FormatArg, Paint, Tone};
use super::super::table::{Cell, fields, table};
use super::super::{Agent, CliError};
use super::{ports, some};

/// Names and numbers of a cell.
const SHOWN: usize = 20;

pub(super) async fn run(
    agent: &Agent,
    what: Option<String>,
    format: &FormatArg,
) -> Result<ExitCode, CliError> {
    let mut replies = agent.connect().await?.stream(&Request::PolicyGet { what }).await?;
    let mut policies = Vec::new();
    loop {
        match replies.next().await? {
            Reply::EndpointPolicy(policy) => return format.print(&policy, |paint| endpoint(&policy, paint)),
            Reply::PolicyDetails(piece) => policies.extend(piece),
            Reply::Done => return format.print(&policies, |paint| details(&policies, paint)),
            _ => return Err(CliError::Unexpected),
        }
    }
}

/// In the columns of `cilium-dbg bpf policy get`, as far as there is something to say.
fn endpoint(view: &EndpointPolicy, paint: Paint) -> String {
    let head = fields(
        vec![
            ("Endpoint", format!("{} ({})", view.endpoint, view.workload).into()),
            ("Identity", view.identity.number().into()),
            ("Ingress", enforcement(&view.ingress, view.audit)),
            ("Egress", enforcement(&view.egress, view.audit)),
        ],
        paint,
    );
    let rulesets = [("Ingress", &view.ingress), ("Egress", &view.egress)];
    let rows = rulesets.into_iter().flat_map(|(direction, ruleset)| {
        ruleset.entries.iter().map(move |entry| rule(view, direction, entry))
    });
    let heading =
        ["POLICY", "DIRECTION", "IDENTITY", "LABELS (source:key[=value])", "PORT/PROTO", "FROM POLICY"];
    format!("{head}\n{}", table(heading, rows.collect(), paint))
}

fn enforcement(ruleset: &RulesetView, audit: bool) -> Cell {
    if !ruleset.enforced {
        return "Disabled: what no entry denies passes".into();
    }
    let by = match ruleset.denied_by_default.as_slice() {
        [] => "always enforced".to_owned(),
        policies => {
            let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
            format!("denied by default by {}", names.join(", "))
        }
    };
    if audit {
        return Cell::toned(Tone::Warning, format!("Audit: {by}; what is denied is reported, and passes"));
    }
    format!("Enabled: {by}").into()
}

fn rule(view: &EndpointPolicy, direction: &str, entry: &RuleEntry) -> [Cell; 6] {
    let labels = view.identities.iter().find(|known| Some(known.identity) == entry.identity);
    let origin: Vec<String> = entry.policies.iter().map(ToString::to_string).collect();
    [
        action(entry.allow, entry.authentication, entry.needs, entry.proxied.then_some("L7 rules")),
        direction.into(),
        entry.identity.map_or_else(|| "any".to_owned(), |identity| identity.number().to_string()).into(),
        labels.map_or_else(|| "any".to_owned(), |known| known.labels.to_string().replace(',', "\n")).into(),
        ports(&entry.ports).into(),
        if origin.is_empty() { "-".into() } else { origin.join("\n").into() },
    ]
}

/// `judged`: by what the proxy judges it.
fn action(allow: bool, authentication: Authentication, needs: Option<Needs>, judged: Option<&str>) -> Cell {
    match (allow, authentication, needs) {
        (_, _, Some(Needs::L7Proxy)) => Cell::toned(Tone::Warning, "Deny (needs L7 proxy)"),
        (true, ..) => {
            let proven = (authentication == Authentication::Required).then_some("authenticated");
            let asked: Vec<&str> = proven.into_iter().chain(judged).collect();
            let asked = if asked.is_empty() { String::new() } else { format!(" ({})", asked.join(", ")) };
            Cell::toned(Tone::Good, format!("Allow{asked}"))
        }
        (false, _, None) => Cell::toned(Tone::Bad, "Deny"),
    }
}

fn details(policies: &[PolicyDetails], paint: Paint) -> String {
    policies.iter().map(|policy| one(policy, paint)).collect::<Vec<_>>().join("\n")
}

fn one(view: &PolicyDetails, paint: Paint) -> String {
    let status = view.statuses.iter().map(|status| {
        format!("{} {} {}", if status.valid { "True" } else { "False" }, status.location, status.message)
    });
    let in_force = if view.in_force { (Tone::Good, "yes") } else { (Tone::Bad, "no") };
    let selects = match view.endpoints.total {
        0 => "no endpoint of this node".to_owned(),
        _ => some(&view.endpoints, SHOWN),
    };
    let rules: Vec<String> =
        (1..).zip(&view.rules).map(|(number, _): (usize, _)| format!("Rule {number}")).collect();
    let mut rows = vec![
        ("Policy", format!("{} ({})", view.policy, view.policy.kind.as_str()).into()),
        ("In force", Cell::toned(in_force.0, in_force.1)),
        ("Valid", status.collect::<Vec<_>>().join("\n").into()),
        ("Selects", selects.into()),
    ];
    rows.extend(
        rules.iter().zip(&view.rules).map(|(name, rule)| (name.as_str(), rule.subject.as_str().into())),
    );
    let head = fields(rows, paint);
    let statements = (1..).zip(&view.rules).flat_map(|(number, rule)| {
        let sides = [("Ingress", &rule.ingress), ("Egress", &rule.egress)];
        sides.into_iter().flat_map(move |(direction, side)| side_rows(number, direction, side))
    });
    let statements: Vec<_> = statements.collect();
    if statements.is_empty() {
        return head;
    }
    let heading = ["RULE", "DIRECTION", "POLICY", "PEER", "IDENTITIES", "PORT/PROTO"];
    format!("{head}\n{}", table(heading, statements, paint))
}

fn side_rows(number: usize, direction: &str, side: &SideView) -> Vec<[Cell; 6]> {
    let row = |policy: Cell, peer: &str, identities: &str, ports: &str| {
        [number.into(), direction.into(), policy, peer.into(), identities.into(), ports.into()]
    };
    let of_statement = |statement: &StatementView| -> Vec<[Cell; 6]> {
        let judged = statement.l7.as_ref().map(|demand| match demand {
            L7Demand::Http(_) => "HTTP rules",
            L7Demand::ServerNames(_) => "server names",
            L7Demand::Inspection(_) => "TLS inspection",
        });
        let policy = || action(statement.allow, statement.authentication, statement.needs, judged);
        let mut ports =
            if statement.ports.is_empty() { "any".to_owned() } else { statement.ports.join("\n") };
        let demand = || statement.l7.as_ref();
        for rule in demand().and_then(L7Demand::http).iter().flat_map(|rules| rules.iter()) {
            ports.push_str(&format!("\n  {rule}"));
        }
        for name in demand().and_then(L7Demand::server_names).iter().flat_map(|names| names.iter()) {
            ports.push_str(&format!("\n  TLS {name}"));
        }
        if let Some(inspection) = demand().and_then(L7Demand::inspection) {
            for (field, context) in inspection.contexts() {
                ports.push_str(&format!("\n  {field} {}", context.secret));
            }
        }
        match &statement.peers {
            None => vec![row(policy(), "anyone", "any", &ports)],
            Some(peers) if peers.is_empty() => vec![row(policy(), "nobody", "none", &ports)],
            Some(peers) => peers
                .iter()
                .map(|peer| {
                    let Listed { total, items } = &peer.identities;
                    let items = items.iter().map(|identity| identity.number()).collect();
                    let identities = if *total == 0 {
                        "none".to_owned()
                    } else {
                        some(&Listed { total: *total, items }, SHOWN)
                    };
                    row(policy(), &peer.peer, &identities, &ports)
                })
                .collect(),
        }
    };
    let statements = side.statements.iter().flat_map(of_statement);
    let default = side.default_deny.then(|| row(Cell::toned(Tone::Bad, "Deny"), "by default", "any", "any"));
    statements.chain(default).collect()
}

#[cfg(test)]
mod tests {
    use mesh::workload::EndpointId;
    use node_api::{IdentityView, PeerView, PolicyView, PortRange, RuleView};

    use super::super::super::golden::{self, golden, identity, labels, policy};
    use super::*;

    fn range(protocol: Option<u8>, first: u16, last: u16) -> PortRange {
        PortRange { protocol, except: Vec::new(), first, last }
    }

    fn deathstar() -> EndpointPolicy {
        let entry = |allow, number: Option<u32>, ports, needs, by: &[&str]| RuleEntry {
            allow,
            identity: number.map(identity),
            ports,
            authentication: Authentication::None,
            proxied: false,
            needs,
            policies: by.iter().map(|name| policy(name)).collect(),
        };
        let required = |entry| RuleEntry { authentication: Authentication::Required, ..entry };
        let any = || range(None, 0, u16::MAX);
        EndpointPolicy {
            endpoint: EndpointId::new(3).unwrap(),
            workload: "default/deathstar".parse().unwrap(),
            identity: identity(17_839),
            audit: false,
            ingress: RulesetView {
                enforced: true,
                denied_by_default: vec![policy("rule1"), policy("rule2")],
                entries: vec![
                    entry(true, None, range(Some(58), 128, 128), None, &["rule2"]),
                    entry(true, Some(1), any(), None, &[]),
                    entry(true, Some(17_839), range(Some(6), 80, 80), None, &["rule1", "rule2"]),
                    required(entry(true, Some(17_839), range(Some(6), 443, 443), None, &["rule3"])),
                    entry(
                        false,
                        Some(17_839),
                        range(Some(17), 0, u16::MAX),
                        Some(Needs::L7Proxy),
                        &["rule2"],
                    ),
                    entry(false, Some(13_058), range(Some(132), 8080, 8095), None, &["rule2"]),
                ],
            },
            egress: RulesetView {
                enforced: false,
                denied_by_default: Vec::new(),
                entries: vec![entry(true, None, any(), None, &[])],
            },
            identities: [
                (1, "reserved:host"),
                (13_058, "org=alliance"),
                (17_839, "org=empire,class=deathstar"),
            ]
            .map(|(number, text)| IdentityView {
                identity: identity(number),
                labels: labels(text),
                spiffe_ids: std::collections::BTreeSet::new(),
            })
            .into(),
        }
    }

    #[test]
    fn an_endpoints_rules_are_listed_in_ciliums_columns() {
        golden("policy-get-endpoint", &endpoint(&deathstar(), Paint::NONE));
        golden("policy-get-endpoint.json", &serde_json::to_string_pretty(&deathstar()).unwrap());
    }

    #[test]
    fn audit_and_what_is_always_enforced_are_told() {
        let always = RulesetView { enforced: true, denied_by_default: Vec::new(), entries: Vec::new() };
        assert_eq!(enforcement(&always, false), "Enabled: always enforced".into());
        let audited = "Audit: always enforced; what is denied is reported, and passes";
        assert_eq!(enforcement(&always, true), Cell::toned(Tone::Warning, audited));
    }

    #[test]
    fn a_policy_is_shown_as_it_is_understood() {
        let peer = |peer: &str, total, numbers: &[u32]| PeerView {
            peer: peer.to_owned(),
            identities: Listed { total, items: numbers.iter().map(|number| identity(*number)).collect() },
        };
        let statement = |allow, peers, ports: &[&str]| StatementView {
            allow,
            peers,
            ports: ports.iter().map(|&port| port.to_owned()).collect(),
            authentication: Authentication::None,
            needs: None,
            l7: None,
        };
        let required = |statement| StatementView { authentication: Authentication::Required, ..statement };
        let rule = RuleView {
            subject: "class=deathstar,io.kubernetes.pod.namespace=default".to_owned(),
            ingress: SideView {
                default_deny: true,
                statements: vec![
                    statement(false, Some(vec![peer("10.0.0.0/8", 1, &[16_777_217])]), &[]),
                    statement(
                        true,
                        Some(vec![peer("org=empire", 900, &[256, 257]), peer("org=nobody", 0, &[])]),
                        &["80/TCP", "web/ANY"],
                    ),
                    statement(true, None, &["ICMPv6"]),
                    required(statement(true, Some(vec![peer("class=tiefighter", 1, &[257])]), &["443/TCP"])),
                ],
            },
            egress: SideView { default_deny: false, statements: vec![statement(true, Some(vec![]), &[])] },
        };
        let in_force = PolicyDetails {
            policy: policy("rule1"),
            in_force: true,
            statuses: vec![PolicyView { policy: Some(policy("rule1")), ..golden::policies().remove(1) }],
            endpoints: Listed::first(10, ["default/deathstar".parse().unwrap()]),
            rules: vec![rule],
        };
        let broken = PolicyDetails {
            policy: policy("rule2"),
            in_force: false,
            endpoints: Listed::first(10, []),
            rules: Vec::new(),
            ..in_force.clone()
        };
        let both = [in_force, broken];
        golden("policy-get", &details(&both, Paint::NONE));
        golden("policy-get.json", &serde_json::to_string_pretty(&both).unwrap());
    }
}
