use super::{cilium, says};

/// A policy with these fields beside a port of TCP.
fn tls(fields: &str) -> String {
    at_port("port: \"443\", protocol: TCP", fields)
}

fn at_port(port: &str, fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("      {line}\n")).collect();
    cilium(&format!("  egress:\n  - toPorts:\n    - ports: [{{{port}}}]\n{fields}"))
}

/// Both Secrets, so that nothing is to be said of them.
const SECRETS: &str = "---
apiVersion: v1
kind: Secret
metadata: {name: web}
stringData: {tls.crt: a, tls.key: b, ca.crt: c}
";

const TERMINATING: &str = "terminatingTLS: {secret: {name: web}}";
const ORIGINATING: &str = "originatingTLS: {secret: {namespace: default, name: web}}";

#[test]
fn what_cilium_takes_as_contexts_of_tls_is_taken() {
    let named =
        "terminatingTLS: {secret: {name: web}, certificate: tls.crt, privateKey: tls.key, trustedCA: ca.crt}";
    for fields in [
        TERMINATING.to_owned(),
        ORIGINATING.to_owned(),
        named.to_owned(),
        format!("{TERMINATING}\n{ORIGINATING}\nserverNames: [a.example]\nrules: {{http: [{{method: GET}}]}}"),
        format!("{ORIGINATING}\nrules: {{http: [{{}}]}}"),
    ] {
        says(&(tls(&fields) + SECRETS), &[]);
    }
}

#[test]
fn contexts_that_could_not_be_enforced_are_refused_with_field_and_fix() {
    let item = "rule1.yaml:9 spec.egress[0].toPorts[0]";
    let named =
        "expected the name of an item of the Secret: letters, digits, '-', '_' and '.', at most 253 long";
    let inside = "inside TLS only HTTP is judged: write rules.http beside terminatingTLS and originatingTLS, or an item of toPorts for each";
    for (fields, expected) in [
        ("terminatingTLS: {}", ".terminatingTLS.secret: missing, expected the name of a Secret".to_owned()),
        (
            "originatingTLS: {secret: {}}",
            ".originatingTLS.secret.name: missing, expected the name of a Secret".to_owned(),
        ),
        (
            "terminatingTLS: {secret: {name: web}, certificate: ''}",
            format!(".terminatingTLS.certificate: {named}"),
        ),
        (
            "terminatingTLS: {secret: {name: web}, privateKey: '-----BEGIN PRIVATE KEY-----'}",
            format!(".terminatingTLS.privateKey: {named}"),
        ),
        (
            "terminatingTLS: {secret: {name: web}, trustedCa: a}",
            ".terminatingTLS.trustedCa: unknown, did you mean trustedCA".to_owned(),
        ),
    ] {
        says(&tls(fields), &[&format!("{item}{expected}")]);
    }
    let dns = format!("{TERMINATING}\nrules: {{dns: [{{matchName: a.example}}]}}");
    let unmet = "needs what the layer-7 proxy of this version cannot do: what it would allow is denied";
    let rules = format!("{} spec.egress[0].toPorts[0].rules", "rule1.yaml:10");
    says(&tls(&dns), &[&format!("{rules}: {inside}"), &format!("{rules}: {unmet}")]);
    let beside = "serverNames: goes with terminatingTLS, which is missing: a client whose TLS the proxy begins speaks none, and so names no server";
    let names = format!("{ORIGINATING}\nserverNames: [a.example]");
    says(&tls(&names), &[&format!("rule1.yaml:10 spec.egress[0].toPorts[0].{beside}")]);
}

#[test]
fn contexts_stand_beside_ports_of_tcp() {
    let at = "rule1.yaml:9 spec.egress[0].toPorts[0].terminatingTLS";
    for (port, why) in [
        ("port: \"443\"", "TLS goes over TCP: write protocol: TCP beside the port"),
        ("port: \"443\", protocol: UDP", "TLS goes over TCP: write protocol: TCP beside the port"),
        ("port: \"0\", protocol: TCP", "goes with ports, not with \"0\" (every port)"),
    ] {
        says(&at_port(port, TERMINATING), &[&format!("{at}: {why}")]);
    }
    says(&(at_port("port: https, protocol: TCP", TERMINATING) + SECRETS), &[]);
}

#[test]
fn a_clusterwide_policy_says_where_its_secret_is() {
    let clusterwide =
        |fields: &str| tls(fields).replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy") + SECRETS;
    says(&clusterwide(ORIGINATING), &[]);
    says(
        &clusterwide(TERMINATING),
        &[
            "rule1.yaml:9 spec.egress[0].toPorts[0].terminatingTLS.secret.namespace: missing, expected the namespace of the Secret",
        ],
    );
}

#[test]
fn a_secret_that_is_not_there_is_warned_of() {
    says(
        &tls(&format!("{TERMINATING}\n{ORIGINATING}")),
        &[
            "rule1.yaml:1 originatingTLS: Secret default/web is not there: connections by it are refused",
            "rule1.yaml:1 terminatingTLS: Secret default/web is not there: connections by it are refused",
        ],
    );
}

#[test]
fn contexts_that_a_missing_default_deny_makes_idle_are_warned_of() {
    let open = tls(TERMINATING) + "  enableDefaultDeny: {egress: false}\n" + SECRETS;
    let idle = "terminatingTLS and originatingTLS do nothing then, unless another policy denies by default: connections pass as they are";
    says(&open, &[&format!("rule1.yaml:10 spec.enableDefaultDeny.egress: {idle}")]);
}
