//! The first process of a workload's PID namespace.
//!
//! Promise: it builds the sandbox, then takes on the command's own rights before the command exists, so whoever takes
//! it over inside wins nothing; and it cannot be looked into, for through its `/proc/1/exe` the host's own program file
//! could be reached. It lives as long as any process of the workload.

use std::ffi::{CString, OsString};
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use linux::namespace::NetworkNamespace;
use linux::process::{self, Reaped, Signals};

use super::own_files::OwnFile;
use super::report::Report;
use super::{Failure, Workload, filesystem, privileges};

/// What init does, to its end; returns its exit code.
pub(super) fn init(workload: &Workload, signals: &Signals, report: &PipeWriter) -> u8 {
    match enter(workload, signals, report).and_then(|()| start(workload, signals, report)) {
        Ok(command) => reign(command, signals, report).unwrap_or_else(|failure| give_up(failure, report)),
        Err(failure) => give_up(failure, report),
    }
}

fn give_up(failure: Failure, report: &PipeWriter) -> u8 {
    let code = failure.code;
    Report::from(failure).send(report);
    code
}

/// Builds the sandbox around the calling process.
fn enter(workload: &Workload, signals: &Signals, report: &PipeWriter) -> Result<(), Failure> {
    // The lease and the other end of the pipe among them.
    process::close_all_but(&[signals.as_fd(), report.as_fd()]).map_err(Failure::own)?;
    let namespace = NetworkNamespace::open(&workload.network_namespace).map_err(Failure::own)?;
    namespace.enter().map_err(Failure::own)?;
    drop(namespace);
    process::unshare_cgroup().map_err(Failure::own)?;
    process::set_hostname(host_name(workload)).map_err(Failure::own)?;
    let directory = std::env::current_dir().unwrap_or_else(|_| Path::new("/").to_owned());
    filesystem::build(&workload.hidden, &workload.kept, &workload.writable)?;
    workload.files.iter().try_for_each(OwnFile::put)?;
    arrive(&directory)?;
    privileges::reduce(&workload.credentials, workload.capabilities).map_err(Failure::own)?;
    process::hide().map_err(Failure::own)?;
    process::die_with_parent(true).map_err(Failure::own)?;
    // It may have ended before that.
    match process::is_unread(report.as_fd()).map_err(Failure::own)? {
        true => Err(Failure::own("`ferromesh run` has been killed")),
        false => Ok(()),
    }
}

/// The workload's name as far as it fits (sethostname(2): 64 bytes). Names of workloads are ASCII.
fn host_name(workload: &Workload) -> &str {
    workload.name.get(..64).unwrap_or(&workload.name)
}

/// The old directory may be one that is covered now, and would lead behind the cover.
fn arrive(directory: &Path) -> Result<(), Failure> {
    if std::env::set_current_dir(directory).is_ok() {
        return Ok(());
    }
    eprintln!("ferromesh: {} is not visible inside the workload, it starts in /", directory.display());
    std::env::set_current_dir("/").map_err(|error| Failure::own(format!("/: {error}")))
}

/// Starts the command; returns its number.
fn start(workload: &Workload, signals: &Signals, report: &PipeWriter) -> Result<i32, Failure> {
    let arguments = strings(workload.command.iter().cloned())?;
    let host_name = OsString::from(format!("HOSTNAME={}", host_name(workload)));
    let others = std::env::vars_os().filter(|(name, _)| name != "HOSTNAME");
    let environment = others.map(|(name, value)| [name, value].join("=".as_ref()));
    let environment = strings(environment.chain([host_name]))?;
    let command = process::fork(|| {
        let error = match signals.give_back() {
            Ok(()) => process::execute(&arguments, &environment),
            Err(error) => io::Error::other(error),
        };
        give_up(not_executed(workload, &error), report)
    });
    command.map_err(Failure::own)
}

fn not_executed(workload: &Workload, error: &io::Error) -> Failure {
    let program = workload.command.first().map_or("".as_ref(), |program| Path::new(program));
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    Failure { code, text: format!("{}: {error}", program.display()) }
}

fn strings(of: impl Iterator<Item = OsString>) -> Result<Vec<CString>, Failure> {
    of.map(|text| CString::new(text.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::own(format!("command line or environment: {error}")))
}

/// Reaps orphans, passes on what `run` passes on, ends with the last process.
fn reign(command: i32, signals: &Signals, report: &PipeWriter) -> Result<u8, Failure> {
    let mut ended = None;
    loop {
        process::wait_any([signals.as_fd()]).map_err(Failure::own)?;
        while let Some(signal) = signals.next().map_err(Failure::own)? {
            // The terminal tells the command itself, and SIGCHLD is ours.
            if signal.by_process && ended.is_none() {
                process::send(command, signal.number).map_err(Failure::own)?;
            }
        }
        let inhabited = loop {
            match process::reap().map_err(Failure::own)? {
                Reaped::Child(pid, how) if pid == command => ended = Some((how.code(), false)),
                Reaped::Child(..) => {}
                Reaped::Running => break true,
                Reaped::Childless => break false,
            }
        };
        if let Some((code, reported @ false)) = &mut ended {
            if inhabited {
                process::die_with_parent(false).map_err(Failure::own)?;
                process::release_standard_streams().map_err(Failure::own)?;
            }
            Report::Ended { code: *code, inhabited }.send(report);
            *reported = true;
        }
        if let (Some((code, _)), false) = (ended, inhabited) {
            return Ok(code);
        }
    }
}
