//! `ferromesh policy trace --with FILE`: what an edit would change.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mesh::flow::TrafficDirection;
use mesh::policy::Authentication;
use node_api::{
    Change, ChangeKind, Changes, Edit, EditAction, Listed, MAX_REQUEST, Predicted, Prediction, Reason, Reply,
    Request, SourceFile, Trace, WhatIf,
};

use super::super::output::{FormatArg, Paint, Tone, plain};
use super::super::table::{Cell, table};
use super::super::{Agent, CliError};
use super::{explanation, ports, some};

/// Rows of the text.
const ROWS: usize = 40;
/// Names, ports or policies of a cell.
const SHOWN: usize = 8;

/// Reads the files; `-` is standard input.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<SourceFile>, CliError> {
    let mut room = MAX_REQUEST;
    let mut files = Vec::new();
    for path in paths {
        let is_stdin = path == Path::new("-");
        let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let failed = |error: io::Error| CliError::Failed(format!("{name}: {error}"));
        let source: Box<dyn Read> =
            if is_stdin { Box::new(io::stdin().lock()) } else { Box::new(File::open(path).map_err(failed)?) };
        let mut text = String::new();
        source.take(room as u64 + 1).read_to_string(&mut text).map_err(failed)?;
        room = room.checked_sub(text.len()).ok_or_else(|| {
            let most = MAX_REQUEST >> 10;
            CliError::Failed(format!("--with: files of more than {most} KiB in all; ask about fewer at once"))
        })?;
        files.push(SourceFile { name, text });
    }
    Ok(files)
}

pub(super) async fn run(agent: &Agent, query: WhatIf, format: &FormatArg) -> Result<ExitCode, CliError> {
    let Reply::Prediction(prediction) = agent.ask(Request::WhatIf(query)).await? else {
        return Err(CliError::Unexpected);
    };
    let printed = format.print(&prediction, |paint| text(&prediction, paint))?;
    Ok(match &prediction.predicted {
        Predicted::Trace { then, .. } if !then.allowed => ExitCode::FAILURE,
        Predicted::Trace { .. } | Predicted::Changes(_) => printed,
    })
}

fn text(prediction: &Prediction, paint: Paint) -> String {
    let edits = prediction.edits.iter().map(edit);
    let notes = prediction.notes.iter().map(|note| paint.tint(Tone::Warning, &plain(note)) + "\n");
    let head: String = edits.chain(notes).collect();
    let predicted = match &prediction.predicted {
        Predicted::Trace { now, then } => {
            let was = verdict(now);
            let same = if was == verdict(then) { "also now" } else { "but now" };
            format!("{}\n{same} {was}:\n{}", explanation(then, paint), explanation(now, paint))
        }
        Predicted::Changes(changes) => list(changes, paint),
    };
    format!("{head}\n{predicted}")
}

fn verdict(trace: &Trace) -> &'static str {
    match (trace.allowed, trace.authentication) {
        (false, _) => "denied",
        (true, Authentication::None) => "allowed",
        (true, Authentication::Required) => "allowed if authenticated",
    }
}

fn edit(edit: &Edit) -> String {
    let object = plain(&edit.object);
    let place = edit.replaces.as_deref().map(|place| format!(" ({})", plain(place))).unwrap_or_default();
    match edit.action {
        EditAction::Add => format!("adds {object}\n"),
        EditAction::Replace => format!("replaces {object}{place}\n"),
        EditAction::Keep => format!("keeps {object} as it is{place}\n"),
        EditAction::Remove => format!("removes {object}{place}\n"),
    }
}

fn list(changes: &Changes, paint: Paint) -> String {
    let Changes { endpoints, peers, rows: Listed { total, items }, complete } = changes;
    let looked_at = format!("{} and {}", counted(*endpoints, "endpoint"), counted(*peers, "peer"));
    let incomplete = match complete {
        true => "",
        false => "there are too many to look at every pair: more may change\n",
    };
    if *total == 0 {
        return format!("nothing changes between {looked_at}\n{incomplete}");
    }
    let shown: Vec<_> = items.iter().take(ROWS).map(row).collect();
    let more = match total - shown.len() {
        0 => String::new(),
        more => format!("and {more} more rows; -o json has {}\n", items.len()),
    };
    let heading = ["CHANGE", "FROM", "TO", "PORT/PROTO", "DECIDED BY"];
    let table = table(heading, shown, paint);
    format!("{table}{more}{} between {looked_at}\n{incomplete}", counted(*total, "row"))
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn row(change: &Change) -> [Cell; 5] {
    let kind = match change.change {
        ChangeKind::AllowedToDenied => Cell::toned(Tone::Bad, "allowed → denied"),
        ChangeKind::AuthenticatedToDenied => Cell::toned(Tone::Bad, "allowed if authenticated → denied"),
        ChangeKind::AllowedToAuthenticated => {
            Cell::toned(Tone::Warning, "allowed → allowed if authenticated")
        }
        ChangeKind::DeniedToAuthenticated => Cell::toned(Tone::Good, "denied → allowed if authenticated"),
        ChangeKind::AuthenticatedToAllowed => Cell::toned(Tone::Good, "allowed if authenticated → allowed"),
        ChangeKind::DeniedToAllowed => Cell::toned(Tone::Good, "denied → allowed"),
    };
    let Listed { total, items } = &change.ports;
    let ranges = Listed { total: *total, items: items.iter().map(ports).collect() };
    [
        kind,
        some(&change.from, SHOWN).into(),
        some(&change.to, SHOWN).into(),
        some(&ranges, SHOWN).into(),
        decided_by(change).into(),
    ]
}

fn decided_by(change: &Change) -> String {
    let direction = match change.direction {
        TrafficDirection::Ingress => "ingress",
        TrafficDirection::Egress => "egress",
    };
    let how = match change.reason {
        Reason::DenyRule => "deny rule",
        Reason::DefaultDeny if change.policies.total == 0 => return format!("no rule allows {direction}"),
        Reason::DefaultDeny => "default deny",
        Reason::Unmet => "a demand that nothing enforces yet",
        Reason::AllowRule => "allow rule",
        Reason::Authentication => "allow rule that requires authentication",
        Reason::NoPrincipal => "requires authentication, which only workloads can prove",
        Reason::Node => return "the node may always reach its own".to_owned(),
        Reason::NotEnforced => return format!("no policy restricts {direction}"),
    };
    format!("{}\n({how}, {direction})", some(&change.policies, SHOWN))
}

#[cfg(test)]
mod tests {
    use mesh::policy::PolicyName;
    use node_api::PortRange;

    use super::super::super::golden::{self, golden};
    use super::*;

    fn change(
        change: ChangeKind,
        from: &[&str],
        to: &str,
        ports: Vec<PortRange>,
        reason: Reason,
        by: &[&str],
    ) -> Change {
        let policies: Vec<PolicyName> = by.iter().map(|name| golden::policy(name)).collect();
        Change {
            change,
            from: Listed::first(50, from.iter().map(|&name| name.to_owned())),
            to: Listed::first(50, [to.to_owned()]),
            ports: Listed::first(50, ports),
            direction: TrafficDirection::Ingress,
            reason,
            policies: Listed::first(50, policies),
        }
    }

    fn prediction(predicted: Predicted) -> Prediction {
        let edit = |action, object: &str, replaces: Option<&str>| Edit {
            action,
            object: object.to_owned(),
            replaces: replaces.map(str::to_owned),
        };
        Prediction {
            edits: vec![
                edit(EditAction::Add, "CiliumNetworkPolicy default/rule2", None),
                edit(EditAction::Replace, "NetworkPolicy default/web", Some("web.yaml:1")),
                edit(EditAction::Keep, "Namespace default", Some("base.yaml:3")),
                edit(EditAction::Remove, "CiliumNetworkPolicy default/rule1", Some("rule1.yaml:1")),
            ],
            notes: vec!["rule2.yaml:14 spec.ingress[0].toPorts[0].rules: needs the layer-7 proxy".to_owned()],
            predicted,
        }
    }

    fn changes() -> Changes {
        let (denied, allowed) = (ChangeKind::AllowedToDenied, ChangeKind::DeniedToAllowed);
        let ports = |protocol, first, last| PortRange { protocol, except: Vec::new(), first, last };
        let but_tcp = PortRange { except: vec![6], ..ports(None, 0, u16::MAX) };
        let mut crowd = change(
            denied,
            &["default/a"],
            "default/db",
            vec![ports(None, 0, u16::MAX)],
            Reason::DefaultDeny,
            &[],
        );
        crowd.from =
            Listed { total: 9_000, items: (0..9).map(|number| format!("default/ship-{number}")).collect() };
        Changes {
            endpoints: 4,
            peers: 9_010,
            rows: Listed::first(
                1000,
                [
                    change(
                        denied,
                        &["default/tiefighter", "reserved:world-ipv4"],
                        "default/deathstar",
                        vec![
                            but_tcp,
                            ports(Some(6), 0, 79),
                            ports(Some(6), 81, u16::MAX),
                            ports(Some(1), 8, 8),
                        ],
                        Reason::DefaultDeny,
                        &["rule1", "rule2"],
                    ),
                    crowd,
                    change(
                        denied,
                        &["10.0.0.0/8"],
                        "default/web",
                        vec![ports(Some(58), 9, 255)],
                        Reason::Unmet,
                        &["rule2"],
                    ),
                    change(
                        denied,
                        &["10.0.0.0/8"],
                        "default/web",
                        vec![ports(Some(47), 0, 0)],
                        Reason::DenyRule,
                        &["rule2"],
                    ),
                    change(
                        denied,
                        &["10.0.0.0/8"],
                        "default/web",
                        vec![ports(Some(6), 443, 443)],
                        Reason::NoPrincipal,
                        &["rule3"],
                    ),
                    change(
                        ChangeKind::AllowedToAuthenticated,
                        &["default/xwing"],
                        "default/web",
                        vec![ports(Some(6), 443, 443)],
                        Reason::Authentication,
                        &["rule3"],
                    ),
                    change(
                        ChangeKind::AuthenticatedToDenied,
                        &["default/xwing"],
                        "default/db",
                        vec![ports(Some(6), 5432, 5432)],
                        Reason::DenyRule,
                        &["rule2"],
                    ),
                    change(
                        ChangeKind::DeniedToAuthenticated,
                        &["default/xwing"],
                        "default/db",
                        vec![ports(Some(6), 5433, 5433)],
                        Reason::Authentication,
                        &["rule3"],
                    ),
                    change(
                        ChangeKind::AuthenticatedToAllowed,
                        &["default/xwing"],
                        "default/db",
                        vec![ports(Some(6), 5434, 5434)],
                        Reason::AllowRule,
                        &["web"],
                    ),
                    change(
                        allowed,
                        &["default/xwing"],
                        "default/web",
                        vec![ports(Some(17), 53, 53)],
                        Reason::AllowRule,
                        &["web"],
                    ),
                    change(
                        allowed,
                        &["reserved:host"],
                        "default/web",
                        vec![ports(Some(1), 0, u16::MAX)],
                        Reason::Node,
                        &[],
                    ),
                    change(
                        allowed,
                        &["default/xwing"],
                        "default/dns",
                        vec![ports(None, 0, u16::MAX)],
                        Reason::NotEnforced,
                        &[],
                    ),
                ],
            ),
            complete: true,
        }
    }

    #[test]
    fn changes_are_a_table_of_who_meets_what_and_why() {
        let answer = prediction(Predicted::Changes(changes()));
        golden("policy-what-if", &text(&answer, Paint::NONE));
        golden("policy-what-if.json", &serde_json::to_string_pretty(&answer).unwrap());
        let sent = serde_json::to_string(&Reply::Prediction(Box::new(answer.clone()))).unwrap();
        let received: Reply = serde_json::from_str(&sent).unwrap();
        assert_eq!(received, Reply::Prediction(Box::new(answer)));
    }

    #[test]
    fn what_is_cut_off_is_said() {
        let Listed { items, .. } = changes().rows;
        let many: Vec<Change> = items.iter().cycle().take(50).cloned().collect();
        let cut = Changes { rows: Listed { total: 1_200, items: many }, complete: false, ..changes() };
        let told = list(&cut, Paint::NONE);
        let end = "and 1160 more rows; -o json has 50\n1200 rows between 4 endpoints and 9010 peers\n\
                   there are too many to look at every pair: more may change\n";
        assert!(told.ends_with(end), "{told}");
        let none = Changes { rows: Listed::first(1, []), ..changes() };
        assert_eq!(list(&none, Paint::NONE), "nothing changes between 4 endpoints and 9010 peers\n");
    }

    #[test]
    fn one_question_is_answered_for_then_and_now() {
        let trace = |allowed, line: &str| Trace {
            allowed,
            authentication: Authentication::None,
            lines: vec![line.to_owned()],
        };
        let now = trace(true, "allowed: no policy restricts ingress of deathstar");
        let then = trace(false, "denied: rule1 selects deathstar, no rule matches org=alliance");
        let answer = prediction(Predicted::Trace { now, then });
        golden("policy-what-if-trace", &text(&answer, Paint::NONE));
        golden("policy-what-if-trace.json", &serde_json::to_string_pretty(&answer).unwrap());
        let now = trace(true, "allowed: by rule1, for tiefighter at 80/TCP");
        let line = "allowed, authentication required: by rule1, for tiefighter at 80/TCP";
        let then = Trace { authentication: Authentication::Required, ..trace(true, line) };
        let told = text(&prediction(Predicted::Trace { now: now.clone(), then: then.clone() }), Paint::NONE);
        assert!(told.ends_with(&format!("{line}\n\nbut now allowed:\n{}\n", now.lines[0])), "{told}");
        let told = text(&prediction(Predicted::Trace { now: then, then: now }), Paint::NONE);
        assert!(told.contains("\nbut now allowed if authenticated:\n"), "{told}");
    }

    #[test]
    fn a_file_that_cannot_be_sent_is_named() {
        let directory = golden::directory();
        let path = directory.path().join("large.yaml");
        std::fs::write(&path, "#".repeat(MAX_REQUEST + 1)).unwrap();
        let error = |path: &Path| read(&[path.to_owned()]).unwrap_err().to_string();
        assert_eq!(error(&path), "--with: files of more than 1024 KiB in all; ask about fewer at once");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(error(&path).ends_with("large.yaml: stream did not contain valid UTF-8"), "{}", error(&path));
        assert!(error(Path::new("/nowhere.yaml")).starts_with("/nowhere.yaml: No such file"));
    }
}
