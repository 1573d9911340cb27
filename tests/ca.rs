//! `ferromesh ca` as a process: what it has given up, who may tell it what, and what a kill or a full disk leaves.
//! Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use certs::bundle::{Bundle, Bundles};
use certs::ca::{CA_FILE, Files, Lifetimes};
use certs::enrol::{Client, Denied, EnrolError};
use certs::{Owner, UnixTime};
use mesh::spiffe::{SpiffeId, TrustDomain};
use node_api::auth::{FromCa, Placements, ToCa};
use node_api::channel::Channel;
use tempfile::TempDir;
use tokio::net::UnixStream;

/// No user of any machine.
const USER: u32 = 64250;
const LUKE: &str = "spiffe://rebels.example/ns/default/sa/luke";

struct Ca {
    directory: TempDir,
    bundle: Bundle,
    process: Child,
    address: std::net::SocketAddr,
}

fn domain() -> TrustDomain {
    "rebels.example".parse().unwrap()
}

fn files(directory: &Path) -> Files {
    Files {
        root: directory.join("ca-root"),
        directory: directory.join("ca"),
        owner: Some(Owner { uid: USER, gid: USER }),
        trust_domain: domain(),
        lifetimes: Lifetimes::default(),
    }
}

impl Ca {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A stranger must reach the control socket to be refused there.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let bundle = files(directory.path()).prepare(UnixTime::now()).unwrap().bundle;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let process = spawn(directory.path(), listener);
        Self { directory, bundle, process, address }
    }

    fn kill_and_start_again(&mut self) {
        self.process.kill().unwrap();
        assert_eq!(self.process.wait().unwrap().signal(), Some(9));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.address = listener.local_addr().unwrap();
        self.process = spawn(self.directory.path(), listener);
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("ca.sock")
    }

    async fn control(&self) -> Channel<ToCa, FromCa> {
        Channel::new(UnixStream::connect(self.socket()).await.unwrap())
    }

    fn client(&self) -> Client {
        let bundles = Arc::new(Bundles::new(self.bundle.clone()));
        Client::new(self.address, domain(), bundles, certs::system_clock())
    }

    fn status(&self) -> BTreeMap<String, String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let field =
            |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        status.lines().filter_map(field).collect()
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// With both sockets where the agent puts them.
fn spawn(directory: &Path, listener: TcpListener) -> Child {
    let socket = directory.join("ca.sock");
    let _ = fs::remove_file(&socket);
    let control = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    Command::new("sh")
        .args(["-c", "exec \"$@\" 3<&0 4<&1 </dev/null >/dev/null", "sh"])
        .arg(env!("CARGO_BIN_EXE_ferromesh"))
        .args(["ca", "--user", &USER.to_string(), "--directory"])
        .arg(directory.join("ca"))
        .stdin(Stdio::from(OwnedFd::from(control)))
        .stdout(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .unwrap()
}

fn placements() -> ToCa {
    let id: SpiffeId = LUKE.parse().unwrap();
    ToCa::Place(Placements { trust_domain: domain(), nodes: [("yavin".to_owned(), [id].into())].into() })
}

async fn ask(control: &mut Channel<ToCa, FromCa>, message: ToCa) -> FromCa {
    control.send(&message).await.unwrap();
    control.receive().await.unwrap()
}

async fn token(control: &mut Channel<ToCa, FromCa>) -> String {
    match ask(control, ToCa::Token { node: "yavin".to_owned() }).await {
        FromCa::Token(token) => token,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_process_has_given_up_everything_before_it_answers() {
    let ca = Ca::start();
    let mut control = ca.control().await;
    assert_eq!(ask(&mut control, placements()).await, FromCa::Placed);
    let status = ca.status();
    let user = format!("{USER}\t{USER}\t{USER}\t{USER}");
    for (field, value) in [
        ("Uid", user.as_str()),
        ("Gid", user.as_str()),
        ("Groups", &USER.to_string()),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    let process = PathBuf::from(format!("/proc/{}", ca.process.id()));
    let root = fs::metadata(process.join("root/.")).unwrap();
    let directory = fs::metadata(ca.directory.path().join("ca")).unwrap();
    assert_eq!((root.dev(), root.ino()), (directory.dev(), directory.ino()), "its directory is its /");
    let seen = fs::read_dir(process.join("root")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut seen: Vec<_> = seen.collect();
    seen.sort();
    assert_eq!(seen, ["bundle.pem", "ca.pem"], "and holds these alone");
    // Beside the stream for errors, which is the test's: sockets, and what its runtime waits with.
    for entry in fs::read_dir(process.join("fd")).unwrap().map(Result::unwrap) {
        let open = fs::read_link(entry.path()).unwrap().display().to_string();
        let waits = ["anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:inotify"];
        let is_known = open.starts_with("socket:[") || open == "/dev/null" || waits.contains(&open.as_str());
        assert!(is_known || entry.file_name() == "2", "{open}");
    }
}

#[tokio::test]
async fn a_node_joins_and_what_a_kill_loses_is_told_again() {
    let mut ca = Ca::start();
    let mut control = ca.control().await;
    assert_eq!(ask(&mut control, placements()).await, FromCa::Placed);
    let (node, bundle) = ca.client().join("yavin", &token(&mut control).await).await.unwrap();
    assert_eq!(bundle, ca.bundle);
    let luke = LUKE.parse().unwrap();
    ca.client().issue(&node, &luke).await.unwrap();
    let unused = token(&mut control).await;

    ca.kill_and_start_again();
    let refused = ca.client().issue(&node, &luke).await.unwrap_err();
    assert!(matches!(refused, EnrolError::Denied { denied: Denied::UnknownNode, .. }), "{refused}");
    let mut control = ca.control().await;
    assert_eq!(ask(&mut control, placements()).await, FromCa::Placed);
    ca.client().issue(&node, &luke).await.unwrap();
    let refused = ca.client().join("yavin", &unused).await.unwrap_err();
    assert!(matches!(refused, EnrolError::Denied { denied: Denied::Token, .. }), "{refused}");
    ca.client().join("yavin", &token(&mut control).await).await.unwrap();

    // Errors are told, and the process ends when it is told to.
    let unknown = ask(&mut control, ToCa::Token { node: "bespin".to_owned() }).await;
    assert!(matches!(&unknown, FromCa::Error(text) if text.contains("\"bespin\"")), "{unknown:?}");
    control.send(&ToCa::Stop).await.unwrap();
    assert!(control.receive().await.is_err());
    assert!(ca.process.wait().unwrap().success());
}

#[tokio::test]
async fn a_renewed_intermediate_is_taken_over_by_the_confined_process() {
    let ca = Ca::start();
    let mut control = ca.control().await;
    ask(&mut control, placements()).await;
    let (first, _) = ca.client().join("yavin", &token(&mut control).await).await.unwrap();
    let files = files(ca.directory.path());
    fs::remove_file(files.directory.join(CA_FILE)).unwrap();
    files.prepare(UnixTime::now()).unwrap();
    let (second, _) = ca.client().join("yavin", &token(&mut control).await).await.unwrap();
    assert_ne!(first.chain()[1], second.chain()[1]);
}

#[tokio::test]
async fn the_root_is_rotated_beside_the_running_process() {
    let ca = Ca::start();
    let mut control = ca.control().await;
    ask(&mut control, placements()).await;
    let (node, _) = ca.client().join("yavin", &token(&mut control).await).await.unwrap();
    let rotate = || {
        let files = files(ca.directory.path());
        let output = Command::new(env!("CARGO_BIN_EXE_ferromesh"))
            .args(["ca", "--directory"])
            .arg(&files.directory)
            .arg("--rotate-root")
            .arg(&files.root)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let owner = fs::metadata(files.directory.join("bundle.pem")).unwrap();
        assert_eq!((owner.uid(), owner.mode() & 0o777), (USER, 0o644));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(rotate().starts_with("a new root is trusted beside the old one"));
    let both = ca.client().bundle(&node).await.unwrap();
    assert_eq!(both.certificates().count(), 2);
    assert!(rotate().starts_with("the new root signs"));
    let bundles = Arc::new(Bundles::new(both));
    let client = Client::new(ca.address, domain(), bundles, certs::system_clock());
    let (renewed, _) = client.issue(&node, node.id()).await.unwrap();
    assert_eq!(rotate(), "the new root alone is trusted\n");
    assert_eq!(client.bundle(&renewed).await.unwrap().certificates().count(), 1);
    assert!(client.issue(&node, node.id()).await.is_err(), "what the old root has signed is over");
}

/// Runs as somebody else, started by the test below.
#[tokio::test]
async fn stranger() {
    let Some(socket) = std::env::var_os("CA_SOCKET") else { return };
    let mut control: Channel<ToCa, FromCa> = Channel::new(UnixStream::connect(socket).await.unwrap());
    let _ = control.send(&placements()).await;
    assert!(control.receive().await.is_err(), "a stranger was answered");
}

#[tokio::test]
async fn nobody_but_root_tells_it_anything() {
    let ca = Ca::start();
    // Its binary lies where root's builds do.
    let copy = ca.directory.path().join("stranger");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new(&copy)
        .args(["--exact", "stranger"])
        .env("CA_SOCKET", ca.socket())
        .current_dir("/")
        .uid(65534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    // It still answers root.
    assert_eq!(ask(&mut ca.control().await, placements()).await, FromCa::Placed);
}

#[test]
fn it_does_not_run_as_root_or_without_its_sockets() {
    let directory = tempfile::tempdir().unwrap();
    files(directory.path()).prepare(UnixTime::now()).unwrap();
    let run = |user: &str, redirections: &str| {
        let output = Command::new("sh")
            .args(["-c", &format!("exec \"$@\" {redirections}"), "sh"])
            .arg(env!("CARGO_BIN_EXE_ferromesh"))
            .args(["ca", "--user", user, "--directory"])
            .arg(directory.path().join("ca"))
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let two = "3</dev/null 4</dev/null";
    assert!(run("root", two).contains("--user: found root, expected a user without rights"), "root");
    assert!(run("64250", "").contains("found 0 inherited descriptors, expected two"), "none");
    fs::remove_file(directory.path().join("ca").join(CA_FILE)).unwrap();
    assert!(run("64250", two).contains("cannot read /ca.pem: No such file"), "no key");
}

/// A small file system of its own, gone with the value.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_and_spoils_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk(directory.path().join("ca"));
    fs::create_dir(&disk.0).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=32k,mode=0700", "ferromesh-test"])
        .arg(&disk.0)
        .status()
        .unwrap();
    assert!(mounted.success());
    let files = files(directory.path());
    let bundle = files.prepare(UnixTime::now()).unwrap().bundle;
    let filler = disk.0.join("filler");
    assert!(fs::write(&filler, vec![0; 64 * 1024]).is_err(), "the disk is full");

    let before = fs::read(disk.0.join(CA_FILE)).unwrap();
    let error = files.rotate(UnixTime::now()).unwrap_err().to_string();
    let told = format!("cannot write {}: No space left on device", disk.0.join("bundle.pem").display());
    assert!(error.starts_with(&told), "{error}");
    assert_eq!(fs::read(disk.0.join(CA_FILE)).unwrap(), before);
    assert_eq!(files.prepare(UnixTime::now()).unwrap().bundle, bundle, "what was there is whole");
    let left: Vec<_> = fs::read_dir(&disk.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "no half file is left: {left:?}");

    fs::remove_file(filler).unwrap();
    files.rotate(UnixTime::now()).unwrap();
    assert_eq!(files.prepare(UnixTime::now()).unwrap().bundle.certificates().count(), 2, "it goes on");
}
