//! Whom a statement means.

use super::given::*;
use crate::identity::Identity;
use crate::policy::{Operator, Peer, Peers, PortMatch, Requirement, Selector, compile};

const EVERYONE: [&str; 15] = [
    "deathstar",
    "tiefighter",
    "xwing",
    "probe",
    "host",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "health",
    "init",
    "unmanaged",
    "8.8.8.8",
    "10.1.2.3",
    "2001:4860::8888",
    "2001:db8:1::3",
];

/// Egress, where nobody has a way of their own; a prefix of either family is known besides.
fn expect_exactly(peers: Peers, meant: &[&str]) {
    let known = [cidr("10.0.0.0/8", &[]), cidr("2001:db8::/32", &[])];
    let [ipv4, ipv6] = known.map(|prefix| denying("known", Ingress, prefix, &[]));
    let given = given([allowing("rule", Egress, peers, &[]), ipv4, ipv6]);
    let cases: Vec<_> = EVERYONE.iter().map(|peer| (*peer, "80/tcp", meant.contains(peer))).collect();
    given.expect(Egress, &cases);
}

#[test]
fn no_peers_means_everything_and_an_empty_list_nobody() {
    expect_exactly(Peers::Any, &EVERYONE);
    expect_exactly(Peers::Selected(Vec::new()), &[]);
}

#[test]
fn who_is_not_known_yet_is_anyone() {
    let given = given([allowing("rule", Ingress, Peers::Any, &[tcp(80, 80)])]);
    let stranger = Identity::new(4242).unwrap();
    assert!(given.ruleset(Ingress).judge(stranger, 6, 80).0);
}

#[test]
fn selectors_mean_workloads_unless_they_name_a_reserved_label() {
    let workloads = ["deathstar", "tiefighter", "xwing", "probe"];
    for (text, meant) in [
        ("", workloads.as_slice()),
        ("org=empire", &["deathstar", "tiefighter"]),
        ("org=empire,class=tiefighter", &["tiefighter"]),
        ("org=nobody", &[]),
        ("reserved:host", &["host"]),
        ("reserved:health", &["health"]),
        ("reserved:world", &["8.8.8.8", "10.1.2.3", "2001:4860::8888", "2001:db8:1::3"]),
        ("reserved:world-ipv4", &["8.8.8.8", "10.1.2.3"]),
        ("reserved:world-ipv6", &["2001:4860::8888", "2001:db8:1::3"]),
    ] {
        expect_exactly(pods(text), meant);
    }
}

#[test]
fn a_selector_of_what_is_absent_still_means_workloads_only() {
    let absent = |operator| {
        let requirement = Requirement { source: None, key: "org".to_owned(), operator };
        Peers::Selected(vec![Peer::Endpoints(Selector(vec![requirement]))])
    };
    expect_exactly(absent(Operator::DoesNotExist), &["probe"]);
    expect_exactly(absent(Operator::NotIn(vec!["empire".to_owned()])), &["xwing", "probe"]);
    expect_exactly(absent(Operator::Exists), &["deathstar", "tiefighter", "xwing"]);
}

#[test]
fn entities_mean_what_cilium_means() {
    let world = ["8.8.8.8", "10.1.2.3", "2001:4860::8888", "2001:db8:1::3"];
    let (cluster, _) = EVERYONE.split_at(11);
    for (name, meant) in [
        ("all", EVERYONE.as_slice()),
        ("world", &world),
        ("world-ipv4", &["8.8.8.8", "10.1.2.3"]),
        ("world-ipv6", &["2001:4860::8888", "2001:db8:1::3"]),
        ("cluster", cluster),
        ("host", &["host"]),
        ("remote-node", &["remote-node"]),
        ("kube-apiserver", &["kube-apiserver"]),
        ("ingress", &["ingress"]),
        ("init", &["init"]),
        ("health", &["health"]),
        ("unmanaged", &["unmanaged"]),
        ("none", &[]),
    ] {
        expect_exactly(entity(name), meant);
    }
}

#[test]
fn a_cidr_means_addresses_outside_and_nobody_of_the_cluster() {
    for (text, meant) in [
        ("0.0.0.0/0", ["8.8.8.8", "10.1.2.3"].as_slice()),
        ("::/0", &["2001:4860::8888", "2001:db8:1::3"]),
        ("10.0.0.0/8", &["10.1.2.3"]),
        ("10.1.2.3/32", &["10.1.2.3"]),
        ("10.1.2.99/24", &["10.1.2.3"]),
        ("2001:db8::/32", &["2001:db8:1::3"]),
        ("2001:db8:1::3/128", &["2001:db8:1::3"]),
        ("192.0.2.0/24", &[]),
    ] {
        expect_exactly(cidr(text, &[]), meant);
    }
}

#[test]
fn each_prefix_and_exception_needs_an_identity_but_the_default_routes() {
    let policies = [
        allowing("a", Ingress, cidr("0.0.0.0/0", &["10.0.0.0/8"]), &[]),
        allowing("b", Egress, cidr("::/0", &["2001:db8::/32", "2001:db8:1::/48"]), &[]),
        denying("c", Egress, cidr("10.1.2.3/16", &[]), &[]),
        denying("d", Ingress, pods("org=empire"), &[]),
    ];
    let prefixes: Vec<String> = compile::prefixes(&policies).iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "2001:db8:1::/48"]);
}

/// The same case in both families: (prefix, sub-prefix, inside both, inside the outer only, outside).
const FAMILIES: [[&str; 6]; 2] = [
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3", "10.1.3.3", "10.9.9.9"],
    [
        "2001:db8::/32",
        "2001:db8:1::/48",
        "2001:db8:1:2::/64",
        "2001:db8:1:2::3",
        "2001:db8:1:3::3",
        "2001:db8:9::9",
    ],
];

#[test]
fn exceptions_are_left_out_with_whatever_lies_inside_them() {
    for [outer, middle, inner, in_inner, in_middle, in_outer] in FAMILIES {
        let rule = allowing("rule", Egress, cidr(outer, &[middle]), &[]);
        let cases = [(in_outer, "80/tcp", true), (in_middle, "80/tcp", false), (in_inner, "80/tcp", false)];
        given([rule.clone()]).expect(Egress, &cases);
        // Another policy gives a part of the exception an identity of its own.
        let other = denying("other", Egress, cidr(inner, &[]), &[PortMatch::Protocol(132)]);
        given([rule.clone(), other]).expect(Egress, &cases);
        let back = allowing("back", Egress, cidr(inner, &[]), &[]);
        let cases = [(in_outer, "80/tcp", true), (in_middle, "80/tcp", false), (in_inner, "80/tcp", true)];
        given([rule, back]).expect(Egress, &cases);
    }
}

#[test]
fn a_cidr_covers_the_prefixes_that_other_policies_cut_out_of_it() {
    for [outer, middle, inner, in_inner, in_middle, in_outer] in FAMILIES {
        let others = denying("others", Ingress, cidr(middle, &[inner]), &[]);
        let given = given([allowing("rule", Egress, cidr(outer, &[]), &[tcp(80, 80)]), others]);
        let cases = [in_inner, in_middle, in_outer].map(|address| (address, "80/tcp", true));
        given.expect(Egress, &cases);
    }
}

#[test]
fn a_narrow_cidr_does_not_mean_the_wider_prefix_around_it() {
    for [outer, _, inner, in_inner, in_middle, in_outer] in FAMILIES {
        let others = denying("others", Ingress, cidr(outer, &[]), &[]);
        let given = given([allowing("rule", Egress, cidr(inner, &[]), &[]), others]);
        given.expect(
            Egress,
            &[(in_inner, "80/tcp", true), (in_middle, "80/tcp", false), (in_outer, "80/tcp", false)],
        );
    }
}

/// T40 of the adversary's list.
#[test]
fn a_deny_of_a_cidr_holds_inside_a_narrower_allow_and_a_narrower_deny_inside_an_allow() {
    for [outer, _, inner, in_inner, in_middle, _] in FAMILIES {
        let wide_deny = given([
            allowing("allow", Egress, cidr(inner, &[]), &[]),
            denying("deny", Egress, cidr(outer, &[]), &[]),
        ]);
        wide_deny.expect(Egress, &[(in_inner, "80/tcp", false), (in_middle, "80/tcp", false)]);
        let narrow_deny = given([
            allowing("allow", Egress, cidr(outer, &[]), &[]),
            denying("deny", Egress, cidr(inner, &[]), &[tcp(80, 80)]),
        ]);
        let cases = [(in_inner, "80/tcp", false), (in_inner, "81/tcp", true), (in_middle, "80/tcp", true)];
        narrow_deny.expect(Egress, &cases);
        // An address that an exception leaves out of a deny is not thereby allowed.
        let excepted = given([
            allowing("allow", Egress, cidr(inner, &[]), &[tcp(80, 80)]),
            denying("deny", Egress, cidr(outer, &[inner]), &[]),
        ]);
        let cases = [(in_inner, "80/tcp", true), (in_inner, "81/tcp", false), (in_middle, "80/tcp", false)];
        excepted.expect(Egress, &cases);
    }
}
