//! What `ferromesh run` promises whoever starts a command with it. Needs root and the kernel.

use std::fs;
use std::process::Command;

use conformance::lab::{Node, Outcome, Session, binary};

/// `run` with options of its own.
fn run(node: &Node, options: &[&str], command: &[&str]) -> Outcome {
    let mut run = node.inside(binary("ferromesh"));
    run.arg("--socket")
        .arg(node.socket())
        .args(["run", "--name", "mine"])
        .args(options)
        .arg("--")
        .args(command);
    Outcome::of(&mut run)
}

fn shell(node: &Node, options: &[&str], line: &str) -> Outcome {
    run(node, options, &["sh", "-c", line])
}

#[test]
fn a_name_is_free_as_soon_as_run_returns() {
    let node = Node::up();
    for _ in 0..5 {
        assert_eq!(run(&node, &[], &["true"]).code, Some(0));
    }
}

#[test]
fn a_signal_to_run_is_the_commands() {
    let node = Node::up();
    let script = "trap 'exit 42' TERM; echo open; while :; do sleep 0.01; done";
    let session = Session::start(&mut node.run_command("mine", &[], &["sh", "-c", script]));
    assert_eq!(session.line(), "open");
    assert!(Command::new("kill").arg(session.pid().to_string()).status().unwrap().success());
    assert_eq!(session.finish(), Some(42));
}

#[test]
fn the_end_of_the_command_is_the_end_of_its_output_whatever_it_leaves() {
    let node = Node::up();
    // Reading to the end of the output would take as long as the sleep, were init still holding it.
    let outcome = shell(&node, &[], "sleep 1000 <&- >/dev/null 2>&1 & echo done; exit 3");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), "done"));
}

#[test]
fn environment_is_kept_and_descriptors_are_not() {
    let node = Node::up();
    let mut command = node.inside("sh");
    command.args(["-c", "exec 9</etc/hostname; exec \"$0\" \"$@\""]).arg(binary("ferromesh"));
    command.arg("--socket").arg(node.socket()).args(["run", "--name", "mine", "--"]);
    command
        .args(["sh", "-c", "echo $STORY $HOSTNAME; [ -e /proc/self/fd/9 ] || echo closed"])
        .env("STORY", "kept");
    assert_eq!(Outcome::of(&mut command).success(), "kept mine\nclosed");
}

#[test]
fn its_init_cannot_be_looked_into() {
    let node = Node::up();
    for file in ["exe", "root/etc/hostname", "fd/0", "cwd/", "environ", "ns/net", "mem", "maps"] {
        let outcome = shell(&node, &[], &format!("cat /proc/1/{file} || ls /proc/1/{file}/"));
        assert!(!matches!(outcome.code, Some(0 | 125)), "{file}: {outcome:?}");
    }
}

#[test]
fn what_lies_past_namespaces_is_refused() {
    let node = Node::up();
    for line in [
        "import fcntl, pty; fcntl.ioctl(pty.openpty()[1], 0x5412, b'x')",
        "import socket; socket.socket(40, socket.SOCK_STREAM)",
        "import os; os.unshare(0x10000000)",
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); exit(libc.syscall(250, 0, -3, 1) >= 0 or 1)",
    ] {
        let outcome = run(&node, &[], &["python3", "-c", line]);
        assert_eq!(outcome.code, Some(1), "{line}: {outcome:?}");
        assert!(outcome.stderr.is_empty() || outcome.stderr.contains("Error"), "{line}: {outcome:?}");
    }
    let threads = "import threading; t = threading.Thread(target=print, args=('runs',)); t.start(); t.join()";
    assert_eq!(run(&node, &[], &["python3", "-c", threads]).success(), "runs", "ordinary threads work");
}

#[test]
fn another_user_has_its_groups_and_no_capability_but_those_added() {
    let node = Node::up();
    let id = "id -u; id -g; grep CapEff /proc/self/status | cut -f2";
    let nobody = shell(&node, &["--user", "nobody"], id).success();
    assert_eq!(nobody, "65534\n65534\n0000000000000000");
    let numbers = shell(&node, &["--user", "4321:1234", "--cap-add", "NET_RAW"], id).success();
    assert_eq!(numbers, "4321\n1234\n0000000000002000");
    let unknown = run(&node, &["--user", "nobody-such"], &["true"]);
    assert_eq!(unknown.code, Some(125));
    assert!(unknown.stderr.contains("user nobody-such"), "{unknown:?}");
}

#[test]
fn only_what_is_given_is_writable() {
    let node = Node::up();
    let given = tempfile::tempdir().unwrap();
    let (inside, config) = (given.path().display().to_string(), node.config().display().to_string());
    let written = shell(&node, &["--writable", &inside], &format!("echo mine > {inside}/file"));
    written.success();
    assert_eq!(fs::read_to_string(given.path().join("file")).unwrap(), "mine\n");
    assert_ne!(shell(&node, &[], &format!("echo evil > {inside}/file")).code, Some(0));
    assert_ne!(shell(&node, &[], "echo evil > /evil || echo evil > /usr/evil").code, Some(0));

    for place in ["/", "/tmp", "/proc/sys", "/sys", "/dev", config.as_str(), "/no/such"] {
        let refused = run(&node, &["--writable", place], &["true"]);
        assert_eq!(refused.code, Some(125), "{place}: {refused:?}");
        assert!(refused.stderr.contains(&format!("--writable {place}: ")), "{refused:?}");
    }
}

#[test]
fn a_workload_does_not_keep_anothers_namespace_alive() {
    let node = Node::up();
    let other = Session::start(&mut node.run_command("other", &[], &["sh", "-c", "echo open; exec cat"]));
    assert_eq!(other.line(), "open");
    assert_eq!(shell(&node, &[], "grep -c nsfs /proc/self/mountinfo").stdout, "0");
    assert_eq!(other.finish(), Some(0));
}

#[test]
fn what_a_command_is_started_from_is_visible_below_tmp_and_nothing_else_is() {
    let node = Node::up();
    let place = tempfile::TempDir::with_prefix("started-from").unwrap();
    let beside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(place.path().join("note"), "here\n").unwrap();
    let line = format!(
        "cat note && ! touch note && [ ! -e {} ] && [ ! -e {}/ferromesh.yaml ]",
        beside.path().display(),
        node.config().display()
    );
    let mut run = node.run_command("visitor", &[], &["sh", "-c", &line]);
    assert_eq!(Outcome::of(run.current_dir(place.path())).success(), "here");
    // From above the node's own directories nothing is kept: they would be seen with it.
    let mut run = node.run_command("visitor", &[], &["pwd"]);
    assert_eq!(Outcome::of(run.current_dir(node.config().parent().unwrap())).success(), "/");
}
