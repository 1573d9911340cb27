//! A DNS server, clients of it, and servers that it asks, as tests need them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod client;
mod upstream;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use endpoint::dns::{BindError, Metrics, Names, Server, Settings};
use endpoint::{Config, Host};
use linux::netlink::{LOOPBACK, Netlink};
use mesh::policy::protocol;
use mesh::service::{Frontend, FrontendPlan, HeadlessEndpoint, NamePlan, ServiceName, ServicePort, Services};
use prometheus_client::registry::Registry;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::node::soon;

pub(crate) use client::{ask, ask_from, ask_on, ask_with, connect, flood, is_closed, mutations, rcode, said};
pub(crate) use upstream::{Behaviour, upstream};

/// A server that answers until this is dropped.
pub(crate) struct Dns {
    pub(crate) names: Names,
    registry: Registry,
    task: JoinHandle<()>,
}

impl Dns {
    pub(crate) async fn start(config: &Config, upstreams: &[SocketAddr]) -> Self {
        Self::start_with(config, upstreams, Path::new("/nonexistent/resolv.conf")).await
    }

    pub(crate) async fn start_with(config: &Config, upstreams: &[SocketAddr], host_file: &Path) -> Self {
        Host::ensure(config).await.unwrap();
        soon(delivered(config.ipv6_gateway().into())).await;
        let mut registry = Registry::with_prefix("ferromesh");
        let metrics = Metrics::register(&mut registry);
        let server = Server::bind(config, &settings(upstreams, host_file), metrics).await.unwrap();
        let names = server.names();
        names.set(&Arc::new(services(3)));
        Self { names, registry, task: tokio::spawn(server.run()) }
    }

    pub(crate) async fn bind(config: &Config) -> Result<Server, BindError> {
        let metrics = Metrics::register(&mut Registry::default());
        Server::bind(config, &settings(&[], Path::new("/nonexistent/resolv.conf")), metrics).await
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// The kernel makes the local route of a new IPv6 address a moment later (`addrconf_dad_work`); until then what is sent
/// there leaves by the device.
async fn delivered(address: IpAddr) {
    let socket = UdpSocket::bind((address, 0)).await.unwrap();
    let own = socket.local_addr().unwrap();
    loop {
        socket.send_to(b"?", own).await.unwrap();
        if timeout(Duration::from_millis(10), socket.recv(&mut [0])).await.is_ok() {
            return;
        }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn settings(upstreams: &[SocketAddr], host_file: &Path) -> Settings {
    Settings {
        domain: "cluster.local".to_owned(),
        upstreams: upstreams.to_vec(),
        host_file: host_file.to_owned(),
    }
}

/// `empire/many` has so many endpoints.
pub(crate) fn services(many: u32) -> Services {
    let cluster = |addresses: &[&str]| NamePlan::Cluster {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![ServicePort { name: "http".to_owned(), protocol: protocol::TCP, port: 80 }],
    };
    let endpoint = |hostname: Option<&str>, address: IpAddr| HeadlessEndpoint {
        hostname: hostname.map(str::to_owned),
        addresses: vec![address],
        ports: vec![],
    };
    let tie = vec![
        endpoint(Some("vader"), "10.217.0.5".parse().unwrap()),
        endpoint(None, "10.217.0.6".parse().unwrap()),
    ];
    let first = Ipv4Addr::new(10, 218, 0, 0).to_bits();
    let many = (0..many).map(|number| endpoint(None, Ipv4Addr::from_bits(first + number).into())).collect();
    let external = |name: &str| NamePlan::External { name: name.to_owned() };
    let names = [
        ("default", "deathstar", cluster(&["10.96.0.7", "fd00:96::7"])),
        ("default", "beacon", cluster(&["10.96.0.8"])),
        ("default", "probe", external("www.example.com")),
        ("default", "lost", external("nobody.example.com")),
        ("empire", "tie", NamePlan::Headless { endpoints: tie }),
        ("empire", "many", NamePlan::Headless { endpoints: many }),
    ];
    let names = names.map(|(namespace, name, plan)| {
        (ServiceName { namespace: namespace.to_owned(), name: name.to_owned() }, plan)
    });
    let frontend = Frontend { address: [10, 96, 0, 7].into(), port: 80, protocol: protocol::TCP };
    let plan = FrontendPlan {
        service: ServiceName { namespace: "default".to_owned(), name: "deathstar".to_owned() },
        port_name: "http".to_owned(),
        backends: Arc::new([]),
        draining: Arc::new([]),
        affinity: None,
    };
    Services { names: names.into(), frontends: [(frontend, plan)].into() }
}

pub(crate) async fn add_address(address: &str) {
    let address: IpAddr = address.parse().unwrap();
    Netlink::open().unwrap().add_address(LOOPBACK, address.into()).await.unwrap();
    soon(delivered(address)).await;
}

/// What glibc finds with this `/etc/resolv.conf`: addresses in order, each once.
pub(crate) async fn getent(resolver: &str, name: &str) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(resolver.as_bytes()).unwrap();
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec getent ahosts \"$1\"";
    let output = tokio::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(file.path())
        .arg(name)
        .output()
        .await
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let mut addresses: Vec<IpAddr> =
        lines.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    addresses.sort();
    addresses.dedup();
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
}
