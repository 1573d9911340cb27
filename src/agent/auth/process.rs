//! Its processes as the agent starts, finds and ends them.
//!
//! Promise: they outlive the agent, and one that the next agent can talk to goes on. Who cannot be talked to, or was
//! started by another build or with other settings, is ended before another takes its place: there are never two, but of
//! the L7 proxy, which its own keeper starts and ends ([`launch`], [`end_one`]).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use node_api::channel::Channel;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use super::place::{Place, Process, remove_file};

/// This program, also after its file has been replaced: only the same build understands what is said to it.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// How long a killed process may take to be gone.
const BURIAL: Duration = Duration::from_secs(5);

/// A process, and the way to talk with it.
pub(in crate::agent) struct Link<S, R> {
    pub(in crate::agent) channel: Channel<S, R>,
    /// Taken over from an earlier agent.
    pub(in crate::agent) adopted: bool,
    /// Kept so that its end is noticed by the runtime, which buries it.
    _child: Option<Child>,
}

impl<S: Serialize, R: DeserializeOwned> Link<S, R> {
    /// To a process that another agent has started.
    pub(in crate::agent) fn adopted(stream: UnixStream) -> Self {
        Self { channel: Channel::new(stream), adopted: true, _child: None }
    }

    /// To a process that has just been started.
    pub(in crate::agent) fn started(stream: UnixStream, child: Child) -> Self {
        Self { channel: Channel::new(stream), adopted: false, _child: Some(child) }
    }
}

/// What a process is started with: more arguments, and descriptors from number 4 on.
pub(in crate::agent) struct Start {
    pub(in crate::agent) arguments: Vec<String>,
    pub(in crate::agent) descriptors: Vec<OwnedFd>,
    /// Where it is put before it is told anything; the agent's own, if none.
    pub(in crate::agent) cgroup: Option<PathBuf>,
}

/// What a process is started with; one that was started with other is replaced.
pub(in crate::agent) trait Settings: Serialize + DeserializeOwned + PartialEq {}

impl<T: Serialize + DeserializeOwned + PartialEq> Settings for T {}

/// Connects to a process that is there, or starts it with what `prepare` makes.
pub(in crate::agent) async fn obtain<S: Serialize, R: DeserializeOwned>(
    process: Process,
    place: &Place,
    settings: &impl Settings,
    prepare: impl AsyncFnOnce() -> Result<Start, String>,
) -> Result<Link<S, R>, String> {
    let socket = place.socket(process);
    if was_started_with(process, place, settings)
        && let Ok(stream) = UnixStream::connect(&socket).await
    {
        return Ok(Link::adopted(stream));
    }
    end(process, place).await.map_err(|error| error.to_string())?;
    place.make(process)?;
    let start = prepare().await?;
    let launched = launch(process, place, &socket, start);
    let child = launched.map_err(|error| format!("starting ferromesh {}: {error}", process.verb()))?;
    let note = serde_json::to_vec(settings).map_err(io::Error::other);
    note.and_then(|text| fs::write(place.started(process), text))
        .map_err(|error| format!("{}: {error}", place.started(process).display()))?;
    let stream = UnixStream::connect(&socket).await;
    let stream = stream.map_err(|error| format!("{}: {error}", socket.display()))?;
    Ok(Link::started(stream, child))
}

/// Starts a process that is told what to do at this socket.
pub(in crate::agent) fn launch(
    process: Process,
    place: &Place,
    socket: &Path,
    start: Start,
) -> io::Result<Child> {
    let (user, _) = process.owner().map_err(io::Error::other)?;
    let control = listen(socket)?;
    let mut command = Command::new(OWN_PROGRAM);
    command.arg0("ferromesh").arg(process.verb()).arg("--directory").arg(place.directory(process));
    command.arg("--user").arg(user.to_string()).args(start.arguments).env_clear();
    if let Some(filter) = std::env::var_os("RUST_LOG") {
        command.env("RUST_LOG", filter);
    }
    let log = File::options().create(true).append(true).mode(0o600).open(place.log(process))?;
    let descriptors: Vec<_> =
        std::iter::once(control.as_fd()).chain(start.descriptors.iter().map(AsFd::as_fd)).collect();
    linux::child::hand_over(&mut command, &descriptors, log).map_err(io::Error::other)?;
    let child = tokio::process::Command::from(command).spawn()?;
    if let (Some(cgroup), Some(pid)) = (start.cgroup, child.id()) {
        fs::write(cgroup.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(child)
}

/// The control socket, root's alone; the agent keeps no descriptor of it, so that nobody answers when the process ends.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let fresh = path.with_extension("sock.new");
    remove_file(&fresh)?;
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn was_started_with<T: Settings>(process: Process, place: &Place, settings: &T) -> bool {
    let text = fs::read(place.started(process)).unwrap_or_default();
    serde_json::from_slice::<T>(&text).is_ok_and(|started| started == *settings)
}

/// Those that run, of whichever agent.
pub(crate) fn running(process: Process, place: &Place) -> linux::Result<Vec<i32>> {
    let (user, _) = process.owner()?;
    let directory = place.directory(process);
    linux::child::with_arguments(&[process.verb(), "--directory", &directory.to_string_lossy()], user)
}

/// Kills it, if it runs, and returns when it is gone.
pub(crate) async fn end(process: Process, place: &Place) -> linux::Result<()> {
    end_those(process, place, |_| true).await
}

/// The same for one of several, by its process id; of another program that has the number by now nothing is ended.
pub(in crate::agent) async fn end_one(process: Process, place: &Place, pid: i32) -> linux::Result<()> {
    end_those(process, place, |running| running == pid).await
}

/// The same for those that are meant.
pub(in crate::agent) async fn end_those(
    process: Process,
    place: &Place,
    is_meant: impl Fn(i32) -> bool,
) -> linux::Result<()> {
    /// SIGKILL: what it keeps is safe at any time, and one that hangs ends too.
    const KILL: i32 = 9;
    let deadline = Instant::now() + BURIAL;
    loop {
        let mut left = running(process, place)?;
        left.retain(|pid| is_meant(*pid));
        for pid in &left {
            linux::process::send(*pid, KILL)?;
        }
        match left.first() {
            None => return Ok(()),
            Some(pid) if Instant::now() > deadline => {
                return Err(linux::Error::Unexpected {
                    object: format!("process {pid} (ferromesh {})", process.verb()),
                    found: "alive after SIGKILL".to_owned(),
                    expected: "its end; look for what it waits for in its /proc/PID/stack",
                });
            }
            Some(_) => sleep(Duration::from_millis(2)).await,
        }
    }
}

/// How long to wait before the next attempt.
pub(in crate::agent) struct Backoff {
    next: Duration,
    since: Instant,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LAST: Duration = Duration::from_secs(5);
    /// What went well for so long begins anew.
    const WELL: Duration = Duration::from_secs(10);

    pub(in crate::agent) fn new() -> Self {
        Self { next: Self::FIRST, since: Instant::now() }
    }

    /// After a failure.
    pub(in crate::agent) async fn wait(&mut self) {
        if self.since.elapsed() > Self::WELL {
            self.next = Self::FIRST;
        }
        sleep(self.next).await;
        self.next = (self.next * 2).min(Self::LAST);
        self.since = Instant::now();
    }
}
