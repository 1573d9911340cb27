//! Edits of a small node, as a person asks about them.

mod worlds;

use mesh::policy::protocol::TCP;
use node_api::{ChangeKind, EditAction, Predicted, Prediction, Reason, SourceFile, TraceQuery, WhatIf};

use super::what_if;
use crate::plan::tests::{Bench, SHIPS};

const RULE1: &str = include_str!("../../../../examples/star-wars/rule1.yaml");

fn with(text: &str) -> WhatIf {
    let file = SourceFile { name: "rule.yaml".to_owned(), text: text.to_owned() };
    WhatIf { with: vec![file], without: Vec::new(), trace: None }
}

fn ask(bench: &Bench, query: &WhatIf) -> Result<Prediction, String> {
    what_if(bench.snapshot(), query).map_err(|error| error.to_string())
}

/// `change: from -> to at ports: reason policies`, a line each.
fn told(prediction: &Prediction) -> Vec<String> {
    let Predicted::Changes(changes) = &prediction.predicted else { panic!("{prediction:?}") };
    assert!(changes.complete);
    let row = |row: &node_api::Change| {
        let ports = row.ports.items.iter().map(|range| match range.protocol {
            None => format!("any but {:?}", range.except),
            Some(protocol) => format!("{}-{}/{protocol}", range.first, range.last),
        });
        let policies: Vec<_> = row.policies.items.iter().map(ToString::to_string).collect();
        format!(
            "{:?}: {} -> {} at {}: {:?} {:?} {}",
            row.change,
            row.from.items.join(" "),
            row.to.items.join(" "),
            ports.collect::<Vec<_>>().join(" "),
            row.direction,
            row.reason,
            policies.join(" ")
        )
    };
    changes.rows.items.iter().map(row).collect()
}

#[test]
fn a_new_policy_closes_all_but_what_it_names() {
    let bench = Bench::new("", &SHIPS);
    let prediction = ask(&bench, &with(RULE1)).unwrap();
    let [edit] = prediction.edits.as_slice() else { panic!("{prediction:?}") };
    assert_eq!((edit.action, edit.object.as_str()), (EditAction::Add, "CiliumNetworkPolicy default/rule1"));
    let deathstars = "default/deathstar-1 default/deathstar-2";
    let others = "default/xwing reserved:unmanaged reserved:world-ipv4 reserved:world-ipv6";
    assert_eq!(
        told(&prediction),
        [
            format!(
                "AllowedToDenied: {others} -> {deathstars} at any but []: Ingress DefaultDeny default/rule1"
            ),
            format!(
                "AllowedToDenied: {deathstars} default/tiefighter -> {deathstars} at any but [6] 0-79/6 81-65535/6: \
                 Ingress DefaultDeny default/rule1"
            ),
        ]
    );
}

#[test]
fn what_is_in_force_already_changes_nothing_and_its_removal_opens() {
    let bench = Bench::new(RULE1, &SHIPS);
    let same = ask(&bench, &with(RULE1)).unwrap();
    assert_eq!(told(&same), [""; 0]);
    assert_eq!(same.edits[0].action, EditAction::Keep);
    assert_eq!(same.edits[0].replaces.as_deref(), Some("world.yaml:1"));
    let without = WhatIf { with: Vec::new(), without: vec!["cnp/rule1".to_owned()], trace: None };
    let opened = told(&ask(&bench, &without).unwrap());
    assert_eq!(opened.len(), 2, "{opened:?}");
    assert!(
        opened.iter().all(|row| row.starts_with("DeniedToAllowed: ") && row.ends_with("NotEnforced ")),
        "{opened:?}"
    );
    let missing = WhatIf { without: vec!["rule2".to_owned()], ..without };
    let error = ask(&bench, &missing).unwrap_err();
    assert_eq!(error, "--without rule2: no policy of this name is in force; see `ferromesh policy list`");
}

#[test]
fn a_relabelled_workload_is_followed() {
    let bench = Bench::new(RULE1, &SHIPS);
    let traitor = "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\n\
                   metadata: {name: xwing, namespace: default, labels: {org: empire, class: xwing}}\n";
    assert_eq!(
        told(&ask(&bench, &with(traitor)).unwrap()),
        ["DeniedToAllowed: default/xwing -> default/deathstar-1 default/deathstar-2 at 80-80/6: \
          Ingress AllowRule default/rule1"]
    );
}

#[test]
fn one_who_takes_anothers_labels_is_followed_where_no_ruleset_changes() {
    let ships = ["default/one=org=empire", "default/two=org=empire", "default/three=org=alliance", SHIPS[0]];
    let bench = Bench::new(RULE1, &ships);
    let traitor = "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\n\
                   metadata: {name: one, namespace: default, labels: {org: alliance}}\n";
    assert_eq!(
        told(&ask(&bench, &with(traitor)).unwrap()),
        ["AllowedToDenied: default/one -> default/deathstar-1 at 80-80/6: Ingress DefaultDeny default/rule1"]
    );
}

#[test]
fn types_of_icmp_and_pieces_of_the_address_space_are_named_as_they_are() {
    let bench = Bench::new("", &["default/one=a=b"]);
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: pings}\n\
                  spec: {endpointSelector: {}, ingress: [{fromCIDR: [0.0.0.0/1, 128.0.0.0/1, \"::/0\"], \
                  icmps: [{fields: [{type: 8, family: IPv4}]}]}]}\n";
    let rows = told(&ask(&bench, &with(policy)).unwrap());
    assert_eq!(
        rows,
        [
            "AllowedToDenied: reserved:unmanaged -> default/one at any but []: Ingress DefaultDeny default/pings",
            "AllowedToDenied: 0.0.0.0/1 128.0.0.0/1 reserved:world-ipv6 -> default/one at any but [1] 0-7/1 9-255/1: \
             Ingress DefaultDeny default/pings"
        ]
    );
}

#[test]
fn one_question_is_answered_for_then_and_now() {
    let bench = Bench::new("", &SHIPS);
    let trace = TraceQuery { from: "xwing".to_owned(), to: "deathstar".to_owned(), port: 80, protocol: TCP };
    let answer = ask(&bench, &WhatIf { trace: Some(trace), ..with(RULE1) }).unwrap();
    let Predicted::Trace { now, then } = answer.predicted else { panic!() };
    assert!(now.allowed && !then.allowed);
    assert_eq!(then.lines[0], "denied: rule1 selects deathstar, no rule matches org=alliance");
}

#[test]
fn a_file_is_refused_in_the_words_of_analyze() {
    let bench = Bench::new("", &SHIPS);
    let error = |text: &str| {
        let told = ask(&bench, &with(text)).unwrap_err();
        told.strip_prefix("an agent would not accept this:\n").unwrap().to_owned()
    };
    assert_eq!(
        error(&RULE1.replace("fromEndpoints", "fromEndpoint")),
        "rule.yaml:12 spec.ingress[0].fromEndpoint: unknown, did you mean fromEndpoints"
    );
    assert_eq!(error("# nothing\n"), "rule.yaml: holds no object that an agent would read");
    assert_eq!(
        error(&format!("{RULE1}\n---\n{RULE1}")),
        "rule.yaml:21 metadata.name: CiliumNetworkPolicy default/rule1 is already given in rule.yaml:1; rename or remove one"
    );
    let moved = "apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {ipv4Pool: 10.99.0.0/16}\n";
    assert_eq!(
        error(moved),
        "rule.yaml:3 spec.ipv4Pool: found 10.99.0.0/16, but endpoints have addresses of 10.217.0.0/16; end them first"
    );
}

#[test]
fn warnings_and_what_planning_finds_are_told_with_their_place() {
    let bench = Bench::new("", &SHIPS);
    let l7 = RULE1.replace("        protocol: TCP", "        protocol: TCP\n      rules: {l7proto: r2d2}");
    let prediction = ask(&bench, &with(&l7)).unwrap();
    assert!(
        prediction.notes[0].contains("rule.yaml:")
            && prediction.notes[0].contains("layer-7 proxy of this version"),
        "{prediction:?}"
    );
    let unmet = told(&prediction);
    assert!(unmet.iter().any(|row| row.contains("80-80/6: Ingress Unmet default/rule1")), "{unmet:?}");
    let nobody = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: rule1}\n\
                  spec: {endpointSelector: {}, egress: [{toServices: [{k8sService: {serviceName: gone}}]}]}\n";
    let prediction = ask(&bench, &with(nobody)).unwrap();
    assert_eq!(
        prediction.notes,
        ["rule.yaml:1 toServices: default/gone names no Service: allows nothing by it"]
    );
}

#[test]
fn a_secret_is_replaced_and_nothing_of_it_is_shown() {
    let secret = |key: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: web}}\nstringData: {{tls.key: {key}}}\n")
    };
    let bench = Bench::new(&secret("hush"), &SHIPS);
    let prediction = ask(&bench, &with(&secret("quiet"))).unwrap();
    assert_eq!(prediction.edits[0].action, EditAction::Replace);
    assert_eq!(prediction.edits[0].object, "Secret default/web");
    let shown = format!("{prediction:?}");
    assert!(!shown.contains("hush") && !shown.contains("quiet"), "{shown}");
    let error = ask(&bench, &with(&secret("[hush]"))).unwrap_err();
    assert!(error.ends_with("stringData.tls.key: expected a string: put the value in quotes"), "{error}");
}

const REQUIRED: &str = "authentication: {mode: required}\n    toPorts:";

#[test]
fn a_rule_that_begins_to_require_authentication_is_a_change_and_one_that_ceases_too() {
    let required = RULE1.replace("toPorts:", REQUIRED);
    let (deathstars, ships) = (
        "default/deathstar-1 default/deathstar-2",
        "default/deathstar-1 default/deathstar-2 default/tiefighter",
    );
    let bench = Bench::new(RULE1, &SHIPS);
    let row = |change: &str, reason: &str| {
        format!("{change}: {ships} -> {deathstars} at 80-80/6: Ingress {reason} default/rule1")
    };
    let rows = told(&ask(&bench, &with(&required)).unwrap());
    assert_eq!(rows, [row("AllowedToAuthenticated", "Authentication")]);
    let bench = Bench::new(&required, &SHIPS);
    let rows = told(&ask(&bench, &with(RULE1)).unwrap());
    assert_eq!(rows, [row("AuthenticatedToAllowed", "AllowRule")]);
}

#[test]
fn who_cannot_authenticate_is_denied_where_others_are_asked_to() {
    let bench = Bench::new("", &["default/one=a=b", "default/two=a=c"]);
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: proven}\n\
                  spec: {endpointSelector: {matchLabels: {a: b}}, ingress: [{fromEntities: [all], \
                  authentication: {mode: required}}]}\n";
    let rows = told(&ask(&bench, &with(policy)).unwrap());
    let strangers = "reserved:unmanaged reserved:world-ipv4 reserved:world-ipv6";
    assert_eq!(
        rows,
        [
            format!(
                "AllowedToDenied: {strangers} -> default/one at any but []: Ingress NoPrincipal default/proven"
            ),
            "AllowedToAuthenticated: default/two -> default/one at any but []: Ingress Authentication default/proven"
                .to_owned()
        ]
    );
}

#[test]
fn enforcement_that_is_to_be_always_on_is_an_edit_like_another() {
    let bench = Bench::new("", &["default/one=a=b"]);
    let always =
        "apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {policyEnforcementMode: always}\n";
    let changes = ask(&bench, &with(always)).unwrap();
    let Predicted::Changes(changes) = changes.predicted else { panic!() };
    assert!(changes.rows.items.iter().all(|row| row.change == ChangeKind::AllowedToDenied));
    assert!(
        changes.rows.items.iter().all(|row| row.reason == Reason::DefaultDeny && row.policies.total == 0)
    );
    assert_eq!(changes.rows.total, 2, "in each direction: {changes:?}");
}
