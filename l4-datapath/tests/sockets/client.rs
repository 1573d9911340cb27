//! A process in the cgroup that makes sockets and hands them over: a socket is of the cgroup it was made in, for good.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use linux::cgroup::Cgroup;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socket,
};
use parking_lot::{Mutex, MutexGuard};

/// Says to this binary, started again, that it is the process.
const ROLE: &str = "FERROMESH_TEST_SOCKETS";

/// A kind of socket, as the request for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Tcp4 = 1,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Udp4, Self::Udp6];

    /// A socket of the calling process.
    pub(crate) fn make(self) -> OwnedFd {
        let (family, kind) = match self {
            Self::Tcp4 => (AddressFamily::Inet, SockType::Stream),
            Self::Tcp6 => (AddressFamily::Inet6, SockType::Stream),
            Self::Udp4 => (AddressFamily::Inet, SockType::Datagram),
            Self::Udp6 => (AddressFamily::Inet6, SockType::Datagram),
        };
        socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
    }
}

/// While a process starts it has a copy of every descriptor of this one, which keeps locks and mounts busy.
static STARTING: Mutex<()> = Mutex::new(());

/// Waits until no process is starting: then what this one has closed is closed.
pub(crate) fn settle() -> MutexGuard<'static, ()> {
    STARTING.lock()
}

/// The process. It ends with this value.
pub(crate) struct Client {
    process: Child,
    channel: UnixStream,
}

impl Client {
    /// Starts it in the calling thread's network namespace.
    pub(crate) fn start(cgroup: &Path) -> Self {
        let (channel, theirs) = UnixStream::pair().unwrap();
        let starting = settle();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["client::the_process", "--exact", "--ignored"])
            .env(ROLE, "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        drop(starting);
        Cgroup::open(cgroup).unwrap().add(process.id()).unwrap();
        Self { process, channel }
    }

    /// A new socket, which nobody else has.
    pub(crate) fn socket(&self, kind: Kind) -> OwnedFd {
        (&self.channel).write_all(&[kind as u8]).unwrap();
        let mut answer = [0];
        let mut space = nix::cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut answer)];
        let fd = self.channel.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let descriptor = message.cmsgs().unwrap().find_map(|part| match part {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let descriptor = descriptor.expect("a socket");
        // The process says so when it has closed its own descriptor: then the socket ends with ours.
        (&self.channel).read_exact(&mut [0]).unwrap();
        // SAFETY: the kernel has just made this descriptor for us.
        unsafe { OwnedFd::from_raw_fd(descriptor) }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process itself: makes sockets until nobody asks any more.
#[test]
#[ignore = "the other tests start it"]
fn the_process() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    // SAFETY: standard input is the channel, and nothing else here uses it.
    let mut channel = unsafe { UnixStream::from_raw_fd(0) };
    let mut request = [0];
    while channel.read_exact(&mut request).is_ok() {
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == request[0]).expect("a kind");
        let socket = kind.make();
        let rights = [socket.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(b".")], &message, MsgFlags::empty(), None).unwrap();
        drop(socket);
        channel.write_all(b".").unwrap();
    }
}
