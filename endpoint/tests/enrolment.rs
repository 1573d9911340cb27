//! Enrolment to removal in a node of its own. Needs root: it makes network namespaces and cgroups.

#![allow(clippy::unwrap_used, reason = "test code")]

mod node;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use endpoint::{Endpoints, Error, Host, Prepared};
use linux::namespace::NetworkNamespace;
use linux::netlink::{Netlink, Route, VethEnd, Via};
use node::{Node, enrol, inhabit, soon, start};

fn addresses(of: &Prepared) -> [IpAddr; 2] {
    [of.endpoint.ipv4.into(), of.endpoint.ipv6.into()]
}

/// A listener inside the workload that answers one connection with its peer's address.
fn answer_once(of: &Prepared, address: IpAddr) -> std::thread::JoinHandle<IpAddr> {
    let namespace = NetworkNamespace::open(&of.network_namespace).unwrap();
    let listener = namespace.inside(|| TcpListener::bind((address, 80)).unwrap()).unwrap();
    std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(b"x").unwrap();
        peer.ip()
    })
}

fn connect(to: IpAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&(to, 80).into(), Duration::from_millis(300))?;
    stream.read_exact(&mut [0])
}

#[test]
fn a_workload_is_reached_from_release_on_and_not_before() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
        let prepared = endpoints.prepare(&enrol("deathstar")).await.unwrap();
        for address in addresses(&prepared) {
            assert!(connect(address).is_err(), "{address} before release");
        }
        endpoints.release(prepared.endpoint.id).await.unwrap();
        let gateways = [IpAddr::from(config.ipv4_gateway()), config.ipv6_gateway().into()];
        for (address, gateway) in addresses(&prepared).into_iter().zip(gateways) {
            let served = answer_once(&prepared, address);
            let started = Instant::now();
            connect(address).unwrap();
            assert!(started.elapsed() < Duration::from_millis(200), "the first packet to {address} was lost");
            assert_eq!(served.join().unwrap(), gateway, "the node speaks with its own address of the pool");
        }
    });
}

#[test]
fn the_first_packet_of_a_workload_to_another_arrives() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config).await.unwrap().endpoints;
        let (to, from) = (start(&endpoints, "deathstar").await, start(&endpoints, "tiefighter").await);
        for (address, source) in addresses(&to).into_iter().zip(addresses(&from)) {
            let served = answer_once(&to, address);
            let started = Instant::now();
            NetworkNamespace::open(&from.network_namespace)
                .unwrap()
                .inside(|| connect(address))
                .unwrap()
                .unwrap();
            assert!(started.elapsed() < Duration::from_millis(200), "the first packet to {address} was lost");
            assert_eq!(served.join().unwrap(), source);
        }
    });
}

#[test]
fn devices_have_the_mtu_that_is_configured_or_the_default_routes() {
    for (configured, mtu) in [(Some(1400), 1400), (None, 1300)] {
        Node::new().run(|mut config| async move {
            let host = Netlink::open().unwrap();
            let end = VethEnd { name: "uplink", mac: [2, 0, 0, 0, 0, 1], arp: true, mtu: 1300 };
            host.add_veth(end, VethEnd { name: "wire", mac: [2, 0, 0, 0, 0, 2], ..end }, None).await.unwrap();
            let uplink = host.link("uplink").await.unwrap().unwrap().index;
            host.set_up(uplink, true).await.unwrap();
            let route =
                Route { destination: "0.0.0.0/0".parse().unwrap(), via: Via::Link(uplink), source: None };
            host.add_route(route).await.unwrap();
            config.mtu = configured;
            let endpoints = Endpoints::open(config).await.unwrap().endpoints;
            let prepared = endpoints.prepare(&enrol("a")).await.unwrap();
            let inside = NetworkNamespace::open(&prepared.network_namespace).unwrap().netlink().unwrap();
            for (netlink, device) in [(&host, prepared.endpoint.interface.as_str()), (&inside, "eth0")] {
                assert_eq!(netlink.link(device).await.unwrap().unwrap().mtu, mtu, "{device}");
            }
            endpoints.remove(prepared.endpoint.id).await.unwrap();
        });
    }
}

#[test]
fn addresses_in_quarantine_are_nobodys_until_they_are_free_also_after_a_restart() {
    Node::new().run(|mut config| async move {
        config.ipv4_pool = "10.42.0.0/29".parse().unwrap();
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
        endpoints.set_quarantine(Some(Duration::from_secs(3600)), false).unwrap();
        let mut gone = Vec::new();
        for name in ["a", "b", "c", "d", "e"] {
            let endpoint = endpoints.prepare(&enrol(name)).await.unwrap().endpoint;
            endpoints.remove(endpoint.id).await.unwrap();
            gone.push(endpoint);
        }
        let error = endpoints.prepare(&enrol("f")).await.unwrap_err();
        assert!(matches!(error, Error::PoolExhausted { endpoints: 0, waiting: 5, .. }), "{error}");
        assert!(error.to_string().contains("and to 5 that ended just now"), "{error}");
        drop(endpoints);

        let endpoints = Endpoints::open(config).await.unwrap().endpoints;
        assert!(endpoints.prepare(&enrol("f")).await.is_err(), "a restart forgets nothing");
        endpoints.free(gone[2].instance).unwrap();
        let next = endpoints.prepare(&enrol("f")).await.unwrap().endpoint;
        assert_eq!((next.ipv4, next.ipv6 == gone[2].ipv6), (gone[2].ipv4, false), "a larger pool goes round");
        // Others may have forgotten it before all of it is gone.
        endpoints.free(next.instance).unwrap();
        endpoints.remove(next.id).await.unwrap();
        let again = endpoints.prepare(&enrol("f")).await.unwrap().endpoint;
        assert_eq!(again.ipv4, next.ipv4);
        endpoints.remove(again.id).await.unwrap();
    });
}

#[test]
fn a_pool_that_this_node_did_not_have_rests_where_others_authenticate_also_after_a_restart() {
    Node::new().run(|mut config| async move {
        let time = Duration::from_secs(3600);
        let hour = Some(time);
        Host::ensure(&config).await.unwrap();
        let refused = async |config: &endpoint::Config| {
            let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
            endpoints.set_quarantine(hour, true).unwrap();
            let error = endpoints.prepare(&enrol("a")).await.unwrap_err();
            assert!(matches!(error, Error::PoolRests { .. }), "{error}");
            let (pool, left) = endpoints.resting().unwrap();
            assert!(error.to_string().contains(&pool.to_string()) && left <= time, "{error}");
            (endpoints, pool)
        };
        refused(&config).await;
        let (endpoints, _) = refused(&config).await;
        // Nobody is there who could know its addresses.
        endpoints.set_quarantine(hour, false).unwrap();
        let first = endpoints.prepare(&enrol("a")).await.unwrap().endpoint;
        endpoints.set_quarantine(hour, true).unwrap();
        let second = endpoints.prepare(&enrol("b")).await.unwrap().endpoint;
        for id in [first.id, second.id] {
            endpoints.remove(id).await.unwrap();
        }
        drop(endpoints);
        let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
        let third = endpoints.prepare(&enrol("a")).await.unwrap().endpoint;
        endpoints.remove(third.id).await.unwrap();
        drop(endpoints);
        config.ipv4_pool = "10.43.0.0/24".parse().unwrap();
        let (_, pool) = refused(&config).await;
        assert_eq!(pool, config.ipv4_pool.into(), "the other pool is the one it had");
    });
}

#[test]
fn a_name_is_used_once_and_addresses_go_round() {
    Node::new().run(|mut config| async move {
        config.ipv4_pool = "10.42.0.0/29".parse().unwrap();
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config).await.unwrap().endpoints;
        let first = endpoints.prepare(&enrol("a")).await.unwrap().endpoint;
        let error = endpoints.prepare(&enrol("a")).await.unwrap_err();
        let line = "workload default/a: its name is in use on this node, by endpoint 1; stop that or choose another name";
        assert_eq!(error.to_string(), line);
        endpoints.remove(first.id).await.unwrap();

        let again = endpoints.prepare(&enrol("a")).await.unwrap().endpoint;
        assert_ne!((again.id, again.ipv4, again.ipv6), (first.id, first.ipv4, first.ipv6));
        assert!(again.instance > first.instance);
        for name in ["b", "c", "d", "e"] {
            endpoints.prepare(&enrol(name)).await.unwrap();
        }
        let error = endpoints.prepare(&enrol("f")).await.unwrap_err();
        assert!(matches!(error, Error::PoolExhausted { endpoints: 5, .. }), "{error}");
        endpoints.remove(again.id).await.unwrap();
        let last = endpoints.prepare(&enrol("f")).await.unwrap().endpoint;
        assert_eq!(last.ipv4, again.ipv4, "the only one left");
        for endpoint in endpoints.list() {
            endpoints.remove(endpoint.id).await.unwrap();
        }
    });
}

#[test]
fn the_end_of_the_last_process_is_told_and_only_that() {
    Node::new().run(|config| async move {
        let mut opened = Endpoints::open(config).await.unwrap();
        let quiet = opened.endpoints.prepare(&enrol("never-entered")).await.unwrap();
        let prepared = opened.endpoints.prepare(&enrol("job")).await.unwrap();
        let (mut first, mut second) = (inhabit(&prepared.cgroup), inhabit(&prepared.cgroup));
        drop(first.stdin.take());
        first.wait().unwrap();
        drop(second.stdin.take());
        second.wait().unwrap();
        assert_eq!(soon(opened.emptied.next()).await, Some(prepared.endpoint.id));

        // However briefly someone was in. And the name is free at once.
        let brief = opened.endpoints.prepare(&enrol("job")).await.unwrap();
        let mut child = inhabit(&brief.cgroup);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(soon(opened.emptied.next()).await, Some(brief.endpoint.id));
        for id in [quiet.endpoint.id, prepared.endpoint.id, brief.endpoint.id] {
            opened.endpoints.remove(id).await.unwrap();
        }
    });
}

#[test]
fn removal_kills_what_is_inside_leaves_nothing_and_can_be_repeated() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
        let prepared = start(&endpoints, "daemon").await;
        let mut child = inhabit(&prepared.cgroup);
        endpoints.remove(prepared.endpoint.id).await.unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!prepared.cgroup.exists() && !prepared.network_namespace.exists());
        assert_eq!(endpoints.list(), []);
        endpoints.remove(prepared.endpoint.id).await.unwrap();
        Host::undo(&config).await.unwrap();
        assert_eq!(Host::leftovers(&config).await.unwrap(), [""; 0]);
    });
}

#[test]
fn a_new_agent_adopts_the_living_and_removes_the_dead() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
        let (living, ended) = (start(&endpoints, "living").await, start(&endpoints, "ended").await);
        let leased = endpoints.prepare(&enrol("never-entered")).await.unwrap();
        let (mut child, mut other) = (inhabit(&living.cgroup), inhabit(&ended.cgroup));
        drop(other.stdin.take());
        other.wait().unwrap();
        drop(endpoints);

        let mut opened = Endpoints::open(config.clone()).await.unwrap();
        assert_eq!(opened.adopted, std::slice::from_ref(&living.endpoint));
        assert_eq!(opened.removed, [ended.endpoint, leased.endpoint]);
        assert!(!ended.network_namespace.exists() && !leased.cgroup.exists());
        let error = opened.endpoints.prepare(&enrol("living")).await.unwrap_err();
        assert!(matches!(error, Error::NameInUse { .. }), "{error}");

        let mut moved = config.clone();
        moved.ipv6_pool = "fd43::/112".parse().unwrap();
        let error = Endpoints::open(moved).await.unwrap_err();
        let line = "pool changed from fd42::/112 to fd43::/112 while 1 endpoints have addresses from the old one; \
                    restore it, or stop them first";
        assert_eq!(error.to_string(), line);

        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(soon(opened.emptied.next()).await, Some(living.endpoint.id));
        opened.endpoints.remove(living.endpoint.id).await.unwrap();
    });
}
