//! The hold device: packets that wait for a proof.
//!
//! Promise: a frame that is let go is written back as it was read, to the byte; number and bytes of those that wait are
//! bounded, and so is how many are read before others have their turn. Nothing in a frame is believed: its addresses say
//! who is to be proven, and whether it may pass is the kernel's to judge when it comes back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use abi::{HoldKind, HoldTag};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use crate::event::{Input, Packet};

/// Packets that can wait at once. The kernel bounds them by flow and source before.
const MAX_PACKETS: usize = 4096;
/// Bytes of them.
const MAX_BYTES: usize = 8 << 20;
/// Frames read in one turn.
const BATCH: usize = 64;
/// The longest frame: an Ethernet header and the longest IP packet.
const MAX_FRAME: usize = 14 + 65_575;
/// The device and what waits.
pub(super) struct Hold {
    device: AsyncFd<File>,
    waiting: BTreeMap<Packet, Box<[u8]>>,
    bytes: usize,
    next: u64,
    buffer: Vec<u8>,
    lost: u64,
}

impl Hold {
    /// Takes the device, whose descriptor must not block. Must be called within a runtime.
    pub(super) fn new(device: OwnedFd) -> io::Result<Self> {
        #[expect(deprecated, reason = "unsound only for types whose descriptor changes; a file's does not")]
        let device = AsyncFd::with_interest(File::from(device), Interest::READABLE)?;
        Ok(Self { device, waiting: BTreeMap::new(), bytes: 0, next: 0, buffer: vec![0; MAX_FRAME], lost: 0 })
    }

    /// Returns when there may be something to read. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.device.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Some of the packets that have come. An error means that there is no device any more.
    pub(super) fn read(&mut self) -> io::Result<Vec<Input>> {
        let mut inputs = Vec::new();
        for _ in 0..BATCH {
            let buffer = &mut self.buffer;
            let length = match self.device.try_io(Interest::READABLE, |mut file| file.read(buffer)) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            inputs.extend(self.take(length));
        }
        Ok(inputs)
    }

    fn take(&mut self, length: usize) -> Option<Input> {
        let frame = self.buffer.get(..length)?;
        // What the kernel says on a device of its own accord (neighbour discovery) has no tag.
        let (kind, source, destination) = addresses(frame)?;
        if self.waiting.len() >= MAX_PACKETS || self.bytes + length > MAX_BYTES {
            // Back at once: the kernel drops it, and reports that it did.
            self.lost += 1;
            if let Err(error) = self.device.get_ref().write(frame) {
                debug!(%error, "hold device: a packet cannot go back");
            }
            return None;
        }
        let packet = Packet(self.next);
        self.next += 1;
        self.bytes += length;
        self.waiting.insert(packet, frame.into());
        Some(Input::Held { packet, kind, source, destination })
    }

    /// Writes a packet back: whether it may go on, the kernel judges.
    pub(super) fn release(&mut self, packet: Packet) {
        let Some(frame) = self.forget(packet) else { return };
        if let Err(error) = self.device.get_ref().write(&frame) {
            debug!(%error, "hold device: a packet cannot go on");
            self.lost += 1;
        }
    }

    /// Loses a packet.
    pub(super) fn lose(&mut self, packet: Packet) {
        self.forget(packet);
    }

    fn forget(&mut self, packet: Packet) -> Option<Box<[u8]>> {
        let frame = self.waiting.remove(&packet)?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// Packets that did not wait although they had to: too many, or the device would not take them back.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

/// What a frame waits for, its source and its destination; none if it is not one of ours.
fn addresses(frame: &[u8]) -> Option<(HoldKind, IpAddr, IpAddr)> {
    let (mac, rest) = frame.split_first_chunk::<6>()?;
    let kind = HoldTag::from_mac(*mac)?.kind;
    let (ethertype, packet) = rest.get(6..)?.split_first_chunk::<2>()?;
    let (source, destination) = match (u16::from_be_bytes(*ethertype), packet.first()? >> 4) {
        (0x0800, 4) => {
            let [source, destination] = [12, 16].map(|at| packet.get(at..)?.first_chunk::<4>());
            (Ipv4Addr::from(*source?).into(), Ipv4Addr::from(*destination?).into())
        }
        (0x86dd, 6) => {
            let [source, destination] = [8, 24].map(|at| packet.get(at..)?.first_chunk::<16>());
            (Ipv6Addr::from(*source?).into(), Ipv6Addr::from(*destination?).into())
        }
        _ => return None,
    };
    Some((kind, source, destination))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const TAG: HoldTag = HoldTag { id: 77, kind: HoldKind::Ingress };

    fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
        [&TAG.to_mac()[..], &[2, 0, 0, 0, 0, 9], &ethertype.to_be_bytes(), packet].concat()
    }

    fn ipv4(payload: &[u8]) -> Vec<u8> {
        let header = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        frame(0x0800, &[&header, payload].concat())
    }

    /// A pair of datagram sockets stands for the device: both keep frames apart.
    fn device() -> (Hold, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        (Hold::new(near.into()).unwrap(), far)
    }

    fn packet(input: &Input) -> Packet {
        match input {
            Input::Held { packet, .. } => *packet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_are_read_of_both_families_and_of_nothing_else() {
        let ipv6 = frame(0x86dd, &[&[0x60; 8][..], &[1; 16], &[2; 16]].concat());
        let of = |address: [u8; 16]| IpAddr::from(address);
        assert_eq!(addresses(&ipv6), Some((HoldKind::Ingress, of([1; 16]), of([2; 16]))));
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(addresses(&ipv4(b"")), Some((HoldKind::Ingress, v4("10.0.0.1"), v4("10.0.0.2"))));
        for length in 0..ipv4(b"").len() {
            assert_eq!(addresses(&ipv4(b"")[..length]), None, "cut after {length}");
        }
        let others = [frame(0x0806, &[0x45; 40]), frame(0x0800, &[0x60; 40]), vec![0xff; 60], vec![0x06; 60]];
        for other in others {
            assert_eq!(addresses(&other), None, "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_frame_comes_back_as_it_was_once_or_not_at_all() {
        let (mut hold, far) = device();
        let sent = [ipv4(b"first"), ipv4(b"second")];
        for frame in &sent {
            far.send(frame).unwrap();
        }
        hold.readable().await.unwrap();
        let held: Vec<_> = hold.read().unwrap().iter().map(packet).collect();
        assert_eq!(held.len(), 2);
        hold.lose(held[0]);
        hold.release(held[0]);
        hold.release(held[1]);
        hold.release(held[1]);
        let mut buffer = [0; 256];
        let length = far.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], sent[1]);
        assert_eq!(far.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!((hold.lost(), hold.bytes, hold.waiting.len()), (0, 0, 0));
        far.send(&sent[0]).unwrap();
        hold.readable().await.unwrap();
        let held = packet(&hold.read().unwrap()[0]);
        drop(far);
        hold.release(held);
        assert_eq!(hold.lost(), 1);
    }

    #[tokio::test]
    async fn a_flood_is_read_in_turns_and_bounded() {
        let (mut hold, far) = device();
        let mut most = 0;
        for _ in 0..=MAX_PACKETS {
            far.send(&ipv4(b"")).unwrap();
            hold.readable().await.unwrap();
            most = most.max(hold.read().unwrap().len());
        }
        assert!(most <= BATCH);
        assert_eq!((hold.waiting.len(), hold.lost), (MAX_PACKETS, 1));
        let mut back = [0; 256];
        let length = far.recv(&mut back).unwrap();
        assert_eq!(back[..length], ipv4(b""), "who comes too late goes back to be refused");
        assert_eq!(far.recv(&mut back).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        hold.lose(Packet(5));
        far.send(&ipv4(b"")).unwrap();
        hold.readable().await.unwrap();
        assert_eq!(hold.read().unwrap().len(), 1, "there is room again");
    }
}
