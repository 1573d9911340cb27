//! What allows, what denies, and what goes before what.

use super::given::*;
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::policy::{
    Asked, Authentication, Enforcement, Needs, Outcome, Peers, Policy, PortMatch, Statement, compile,
};

#[test]
fn rule1_lets_ships_of_the_empire_land_and_no_others() {
    let given = given([allowing("rule1", Ingress, pods("org=empire"), &[tcp(80, 80)])]);
    given.expect(
        Ingress,
        &[
            ("tiefighter", "80/tcp", true),
            ("deathstar", "80/tcp", true),
            ("xwing", "80/tcp", false),
            ("tiefighter", "443/tcp", false),
            ("tiefighter", "80/udp", false),
            ("tiefighter", "8/icmp", false),
            ("8.8.8.8", "80/tcp", false),
            ("2001:db8::1", "80/tcp", false),
            ("host", "80/tcp", true),
        ],
    );
    let ruleset = given.ruleset(Ingress);
    assert!(ruleset.enforced);
    assert_eq!(
        ruleset.denied_by_default.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["default/rule1"]
    );
    let by: Vec<_> = ruleset.entries.values().map(|outcome| outcome.by.len()).collect();
    assert_eq!(
        by,
        [0, 1, 1],
        "the host's own way, and one entry for each of the two identities of the empire"
    );
}

#[test]
fn a_rule_for_one_direction_leaves_the_other_open() {
    let given = given([allowing("rule1", Ingress, pods("org=empire"), &[tcp(80, 80)])]);
    given.expect(Egress, &[("xwing", "80/tcp", true), ("8.8.8.8", "53/udp", true), ("host", "0/47", true)]);
    let ruleset = given.ruleset(Egress);
    assert!(!ruleset.enforced && ruleset.denied_by_default.is_empty() && ruleset.entries.len() == 1);
}

#[test]
fn allows_of_all_policies_add_up() {
    let given = given([
        allowing("ships", Ingress, pods("org=empire"), &[tcp(80, 80)]),
        allowing("spies", Ingress, pods("org=alliance"), &[tcp(443, 443)]),
        allowing("anyone", Ingress, Peers::Any, &[tcp(22, 22)]),
    ]);
    given.expect(
        Ingress,
        &[
            ("tiefighter", "80/tcp", true),
            ("tiefighter", "443/tcp", false),
            ("xwing", "443/tcp", true),
            ("xwing", "80/tcp", false),
            ("probe", "22/tcp", true),
            ("8.8.8.8", "22/tcp", true),
        ],
    );
}

#[test]
fn a_deny_goes_before_every_allow_however_narrow_either_is() {
    let peers = [
        Peers::Any,
        entity("all"),
        entity("cluster"),
        pods(""),
        pods("org=empire"),
        pods("class=tiefighter"),
    ];
    let ports: [&[_]; 4] = [&[], &[tcp(0, u16::MAX)], &[tcp(80, 90)], &[tcp(80, 80)]];
    for (deny_peers, allow_peers) in
        peers.iter().flat_map(|deny| peers.iter().map(move |allow| (deny, allow)))
    {
        for (deny_ports, allow_ports) in
            ports.iter().flat_map(|deny| ports.iter().map(move |allow| (deny, allow)))
        {
            let given = given([
                allowing("allow", Ingress, allow_peers.clone(), allow_ports),
                denying("deny", Ingress, deny_peers.clone(), deny_ports),
            ]);
            given.expect(Ingress, &[("tiefighter", "80/tcp", false)]);
            let (_, outcome) = given.outcome(Ingress, "tiefighter", "80/tcp");
            assert_eq!(names(outcome), ["default/deny"]);
        }
    }
}

#[test]
fn what_a_deny_leaves_of_an_allow_stays_allowed() {
    let given = given([
        allowing("allow", Ingress, pods("org=empire"), &[]),
        denying("deny", Ingress, pods("class=tiefighter"), &[tcp(80, 80)]),
    ]);
    given.expect(
        Ingress,
        &[
            ("tiefighter", "80/tcp", false),
            ("tiefighter", "79/tcp", true),
            ("tiefighter", "81/tcp", true),
            ("tiefighter", "80/udp", true),
            ("tiefighter", "8/icmp", true),
            ("deathstar", "80/tcp", true),
        ],
    );
}

#[test]
fn without_default_deny_allows_restrict_nothing_and_denies_deny() {
    let open = policy("open", [(Ingress, Part::Allow(statement(pods("org=empire"), &[tcp(80, 80)])))]);
    given([open.clone()]).expect(Ingress, &[("xwing", "443/tcp", true)]);
    let deny = denying("deny", Ingress, pods("org=alliance"), &[tcp(80, 80)]);
    let cases = [("xwing", "80/tcp", false), ("xwing", "443/tcp", true), ("probe", "80/tcp", true)];
    given([open.clone(), deny.clone()]).expect(Ingress, &cases);

    let strict = allowing("strict", Ingress, pods("class=probe"), &[]);
    let cases = [
        ("tiefighter", "80/tcp", true),
        ("tiefighter", "443/tcp", false),
        ("probe", "443/tcp", true),
        ("xwing", "80/tcp", false),
    ];
    given([open, deny, strict]).expect(Ingress, &cases);
}

#[test]
fn enforcement_decides_what_holds_without_rules_and_whether_rules_hold() {
    let rule1 = allowing("rule1", Ingress, pods("org=empire"), &[]);
    let deny = denying("deny", Ingress, pods("org=empire"), &[]);
    for (enforcement, policies, tiefighter, xwing) in [
        (Enforcement::Default, vec![], true, true),
        (Enforcement::Default, vec![rule1.clone()], true, false),
        (Enforcement::Default, vec![deny.clone()], false, true),
        (Enforcement::Always, vec![], false, false),
        (Enforcement::Always, vec![rule1.clone()], true, false),
        (Enforcement::Never, vec![], true, true),
        (Enforcement::Never, vec![rule1, deny], true, true),
    ] {
        let given = Given { policies, enforcement };
        given.expect(Ingress, &[("tiefighter", "80/tcp", tiefighter), ("xwing", "80/tcp", xwing)]);
        given.expect(Ingress, &[("host", "80/tcp", true)]);
    }
}

#[test]
fn a_workload_without_labels_yet_is_closed_until_it_has_them() {
    let labels = Identity::INIT.reserved_labels().unwrap();
    let universe = given([]).universe();
    let ruleset = compile::ruleset(&labels, &Default::default(), Egress, [], &universe, Enforcement::Default);
    assert!(ruleset.enforced && ruleset.entries.is_empty());
}

#[test]
fn the_node_reaches_its_workloads_unless_a_deny_names_it() {
    let strict = allowing("strict", Ingress, Peers::Selected(Vec::new()), &[]);
    given([strict.clone()]).expect(Ingress, &[("host", "80/tcp", true), ("remote-node", "80/tcp", false)]);
    let (_, outcome) = given([strict.clone()]).outcome(Ingress, "host", "80/tcp");
    assert!(outcome.unwrap().by.is_empty());
    for peers in [entity("host"), entity("cluster"), entity("all"), Peers::Any, pods("reserved:host")] {
        let deny = denying("deny", Ingress, peers, &[tcp(80, 80)]);
        let cases = [("host", "80/tcp", false), ("host", "81/tcp", true)];
        given([strict.clone(), deny]).expect(Ingress, &cases);
    }
    // A workload has no such way to its node.
    let strict = allowing("strict", Egress, Peers::Selected(Vec::new()), &[]);
    given([strict]).expect(Egress, &[("host", "80/tcp", false)]);
}

#[test]
fn a_demand_that_nothing_enforces_allows_nothing_and_says_so() {
    for peers in [Peers::Any, pods("org=empire")] {
        let given = given([demanding("demand", Needs::L7Proxy, peers, &[tcp(80, 80)])]);
        given.expect(Ingress, &[("tiefighter", "80/tcp", false), ("host", "80/tcp", true)]);
        let (_, outcome) = given.outcome(Ingress, "tiefighter", "80/tcp");
        assert_eq!(outcome.as_ref().unwrap().needs, Some(Needs::L7Proxy));
        assert_eq!(names(outcome), ["default/demand"]);
        let (allowed, outcome) = given.outcome(Ingress, "tiefighter", "81/tcp");
        assert!(!allowed && outcome.is_none(), "not its port: denied by default");
    }
}

#[test]
fn of_all_rules_that_admit_a_packet_the_strictest_authentication_counts() {
    let peers = [Peers::Any, entity("all"), pods(""), pods("org=empire"), pods("class=tiefighter")];
    let ports: [&[_]; 4] = [&[], &[tcp(0, u16::MAX)], &[tcp(80, 90)], &[tcp(80, 80)]];
    for (required, open) in peers.iter().flat_map(|one| peers.iter().map(move |other| (one, other))) {
        for (required_ports, open_ports) in
            ports.iter().flat_map(|one| ports.iter().map(move |other| (one, other)))
        {
            for direction in [Ingress, Egress] {
                let required = requiring("proven", direction, required.clone(), required_ports);
                let open = allowing("open", direction, open.clone(), open_ports);
                let both = given([open.clone(), required.clone()]);
                both.expect(direction, &[("tiefighter", "80/tcp", true)]);
                let (_, outcome) = both.outcome(direction, "tiefighter", "80/tcp");
                assert_eq!(outcome.as_ref().unwrap().authentication, Authentication::Required);
                assert_eq!(names(outcome), ["default/proven"]);

                let deny = denying("deny", direction, Peers::Any, &[tcp(80, 80)]);
                let all = given([open, required, deny]);
                all.expect(direction, &[("tiefighter", "80/tcp", false)]);
                let (_, outcome) = all.outcome(direction, "tiefighter", "80/tcp");
                assert_eq!(outcome.as_ref().unwrap().authentication, Authentication::None);
                assert_eq!(names(outcome), ["default/deny"]);
            }
        }
    }
}

#[test]
fn only_what_the_requiring_rule_admits_must_be_authenticated() {
    let given = given([
        allowing("open", Ingress, pods("org=empire"), &[]),
        requiring("proven", Ingress, pods("class=tiefighter"), &[tcp(80, 80)]),
    ]);
    for (peer, port, expected) in [
        ("tiefighter", "80/tcp", Authentication::Required),
        ("tiefighter", "81/tcp", Authentication::None),
        ("tiefighter", "80/udp", Authentication::None),
        ("deathstar", "80/tcp", Authentication::None),
    ] {
        let (allowed, outcome) = given.outcome(Ingress, peer, port);
        assert!(allowed && outcome.unwrap().authentication == expected, "{peer} {port}");
    }
    given.expect(Ingress, &[("xwing", "80/tcp", false)]);
}

#[test]
fn what_is_required_where_nothing_is_denied_by_default_is_required_all_the_same() {
    let statement = Statement {
        authentication: Authentication::Required,
        ..statement(pods("org=empire"), &[tcp(80, 80)])
    };
    let given = given([policy("proven", [(Ingress, Part::Allow(statement))])]);
    given.expect(Ingress, &[("xwing", "80/tcp", true), ("tiefighter", "80/tcp", true)]);
    for (peer, port, expected) in [
        ("tiefighter", "80/tcp", Authentication::Required),
        ("tiefighter", "81/tcp", Authentication::None),
        ("xwing", "80/tcp", Authentication::None),
    ] {
        assert_eq!(given.outcome(Ingress, peer, port).1.unwrap().authentication, expected, "{peer} {port}");
    }
}

#[test]
fn only_workloads_can_authenticate_and_the_own_node_need_not() {
    let given = given([
        requiring("proven", Ingress, entity("all"), &[]),
        requiring("out", Egress, entity("all"), &[]),
    ]);
    let told = |direction, peer: &str| {
        let (allowed, outcome) = given.outcome(direction, peer, "80/tcp");
        let (identity, ..) = party(peer, &given.universe());
        allowed.then(|| outcome.unwrap().authentication.of(identity, direction))
    };
    for direction in [Ingress, Egress] {
        given.expect(direction, &[("tiefighter", "80/tcp", true), ("8.8.8.8", "80/tcp", false)]);
        assert_eq!(told(direction, "tiefighter"), Some(Asked::Proof));
        for peer in ["8.8.8.8", "2001:db8::1", "remote-node", "kube-apiserver", "ingress", "health", "init"] {
            assert_eq!(told(direction, peer), Some(Asked::NoPrincipal), "{peer}");
        }
    }
    assert_eq!(told(Ingress, "host"), Some(Asked::Nothing));
    assert_eq!(told(Egress, "host"), Some(Asked::NoPrincipal));
}

#[test]
fn equal_outcomes_with_and_without_authentication_share_nothing_and_split_nothing() {
    let of = |make: fn(&str, TrafficDirection, Peers, &[PortMatch]) -> Policy| {
        given([make("rule1", Ingress, pods("org=empire"), &[tcp(80, 90), tcp(85, 95)])]).ruleset(Ingress)
    };
    let (open, required) = (of(allowing), of(requiring));
    assert_eq!(open.entries.keys().collect::<Vec<_>>(), required.entries.keys().collect::<Vec<_>>());
    assert_ne!(open, required);
    assert_ne!(open.digest(), required.digest());
    // A second rule that asks for nothing more changes nothing but where it alone speaks.
    let both = given([
        requiring("rule1", Ingress, pods("org=empire"), &[tcp(80, 90), tcp(85, 95)]),
        allowing("open", Ingress, pods("org=empire"), &[tcp(82, 91)]),
    ]);
    assert_eq!(both.ruleset(Ingress).entries, required.entries);
}

#[test]
fn an_allow_goes_before_a_demand_and_a_deny_before_both() {
    let peers = [Peers::Any, pods("org=empire"), pods("class=tiefighter")];
    let ports: [&[_]; 3] = [&[], &[tcp(80, 90)], &[tcp(80, 80)]];
    for (demand, allow) in peers.iter().flat_map(|one| peers.iter().map(move |other| (one, other))) {
        for (demand_ports, allow_ports) in
            ports.iter().flat_map(|one| ports.iter().map(move |other| (one, other)))
        {
            let demand = demanding("demand", Needs::L7Proxy, demand.clone(), demand_ports);
            let allow = allowing("allow", Ingress, allow.clone(), allow_ports);
            let given_both = given([demand.clone(), allow.clone()]);
            given_both.expect(Ingress, &[("tiefighter", "80/tcp", true)]);
            assert_eq!(names(given_both.outcome(Ingress, "tiefighter", "80/tcp").1), ["default/allow"]);

            let deny = denying("deny", Ingress, Peers::Any, &[tcp(80, 80)]);
            let given_all = given([demand, allow, deny]);
            given_all.expect(Ingress, &[("tiefighter", "80/tcp", false)]);
            assert_eq!(names(given_all.outcome(Ingress, "tiefighter", "80/tcp").1), ["default/deny"]);
        }
    }
}

#[test]
fn an_entry_names_every_policy_that_says_the_same() {
    let given = given([
        allowing("b", Ingress, pods("org=empire"), &[tcp(80, 80)]),
        allowing("a", Ingress, pods("class=tiefighter"), &[]),
        allowing("c", Ingress, pods("org=alliance"), &[]),
    ]);
    assert_eq!(names(given.outcome(Ingress, "tiefighter", "80/tcp").1), ["default/a", "default/b"]);
    assert_eq!(names(given.outcome(Ingress, "tiefighter", "81/tcp").1), ["default/a"]);
}

fn names(outcome: Option<Outcome>) -> Vec<String> {
    outcome.unwrap().by.iter().map(ToString::to_string).collect()
}
