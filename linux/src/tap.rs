//! TAP devices: Ethernet devices whose wire is a descriptor.
//!
//! Promise: the device is in the calling thread's network namespace and stays when its last descriptor is closed, until
//! it is deleted. A read gives one frame, a write takes one, nothing is put before it, and neither waits.

#![allow(unsafe_code, reason = "ioctl(2) takes the address of a request")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Context, Error, Result};

const DRIVER: &str = "/dev/net/tun";
/// Of `linux/if_tun.h`: `_IOW('T', 202, int)` and `_IOW('T', 203, int)`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;

/// One end of a TAP device: what the kernel sends on it is read here, what is written here it receives.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Opens the device of this name, and makes it if there is none. It is down when it is new. Another process that has
    /// it open is an error (`EBUSY`), as is a device of another kind by that name (`EINVAL`).
    pub fn open(name: &str) -> Result<Self> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/', '%', ' ']) {
            return Err(Error::Unexpected {
                object: "name of a TAP device".to_owned(),
                found: format!("{name:?}"),
                expected: "1 to 15 characters, none of them a blank, slash, percent or NUL",
            });
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DRIVER);
        let file = match file {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
                return Err(Error::Unsupported { what: "TAP devices", needs: "CONFIG_TUN and /dev/net/tun" });
            }
            file => file.context("open", DRIVER)?,
        };
        let mut request = request(name);
        // SAFETY: the kernel reads and writes one `ifreq`, which lives through the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })
            .context("open TAP device", name)?;
        let tap = Self { file, name: name.to_owned() };
        tap.persist(true)?;
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes the device.
    pub fn delete(self) -> Result<()> {
        self.persist(false)
    }

    fn persist(&self, yes: bool) -> Result<()> {
        // SAFETY: takes a number.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(yes)) })
            .context("set whether to keep TAP device", &self.name)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Tap> for OwnedFd {
    /// The descriptor, to be handed to another process. Closing it leaves the device.
    fn from(tap: Tap) -> Self {
        tap.file.into()
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    //! Need root: they make devices, in namespaces of their own.

    use std::io::{Read, Write};
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::netlink::{Link, Netlink};
    use crate::scratch;

    fn inside<T: Send>(work: impl AsyncFnOnce(&Netlink) -> T + Send) -> T {
        let scratch = scratch::Namespace::new("tap").unwrap();
        scratch.namespace().inside_async(|| async { work(&Netlink::open().unwrap()).await }).unwrap()
    }

    async fn link(netlink: &Netlink) -> Option<Link> {
        netlink.link("hold").await.unwrap()
    }

    #[test]
    fn it_outlives_its_descriptor_and_is_found_again_until_deleted() {
        inside(async |netlink| {
            let tap = Tap::open("hold").unwrap();
            assert_eq!(tap.name(), "hold");
            let made = link(netlink).await.unwrap();
            let busy = Tap::open("hold").unwrap_err();
            assert_eq!(busy.errno(), Some(libc::EBUSY), "{busy}");
            drop(OwnedFd::from(tap));
            assert_eq!(link(netlink).await.unwrap().index, made.index);
            let again = Tap::open("hold").unwrap();
            assert_eq!(link(netlink).await.unwrap().index, made.index);
            again.delete().unwrap();
            assert_eq!(link(netlink).await, None);
        });
    }

    #[test]
    fn a_name_that_is_none_is_refused_and_no_device_made() {
        for name in ["", "sixteen-letters-", "a%d", "a/b", "a b"] {
            let error = Tap::open(name).unwrap_err().to_string();
            assert!(error.contains("1 to 15 characters"), "{name}: {error}");
        }
        inside(async |_| {
            assert_eq!(Tap::open("lo").unwrap_err().errno(), Some(libc::EINVAL));
        });
    }

    #[test]
    fn frames_go_both_ways_as_they_are_and_nothing_waits() {
        inside(async |netlink| {
            let mut tap = Tap::open("hold").unwrap();
            let device = link(netlink).await.unwrap();
            netlink.disable_link_local(device.index).await.unwrap();
            netlink.add_address(device.index, "10.9.0.1/24".parse().unwrap()).await.unwrap();
            netlink.set_up(device.index, true).await.unwrap();
            netlink
                .add_neighbour(device.index, "10.9.0.2".parse().unwrap(), [2, 0, 0, 0, 0, 2])
                .await
                .unwrap();
            let socket = UdpSocket::bind("10.9.0.1:7000").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket.send_to(b"out", "10.9.0.2:9").unwrap();
            let mut frame = [0; 2048];
            // What else the kernel says of itself (IGMP) goes first.
            let sent = loop {
                let length = tap.file.read(&mut frame).unwrap();
                if frame[..length].ends_with(b"out") {
                    break frame[..length].to_vec();
                }
            };
            assert_eq!((&sent[..6], &sent[12..14]), (&[2, 0, 0, 0, 0, 2][..], &[8, 0][..]));

            // The same packet turned round: checksums are sums, so they hold.
            let mut back = sent.clone();
            back[..6].copy_from_slice(&sent[6..12]);
            back[26..30].copy_from_slice(&sent[30..34]);
            back[30..34].copy_from_slice(&sent[26..30]);
            back[34..36].copy_from_slice(&sent[36..38]);
            back[36..38].copy_from_slice(&sent[34..36]);
            // To the port that sent it.
            assert_eq!(back[36..38], 7000u16.to_be_bytes());
            assert_eq!(tap.file.write(&back).unwrap(), back.len());
            let mut received = [0; 8];
            let (length, from) = socket.recv_from(&mut received).unwrap();
            assert_eq!((&received[..length], from), (&b"out"[..], "10.9.0.2:9".parse().unwrap()));

            let empty = loop {
                if let Err(error) = tap.file.read(&mut frame) {
                    break error.kind();
                }
            };
            assert_eq!(empty, io::ErrorKind::WouldBlock);
        });
    }
}
