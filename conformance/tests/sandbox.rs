//! A workload, root inside, tries to reach behind its policy. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::process::Stdio;

use conformance::lab::{Node, Outcome, Session, wait_until};

/// Runs a shell line as root inside a workload.
fn inside(node: &Node, line: &str) -> Outcome {
    node.run("rebel", &["org=alliance"], &["sh", "-c", line])
}

#[test]
fn root_inside_cannot_reach_the_host() {
    let node = Node::up();
    let pins = node.pins().display().to_string();
    let config = node.config().display().to_string();
    let agent = node.json(&["status"])["pid"].to_string();
    let attempts = [
        ("enter the host's network namespace", "nsenter --net=/proc/1/ns/net true && [ -e /sys/class/net/ferromesh_host ]".to_owned()),
        ("enter it through the agent's process", format!("nsenter --net=/proc/{agent}/ns/net true")),
        ("see a pinned map", format!("[ -e {pins} ] || ls /sys/fs/bpf/* >/dev/null")),
        ("mount bpffs", "mkdir /tmp/b && mount -t bpf bpf /tmp/b".to_owned()),
        ("mount the cgroup tree", "mkdir /tmp/c && mount -t cgroup2 cgroup2 /tmp/c".to_owned()),
        ("see cgroups", "[ -n \"$(ls /sys/fs/cgroup)\" ]".to_owned()),
        ("kill the agent", format!("kill -9 {agent}")),
        ("see any process of the host", "[ -e /proc/2/comm ] && grep -q kthreadd /proc/2/comm".to_owned()),
        ("read the configuration", format!("[ -e {config}/ferromesh.yaml ]")),
        ("change a program of the host", "touch /usr/bin/evil".to_owned()),
        ("change the host's configuration", "touch /etc/evil".to_owned()),
        ("remount the root writable", "mount -o remount,rw / && touch /etc/evil".to_owned()),
        ("make a disk", "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk".to_owned()),
        ("find a disk", "ls -l /dev | grep -q '^b'".to_owned()),
        ("open a raw socket", "ping -c1 -W1 127.0.0.1 || python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'".to_owned()),
        ("change an address", "ip address add 10.77.0.99/32 dev eth0".to_owned()),
        ("take its link down", "ip link set eth0 down".to_owned()),
        ("change a sysctl", "echo 1 > /proc/sys/net/ipv4/ip_forward".to_owned()),
        ("find another's socket", "[ -n \"$(find / -xdev -name agent.sock -type s 2>/dev/null)\" ]".to_owned()),
    ];
    for (what, line) in attempts {
        let outcome = inside(&node, &line);
        assert_ne!(outcome.code, Some(0), "{what}: {outcome:?}");
        assert_ne!(outcome.code, Some(125), "the workload must have started: {what}: {outcome:?}");
    }
    assert_eq!(node.json(&["status"])["pid"].to_string(), agent, "the agent lives on");
}

#[test]
fn new_user_and_mount_namespaces_win_nothing() {
    let node = Node::up();
    for line in [
        "unshare -Urm sh -c 'mount -t cgroup2 c /tmp'",
        "unshare -Urm sh -c 'mount -t bpf b /tmp && ls /tmp/ferromesh'",
        "unshare -Urmpf --mount-proc sh -c 'grep -q kthreadd /proc/2/comm'",
        "unshare -Urm sh -c 'umount -l /run && ls /run/ferromesh'",
        "unshare -Urm sh -c 'mount -o remount,rw,bind / && touch /etc/evil'",
    ] {
        let outcome = inside(&node, line);
        assert!(!matches!(outcome.code, Some(0 | 125)), "{line}: {outcome:?}");
    }
}

#[test]
fn capabilities_are_a_containers_less_two_and_some_are_never_given() {
    let node = Node::up();
    let held = inside(&node, "grep CapEff /proc/self/status | cut -f2").success();
    let bits = u64::from_str_radix(&held, 16).unwrap();
    for (name, bit) in [
        ("SYS_ADMIN", 21),
        ("NET_ADMIN", 12),
        ("NET_RAW", 13),
        ("SYS_PTRACE", 19),
        ("MKNOD", 27),
        ("BPF", 39),
    ] {
        assert_eq!(bits >> bit & 1, 0, "{name} in {held}");
    }
    assert_eq!(bits >> 10 & 1, 1, "NET_BIND_SERVICE is a container's: {held}");
    assert_eq!(inside(&node, "grep NoNewPrivs /proc/self/status | cut -f2").success(), "1");
    let mut refused = node.inside(conformance::lab::binary("ferromesh"));
    let socket = node.socket();
    refused.arg("--socket").arg(socket).args(["run", "--name", "x", "--cap-add", "SYS_ADMIN", "--", "true"]);
    let refused = Outcome::of(&mut refused);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("SYS_ADMIN"), "{refused:?}");
}

/// Made by an entry in memory, a socket would meet no condition on its arguments; and whoever may forge packets must
/// not name a place for the checksum, which would change what has been judged.
#[test]
fn no_call_leads_past_what_is_judged_and_filtered() {
    let node = Node::up();
    let python = "import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *arguments):
    assert call(*arguments) == -1 and ctypes.get_errno() == errno.EPERM, arguments
def forbidden(call, *arguments):
    try: call(*arguments)
    except PermissionError: return
    raise SystemExit(f'{arguments} is possible')
IO_URING_SETUP, AF_VSOCK, AF_XDP, SOL_PACKET = 425, 40, 44, 263
refused(libc.syscall, IO_URING_SETUP, 4, ctypes.create_string_buffer(256))
for family in AF_VSOCK, AF_XDP: forbidden(socket.socket, family, socket.SOCK_STREAM)
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
for option in 15, 24: forbidden(packets.setsockopt, SOL_PACKET, option, 10)
socket.socket().setsockopt(socket.SOL_SOCKET, 15, 1)
print('refused')";
    let mut run = node.inside(conformance::lab::binary("ferromesh"));
    run.arg("--socket").arg(node.socket()).args(["run", "--name", "rebel", "--cap-add", "NET_RAW", "--"]);
    assert_eq!(Outcome::of(run.args(["python3", "-c", python])).success(), "refused");
}

#[test]
fn exit_status_and_signals_are_the_commands_own() {
    let node = Node::up();
    for (line, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(inside(&node, line).code, Some(code), "{line}");
    }
    assert_eq!(node.run("rebel", &[], &["/no/such/program"]).code, Some(127));
    assert_eq!(node.run("rebel", &[], &["/etc/passwd"]).code, Some(126));
    assert_eq!(inside(&node, "hostname").success(), "rebel");
}

#[test]
fn a_workload_lives_until_its_last_process_ends() {
    let node = Node::up();
    let run = node.run("daemon", &[], &["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo started"]);
    assert_eq!(run.success(), "started");
    let there = || !node.json(&["endpoint", "list"]).as_array().unwrap().is_empty();
    assert!(there(), "its daemon keeps it");
    let again = node.run("daemon", &[], &["true"]);
    assert_eq!(again.code, Some(125), "the name is taken: {again:?}");
    let cgroup = node.cgroup("daemon");
    std::fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    wait_until("it is gone", || !there());
}

#[test]
fn a_workload_dies_with_a_run_that_is_killed() {
    let node = Node::up();
    let mut command = node.run_command("lone", &[], &["sh", "-c", "echo open; exec sleep 1000"]);
    let mut run = Session::start(command.stderr(Stdio::null()));
    assert_eq!(run.line(), "open");
    run.kill();
    wait_until("it is gone", || node.json(&["endpoint", "list"]).as_array().unwrap().is_empty());
}
