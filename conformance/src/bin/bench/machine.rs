//! Where and when: what every figure has to name.

use std::fmt;
use std::fs;
use std::process::Command;

/// This machine, now.
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    date: String,
    commit: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let git = |arguments: &[&str]| {
            said(Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments))
        };
        let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() {
            ""
        } else {
            " and changes"
        };
        Self {
            kernel: kernel.trim().to_owned(),
            processor: format!("{count} × {}", model.map_or("unknown processor", |(_, name)| name)),
            date: said(Command::new("date").args(["-u", "+%F"])),
            commit: git(&["rev-parse", "--short", "HEAD"]) + changed,
        }
    }

    /// What goes with each row.
    pub(crate) fn brief(&self) -> String {
        format!("{}, Linux {}, {}", self.date, self.kernel, self.commit)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "Linux {}, {}, {}, commit {}", self.kernel, self.processor, self.date, self.commit)
    }
}

fn said(command: &mut Command) -> String {
    command
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
