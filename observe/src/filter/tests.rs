use super::*;
use crate::compact::tests::{dropped, forwarded};

fn admits(set: impl FnOnce(&mut FlowFilter)) -> bool {
    let mut query = ObserveQuery::default();
    set(&mut query.filter);
    Filter::compile(&query).unwrap().admits(&dropped())
}

fn refused(set: impl FnOnce(&mut FlowFilter)) -> String {
    let mut query = ObserveQuery::default();
    set(&mut query.filter);
    Filter::compile(&query).unwrap_err().to_string()
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

#[test]
fn an_empty_filter_admits_everything() {
    assert!(admits(|_| {}));
}

#[test]
fn each_field_looks_at_its_part_of_the_flow() {
    type Case = (fn(&mut FlowFilter, Vec<String>), &'static [&'static str], &'static [&'static str]);
    let cases: [Case; 20] = [
        (
            |f, v| f.either.pods = v,
            &["xwing", "deathst", "default/", "default/x"],
            &["tie", "kube-system/xwing"],
        ),
        (|f, v| f.source.pods = v, &["xwing"], &["deathstar"]),
        (|f, v| f.destination.pods = v, &["deathstar"], &["xwing"]),
        (|f, v| f.either.namespaces = v, &["default"], &["kube-system", "def"]),
        (|f, v| f.source.namespaces = v, &["default"], &["other"]),
        (
            |f, v| f.either.labels = v,
            &["org=alliance", "k8s:org=empire", "class=deathstar,org=empire", "org"],
            &["org=rebels", "reserved:org=empire", "org=alliance,class=deathstar"],
        ),
        (|f, v| f.source.labels = v, &["org=alliance"], &["org=empire"]),
        (|f, v| f.destination.labels = v, &["org=empire"], &["org=alliance"]),
        (|f, v| f.either.identities = v, &["13058", "17839"], &["1", "world"]),
        (|f, v| f.source.identities = v, &["13058"], &["17839"]),
        (|f, v| f.destination.identities = v, &["17839"], &["13058"]),
        (|f, v| f.either.ips = v, &["10.1.0.3", "10.1.0.0/16"], &["10.2.0.0/16", "fd00::1"]),
        (|f, v| f.source.ips = v, &["10.1.0.3/32"], &["10.1.0.1"]),
        (|f, v| f.destination.ips = v, &["10.1.0.1"], &["10.1.0.3"]),
        (|f, v| f.either.ports = v, &["80", "49446"], &["81"]),
        (|f, v| f.source.ports = v, &["49446"], &["80"]),
        (|f, v| f.destination.ports = v, &["80"], &["49446"]),
        (|f, v| f.protocols = v, &["tcp", "TCP"], &["udp", "icmp"]),
        (|f, v| f.tcp_flags = v, &["SYN", "syn"], &["SYN,ACK", "FIN"]),
        (
            |f, v| f.drop_reasons = v,
            &["Policy denied", "POLICY_DENIED", "policy_denied", "133"],
            &["134", "TTL exceeded", "CT_MAP_INSERTION_FAILED"],
        ),
    ];
    for (set, matching, others) in cases {
        for text in matching {
            assert!(admits(|filter| set(filter, texts(&[text]))), "{text}");
        }
        for text in others {
            assert!(!admits(|filter| set(filter, texts(&[text]))), "{text}");
        }
        assert!(
            admits(|filter| set(filter, texts(&[others[0], matching[0]]))),
            "any of a field is enough: {matching:?}"
        );
    }
    assert!(admits(|f| f.verdicts = texts(&["dropped"])) && !admits(|f| f.verdicts = texts(&["FORWARDED"])));
    assert!(admits(|f| f.directions = texts(&["ingress"])) && !admits(|f| f.directions = texts(&["egress"])));
}

#[test]
fn all_fields_must_hold() {
    assert!(!admits(|f| {
        f.either.pods = texts(&["xwing"]);
        f.either.ports = texts(&["81"]);
    }));
    assert!(admits(|f| {
        f.source.pods = texts(&["xwing"]);
        f.destination.ports = texts(&["80"]);
    }));
    let crossed = |f: &mut FlowFilter| {
        f.either.pods = texts(&["xwing"]);
        f.either.ports = texts(&["80"]);
    };
    assert!(admits(crossed), "the fields of either end may hold at different ends");
}

#[test]
fn what_any_exception_matches_is_left_out() {
    let leaves_out = |except: Vec<FlowFilter>| {
        let query = ObserveQuery { except, ..ObserveQuery::default() };
        !Filter::compile(&query).unwrap().admits(&dropped())
    };
    let port = |port: &str| FlowFilter {
        either: node_api::PeerFilter { ports: texts(&[port]), ..Default::default() },
        ..FlowFilter::default()
    };
    assert!(!leaves_out(vec![port("81")]));
    assert!(leaves_out(vec![port("81"), port("80")]), "one is enough");
}

#[test]
fn world_is_the_world_of_both_families() {
    let mut query = ObserveQuery::default();
    query.filter.source.identities = texts(&["world"]);
    let filter = Filter::compile(&query).unwrap();
    for (identity, expected) in [(2, true), (9, true), (10, true), (1, false)] {
        let mut flow = dropped();
        flow.source.identity = mesh::identity::Identity::new(identity);
        assert_eq!(filter.admits(&flow), expected, "{identity}");
    }
}

#[test]
fn a_flow_without_reason_has_none_of_the_reasons() {
    let mut query = ObserveQuery::default();
    query.filter.drop_reasons = texts(&["133"]);
    assert!(!Filter::compile(&query).unwrap().admits(&forwarded()));
}

#[test]
fn time_is_inclusive_at_both_ends() {
    let time = dropped().time;
    let admits = |since, until| {
        let query = ObserveQuery { since, until, ..ObserveQuery::default() };
        Filter::compile(&query).unwrap().admits(&dropped())
    };
    assert!(admits(Some(time), Some(time)));
    assert!(!admits(Some(time + 1), None));
    assert!(!admits(None, Some(time - 1)));
}

#[test]
fn requests_are_found_by_method_path_and_status() {
    use crate::compact::tests::{request, response};
    let admits = |set: fn(&mut FlowFilter), flow: &Flow| {
        let mut query = ObserveQuery::default();
        set(&mut query.filter);
        Filter::compile(&query).unwrap().admits(flow)
    };
    assert!(admits(|f| f.protocols = texts(&["http"]), &request()));
    assert!(!admits(|f| f.protocols = texts(&["http"]), &dropped()));
    assert!(admits(|f| f.protocols = texts(&["tcp"]), &request()));
    assert!(admits(|f| f.http_methods = texts(&["put"]), &response()));
    assert!(!admits(|f| f.http_methods = texts(&["POST"]), &request()));
    assert!(!admits(|f| f.http_methods = texts(&["PUT"]), &dropped()));
    assert!(admits(|f| f.http_paths = texts(&["exhaust-p.rt$"]), &request()));
    assert!(!admits(|f| f.http_paths = texts(&["^exhaust", "svc"]), &request()), "the path, not the host");
    for status in ["403", "4+", "40+"] {
        let mut query = ObserveQuery::default();
        query.filter.http_statuses = texts(&[status]);
        let filter = Filter::compile(&query).unwrap();
        assert!(filter.admits(&response()) && !filter.admits(&request()), "{status}");
    }
    assert!(!admits(|f| f.http_statuses = texts(&["404", "5+", "41+"]), &response()));
}

#[test]
fn an_error_names_the_value_and_what_is_accepted() {
    type Case = (fn(&mut FlowFilter), &'static str);
    let cases: [Case; 12] = [
        (
            |f| f.verdicts = texts(&["DROPED"]),
            r#"--verdict "DROPED": expected one of FORWARDED, DROPPED, AUDIT"#,
        ),
        (
            |f| f.protocols = texts(&["dns"]),
            r#"--protocol "dns": expected one of tcp, udp, sctp, icmp, icmpv4, icmpv6, http, tls"#,
        ),
        (
            |f| f.tcp_flags = texts(&["SYN,NAK"]),
            r#"--tcp-flags "SYN,NAK": expected one of SYN, ACK, RST, FIN, PSH, URG, ECE, CWR"#,
        ),
        (|f| f.directions = texts(&["in"]), r#"--traffic-direction "in": expected one of ingress, egress"#),
        (
            |f| f.either.ips = texts(&["10.0.0"]),
            r#"--ip "10.0.0": expected an address or a prefix, as 10.1.0.7, fd00::7 or 10.1.0.0/16"#,
        ),
        (
            |f| f.source.labels = texts(&["=x"]),
            r#"--from-label "=x": expected [k8s:|reserved:|cidr:]key[=value], more of them after commas"#,
        ),
        (|f| f.destination.pods = texts(&["a/b/c"]), r#"--to-pod "a/b/c": expected [namespace/]name-prefix"#),
        (|f| f.source.ports = texts(&["http"]), r#"--from-port "http": expected a number from 0 to 65535"#),
        (
            |f| f.either.identities = texts(&["0"]),
            r#"--identity "0": expected a number, or a reserved name as host, world, remote-node"#,
        ),
        (|f| f.either.namespaces = texts(&["a/"]), r#"--namespace "a/": expected the name of a namespace"#),
        (
            |f| f.http_statuses = texts(&["40"]),
            r#"--http-status "40": expected a status from 100 to 599, or the beginning of one: 4+, 40+"#,
        ),
        (
            |f| f.http_paths = texts(&["/v1("]),
            r#"--http-path "/v1(": expected a regular expression of moderate size"#,
        ),
    ];
    for (set, expected) in cases {
        assert_eq!(refused(set), expected);
    }
    let message = refused(|f| f.drop_reasons = texts(&["bad luck"]));
    assert!(message.contains(r#""Policy denied" (133)"#), "{message}");
}

#[test]
fn each_reason_has_a_name_of_its_own_that_is_understood() {
    for known in DropReason::ALL {
        assert_eq!(reason(&reason_name(*known)), Ok(*known as u8), "{known:?}");
    }
}
