//! The Kubernetes DNS specification 1.1, a section each, and what it leaves open.

use domain::rdata::ZoneRecordData;
use mesh::service::FrontendPlan;

use super::*;

/// `default`: `deathstar` of both families, `beacon` of one; `probe` refers outside, `alias` inside, `loop-*` to
/// itself. `empire`: headless `tie` with and without hostnames, `base` without endpoints.
fn zone() -> Zone {
    let port = |name: &str, protocol: u8, port: u16| ServicePort { name: name.to_owned(), protocol, port };
    let cluster = |addresses: &[&str]| NamePlan::Cluster {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![
            port("http", protocol::TCP, 80),
            port("holo", protocol::UDP, 90),
            port("", protocol::TCP, 7),
        ],
    };
    let endpoint = |hostname: Option<&str>, addresses: &[&str]| HeadlessEndpoint {
        hostname: hostname.map(str::to_owned),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![port("ion", protocol::TCP, 8080)],
    };
    let external = |name: &str| NamePlan::External { name: name.to_owned() };
    let names = [
        ("default/deathstar", cluster(&["10.96.0.7", "fd00:96::7"])),
        ("default/beacon", cluster(&["10.96.0.8"])),
        ("default/probe", external("probe.example.com")),
        ("default/alias", external("deathstar.default.svc.cluster.local")),
        ("default/dangling", external("nobody.default.svc.cluster.local")),
        ("default/twice", external("probe.default.svc.cluster.local")),
        ("default/loop-a", external("loop-b.default.svc.cluster.local")),
        ("default/loop-b", external("loop-a.default.svc.cluster.local")),
        ("default/broken", external("a..b")),
        (
            "empire/tie",
            NamePlan::Headless {
                endpoints: vec![
                    endpoint(Some("vader"), &["10.217.0.5", "fd00:217::5"]),
                    endpoint(None, &["10.217.0.6", "fd00:217::6"]),
                ],
            },
        ),
        ("empire/base", NamePlan::Headless { endpoints: vec![] }),
    ];
    let name = |text: &str| {
        let (namespace, name) = text.split_once('/').unwrap();
        service_name(namespace, name)
    };
    let mut services = Services::default();
    for (text, plan) in names {
        if let NamePlan::Cluster { addresses, ports } = &plan {
            for (address, port) in
                addresses.iter().flat_map(|address| ports.iter().map(move |port| (address, port)))
            {
                let frontend = Frontend { address: *address, port: port.port, protocol: port.protocol };
                let none = || Arc::from([]);
                let plan = FrontendPlan {
                    service: name(text),
                    port_name: port.name.clone(),
                    backends: none(),
                    draining: none(),
                    affinity: None,
                };
                services.frontends.insert(frontend, plan);
            }
        }
        services.names.insert(name(text), plan);
    }
    let servers = ["10.217.0.1", "fd00:217::1"].map(|address| address.parse().unwrap());
    Zone::new("cluster.local".parse().unwrap(), servers.into(), 3, Arc::new(services))
}

fn text(records: &[Resource]) -> Vec<String> {
    let line = |record: &Resource| {
        assert_eq!((record.ttl(), record.class()), (Ttl::from_secs(5), Class::IN), "{record}");
        let data = match record.data() {
            ZoneRecordData::Txt(text) => format!("{text}"),
            data => data.to_string(),
        };
        format!("{} {} {data}", record.owner(), record.data().rtype())
    };
    records.iter().map(line).collect()
}

/// `RCODE`, answers, `+` and what the client will ask next; `-> NAME` if that is for others to answer.
fn ask(zone: &Zone, name: &str, rtype: Rtype) -> String {
    let question = Owner::vec_from_str(name).unwrap();
    let answer = match zone.find(&question, rtype, 0) {
        Found::Elsewhere => return "elsewhere".to_owned(),
        Found::Alias { chain, target } => return format!("{} -> {target}", text(&chain).join("; ")),
        Found::Here(answer) => answer,
    };
    let soa = ["cluster.local SOA ns.dns.cluster.local. hostmaster.cluster.local. 3 7200 1800 86400 5"];
    let negative =
        answer.answers.last().is_none_or(|last| last.data().rtype() == Rtype::CNAME && rtype != Rtype::CNAME);
    if answer.rcode == Rcode::SERVFAIL {
        assert!(!answer.authoritative && answer.authority.is_empty());
    } else {
        assert!(answer.authoritative);
        assert_eq!(text(&answer.authority), if negative { &soa[..] } else { &[] }, "{name} {rtype}");
    }
    let mut said = vec![answer.rcode.to_string()];
    said.extend(text(&answer.answers));
    said.extend(text(&answer.additional).into_iter().map(|line| format!("+ {line}")));
    said.join("; ")
}

#[track_caller]
fn specification(cases: &[(&str, Rtype, &str)]) {
    let zone = zone();
    for (name, rtype, expected) in cases {
        // Names in the table are short; `.` at the end says that it is whole.
        let whole = if name.ends_with('.') { (*name).to_owned() } else { format!("{name}.cluster.local.") };
        assert_eq!(ask(&zone, &whole, *rtype), *expected, "{name} {rtype}");
    }
}

#[test]
fn section_2_2_schema_version() {
    specification(&[
        ("dns-version", Rtype::TXT, "NOERROR; dns-version.cluster.local TXT \"1.1.0\""),
        ("dns-version", Rtype::A, "NOERROR"),
        ("x.dns-version", Rtype::TXT, "NXDOMAIN"),
    ]);
}

#[test]
fn section_2_3_1_a_service_has_its_vip_of_each_family() {
    let deathstar = "deathstar.default.svc";
    specification(&[
        (deathstar, Rtype::A, "NOERROR; deathstar.default.svc.cluster.local A 10.96.0.7"),
        (deathstar, Rtype::AAAA, "NOERROR; deathstar.default.svc.cluster.local AAAA fd00:96::7"),
        ("beacon.default.svc", Rtype::AAAA, "NOERROR"),
        (deathstar, Rtype::TXT, "NOERROR"),
        (
            deathstar,
            Rtype::ANY,
            "NOERROR; deathstar.default.svc.cluster.local A 10.96.0.7; \
             deathstar.default.svc.cluster.local AAAA fd00:96::7",
        ),
        ("nobody.default.svc", Rtype::A, "NXDOMAIN"),
        ("deathstar.empire.svc", Rtype::A, "NXDOMAIN"),
        ("vader.deathstar.default.svc", Rtype::A, "NXDOMAIN"),
        ("deathstar.default", Rtype::A, "NXDOMAIN"),
        ("10-217-0-5.default.pod", Rtype::A, "NXDOMAIN"),
    ]);
}

#[test]
fn section_2_3_2_each_named_port_of_a_service_has_an_srv_record() {
    specification(&[
        (
            "_http._tcp.deathstar.default.svc",
            Rtype::SRV,
            "NOERROR; _http._tcp.deathstar.default.svc.cluster.local SRV 0 100 80 \
             deathstar.default.svc.cluster.local; + deathstar.default.svc.cluster.local A 10.96.0.7; \
             + deathstar.default.svc.cluster.local AAAA fd00:96::7",
        ),
        (
            "_HOLO._UDP.beacon.default.svc",
            Rtype::SRV,
            "NOERROR; _HOLO._UDP.beacon.default.svc.cluster.local SRV 0 100 90 \
             beacon.default.svc.cluster.local; + beacon.default.svc.cluster.local A 10.96.0.8",
        ),
        ("_http._tcp.deathstar.default.svc", Rtype::A, "NOERROR"),
        ("_tcp.deathstar.default.svc", Rtype::SRV, "NOERROR"),
        ("_sctp.deathstar.default.svc", Rtype::SRV, "NXDOMAIN"),
        ("_http._udp.deathstar.default.svc", Rtype::SRV, "NXDOMAIN"),
        ("_._tcp.deathstar.default.svc", Rtype::SRV, "NXDOMAIN"),
        ("http.tcp.deathstar.default.svc", Rtype::SRV, "NXDOMAIN"),
        ("x._http._tcp.deathstar.default.svc", Rtype::SRV, "NXDOMAIN"),
        ("_http._tcp.probe.default.svc", Rtype::SRV, "NXDOMAIN"),
        ("deathstar.default.svc", Rtype::SRV, "NOERROR"),
    ]);
}

#[test]
fn section_2_3_3_each_vip_leads_back_to_its_service() {
    let name = |address: &str| Owner::reverse_from_addr(address.parse().unwrap()).unwrap().to_string();
    let (v4, v6) = (name("10.96.0.7"), name("fd00:96::7"));
    specification(&[
        (&format!("{v4}."), Rtype::PTR, &format!("NOERROR; {v4} PTR deathstar.default.svc.cluster.local.")),
        (&format!("{v6}."), Rtype::PTR, &format!("NOERROR; {v6} PTR deathstar.default.svc.cluster.local.")),
        (&format!("{v4}."), Rtype::A, "NOERROR"),
        (&format!("{}.", name("10.96.0.6")), Rtype::PTR, "elsewhere"),
        (&format!("{}.", name("10.217.0.9")), Rtype::PTR, "elsewhere"),
        ("96.10.in-addr.arpa.", Rtype::NS, "elsewhere"),
    ]);
}

#[test]
fn section_2_4_1_a_headless_service_has_the_addresses_of_its_endpoints() {
    specification(&[
        (
            "tie.empire.svc",
            Rtype::A,
            "NOERROR; tie.empire.svc.cluster.local A 10.217.0.5; tie.empire.svc.cluster.local A 10.217.0.6",
        ),
        (
            "tie.empire.svc",
            Rtype::AAAA,
            "NOERROR; tie.empire.svc.cluster.local AAAA fd00:217::5; tie.empire.svc.cluster.local AAAA fd00:217::6",
        ),
        ("vader.tie.empire.svc", Rtype::A, "NOERROR; vader.tie.empire.svc.cluster.local A 10.217.0.5"),
        ("vader.tie.empire.svc", Rtype::AAAA, "NOERROR; vader.tie.empire.svc.cluster.local AAAA fd00:217::5"),
        (
            "10-217-0-6.tie.empire.svc",
            Rtype::A,
            "NOERROR; 10-217-0-6.tie.empire.svc.cluster.local A 10.217.0.6",
        ),
        ("10-217-0-6.tie.empire.svc", Rtype::AAAA, "NOERROR"),
        (
            "fd00-217--6.tie.empire.svc",
            Rtype::AAAA,
            "NOERROR; fd00-217--6.tie.empire.svc.cluster.local AAAA fd00:217::6",
        ),
        // It has a hostname.
        ("10-217-0-5.tie.empire.svc", Rtype::A, "NXDOMAIN"),
        ("luke.tie.empire.svc", Rtype::A, "NXDOMAIN"),
        ("base.empire.svc", Rtype::A, "NOERROR"),
        ("vader.base.empire.svc", Rtype::A, "NXDOMAIN"),
    ]);
}

#[test]
fn section_2_4_2_each_endpoint_of_a_headless_service_has_an_srv_record_for_its_port() {
    let name = "_ion._tcp.tie.empire.svc.cluster.local";
    let tie = "tie.empire.svc.cluster.local";
    specification(&[
        (
            "_ion._tcp.tie.empire.svc",
            Rtype::SRV,
            &[
                "NOERROR".to_owned(),
                format!("{name} SRV 0 100 8080 vader.{tie}"),
                format!("{name} SRV 0 100 8080 10-217-0-6.{tie}"),
                format!("{name} SRV 0 100 8080 fd00-217--6.{tie}"),
                format!("+ vader.{tie} A 10.217.0.5"),
                format!("+ vader.{tie} AAAA fd00:217::5"),
                format!("+ 10-217-0-6.{tie} A 10.217.0.6"),
                format!("+ fd00-217--6.{tie} AAAA fd00:217::6"),
            ]
            .join("; "),
        ),
        ("_tcp.tie.empire.svc", Rtype::A, "NOERROR"),
        ("_ion._tcp.base.empire.svc", Rtype::SRV, "NXDOMAIN"),
    ]);
}

#[test]
fn section_2_4_3_each_endpoint_of_a_headless_service_leads_back_to_its_name() {
    for (address, name) in [
        ("10.217.0.5", "vader"),
        ("fd00:217::5", "vader"),
        ("10.217.0.6", "10-217-0-6"),
        ("fd00:217::6", "fd00-217--6"),
    ] {
        let reverse = Owner::reverse_from_addr(address.parse().unwrap()).unwrap().to_string();
        let expected = format!("NOERROR; {reverse} PTR {name}.tie.empire.svc.cluster.local.");
        specification(&[(&format!("{reverse}."), Rtype::PTR, &expected)]);
    }
}

#[test]
fn section_2_5_an_external_name_is_an_alias_and_followed_as_far_as_it_is_ours() {
    let alias = "alias.default.svc.cluster.local CNAME deathstar.default.svc.cluster.local.";
    specification(&[
        (
            "probe.default.svc",
            Rtype::A,
            "probe.default.svc.cluster.local CNAME probe.example.com. -> probe.example.com",
        ),
        (
            "probe.default.svc",
            Rtype::CNAME,
            "NOERROR; probe.default.svc.cluster.local CNAME probe.example.com.",
        ),
        (
            "alias.default.svc",
            Rtype::A,
            &format!("NOERROR; {alias}; deathstar.default.svc.cluster.local A 10.96.0.7"),
        ),
        ("alias.default.svc", Rtype::MX, &format!("NOERROR; {alias}")),
        (
            "dangling.default.svc",
            Rtype::A,
            "NXDOMAIN; dangling.default.svc.cluster.local CNAME nobody.default.svc.cluster.local.",
        ),
        (
            "twice.default.svc",
            Rtype::AAAA,
            "twice.default.svc.cluster.local CNAME probe.default.svc.cluster.local.; \
             probe.default.svc.cluster.local CNAME probe.example.com. -> probe.example.com",
        ),
        ("loop-a.default.svc", Rtype::A, "SERVFAIL"),
        ("broken.default.svc", Rtype::A, "NXDOMAIN"),
        ("x.probe.default.svc", Rtype::A, "NXDOMAIN"),
    ]);
}

#[test]
fn names_that_only_have_names_below_them_exist() {
    specification(&[
        ("svc", Rtype::A, "NOERROR"),
        ("default.svc", Rtype::A, "NOERROR"),
        ("empire.svc", Rtype::AAAA, "NOERROR"),
        ("dns", Rtype::A, "NOERROR"),
        ("defaul.svc", Rtype::A, "NXDOMAIN"),
        ("emp.svc", Rtype::A, "NXDOMAIN"),
        ("zzz.svc", Rtype::A, "NXDOMAIN"),
        ("pod", Rtype::A, "NXDOMAIN"),
        ("www.example.com.default.svc", Rtype::A, "NXDOMAIN"),
    ]);
}

#[test]
fn the_zone_itself_says_who_serves_it() {
    specification(&[
        (
            "cluster.local.",
            Rtype::SOA,
            "NOERROR; cluster.local SOA ns.dns.cluster.local. hostmaster.cluster.local. 3 7200 1800 86400 5; \
             + ns.dns.cluster.local A 10.217.0.1; + ns.dns.cluster.local AAAA fd00:217::1",
        ),
        (
            "cluster.local.",
            Rtype::NS,
            "NOERROR; cluster.local NS ns.dns.cluster.local.; \
             + ns.dns.cluster.local A 10.217.0.1; + ns.dns.cluster.local AAAA fd00:217::1",
        ),
        ("ns.dns", Rtype::A, "NOERROR; ns.dns.cluster.local A 10.217.0.1"),
        ("ns.dns", Rtype::AAAA, "NOERROR; ns.dns.cluster.local AAAA fd00:217::1"),
        ("cluster.local.", Rtype::A, "NOERROR"),
    ]);
}

#[test]
fn other_names_are_for_others() {
    specification(&[
        ("example.com.", Rtype::A, "elsewhere"),
        (".", Rtype::NS, "elsewhere"),
        ("local.", Rtype::SOA, "elsewhere"),
        ("mycluster.local.", Rtype::A, "elsewhere"),
        ("deathstar.default.svc.cluster.locale.", Rtype::A, "elsewhere"),
        ("deathstar.", Rtype::A, "elsewhere"),
    ]);
}

#[test]
fn letters_of_any_case_are_one_and_the_answer_has_the_questions() {
    specification(&[
        (
            "DeathStar.DEFAULT.svc.Cluster.LOCAL.",
            Rtype::A,
            "NOERROR; DeathStar.DEFAULT.svc.Cluster.LOCAL A 10.96.0.7",
        ),
        ("VADER.tie.empire.SVC", Rtype::A, "NOERROR; VADER.tie.empire.SVC.cluster.local A 10.217.0.5"),
    ]);
}

#[test]
fn each_record_comes_first_in_its_turn() {
    let (zone, name) = (zone(), "tie.empire.svc.cluster.local".parse().unwrap());
    let first = |turn| match zone.find(&name, Rtype::A, turn) {
        Found::Here(answer) => answer.answers.iter().map(|record| record.data().to_string()).next().unwrap(),
        found => panic!("{found:?}"),
    };
    assert_eq!([0, 1, 2, usize::MAX].map(first), ["10.217.0.5", "10.217.0.6", "10.217.0.5", "10.217.0.6"]);
}

#[test]
fn a_name_that_dns_cannot_hold_does_not_exist_and_hurts_nobody() {
    let mut services = Services::clone(&zone().services);
    let endpoint = HeadlessEndpoint {
        hostname: Some("x".repeat(64)),
        addresses: vec!["10.217.0.7".parse().unwrap()],
        ports: vec![ServicePort { name: "ion".to_owned(), protocol: protocol::TCP, port: 1 }],
    };
    services.names.insert(service_name("empire", "tie"), NamePlan::Headless { endpoints: vec![endpoint] });
    let zone = zone().with(Arc::new(services));
    assert_eq!(
        ask(&zone, "tie.empire.svc.cluster.local.", Rtype::A),
        "NOERROR; tie.empire.svc.cluster.local A 10.217.0.7"
    );
    let srv = "_ion._tcp.tie.empire.svc.cluster.local.";
    assert!(
        matches!(zone.find(&srv.parse().unwrap(), Rtype::SRV, 0), Found::Here(answer) if answer.rcode == Rcode::NXDOMAIN)
    );
}
