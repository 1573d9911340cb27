//! x
#![allow(clippy::unwrap_used)]
use conformance::lab::*;
const REQUIRED: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: proven, namespace: default}\nspec:\n  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    authentication: {mode: required}\n";
#[test]
fn debug() {
    let mesh = Mesh::up(2, "");
    mesh.place("server", &["app=server"], 1);
    mesh.place("client", &["app=client"], 0);
    let server = mesh.nodes[1].serve("server", &[], 80);
    mesh.apply("proven.yaml", REQUIRED);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let probe = binary("probe").display().to_string();
    let to = std::net::SocketAddr::new(server.addresses[1], 80).to_string();
    let mut live = mesh.nodes[0].start("client", &[], &[&probe, "hold", &to]).session;
    println!("{}", live.ask("x"));
    mesh.place("client", &["app=other"], 0);
    for _ in 0..3 {
        println!("{}", live.ask("x"));
    }
    for n in &mesh.nodes {
        println!("{}", n.ferromesh(&["observe", "--last", "30"]).stdout);
        println!("{}", n.ferromesh(&["auth", "pairs"]).stdout);
        println!("{}", n.ferromesh(&["ct", "list"]).stdout);
        println!("{}", n.ferromesh(&["drops"]).stdout);
    }
}
