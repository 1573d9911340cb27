//! A network namespace of the lab, by its name below `/run/netns`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::Outcome;

/// Deleted when dropped.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, with loopback up.
    pub(crate) fn new(name: String) -> Self {
        Outcome::of(Command::new("ip").args(["netns", "add", &name])).success();
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// The file it is mounted on.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A program in it, in the cgroup of the test.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        beside(&self.path(), program)
    }

    /// `ip` in it, with arguments that have no spaces.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &str) {
        Outcome::of(self.command("ip").args(arguments.split(' '))).success();
    }

    /// Sets a sysctl in it.
    #[track_caller]
    pub(crate) fn set(&self, key: &str, value: &str) {
        let line = format!("echo {value} > /proc/sys/{key}");
        Outcome::of(self.command("sh").args(["-c", &line])).success();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Outcome::of(Command::new("ip").args(["netns", "delete", &self.name]));
        if !std::thread::panicking() {
            removed.success();
        }
    }
}

/// A program in a network namespace, in the cgroup of the test.
pub(crate) fn beside(network: &Path, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.display())).arg("--").arg(program.as_ref());
    command
}

/// A program in a network namespace and a cgroup.
pub(crate) fn within(network: &Path, cgroup: &Path, program: impl AsRef<Path>) -> Command {
    const JOIN: &str =
        r#"echo $$ >"$0/cgroup.procs" && net=$1 && shift && exec nsenter --net="$net" -- "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", JOIN]).arg(cgroup).arg(network).arg(program.as_ref());
    command
}
