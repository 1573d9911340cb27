//! Putting the programs of socket load balancing on a cgroup, for every socket made in it or below.
//!
//! Promise: a program that is there is replaced in one step (`BPF_LINK_UPDATE`), so no call passes untranslated; when the
//! cgroup changes, the new one has its program before the old one loses it (a call that meets both is translated once:
//! a backend is no VIP). The kernel keeps what is attached when the agent dies. Programs of others on the same cgroups are
//! left alone; all of them run, and any may refuse.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::{Program, ProgramError};
use linux::cgroup::Cgroup;

use crate::attach::remove_link;
use crate::pins::Pins;
use crate::{Error, probe, sys};

/// A hook: name of its program in the object, and `enum bpf_attach_type`.
pub(crate) struct SocketHook {
    pub(crate) program: &'static str,
    pub(crate) attach_type: u32,
}

/// The hook that a kernel may lack, and whose program changes no call.
pub(crate) const TIMER: &str = "sock_ops";

/// Every hook, in the order of attaching: a socket is given a backend only once it can be told what it called.
pub(crate) const HOOKS: [SocketHook; 12] = [
    SocketHook { program: "post_bind4", attach_type: 12 },
    SocketHook { program: "post_bind6", attach_type: 13 },
    SocketHook { program: "sock_release", attach_type: 34 },
    SocketHook { program: "getpeername4", attach_type: 29 },
    SocketHook { program: "getpeername6", attach_type: 30 },
    SocketHook { program: "recvmsg4", attach_type: 19 },
    SocketHook { program: "recvmsg6", attach_type: 20 },
    SocketHook { program: "sendmsg4", attach_type: 14 },
    SocketHook { program: "sendmsg6", attach_type: 15 },
    SocketHook { program: "connect4", attach_type: 10 },
    SocketHook { program: "connect6", attach_type: 11 },
    SocketHook { program: TIMER, attach_type: 3 },
];

impl SocketHook {
    /// Pin of the link. No interface's pin is called so: those end in the name of a program for interfaces.
    pub(crate) fn pin(&self, links: &Path) -> PathBuf {
        links.join(format!("cgroup-{}", self.program))
    }

    /// Pin of the link to another cgroup, until the first link has gone.
    fn next_pin(&self, links: &Path) -> PathBuf {
        links.join(format!("cgroup-{}-next", self.program))
    }

    fn failed<E: std::error::Error>(&self, operation: &str, on: &Path) -> impl FnOnce(E) -> Error + use<E> {
        Error::program(self.program, format!("{operation} cgroup {}", on.display()))
    }
}

/// Loads the programs that this kernel can have.
pub(crate) fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    let has_timer = probe::syn_timer();
    for hook in HOOKS.into_iter().filter(|hook| has_timer || hook.program != TIMER) {
        let loaded = match program(ebpf, &hook)? {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SockOps(program) => program.load(),
            _ => return Err(Error::Object(hook.program)),
        };
        loaded.map_err(Error::program(hook.program, "loading"))?;
    }
    Ok(())
}

/// Puts every program on the cgroup, replacing what an earlier agent put there, and takes them off any other.
pub(crate) fn attach(ebpf: &mut Ebpf, pins: &Pins, path: &Path) -> Result<(), Error> {
    let cgroup = Target::open(path)?;
    for hook in &HOOKS {
        let program = program(ebpf, hook)?;
        if program.fd().is_ok() || hook.program != TIMER {
            attach_hook(program, &pins.links(), &cgroup, hook)?;
        }
    }
    Ok(())
}

/// A cgroup to attach to.
struct Target<'a> {
    path: &'a Path,
    cgroup: Cgroup,
    /// As a link names it.
    number: u64,
}

impl<'a> Target<'a> {
    fn open(path: &'a Path) -> Result<Self, Error> {
        let cgroup = Cgroup::open(path)
            .map_err(|error| Error::path(path, "opening the cgroup for services")(io::Error::other(error)))?;
        let number = fs::metadata(path).map_err(Error::path(path, "inspecting the cgroup"))?.ino();
        Ok(Self { path, cgroup, number })
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, hook: &SocketHook) -> Result<&'a mut Program, Error> {
    ebpf.program_mut(hook.program).ok_or(Error::Object(hook.program))
}

fn descriptor(program: &Program) -> Result<BorrowedFd<'_>, ProgramError> {
    program.fd().map(AsFd::as_fd)
}

fn attach_hook(program: &Program, links: &Path, target: &Target<'_>, hook: &SocketHook) -> Result<(), Error> {
    let program = descriptor(program).map_err(hook.failed("attaching to", target.path))?;
    let (pin, next) = (hook.pin(links), hook.next_pin(links));
    if replace(&pin, program, target, hook)? {
        return remove_link(&next);
    }
    // An earlier agent may have come as far as this; it died before it could take the old link away.
    if !replace(&next, program, target, hook)? {
        remove_link(&next)?;
        let link = sys::link_to_cgroup(program, target.cgroup.as_fd(), hook.attach_type)
            .map_err(hook.failed("attaching to", target.path))?;
        sys::pin(link.as_fd(), &next).map_err(Error::path(&next, "pinning the link"))?;
    }
    remove_link(&pin)?;
    fs::rename(&next, &pin).map_err(Error::path(&next, "renaming"))
}

/// Puts the program in the place of a pinned link's, if that is there and of this cgroup.
fn replace(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: &Target<'_>,
    hook: &SocketHook,
) -> Result<bool, Error> {
    let link = match sys::pinned(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        link => link.map_err(Error::path(pin, "opening the pinned link"))?,
    };
    let found = sys::cgroup_link(link.as_fd()).map_err(Error::path(pin, "reading the pinned link"))?;
    if found.cgroup != target.number {
        return Ok(false);
    }
    sys::update_link(link.as_fd(), program).map_err(hook.failed("replacing on", target.path))?;
    Ok(true)
}
