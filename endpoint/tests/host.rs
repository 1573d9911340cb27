//! The host's part of a node. Needs root: it changes settings of a network namespace of its own.

#![allow(clippy::unwrap_used, reason = "test code")]

mod node;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use endpoint::{Change, Config, Endpoints, Error, Host, HostResolver};
use linux::cgroup::Cgroup;
use linux::netlink::{LOOPBACK, Netlink};
use linux::sysctl;
use node::{Node, inhabit, start};

const WATCHED: [&str; 7] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/accept_redirects",
    "net/ipv4/conf/lo/forwarding",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/lo/forwarding",
    "net/ipv6/conf/lo/accept_ra",
    "net/ipv4/tcp_early_demux",
];

fn settings() -> Vec<String> {
    WATCHED.iter().map(|key| sysctl::get(key).unwrap()).collect()
}

#[test]
fn undo_restores_every_setting_and_leaves_nothing() {
    Node::new().run(|config| async move {
        // A new namespace has the settings of the machine's first.
        sysctl::set("net/ipv4/ip_forward", "0").unwrap();
        sysctl::set("net/ipv4/tcp_early_demux", "1").unwrap();
        // A hardened host: the kernel's own undoing of ip_forward would switch redirects on.
        sysctl::set("net/ipv4/conf/all/accept_redirects", "0").unwrap();
        let before = settings();
        let changes = Host::ensure(&config).await.unwrap();
        assert_eq!(sysctl::get("net/ipv6/conf/lo/accept_ra").unwrap(), "2", "advertisements stay heard");
        assert_eq!(Host::ensure(&config).await.unwrap(), changes, "repeated, nothing changes");
        let said: Vec<_> = changes.iter().map(Change::to_string).collect();
        let expected = [
            "devices ferromesh_host and ferromesh_net with 10.42.0.1 fd42::1: `ferromesh down` deletes them",
            "route unreachable 10.42.0.0/24: `ferromesh down` deletes it",
            "sysctl net.ipv4.ip_forward = 1: `ferromesh down` restores 0",
            "sysctl net.ipv4.tcp_early_demux = 0: `ferromesh down` restores 1",
        ];
        for line in expected {
            assert!(said.iter().any(|said| said == line), "{line} in {said:#?}");
        }
        assert!(!Host::leftovers(&config).await.unwrap().is_empty());

        Host::undo(&config).await.unwrap();
        assert_eq!(settings(), before);
        assert_eq!(Host::leftovers(&config).await.unwrap(), [""; 0]);
    });
}

#[test]
fn undo_ends_workloads_without_an_agent() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
        let prepared = start(&endpoints, "orphan").await;
        let mut child = inhabit(&prepared.cgroup);
        drop(endpoints);
        Host::undo(&config).await.unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(Host::leftovers(&config).await.unwrap(), [""; 0]);
    });
}

#[test]
fn a_setting_that_someone_else_changed_since_is_left_alone() {
    Node::new().run(|config| async move {
        sysctl::set("net/ipv6/conf/lo/accept_ra", "1").unwrap();
        Host::ensure(&config).await.unwrap();
        sysctl::set("net/ipv6/conf/lo/accept_ra", "0").unwrap();
        Host::undo(&config).await.unwrap();
        assert_eq!(sysctl::get("net/ipv6/conf/lo/accept_ra").unwrap(), "0");
    });
}

#[test]
fn a_place_that_is_no_cgroups_is_refused_before_anything_is_changed() {
    Node::new().run(|mut config| async move {
        let right = std::mem::replace(&mut config.cgroup, config.state_dir.join("wrong"));
        let before = settings();
        let error = Host::ensure(&config).await.unwrap_err().to_string();
        assert!(error.contains("found a directory of another file system"), "{error}");
        assert_eq!((settings(), Host::leftovers(&config).await.unwrap()), (before, vec![]));
        config.cgroup = right;
        Host::ensure(&config).await.unwrap();
        Host::undo(&config).await.unwrap();
    });
}

#[test]
fn processes_that_were_in_the_nodes_cgroup_before_it_are_left_alone() {
    Node::new().run(|config| async move {
        Cgroup::create(&config.cgroup).unwrap();
        let mut other = inhabit(&config.cgroup);
        Host::ensure(&config).await.unwrap();
        Host::undo(&config).await.unwrap();
        assert_eq!(other.try_wait().unwrap(), None, "it lives");
        other.kill().unwrap();
        other.wait().unwrap();
        Cgroup::remove(&config.cgroup).await.unwrap();
    });
}

#[test]
fn another_pool_replaces_the_old_one() {
    Node::new().run(|mut config| async move {
        Host::ensure(&config).await.unwrap();
        config.ipv4_pool = "10.43.0.0/24".parse().unwrap();
        Host::ensure(&config).await.unwrap();
        let netlink = Netlink::open().unwrap();
        let addresses: Vec<_> = (netlink.addresses().await.unwrap().into_iter())
            .filter(|address| address.device != LOOPBACK)
            .map(|address| address.address.to_string())
            .collect();
        assert_eq!(addresses, ["10.43.0.1/32", "fd42::1/128"]);
        let routes = netlink.routes().await.unwrap();
        let unreachable: Vec<_> = routes
            .iter()
            .filter(|route| route.unreachable)
            .map(|route| route.destination.to_string())
            .collect();
        assert_eq!(unreachable, ["10.43.0.0/24", "fd42::/112"]);
    });
}

#[test]
fn another_pool_is_refused_while_a_workload_has_an_address_of_the_old_one() {
    Node::new().run(|config| async move {
        let changes = Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config.clone()).await.unwrap().endpoints;
        let prepared = start(&endpoints, "living").await;
        let mut child = inhabit(&prepared.cgroup);
        let mut moved = config.clone();
        moved.ipv4_pool = "10.43.0.0/24".parse().unwrap();
        let error = Host::ensure(&moved).await.unwrap_err();
        assert!(matches!(error, Error::PoolChanged { endpoints: 1, .. }), "{error}");
        assert_eq!(Host::ensure(&config).await.unwrap(), changes, "nothing was changed");
        endpoints.remove(prepared.endpoint.id).await.unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn a_pool_that_overlaps_the_host_is_refused_before_anything_is_changed() {
    for (address, field) in [("10.42.0.9/16", "pool 10.42.0.0/24"), ("fd42::9/64", "pool fd42::/112")] {
        Node::new().run(|config| async move {
            let before = settings();
            Netlink::open().unwrap().add_address(LOOPBACK, address.parse().unwrap()).await.unwrap();
            let error = Host::ensure(&config).await.unwrap_err();
            assert!(matches!(error, Error::PoolOverlaps { .. }));
            assert!(error.to_string().starts_with(field), "{error}");
            assert_eq!(settings(), before);
            let conflicts = Host::conflicts(&config).await.unwrap();
            assert!(conflicts.iter().any(|line| line.starts_with(field)), "{conflicts:?}");
            assert!(Cgroup::open(&config.cgroup).is_err());
        });
    }
}

/// What is unreachable, as text.
async fn unreachable() -> Vec<String> {
    let routes = Netlink::open().unwrap().routes().await.unwrap();
    routes.iter().filter(|route| route.unreachable).map(|route| route.destination.to_string()).collect()
}

#[test]
fn addresses_of_services_have_no_way_out_and_must_be_nobodys() {
    Node::new().run(|mut config| async move {
        config.service_pools = vec!["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()];
        Host::ensure(&config).await.unwrap();
        let all = ["10.42.0.0/24", "10.96.0.0/12", "fd42::/112", "fd96::/112"];
        assert_eq!(unreachable().await, all);
        config.service_pools.pop();
        Host::ensure(&config).await.unwrap();
        assert_eq!(unreachable().await, all[..3]);
        Host::undo(&config).await.unwrap();
        assert_eq!(unreachable().await, [""; 0]);
        assert_eq!(Host::leftovers(&config).await.unwrap(), [""; 0]);

        Netlink::open().unwrap().add_address(LOOPBACK, "10.100.0.9/24".parse().unwrap()).await.unwrap();
        let error = Host::ensure(&config).await.unwrap_err().to_string();
        assert!(error.starts_with("pool 10.96.0.0/12: overlaps address 10.100.0.9/24 on lo"), "{error}");
    });
}

#[test]
fn ports_for_masquerading_are_reserved_beside_those_of_others_and_taken_out_again() {
    const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
    Node::new().run(|mut config| async move {
        sysctl::set(RESERVED, "8080,60000").unwrap();
        config.masquerade_ports = Some(50_000..=60_000);
        let changes = Host::ensure(&config).await.unwrap();
        let line =
            "sysctl net.ipv4.ip_local_reserved_ports holds 50000-60000: `ferromesh down` takes them out";
        assert!(changes.iter().any(|change| change.to_string() == line), "{changes:?}");
        assert_eq!(sysctl::get(RESERVED).unwrap(), "8080,50000-60000");
        assert_eq!(Host::ensure(&config).await.unwrap(), changes, "repeated, nothing changes");

        config.masquerade_ports = Some(55_000..=65_535);
        Host::ensure(&config).await.unwrap();
        assert_eq!(sysctl::get(RESERVED).unwrap(), "8080,55000-65535");
        let left = Host::leftovers(&config).await.unwrap();
        assert!(left.iter().any(|left| left.contains("holds 55000-65535")), "{left:?}");
        Host::undo(&config).await.unwrap();
        assert_eq!(sysctl::get(RESERVED).unwrap(), "8080,60000");
        assert_eq!(Host::leftovers(&config).await.unwrap(), [""; 0]);

        config.masquerade_ports = Some(1024..=65_535);
        let error = Host::ensure(&config).await.unwrap_err();
        assert!(matches!(error, Error::NoPortsLeft { .. }), "{error}");
        assert_eq!(Host::leftovers(&config).await.unwrap(), [""; 0]);
    });
}

#[test]
fn what_disturbs_is_named() {
    Node::new().run(|config| async move {
        for key in ["rp_filter", "src_valid_mark"] {
            sysctl::set(&format!("net/ipv4/conf/all/{key}"), "1").unwrap();
        }
        let conflicts = Host::conflicts(&config).await.unwrap();
        for name in ["net.ipv4.conf.all.rp_filter is 1", "net.ipv4.conf.all.src_valid_mark is 1"] {
            assert!(conflicts.iter().any(|line| line.starts_with(name)), "{name} in {conflicts:?}");
        }
    });
}

const HOST: &str = "# by hand\nnameserver 192.0.2.53\nnameserver 192.0.2.54\nnameserver 192.0.2.55\nsearch corp.example\noptions rotate\n";

/// With the file in a directory of its own, which exists.
fn resolved(config: &mut Config) -> PathBuf {
    let directory = config.state_dir.join("etc");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("resolv.conf");
    config.host_resolver = Some(HostResolver { file: file.clone(), domain: "cluster.local".to_owned() });
    file
}

#[test]
fn the_host_asks_the_node_first_and_gets_its_file_back() {
    Node::new().run(|mut config| async move {
        let file = resolved(&mut config);
        fs::write(&file, HOST).unwrap();
        let inode = fs::metadata(&file).unwrap().ino();
        let changes = Host::ensure(&config).await.unwrap();
        let expected = "# Written by Ferromesh.\nnameserver 10.42.0.1\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n\
             search default.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions rotate\n";
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        assert_eq!(Host::ensure(&config).await.unwrap(), changes, "repeated, nothing changes");
        let line = format!("file {} names this node's DNS: `ferromesh down` restores it", file.display());
        assert!(changes.iter().any(|change| change.to_string() == line), "{changes:?}");
        assert!(Host::leftovers(&config).await.unwrap().contains(&line));

        let other = HostResolver { file: file.clone(), domain: "mesh.example".to_owned() };
        config.host_resolver = Some(other);
        Host::ensure(&config).await.unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("search default.svc.mesh.example svc.mesh.example mesh.example corp.example\n"), "{text}");

        Host::undo(&config).await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), HOST);
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "written in place: it may be a mount");
        assert_eq!(Host::leftovers(&config).await.unwrap(), [""; 0]);
    });
}

#[test]
fn a_resolver_file_that_is_a_link_or_absent_is_so_again_afterwards() {
    Node::new().run(|mut config| async move {
        let file = resolved(&mut config);
        for target in ["stub.conf", "nowhere.conf"] {
            let stub = file.with_file_name("stub.conf");
            fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
            symlink(target, &file).unwrap();
            Host::ensure(&config).await.unwrap();
            assert!(fs::symlink_metadata(&file).unwrap().is_file());
            assert!(fs::read_to_string(&file).unwrap().contains("nameserver 10.42.0.1\n"));
            assert_eq!(
                fs::read_to_string(&stub).unwrap(),
                "nameserver 127.0.0.53\n",
                "systemd-resolved's own"
            );
            Host::undo(&config).await.unwrap();
            assert_eq!(fs::read_link(&file).unwrap(), Path::new(target));
            fs::remove_file(&file).unwrap();
        }
        Host::ensure(&config).await.unwrap();
        assert!(file.exists());
        config.host_resolver = None;
        Host::ensure(&config).await.unwrap();
        assert!(!file.exists(), "without the setting nothing of it stays");
    });
}

#[test]
fn a_resolver_file_that_someone_else_changed_since_is_left_alone() {
    Node::new().run(|mut config| async move {
        let file = resolved(&mut config);
        fs::write(&file, HOST).unwrap();
        Host::ensure(&config).await.unwrap();
        fs::write(&file, "nameserver 192.0.2.99\n").unwrap();
        Host::undo(&config).await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.99\n");
        Host::ensure(&config).await.unwrap();
        Host::undo(&config).await.unwrap();
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "nameserver 192.0.2.99\n",
            "what it said last comes back"
        );
    });
}
