//! The real `ferromesh auth-agent`, started as the agent starts it. Needs root: it makes a network namespace, a device and
//! maps, and looks at what the process has given up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use abi::{HoldKind, HoldTag};
use certs::UnixTime;
use certs::ca::{Files, Lifetimes, SVID_LIFETIME};
use certs::enrol::server::{Allowed, Server};
use linux::netlink::Netlink;
use linux::tap::Tap;
use maps::{Marks, handed_over};
use mesh::auth::{AuthEndpoint, AuthPlan, IdentityPair};
use mesh::identity::Identity;
use mesh::spiffe::TrustDomain;
use node_api::auth::{FromAuthAgent, ToAuthAgent};
use node_api::channel::Channel;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// A user that nobody is.
const USER: u32 = 64_250;
/// Nobody waits longer for anything; what is right takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Killed if the test fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = is_so() {
                return value;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// A CA of the domain `td`, which has node `a` with two workloads.
fn ca(directory: &Path) -> Arc<Server> {
    let domain: TrustDomain = "td".parse().unwrap();
    let files = Files {
        root: directory.join("root"),
        directory: directory.join("ca"),
        owner: None,
        trust_domain: domain.clone(),
        lifetimes: Lifetimes::default(),
    };
    files.prepare(UnixTime::now()).unwrap();
    let server = Server::open(&files.directory, SVID_LIFETIME, certs::system_clock()).unwrap();
    let ids = ["client", "server"].map(|name| domain.workload("default", name).unwrap());
    server.place(Allowed { trust_domain: domain, nodes: [("a".to_owned(), ids.into())].into() }).unwrap();
    Arc::new(server)
}

fn plan() -> AuthPlan {
    let domain: TrustDomain = "td".parse().unwrap();
    let identity = |number: u32| Identity::new(300 + number).unwrap();
    let endpoint = |number: u8, name: &str| AuthEndpoint {
        workload: name.parse().unwrap(),
        id: domain.workload("default", name).unwrap(),
        identity: identity(number.into()),
        ipv4: Ipv4Addr::new(10, 0, 1, number),
        ipv6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()),
    };
    AuthPlan {
        trust_domain: domain.clone(),
        node: "a".to_owned(),
        grace: 10_000,
        ahead: 100,
        nodes: BTreeMap::new(),
        endpoints: [(1, endpoint(1, "client")), (2, endpoint(2, "server"))].into(),
        remotes: BTreeMap::new(),
        pairs: BTreeSet::from([IdentityPair::new(identity(1), identity(2))]),
    }
}

/// The process's directory, with what the agent leaves in it.
fn directory(ca: &Server, bundle: &Path) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let give = |path: &Path| chown(path, Some(USER), Some(USER)).unwrap();
    fs::copy(bundle, directory.path().join("bundle.pem")).unwrap();
    fs::write(directory.path().join("join-token"), ca.token("a").unwrap()).unwrap();
    for file in ["bundle.pem", "join-token"] {
        give(&directory.path().join(file));
    }
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    give(directory.path());
    directory
}

/// Packets and bytes that a device of this namespace has received.
fn received(device: &str) -> (u64, u64) {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':')).unwrap();
    let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
    let bytes = numbers.next().unwrap();
    (numbers.next().unwrap(), bytes)
}

/// A device whose kernel side has the client's address, and takes the server for who is behind a tag.
async fn hold_device(tag: HoldTag) -> Tap {
    let netlink = Netlink::open().unwrap();
    let tap = Tap::open("hold").unwrap();
    let device = netlink.link("hold").await.unwrap().unwrap().index;
    netlink.disable_link_local(device).await.unwrap();
    netlink.add_address(device, "10.0.1.1/24".parse().unwrap()).await.unwrap();
    netlink.set_up(device, true).await.unwrap();
    netlink.add_neighbour(device, "10.0.1.2".parse().unwrap(), tag.to_mac()).await.unwrap();
    tap
}

fn has_no_rights(pid: u32, directory: &Path) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    let user = [USER.to_string(), USER.to_string(), USER.to_string(), USER.to_string()].join(" ");
    assert_eq!((field("Uid"), field("Gid"), field("Groups")), (user.clone(), user, USER.to_string()));
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()));
    let root = format!("/proc/{pid}/root");
    assert_eq!(fs::read_link(&root).unwrap(), fs::canonicalize(directory).unwrap());
    assert!(!Path::new(&root).join("etc/passwd").exists());
    let names: BTreeSet<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["bundle.pem", "node.pem"].map(Into::into).into(), "the token is spent");
    let key = fs::metadata(Path::new(&root).join("node.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

/// The streams, what it was handed, and what its runtime waits with.
fn has_no_other_descriptors(pid: u32, log: &Path) {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap);
    let open: Vec<_> =
        entries.map(|entry| fs::read_link(entry.path()).unwrap().display().to_string()).collect();
    let count = |word: &str| open.iter().filter(|target| target.starts_with(word)).count();
    assert_eq!((count("/dev/net/tun"), count("anon_inode:bpf-map")), (1, 4), "{open:?}");
    let known = ["/dev/net/tun", "anon_inode:bpf-map", "/dev/null", "socket:[", "pipe:["];
    let waits = ["eventpoll", "eventfd", "timerfd", "inotify"].map(|kind| format!("anon_inode:[{kind}]"));
    let log = log.display().to_string();
    let is_known = |target: &&String| {
        known.iter().any(|word| target.starts_with(word)) || waits.contains(target) || **target == log
    };
    let other: Vec<_> = open.iter().filter(|target| !is_known(target)).collect();
    assert!(other.is_empty(), "{other:?} of {open:?}");
}

#[test]
fn without_any_right_it_proves_marks_and_lets_packets_go_on() {
    let scratch = linux::scratch::Namespace::new("auth-agent").unwrap();
    scratch.namespace().inside_async(proves_marks_and_lets_go).unwrap();
}

async fn proves_marks_and_lets_go() {
    let files = tempfile::tempdir().unwrap();
    let ca = ca(files.path());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(ca.clone().serve(listener));
    let directory = directory(&ca, &files.path().join("ca/bundle.pem"));
    let socket = files.path().join("auth.sock");
    let tag = HoldTag { id: 7, kind: HoldKind::Egress };
    let maps = maps::scratch::auth().unwrap();
    let handed: Vec<OwnedFd> = [
        UnixListener::bind(&socket).unwrap().into(),
        hold_device(tag).await.into(),
        maps[0].try_clone().unwrap(),
        maps[1].try_clone().unwrap(),
        maps[2].try_clone().unwrap(),
        maps::scratch::triggers().unwrap(),
        TcpListener::bind("127.0.0.1:4250").unwrap().into(),
    ]
    .into();
    let log = files.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferromesh"));
    command.args(["auth-agent", "--node", "a", "--ca", &address, "--user", &USER.to_string()]);
    command.arg("--directory").arg(directory.path()).env_clear();
    let descriptors: Vec<_> = handed.iter().map(AsFd::as_fd).collect();
    linux::child::hand_over(&mut command, &descriptors, File::create(&log).unwrap()).unwrap();
    let mut process = Process(command.spawn().unwrap());
    drop(handed);

    let mut agent: Channel<ToAuthAgent, FromAuthAgent> =
        Channel::new(UnixStream::connect(&socket).await.unwrap());
    agent.send(&ToAuthAgent::Plan { number: 1, plan: Arc::new(plan()) }).await.unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    let applied = timeout(PATIENCE, agent.receive()).await.unwrap_or_else(|_| panic!("{}", said()));
    assert_eq!(
        applied.unwrap_or_else(|error| panic!("{error}: {}", said())),
        FromAuthAgent::Applied { number: 1 }
    );

    // A packet of the client to the server goes out on the device, and comes back when both are proven.
    let client = UdpSocket::bind("10.0.1.1:7000").unwrap();
    let before = received("hold");
    let after = until("a held packet comes back", || {
        client.send_to(b"to the server", "10.0.1.2:9").unwrap();
        let now = received("hold");
        (now.0 > before.0).then_some(now)
    })
    .await;
    let length = 14 + 20 + 8 + b"to the server".len() as u64;
    assert_eq!(after.1 - before.1, (after.0 - before.0) * length);
    let marks = Marks::new(handed_over("MARKS", maps[1].try_clone().unwrap()).unwrap()).unwrap();
    let mark = marks.get(1).unwrap();
    assert!(mark.epoch != 0 && mark.instances == [1, 2], "{mark:?}");

    has_no_rights(process.0.id(), directory.path());
    has_no_other_descriptors(process.0.id(), &log);
    agent.send(&ToAuthAgent::Stop).await.unwrap();
    let ended = until("it ends", || process.0.try_wait().unwrap()).await;
    assert!(ended.success(), "{}", said());
    assert_eq!(marks.get(1).unwrap(), mark, "marks are left to their leases");
}

#[test]
fn without_its_descriptors_it_says_what_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferromesh"));
    command.args(["auth-agent", "--node", "a", "--ca", "127.0.0.1:1", "--user", "64250", "--directory", "/"]);
    linux::child::hand_over(&mut command, &[], File::create(&log).unwrap()).unwrap();
    assert!(!command.status().unwrap().success());
    let said = fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("found 0 inherited descriptors") && said.contains("3, its control socket"),
        "{said}"
    );
}
