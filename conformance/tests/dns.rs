//! Names, as workloads and the host find them. Needs root and the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;

use conformance::lab::{Node, Outcome};

/// A service of both families, and one that has another name.
const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: deathstar, namespace: empire}
spec:
  clusterIPs: [10.96.0.7, 'fd00:96::7']
  ipFamilyPolicy: RequireDualStack
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: default}
spec: {type: ExternalName, externalName: deathstar.empire.svc.cluster.local}
";
const LOOK_UP: &str = "getent ahosts \"$1\" | cut -d' ' -f1 | sort -u | tr '\\n' ' '";

fn look_up(node: &Node, name: &str) -> String {
    node.run("asking", &[], &["sh", "-c", LOOK_UP, "sh", name]).stdout
}

#[test]
fn a_workload_finds_services_by_short_and_long_names() {
    let node = Node::up();
    node.apply("services.yaml", SERVICES);
    for name in ["deathstar.empire", "deathstar.empire.svc", "deathstar.empire.svc.cluster.local", "alias"] {
        assert_eq!(look_up(&node, name), "10.96.0.7 fd00:96::7", "{name}");
    }
    assert_eq!(look_up(&node, "nobody.empire"), "");
    node.withdraw("services.yaml");
    assert_eq!(look_up(&node, "deathstar.empire"), "", "with the edit the name is gone");
}

/// A directory whose later mounts are seen in mount namespaces that were made before them.
struct Shared(PathBuf);

impl Shared {
    fn new(path: &Path) -> Self {
        Outcome::of(Command::new("mount").arg("--bind").args([path, path])).success();
        Outcome::of(Command::new("mount").arg("--make-shared").arg(path)).success();
        Self(path.to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        Outcome::of(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn a_workload_has_its_own_resolver_and_name_whatever_the_host_has() {
    let mut node = Node::new();
    let _shared = Shared::new(node.config().parent().unwrap());
    node.start_agent();
    let cases = [
        ("a file", "true"),
        ("a mount", "mount --bind /etc/hostname /etc/resolv.conf"),
        (
            "a link that leads nowhere inside",
            "ln -sfn /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf",
        ),
        ("nothing", "rm /etc/resolv.conf"),
    ];
    for (what, change) in cases {
        // A copy of /etc: the machine's own is not touched.
        let copy = tempfile::tempdir().unwrap();
        let etc = copy.path().join("etc");
        Outcome::of(Command::new("cp").arg("-a").arg("/etc").arg(&etc)).success();
        let inside = "cat /etc/resolv.conf /etc/hosts; test -r /etc/passwd && touch /etc/resolv.conf";
        let run = node.run_command("xwing", &[], &["sh", "-c", inside]);
        let prepare = format!("mount --bind \"$0\" /etc && {change} && exec \"$@\"");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "unchanged", "sh", "-c", &prepare])
            .arg(&etc)
            .arg(run.get_program())
            .args(run.get_args());
        let Outcome { stdout, stderr, .. } = Outcome::of(&mut command);
        let expected = "# Written by Ferromesh.\nnameserver 10.77.0.1\nnameserver fd00:77::1\n\
             search default.svc.cluster.local svc.cluster.local cluster.local";
        assert!(stdout.starts_with(expected), "{what}: {stdout}\n{stderr}");
        assert!(stdout.contains("\noptions ndots:5\n"), "{what}: {stdout}");
        assert!(
            stdout.lines().any(|line| line.starts_with("10.77.0.") && line.ends_with("\txwing")),
            "{stdout}"
        );
        assert!(stderr.contains("Read-only file system"), "{what}: {stderr}");
    }
}

#[test]
fn names_beyond_the_cluster_are_asked_of_the_servers_of_the_configuration() {
    let node = Node::up_with(", dnsUpstreams: ['127.0.0.1:5300']");
    // Nobody is there.
    assert_eq!(look_up(&node, "www.example.com"), "");
    let metrics = Outcome::of(node.inside("curl").args(["-s", "http://127.0.0.1:9962/metrics"])).stdout;
    assert!(metrics.contains("ferromesh_dns_upstream_failures_total{reason=\"silent\"}"), "{metrics}");
    assert!(
        metrics.contains("ferromesh_dns_queries_total{source=\"cluster\",answer=\"nxdomain\"}"),
        "{metrics}"
    );
}
