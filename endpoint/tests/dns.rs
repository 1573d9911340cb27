//! The node's DNS over real sockets, with glibc as a client and a server made of the same library as upstream. Needs
//! root: each test has a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod names;
mod node;

use std::net::SocketAddr;
use std::sync::Arc;

use domain::base::iana::{Rcode, Rtype};
use mesh::service::Services;
use names::{Behaviour, Dns, ask, ask_from, getent, rcode, said, services, upstream};
use node::{Node, soon};

const V4: &str = "10.42.0.1";
const V6: &str = "fd42::1";

#[test]
fn a_service_has_its_name_by_either_family_and_transport() {
    Node::new().run(|config| async move {
        let dns = Dns::start(&config, &[]).await;
        for server in [V4, V6] {
            for tcp in [false, true] {
                let answer = ask(server, tcp, "deathstar.default.svc.cluster.local", Rtype::A).await;
                assert_eq!(said(&answer), ["10.96.0.7"], "{server} {tcp}");
                assert!(answer.header().aa() && answer.header().ra() && answer.header().qr());
            }
        }
        dns.names.set(&Arc::new(Services::default()));
        let gone = ask(V4, false, "deathstar.default.svc.cluster.local", Rtype::A).await;
        assert_eq!(gone.header().rcode(), Rcode::NXDOMAIN, "in force with the next question");
    });
}

#[test]
fn glibc_finds_services_by_short_and_long_names_and_others_through_the_upstream() {
    Node::new().run(|config| async move {
        let server = upstream("127.0.0.2:5300", Behaviour::Honest).await;
        let dns = Dns::start(&config, &[server.address]).await;
        let file = dns.names.workload_file("default");
        let cases = [
            ("deathstar", "10.96.0.7 fd00:96::7"),
            ("deathstar.default", "10.96.0.7 fd00:96::7"),
            ("deathstar.default.svc.cluster.local", "10.96.0.7 fd00:96::7"),
            ("tie.empire", "10.217.0.5 10.217.0.6"),
            ("vader.tie.empire.svc", "10.217.0.5"),
            ("probe", "192.0.2.80"),
            ("www.example.com", "192.0.2.80"),
            ("nobody", ""),
            ("nobody.example.com", ""),
        ];
        for (name, expected) in cases {
            assert_eq!(getent(&file, name).await, expected, "{name}");
        }
    });
}

#[test]
fn only_workloads_and_this_node_are_answered() {
    Node::new().run(|config| async move {
        let dns = Dns::start(&config, &[]).await;
        let name = "deathstar.default.svc.cluster.local";
        for (own, server) in [("10.42.0.9", V4), ("fd42::9", V6), ("192.0.2.1", V4), ("2001:db8::1", V6)] {
            names::add_address(own).await;
            let stranger = !own.contains("42");
            for tcp in [false, true] {
                let answer = ask_from(own, server, tcp, name, Rtype::A).await;
                assert_eq!(answer.is_none(), stranger, "{own} {tcp}");
            }
            dns.names.set_own_addresses([own.parse().unwrap()]);
            assert!(ask_from(own, server, false, name, Rtype::A).await.is_some(), "{own} is the node's");
        }
        assert!(
            dns.metrics().contains("ferromesh_dns_dropped_total{reason=\"stranger\"} 4"),
            "{}",
            dns.metrics()
        );
    });
}

#[test]
fn a_port_that_is_taken_names_who_has_it() {
    Node::new().run(|config| async move {
        let own = std::process::id();
        for (taken, address, transport) in [
            ("0.0.0.0:53", V4, "UDP"),
            ("[::]:53", V4, "UDP"),
            ("[fd42::1]:53", V6, "UDP"),
            ("10.42.0.1:53", V4, "TCP"),
            ("[::]:53", V4, "TCP"),
        ] {
            endpoint::Host::ensure(&config).await.unwrap();
            let taken: SocketAddr = taken.parse().unwrap();
            let _holder: Box<dyn std::any::Any> = match transport {
                "UDP" => Box::new(std::net::UdpSocket::bind(taken).unwrap()),
                _ => Box::new(std::net::TcpListener::bind(taken).unwrap()),
            };
            let error = Dns::bind(&config).await.unwrap_err().to_string();
            assert!(error.starts_with(&format!("{transport} port 53 of {address}")), "{error}");
            assert!(error.contains(&format!("(process {own}) on {taken}")), "{error}");
        }
    });
}

#[test]
fn what_other_servers_say_passes_whole_and_under_the_questions_own_id_and_spelling() {
    Node::new().run(|config| async move {
        let server = upstream("[::1]:5300", Behaviour::Honest).await;
        let _dns = Dns::start(&config, &[server.address]).await;
        let answer = ask(V4, false, "wWw.Example.COM", Rtype::A).await;
        assert_eq!(said(&answer), ["192.0.2.80"]);
        assert_eq!(answer.sole_question().unwrap().qname().to_string(), "wWw.Example.COM");
        assert!(!answer.header().aa());
        let nobody = ask(V4, false, "nobody.example.com", Rtype::A).await;
        assert_eq!(nobody.header().rcode(), Rcode::NXDOMAIN);
        let before = server.asked.lock().len();
        for name in ["x.default.svc.cluster.local", "cluster.local", "7.0.96.10.in-addr.arpa"] {
            ask(V4, false, name, Rtype::PTR).await;
        }
        assert_eq!(server.asked.lock().len(), before, "names of ours are never asked of others");
        ask(V4, false, "9.9.9.9.in-addr.arpa", Rtype::PTR).await;
        assert_eq!(server.asked.lock().last().unwrap(), "9.9.9.9.in-addr.arpa PTR");
    });
}

#[test]
fn without_a_server_to_ask_other_names_fail_at_once() {
    Node::new().run(|config| async move {
        let dns = Dns::start(&config, &[]).await;
        assert_eq!(rcode(V6, "www.example.com").await, Rcode::SERVFAIL);
        assert_eq!(rcode(V6, "probe.default.svc.cluster.local").await, Rcode::SERVFAIL);
        let metrics = dns.metrics();
        assert!(
            metrics.contains("ferromesh_dns_upstream_failures_total{reason=\"no-server\"} 2"),
            "{metrics}"
        );
    });
}

#[test]
fn an_external_name_comes_with_what_it_leads_to() {
    Node::new().run(|config| async move {
        let server = upstream("127.0.0.1:5300", Behaviour::Honest).await;
        let _dns = Dns::start(&config, &[server.address]).await;
        let name = "probe.default.svc.cluster.local";
        for tcp in [false, true] {
            assert_eq!(said(&ask(V4, tcp, name, Rtype::A).await), ["www.example.com.", "192.0.2.80"]);
        }
        let lost = ask(V4, false, "lost.default.svc.cluster.local", Rtype::A).await;
        assert_eq!(lost.header().rcode(), Rcode::NXDOMAIN, "as its target");
        assert_eq!(said(&lost), ["nobody.example.com."]);
    });
}

#[test]
fn a_server_that_never_answers_delays_no_name_of_the_cluster_and_no_better_server() {
    Node::new().run(|config| async move {
        let silent = upstream("127.0.0.1:5300", Behaviour::Silent).await;
        let honest = upstream("127.0.0.1:5301", Behaviour::Honest).await;
        let _dns = Dns::start(&config, &[silent.address, honest.address]).await;
        let waiting = tokio::spawn(async { ask(V4, false, "www.example.com", Rtype::A).await });
        soon(async {
            while silent.asked.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for _ in 0..100 {
            let answer = ask(V4, false, "deathstar.default.svc.cluster.local", Rtype::A).await;
            assert_eq!(said(&answer), ["10.96.0.7"]);
        }
        assert!(!waiting.is_finished());
        assert_eq!(said(&waiting.await.unwrap()), ["192.0.2.80"]);
        assert_eq!(said(&ask(V4, false, "www.example.com", Rtype::A).await), ["192.0.2.80"]);
        assert_eq!(silent.asked.lock().len(), 1, "the one that answers is asked first from then on");
    });
}

#[test]
fn a_server_that_cannot_tell_is_passed_over_for_one_that_can() {
    Node::new().run(|config| async move {
        let unable = upstream("127.0.0.1:5300", Behaviour::Unable).await;
        let honest = upstream("127.0.0.1:5301", Behaviour::Honest).await;
        let gone = "127.0.0.1:5302".parse().unwrap();
        let _dns = Dns::start(&config, &[gone, unable.address, honest.address]).await;
        assert_eq!(said(&ask(V4, false, "www.example.com", Rtype::A).await), ["192.0.2.80"]);
    });
    Node::new().run(|config| async move {
        let unable = upstream("127.0.0.1:5300", Behaviour::Unable).await;
        let _dns = Dns::start(&config, &[unable.address]).await;
        assert_eq!(
            rcode(V4, "www.example.com").await,
            Rcode::REFUSED,
            "its own word, for want of a better one"
        );
    });
}

#[test]
fn t39_answers_from_elsewhere_or_to_something_else_are_not_believed() {
    for lie in [Behaviour::WrongId, Behaviour::WrongQuestion, Behaviour::WrongAddress, Behaviour::Question] {
        Node::new().run(|config| async move {
            let server = upstream("127.0.0.1:5300", lie).await;
            let dns = Dns::start(&config, &[server.address]).await;
            // The forged packet comes before the true one.
            assert_eq!(said(&ask(V4, false, "www.example.com", Rtype::A).await), ["192.0.2.80"], "{lie:?}");
            let seen =
                dns.metrics().contains("ferromesh_dns_upstream_failures_total{reason=\"mismatched\"} 1");
            assert_eq!(seen, lie != Behaviour::WrongAddress, "{lie:?}: the kernel sorts those out");
        });
    }
}

#[test]
fn t39_ids_and_ports_are_drawn_anew_for_each_question() {
    Node::new().run(|config| async move {
        let server = upstream("127.0.0.1:5300", Behaviour::NotesOrigin).await;
        let _dns = Dns::start(&config, &[server.address]).await;
        for _ in 0..16 {
            ask(V4, false, "www.example.com", Rtype::A).await;
        }
        let origins = server.asked.lock();
        let distinct = |part: usize| {
            let parts = origins.iter().map(|origin| origin.split(' ').nth(part).unwrap());
            parts.collect::<std::collections::BTreeSet<_>>().len()
        };
        // Sixteen of 2^16 (ids) and 2^15 (ports): that more than two coincide is once in 10^7 runs.
        assert!(distinct(0) >= 14 && distinct(1) >= 14, "{origins:?}");
    });
}

#[test]
fn t39_a_huge_answer_comes_by_tcp_and_only_to_those_who_ask_by_tcp() {
    Node::new().run(|config| async move {
        let server = upstream("127.0.0.1:5300", Behaviour::Huge).await;
        let _dns = Dns::start(&config, &[server.address]).await;
        let cut = ask(V4, false, "www.example.com", Rtype::A).await;
        assert!(cut.header().tc() && said(&cut).is_empty());
        assert!(cut.as_slice().len() <= 512);
        let whole = ask(V4, true, "www.example.com", Rtype::A).await;
        assert_eq!((whole.header().tc(), said(&whole).len()), (false, 2000));
        assert_eq!(server.asked.lock().iter().filter(|asked| asked.contains("by TCP")).count(), 2);
    });
}

#[test]
fn an_answer_of_ours_that_is_too_long_for_a_datagram_is_cut_and_whole_by_tcp() {
    Node::new().run(|config| async move {
        let dns = Dns::start(&config, &[]).await;
        dns.names.set(&Arc::new(services(300)));
        let name = "many.empire.svc.cluster.local";
        for (size, least, most) in [(None, 20, 32), (Some(900), 40, 60), (Some(4096), 60, 80)] {
            let answer = names::ask_with(V4, name, Rtype::A, size).await;
            assert!(answer.header().tc(), "{size:?}");
            assert!((least..most).contains(&said(&answer).len()), "{size:?}: {}", said(&answer).len());
            let limit = usize::from(size.unwrap_or(512).min(1232));
            assert!(answer.as_slice().len() <= limit, "{size:?}: {}", answer.as_slice().len());
            assert_eq!(answer.opt().is_some(), size.is_some(), "as the question");
        }
        let whole = ask(V4, true, name, Rtype::A).await;
        assert_eq!((whole.header().tc(), said(&whole).len()), (false, 300));
        let file = dns.names.workload_file("empire");
        assert_eq!(getent(&file, "many").await.split(' ').count(), 300, "glibc comes back by TCP");
    });
}

#[test]
fn a_service_larger_than_any_message_is_answered_in_part() {
    Node::new().run(|config| async move {
        let dns = Dns::start(&config, &[]).await;
        dns.names.set(&Arc::new(services(6000)));
        let answer = ask(V4, true, "many.empire.svc.cluster.local", Rtype::A).await;
        assert!(said(&answer).len() > 4000 && !answer.header().tc());
    });
}

#[test]
fn one_client_cannot_use_up_the_questions_of_others() {
    Node::new().run(|config| async move {
        let silent = upstream("127.0.0.1:5300", Behaviour::Held).await;
        let dns = Dns::start(&config, &[silent.address]).await;
        for address in ["10.42.0.8", "10.42.0.9"] {
            names::add_address(address).await;
        }
        let greedy = names::flood("10.42.0.8", V4, 100).await;
        // What is over its share is answered at once, so those answers tell that all have been read.
        for _ in 0..36 {
            assert_eq!(soon(greedy.answer()).await.header().rcode(), Rcode::SERVFAIL);
        }
        assert!(dns.metrics().contains("ferromesh_dns_upstream_failures_total{reason=\"overload\"} 36"));
        let other =
            tokio::spawn(async { ask_from("10.42.0.9", V4, false, "www.example.com", Rtype::A).await });
        soon(async {
            while silent.asked.lock().len() < 65 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        silent.release();
        assert_eq!(said(&other.await.unwrap().unwrap()), ["192.0.2.80"]);
    });
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    Node::new().run(|config| async move {
        let _dns = Dns::start(&config, &[]).await;
        names::add_address("10.42.0.9").await;
        let mut silent = Vec::new();
        for _ in 0..64 {
            silent.push(names::connect("10.42.0.9", V4).await);
        }
        let name = "deathstar.default.svc.cluster.local";
        assert_eq!(said(&ask(V4, true, name, Rtype::A).await), ["10.96.0.7"]);
        let refused = soon(names::is_closed(silent.pop().unwrap())).await;
        assert!(refused, "over its share");
    });
}

#[test]
fn questions_follow_each_other_on_one_connection() {
    Node::new().run(|config| async move {
        let _dns = Dns::start(&config, &[]).await;
        let mut stream = names::connect(V4, V4).await;
        for name in ["deathstar", "beacon", "nobody"] {
            let answer =
                names::ask_on(&mut stream, &format!("{name}.default.svc.cluster.local"), Rtype::A).await;
            let expected = match name {
                "deathstar" => vec!["10.96.0.7"],
                "beacon" => vec!["10.96.0.8"],
                _ => vec![],
            };
            assert_eq!(said(&answer), expected);
        }
    });
}

#[test]
fn the_hosts_servers_are_asked_but_never_ourselves() {
    Node::new().run(|config| async move {
        let _server = upstream("127.0.0.9:53", Behaviour::Honest).await;
        std::fs::create_dir_all(&config.state_dir).unwrap();
        let file = config.state_dir.join("resolv.conf");
        std::fs::write(&file, format!("nameserver {V4}\nnameserver {V6}\nnameserver 127.0.0.9\n")).unwrap();
        let _dns = Dns::start_with(&config, &[], &file).await;
        assert_eq!(said(&ask(V4, false, "www.example.com", Rtype::A).await), ["192.0.2.80"]);
    });
    Node::new().run(|config| async move {
        std::fs::create_dir_all(&config.state_dir).unwrap();
        let file = config.state_dir.join("resolv.conf");
        std::fs::write(&file, format!("nameserver {V4}\n")).unwrap();
        let _dns = Dns::start_with(&config, &[], &file).await;
        assert_eq!(rcode(V4, "www.example.com").await, Rcode::SERVFAIL, "no loop");
    });
}

#[test]
fn a_workloads_file_names_the_node_and_searches_its_namespace_before_what_the_host_searches() {
    Node::new().run(|config| async move {
        std::fs::create_dir_all(&config.state_dir).unwrap();
        let file = config.state_dir.join("resolv.conf");
        let host = "# by hand\nnameserver 192.0.2.53\noptions rotate\nsearch old\nsearch corp.example default.svc.cluster.local .\n";
        std::fs::write(&file, host).unwrap();
        let dns = Dns::start_with(&config, &[], &file).await;
        let expected = "# Written by Ferromesh.\nnameserver 10.42.0.1\nnameserver fd42::1\n\
             search empire.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:5\n";
        assert_eq!(dns.names.workload_file("empire"), expected);
        std::fs::remove_file(&file).unwrap();
        let expected = expected.replace(" corp.example", "");
        assert_eq!(dns.names.workload_file("empire"), expected, "a host without the file");
        let long: Vec<_> = (0..100).map(|number| format!("d{number}.example")).collect();
        std::fs::write(&file, format!("search {}\n", long.join(" "))).unwrap();
        let search = dns.names.workload_file("empire");
        let search = search.lines().find(|line| line.starts_with("search ")).unwrap();
        assert_eq!(search.split(' ').count(), 1 + 32, "as many as kubelet gives");
    });
}

#[test]
fn no_packet_disturbs_the_server() {
    Node::new().run(|config| async move {
        let server = upstream("127.0.0.1:5300", Behaviour::Garbage).await;
        let dns = Dns::start(&config, &[server.address]).await;
        names::mutations(V4, 4000).await;
        let answer = ask(V6, false, "deathstar.default.svc.cluster.local", Rtype::A).await;
        assert_eq!(said(&answer), ["10.96.0.7"]);
        let metrics = dns.metrics();
        for seen in ["answer=\"formerr\"", "answer=\"notimp\"", "answer=\"refused\"", "reason=\"malformed\""]
        {
            assert!(metrics.contains(seen), "{seen} in {metrics}");
        }
    });
}
