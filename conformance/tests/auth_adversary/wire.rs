//! What whoever reads the network, and whoever is root in a workload, gets to see.

use std::fs;

use conformance::lab::{Mesh, Session, binary, wait_until};

use crate::scene::{Scene, processes};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The payload of a packet over TCP with this port, in hexadecimal; `packet` begins with its IP header.
fn payload(packet: &str, port: u16) -> Option<String> {
    let bytes: Vec<u8> = (0..packet.len() / 2)
        .map(|at| u8::from_str_radix(&packet[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let sliced = etherparse::SlicedPacket::from_ip(&bytes).ok()?;
    let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    [tcp.source_port(), tcp.destination_port()].contains(&port).then(|| hex(tcp.payload()))
}

/// The bytes of the private key in a PEM file, as they would stand in any message.
fn secret(path: std::path::PathBuf) -> String {
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("PRIVATE KEY"), "{}", path.display());
    text
}

/// Nodes join, workloads are certified and proven, a connection is made: all of it is recorded on the network.
#[test]
fn a_capture_shows_handshakes_and_no_secret() {
    let mut mesh = Mesh::new(2, "");
    let file = mesh.shared().join("capture");
    let mut recorder =
        Session::start(mesh.underlay(binary("probe")).args(["record", file.to_str().unwrap()]));
    assert_eq!(recorder.line(), "serving");
    mesh.start(0);
    mesh.enrol();
    let token = fs::read_to_string(mesh.shared().join("join-1.token")).unwrap();
    mesh.start(1);
    let scene = Scene::with(mesh);
    let mut live = scene.hold("client", 0);
    assert_eq!(live.ask("before"), "answered");
    let recorded = || fs::read_to_string(&file).unwrap_or_default();
    let said = hex(b"before");
    wait_until("the connection is recorded", || recorded().contains(&said));
    recorder.kill();

    let all = recorded();
    // A record of type handshake whose message is a ClientHello (RFC 8446).
    let is_hello = |bytes: &String| bytes.starts_with("16") && bytes.get(10..12) == Some("01");
    for (port, whose) in [(4250, "auth-agent"), (4251, "CA")] {
        let said = all.lines().filter_map(|line| payload(line, port));
        assert!(said.filter(is_hello).count() >= 1, "no handshake with the {whose}");
    }
    let token = token.trim().to_owned();
    let secrets = ["spiffe://", "/sa/client", "/ns/default", "PRIVATE KEY", &token];
    for what in secrets {
        assert!(!all.contains(&hex(what.as_bytes())), "{what} is in clear");
    }
    for (node, file) in
        [(0, "auth/node.pem"), (1, "auth/node.pem"), (0, "ca/ca.pem"), (0, "ca-root/root.pem")]
    {
        for key in scalars(&secret(scene.mesh.nodes[node].state().join(file))) {
            assert!(!all.contains(&key), "the key of {file}");
        }
    }
}

/// Of each private key of a PEM text the secret number, in hexadecimal: in PKCS#8 of P-256 it follows the head of an
/// octet string of 32 bytes (RFC 5915).
fn scalars(pem: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some(begin) = rest.find("-----BEGIN PRIVATE KEY-----") {
        let body = &rest[begin + 27..];
        let end = body.find("-----END").unwrap();
        let der = hex(&base64(&body[..end]));
        let at = der.find("0201010420").unwrap() + 10;
        found.push(der[at..at + 64].to_owned());
        rest = &body[end..];
    }
    assert!(!found.is_empty());
    found
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)) {
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    bytes
}

/// Fault 6 too: the directory of a node's auth-agent has no workload's key, and no other node's.
#[test]
fn no_key_is_where_a_workload_or_another_node_could_read_it() {
    let scene = Scene::required("");
    assert_eq!(scene.attempt("client", "tcp", 0), "answered");
    for node in &scene.mesh.nodes {
        let mut files: Vec<String> = fs::read_dir(node.state().join("auth"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["bundle.pem", "node.pem"], "keys of workloads are in memory only");
        assert_eq!(processes(node, "auth-agent").len(), 1);
    }
    let ids = |node: usize| scene.mesh.nodes[node].json(&["auth", "list"]).to_string();
    assert!(!ids(1).contains("/sa/client") && !ids(0).contains("/sa/server"), "{} {}", ids(0), ids(1));
    let state = scene.mesh.nodes[0].state();
    let script = format!(
        "for d in {state}/auth {state}/ca {state}/ca-root {state}; do [ -e $d ] && echo sees $d; done; \
         grep -E ' /(.*)?(auth|ca|ca-root) ' /proc/self/mounts; \
         find / -xdev \\( -name node.pem -o -name ca.pem -o -name root.pem -o -name auth.sock -o -name ca.sock \\) \
         2>/dev/null; \
         grep -c -i tap /proc/net/dev; ls /proc/self/fd | wc -l",
        state = state.display()
    );
    let seen = scene.mesh.nodes[0].run("client", &[], &["sh", "-c", &script]);
    // No device of the hold, and no descriptors but those of the shell and of `ls` itself.
    let lines: Vec<&str> = seen.stdout.lines().collect();
    assert_eq!(lines.first(), Some(&"0"), "{seen:?}");
    assert!(lines.len() == 2 && lines[1].parse::<u8>().is_ok_and(|count| count <= 4), "{seen:?}");
}
