//! The programs on real veths, with real kernels behind them: what a test run cannot show.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use abi::{DropReason, EventKind};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    sys::socket::{setsockopt, sockopt::Mark},
    unistd::Pid,
};

use super::{
    frame::TCP,
    node::Node,
    service::vip,
    world::{A, B, FAMILIES, Pod},
};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A pod: a shell in a network namespace of its own, with the pod's end of its veth.
pub(crate) struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    /// One without a device.
    pub(crate) fn bare() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut shell = Self { child, input, output };
        // Its answer also says that the namespace is there.
        assert!(shell.run("true"));
        shell
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn new(pod: Pod) -> Self {
        let mut shell = Self::bare();
        let (id, pid) = (pod.id, shell.pid());
        let name = format!("pod{id}");
        ip(&["link", "set", &format!("host{id}"), "address", &mac(pod.gateway_mac), "up"]);
        ip(&["link", "set", &name, "address", &mac(pod.mac), "netns", &pid]);
        for family in FAMILIES {
            let (own, gateway) = (family.pool(pod.host), family.host());
            let (length, flag) = if own.is_ipv4() { (32, "") } else { (128, "nodad") };
            assert!(
                shell.run(&format!(
                    "ip link set {name} up && ip address add {own}/{length} dev {name} {flag}"
                ))
            );
            assert!(
                shell
                    .run(&format!("ip route add {gateway} dev {name} && ip route add default via {gateway}"))
            );
        }
        for family in FAMILIES {
            shell.receives(family.pool(pod.host));
        }
        shell
    }

    /// Waits until packets for an address are received here. The kernel puts the route of a new IPv6 address in its table in
    /// a work queue of its own; on a busy machine that is long after the address can be bound to, and what comes before is
    /// lost without a word.
    pub(crate) fn receives(&mut self, address: IpAddr) {
        let is_local = format!("ip route get {address} | grep -q '^local'");
        let wait = format!("for i in $(seq 500); do {is_local} && break; sleep 0.01; done; {is_local}");
        assert!(self.run(&wait), "nothing is ever received for {address}");
    }

    /// What `work` returns, done by a thread in the pod's namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.child.id())).unwrap();
        let enter_and_work = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join().unwrap())
    }

    /// Whether the command succeeds.
    pub(crate) fn run(&mut self, command: &str) -> bool {
        writeln!(self.input, "({command}) >/dev/null; echo $?").unwrap();
        let mut status = String::new();
        self.output.read_line(&mut status).unwrap();
        status.trim() == "0"
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().expect("ip").success(), "ip {arguments:?}");
}

pub(crate) fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

#[test]
fn datagrams_reach_the_other_pod_and_answers_come_back() {
    let (node, a, b) = two_pods();
    for family in FAMILIES {
        let server = b.inside(|| UdpSocket::bind((family.pool(B.host), 53)).unwrap());
        let client = a.inside(|| UdpSocket::bind((family.pool(A.host), 0)).unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut bytes = [0; 16];
        client.send_to(b"question", (family.pool(B.host), 53)).unwrap();
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], from), (&b"question"[..], client.local_addr().unwrap()));
        server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv(&mut bytes).unwrap(), 6);
    }
    assert_eq!(drop_reasons(&node), []);
}

/// Segments in one buffer and checksums left to the device: what no crafted frame has.
#[test]
fn a_stream_of_large_segments_arrives_whole() {
    let (node, a, b) = two_pods();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n as u8).collect();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), 80));
        let listener = b.inside(|| TcpListener::bind(address).unwrap());
        let received = thread::scope(|scope| {
            scope.spawn(|| {
                a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap().write_all(&sent))
            });
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        assert!(received == sent, "{family:?}: {} bytes of {}", received.len(), sent.len());
    }
    assert_eq!(drop_reasons(&node), []);
}

/// Whoever calls sees the VIP alone, itself as backend or another; where nobody answers it is refused at once.
#[test]
fn services_serve_sockets_that_no_hook_sees() {
    let (mut node, a, b) = two_pods();
    for (n, family) in (0..).zip(FAMILIES) {
        for (service, pod) in (n * 2 + 1..).zip([A, B]) {
            let called = (vip(family), 80 + service as u16, TCP);
            node.serve(service, called, &[(service, family.pool(pod.host), 8080)], 0);
            let shell = if pod.id == A.id { &a } else { &b };
            let listener = shell.inside(|| TcpListener::bind((family.pool(pod.host), 8080)).unwrap());
            let address = SocketAddr::from((called.0, called.1));
            let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
            let mut stream = a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
            let (mut accepted, from) = listener.accept().unwrap();
            let seen = if pod.id == A.id { called.0 } else { family.pool(A.host) };
            assert_eq!((from.ip(), stream.peer_addr().unwrap()), (seen, address));
            let received = thread::scope(|scope| {
                scope.spawn(|| {
                    stream.write_all(&sent).unwrap();
                    drop(stream);
                });
                let mut received = Vec::new();
                accepted.read_to_end(&mut received).unwrap();
                received
            });
            assert!(received == sent, "{family:?}: {} bytes of {}", received.len(), sent.len());
        }
        let nobody = SocketAddr::from((vip(family), 79));
        let refused = a.inside(|| TcpStream::connect_timeout(&nobody, PATIENCE).unwrap_err().kind());
        assert_eq!(refused, ErrorKind::ConnectionRefused);
        let refused = a.inside(|| {
            let socket = UdpSocket::bind((family.pool(A.host), 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(nobody).unwrap();
            socket.send(b"anybody?").unwrap();
            socket.recv(&mut [0; 8]).unwrap_err().kind()
        });
        assert_eq!(refused, ErrorKind::ConnectionRefused);
    }
    assert_eq!(drop_reasons(&node), [DropReason::NoBackend]);
}

/// The promise behind [`abi::MARK_ANSWER`].
#[test]
fn a_pod_cannot_forge_the_mark_of_our_answers() {
    let mut node = Node::new();
    let a = Shell::new(A);
    node.attach(A);
    for family in FAMILIES {
        a.inside(|| {
            let socket = UdpSocket::bind((family.pool(A.host), 0)).unwrap();
            setsockopt(&socket, Mark, &abi::MARK_ANSWER).unwrap();
            socket.send_to(b"let me through", (family.pool(B.host), 53)).unwrap();
        });
        let event = node.wait_for_event(PATIENCE);
        assert_eq!((event.kind, event.reason), (EventKind::Drop as u8, DropReason::PolicyDenied as u8));
    }
}

pub(crate) fn two_pods() -> (Node, Shell, Shell) {
    let mut node = Node::new();
    node.allow_all();
    let (a, b) = (Shell::new(A), Shell::new(B));
    node.attach(A);
    node.attach(B);
    (node, a, b)
}

/// Reasons counted, but for the noise every kernel makes on a link.
/// Keeps the calling thread on one CPU from here on, the one it is on. A veth hands a packet to the queue of the CPU that
/// sends it, and on a busy machine queues are worked off late: a sender that is moved to another CPU between two packets can
/// see the second overtake the first. For UDP that is a right of the network; a test of their order must not allow it.
pub(crate) fn stay_on_this_cpu() {
    let mut set = CpuSet::new();
    set.set(nix::sched::sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

pub(crate) fn drop_reasons(node: &Node) -> Vec<DropReason> {
    let reasons = node.drops().into_keys().filter_map(|(_, reason, _)| DropReason::from_number(reason));
    reasons.filter(|reason| *reason != DropReason::Multicast).collect()
}
