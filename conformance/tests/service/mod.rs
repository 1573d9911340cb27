//! Services of the scenarios, and how they are called.

#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "test code, of which each file uses a part")]

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use conformance::lab::{Node, Outcome, Workload, binary};

pub(crate) const WEB: &[&str] = &["app=web"];
pub(crate) const CLIENT: &[&str] = &["app=client"];

/// A service of both families, TCP and UDP, port 80 to 8080, that selects `app=NAME`; `more` are lines of its spec.
pub(crate) fn service(name: &str, number: u8, more: &str) -> String {
    let addresses = match more.contains("clusterIP: None") {
        true => String::new(),
        false => format!(
            "  clusterIP: 10.78.1.{number}\n  clusterIPs: [10.78.1.{number}, 'fd00:78::1:{number}']\n"
        ),
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n\
         \x20 selector: {{app: {name}}}\n{addresses}  ipFamilyPolicy: RequireDualStack\n\
         \x20 ports: [{{name: tcp, port: 80, targetPort: 8080}}, {{name: udp, port: 80, targetPort: 8080, protocol: UDP}}]\n\
         {more}"
    )
}

/// Both frontends of the service of this number, but for the protocol.
pub(crate) fn vip(number: u8) -> [SocketAddr; 2] {
    [format!("10.78.1.{number}:80"), format!("[fd00:78::1:{number}]:80")].map(|vip| vip.parse().unwrap())
}

/// As a dual-stack socket has it.
pub(crate) fn mapped(vip: SocketAddr) -> SocketAddr {
    match vip {
        SocketAddr::V4(vip) => SocketAddr::from((vip.ip().to_ipv6_mapped(), vip.port())),
        vip => vip,
    }
}

/// An address as it begins where a port follows.
pub(crate) fn at(address: IpAddr) -> String {
    let text = SocketAddr::new(address, 0).to_string();
    text.strip_suffix('0').unwrap().to_owned()
}

/// Addresses as backends on port 8080, sorted.
pub(crate) fn sockets(addresses: &[IpAddr]) -> Vec<String> {
    let mut sockets: Vec<_> =
        addresses.iter().map(|address| SocketAddr::new(*address, 8080).to_string()).collect();
    sockets.sort();
    sockets
}

/// Starts a witness on port 8080.
#[track_caller]
pub(crate) fn witness(node: &Node, name: &str, labels: &[&str]) -> Workload {
    node.start(name, labels, &[binary("probe").to_str().unwrap(), "witness", "8080", name])
}

/// Starts a workload that asks what it is told to.
#[track_caller]
pub(crate) fn asker(node: &Node, name: &str, labels: &[&str]) -> Workload {
    node.start(name, labels, &[binary("probe").to_str().unwrap(), "ask"])
}

/// What `probe call` says; the outcome's word where it fails.
#[track_caller]
pub(crate) fn call(probe: &mut Command, how: &str, to: SocketAddr) -> String {
    Outcome::of(probe.args(["call", how, &to.to_string()])).stdout
}

/// The same from the host.
#[track_caller]
pub(crate) fn host_calls(node: &Node, how: &str, to: SocketAddr) -> String {
    call(&mut node.inside(binary("probe")), how, to)
}

/// Who answered a call.
pub(crate) fn who(said: &str) -> String {
    let heard = said.split("heard=").nth(1).unwrap_or_else(|| panic!("no answer: {said}"));
    heard.split(' ').next().unwrap_or_default().to_owned()
}

/// Backends of a service's TCP frontends as `service list` has them in a field, sorted.
#[track_caller]
pub(crate) fn backends(node: &Node, name: &str, field: &str) -> Vec<String> {
    let rows = node.json(&["service", "get", name]);
    let tcp =
        rows.as_array().unwrap().iter().filter(|row| row["frontend"].as_str().unwrap().ends_with("/TCP"));
    let mut found: Vec<String> = tcp
        .flat_map(|row| row[field].as_array().unwrap().clone())
        .map(|backend| backend.as_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}
