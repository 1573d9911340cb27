//! What `run` does outside: starts init, passes signals on, returns the command's exit status.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::path::Path;

use linux::cgroup::Cgroup;
use linux::process::{self, Foreground, Init, Received, Signals};

use super::report::Report;
use super::{Failure, Workload, filesystem, init};

/// How long the kernel may take to count the last process of a cgroup as gone.
const GONE: u16 = 1000;

/// Runs the command; returns its exit code. `lease` is dropped when a process is in the cgroup, which from then on
/// stands for the workload. The calling process must have one thread.
pub(crate) fn run<L>(mut workload: Workload, lease: L) -> Result<u8, Failure> {
    // A hidden directory that is a link hides nothing; one that is not there need not be hidden.
    workload.hidden = workload.hidden.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    workload.writable =
        filesystem::resolve_writable(&workload.writable, &workload.hidden).map_err(Failure::own)?;
    let program = workload.command.first().map(AsRef::as_ref);
    workload.kept = filesystem::started_from(program, &workload.hidden).map_err(Failure::own)?;
    let cgroup = Cgroup::open(&workload.cgroup).map_err(Failure::own)?;
    let foreground = Foreground::now();
    let signals = Signals::take().map_err(Failure::own)?;
    let (mut reports, pipe) = io::pipe().map_err(Failure::own)?;
    let init = process::clone_init(cgroup.as_fd(), || init::init(&workload, &signals, &pipe));
    let init = init.map_err(Failure::own)?;
    drop((lease, pipe));
    loop {
        let [signalled, reported] =
            process::wait_any([signals.as_fd(), reports.as_fd()]).map_err(Failure::own)?;
        if signalled {
            while let Some(signal) = signals.next().map_err(Failure::own)? {
                pass_on(signal, &init).map_err(Failure::own)?;
            }
        }
        if reported {
            let report = Report::receive(&mut reports).map_err(Failure::own)?;
            let outcome = conclude(report, init, &workload.cgroup);
            if let Some(foreground) = foreground {
                foreground.restore();
            }
            return outcome;
        }
    }
}

/// The terminal has told the command itself, but only `run` is the shell's job.
fn pass_on(signal: Received, init: &Init) -> linux::Result<()> {
    if signal.number == libc::SIGCHLD {
        return Ok(());
    }
    if signal.by_process {
        init.signal(signal.number)?;
    }
    match signal.number {
        libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => process::stop(),
        _ => Ok(()),
    }
}

fn conclude(report: Option<Report>, init: Init, cgroup: &Path) -> Result<u8, Failure> {
    if let Some(Report::Ended { code, inhabited: true }) = report {
        return Ok(code);
    }
    let ended = init.wait().map_err(Failure::own)?;
    wait_until_gone(cgroup);
    match report {
        Some(Report::Ended { code, .. }) => Ok(code),
        Some(Report::Failed { code, text }) => Err(Failure { code, text }),
        // Killed from outside, with all that was in it.
        None => Ok(ended.code()),
    }
}

/// So that the name is free when `run` returns. That the agent has removed the cgroup is as good.
fn wait_until_gone(cgroup: &Path) {
    let Ok(file) = File::open(cgroup.join("cgroup.events")) else { return };
    for _ in 0..2 {
        match io::read_to_string(&file) {
            Ok(text) if text.contains("populated 1") => {}
            _ => return,
        }
        let waited = process::wait_change(file.as_fd(), GONE);
        if waited.is_err() || (&file).rewind().is_err() {
            return;
        }
    }
}
