//! Real sockets, real veths, a real TAP and its reader: what a test run cannot show (checksums left to the device, where
//! a released packet goes, whose it is for the hooks behind).

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::{
    frame::is_sound,
    live::{PATIENCE, Shell, drop_reasons, ip, stay_on_this_cpu},
    masquerade::live::workload_and_peer,
    service::vip,
};

const DEVICE: &str = "hold0";

/// The reader of the hold device, as the auth-agent is one.
struct Reader(File);

impl Reader {
    /// Makes the device or finds it again; it stays when the reader is gone.
    fn open() -> Self {
        /// Of `linux/if_tun.h`.
        const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
        const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
        // SAFETY: all zeros is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
            *place = byte.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        let deadline = Instant::now() + PATIENCE;
        // SAFETY: takes an `ifreq`, which lives through the call.
        while unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
            // A child that another test starts may hold an earlier reader's end until it executes its program.
            let error = std::io::Error::last_os_error();
            assert!(error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline, "{error}");
            thread::yield_now();
        }
        // SAFETY: takes a number.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, 1) }, 0);
        Self(file)
    }

    /// Whether something is there to be read before long.
    fn is_ready(&self, milliseconds: u16) -> bool {
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::from(milliseconds)).unwrap()
            == 1
    }

    /// The next packet that waits; what the node's own kernel says on the device is none.
    fn next(&mut self) -> Vec<u8> {
        loop {
            assert!(self.is_ready(5000), "a packet waits");
            let mut frame = vec![0; abi::HOLD_LENGTH as usize];
            let length = self.0.read(&mut frame).unwrap();
            frame.truncate(length);
            if HoldTag::from_mac(frame[..6].try_into().unwrap()).is_some() {
                return frame;
            }
        }
    }

    /// Takes away what else is there.
    fn drain(&mut self) {
        while self.is_ready(0) {
            let _ = self.0.read(&mut [0; 1 << 14]).unwrap();
        }
    }

    fn release(&mut self, frame: &[u8]) {
        assert_eq!(self.0.write(frame).unwrap(), frame.len());
    }
}

/// A workload, somebody beyond of whom nothing is known yet, and the hold.
fn scene() -> (Node, Shell, Shell, Reader) {
    let mut node = waiting_node();
    // Nobody is masqueraded.
    node.put(map::DEVICES, NIC, abi::Device::default());
    let (a, mut beyond) = workload_and_peer(&mut node);
    for family in FAMILIES {
        node.identify(family.outside(), 128, abi::ReservedIdentity::HOST);
        let length = if family == Family::V4 { 32 } else { 128 };
        let (pod, own) = (family.pool(A.host), family.outside());
        assert!(beyond.run(&format!("ip route add {pod}/{length} via {own}")));
    }
    let reader = Reader::open();
    let program: &mut SchedClassifier = node.bpf().program_mut("from_hold").unwrap().try_into().unwrap();
    program
        .attach_with_options(DEVICE, TcAttachType::Ingress, TcAttachOptions::TcxOrder(LinkOrder::default()))
        .expect("tcx, kernel 6.6");
    ip(&["link", "set", DEVICE, "addrgenmode", "none", "up"]);
    node.set_hold(nix::net::if_::if_nametoindex(DEVICE).unwrap());
    (node, a, beyond, reader)
}

/// Both ends of the packets of a hook: where it is sent from, and to.
fn ends(hook: Hook, family: Family) -> (SocketAddr, SocketAddr) {
    let (source, destination) = hook.ends(family).addresses;
    ((source, 4000).into(), (destination, 8080).into())
}

/// Whose they are.
fn shells<'a>(hook: Hook, a: &'a Shell, beyond: &'a Shell) -> (&'a Shell, &'a Shell) {
    if hook == Hook::FromPod { (a, beyond) } else { (beyond, a) }
}

fn receiver(shell: &Shell, address: SocketAddr) -> UdpSocket {
    let socket = shell.inside(|| UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn a_connection_opens_once_its_first_packet_is_released() {
    let (mut node, a, beyond, mut reader) = scene();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        node.pend(true);
        let (client, server) = shells(hook, &a, &beyond);
        let (_, address) = ends(hook, family);
        let listener = server.inside(|| TcpListener::bind(address).unwrap());
        let said = thread::scope(|scope| {
            let calling = scope.spawn(|| {
                client.inside(|| {
                    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
                    stream.write_all(b"hello").unwrap();
                })
            });
            let frame = reader.next();
            assert!(is_sound(hook.ends(family), &frame), "its checksum is complete");
            node.pend(false);
            reader.release(&frame);
            let ready =
                poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000_u16));
            assert_eq!(ready, Ok(1), "{family:?} {hook:?}: it never arrived");
            let (mut stream, _) = listener.accept().unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            calling.join().unwrap();
            said
        });
        assert_eq!(said, "hello", "{family:?} {hook:?}");
    }
    assert_eq!(drop_reasons(&node), []);
    let [held, released] = node.hold_counts();
    assert!(held >= 4 && released == 4, "{held} {released}");
}

#[test]
fn eight_datagrams_of_a_flow_wait_and_arrive_in_their_order() {
    stay_on_this_cpu();
    let (mut node, a, beyond, mut reader) = scene();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        let (client, server) = shells(hook, &a, &beyond);
        let (from, to) = ends(hook, family);
        // A machine may keep this test waiting for longer than packets wait; then they are rightly lost. Another flow then.
        let in_time = (from.port()..from.port() + 100).any(|port| {
            let from = SocketAddr::new(from.ip(), port);
            let sockets = (receiver(client, from), receiver(server, to));
            node.pend(true);
            let (full, begin) = (hold_full(&node), Instant::now());
            for number in 0..20 {
                sockets.0.send_to(&[number; 30], to).unwrap();
            }
            let frames: Vec<_> = (0..8).map(|_| reader.next()).collect();
            assert!(frames.iter().all(|frame| is_sound(hook.ends(family), frame)));
            node.pend(false);
            for frame in &frames {
                reader.release(frame);
            }
            let in_time = begin.elapsed() < Duration::from_nanos(abi::HOLD_TIME);
            if in_time {
                assert_eq!(hold_full(&node) - full, 12, "what finds no room is lost");
                arrived(&sockets, to, from, hook);
            }
            reader.drain();
            in_time
        });
        assert!(in_time, "{family:?} {hook:?}");
    }
    let late = [DropReason::HoldFull, DropReason::HoldForged];
    assert!(drop_reasons(&node).iter().all(|reason| late.contains(reason)), "{:?}", drop_reasons(&node));
}

/// The eight, in their order, and then what is sent after them.
fn arrived((sender, receiver): &(UdpSocket, UdpSocket), to: SocketAddr, from: SocketAddr, hook: Hook) {
    sender.send_to(b"the last", to).unwrap();
    let mut bytes = [0; 64];
    for number in 0..8 {
        let (length, source) = receiver.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], source), (&[number; 30][..], from), "{hook:?}");
    }
    let length = receiver.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"the last", "{hook:?}");
}

/// Packets that found no room.
fn hold_full(node: &Node) -> u64 {
    let drops = node.drops();
    let full = drops.iter().filter(|((_, reason, _), _)| *reason == DropReason::HoldFull as u8);
    full.map(|(_, count)| count).sum()
}

#[test]
fn a_released_packet_whose_peer_is_still_unknown_is_dropped() {
    let (mut node, a, beyond, mut reader) = scene();
    for hook in HOOKS {
        let (client, _) = shells(hook, &a, &beyond);
        let (from, to) = ends(hook, Family::V4);
        receiver(client, from).send_to(b"too early", to).unwrap();
        let frame = reader.next();
        node.events();
        reader.release(&frame);
        let event = node.wait_for_event(PATIENCE);
        assert_eq!((event.kind, event.reason), (EventKind::Drop as u8, DropReason::PendingAddress as u8));
        assert_eq!((event.ifindex, event.direction), (A.ifindex, hook.direction() as u8));
        // Once more: it has come back already.
        reader.release(&frame);
        let event = node.wait_for_event(PATIENCE);
        assert_eq!(event.reason, DropReason::HoldForged as u8);
        assert_eq!((event.source, event.destination), (address(from.ip()), address(to.ip())));
    }
}

#[test]
fn nothing_passes_while_nobody_reads() {
    let (mut node, a, beyond, reader) = scene();
    drop(reader);
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        node.pend(true);
        let (client, server) = shells(hook, &a, &beyond);
        let (from, to) = ends(hook, family);
        let (sender, receiver) = (receiver(client, from), receiver(server, to));
        sender.send_to(b"lost", to).unwrap();
        node.pend(false);
        sender.send_to(b"later", to).unwrap();
        let mut bytes = [0; 16];
        let length = receiver.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"later");
    }
    assert_eq!((drop_reasons(&node), node.hold_counts()), (vec![], [4, 0]));
    // The next reader finds the device again, and nothing of it.
    assert!(!Reader::open().is_ready(0));
}

/// The device keeps its own MTU: nothing is sent by it, only put there.
#[test]
fn jumbo_frames_wait_and_longer_ones_do_not() {
    let (mut node, mut a, mut beyond, mut reader) = scene();
    for device in ["host1", "nic"] {
        ip(&["link", "set", device, "mtu", "9300"]);
    }
    assert!(a.run("ip link set pod1 mtu 9300") && beyond.run("ip link set wire mtu 9300"));
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        node.pend(true);
        let (client, server) = shells(hook, &a, &beyond);
        let (from, to) = ends(hook, family);
        let (sender, receiver) = (receiver(client, from), receiver(server, to));
        let sent: Vec<u8> = (0..8900_u32).map(|n| (n / 7) as u8).collect();
        sender.send_to(&sent, to).unwrap();
        let frame = reader.next();
        let mut changed = frame.clone();
        *changed.last_mut().unwrap() ^= 1;
        reader.release(&changed);
        node.pend(false);
        reader.release(&frame);
        let mut bytes = vec![0; 10_000];
        let length = receiver.recv(&mut bytes).unwrap();
        assert!(bytes[..length] == sent, "{family:?} {hook:?}: {length}");
        node.pend(true);
        node.events();
        node.forget_connections(family);
        sender.send_to(&[1; 9210], to).unwrap();
        let event = node.wait_for_event(PATIENCE);
        assert_eq!((event.reason, event.length > abi::HOLD_LENGTH), (DropReason::PendingAddress as u8, true));
    }
    let forged = drop_reasons(&node);
    assert!(forged.contains(&DropReason::HoldForged));
}

/// The client's kernel left the checksum to the device, for the VIP; the device completes it while the backend shows.
#[test]
fn a_call_to_a_vip_reaches_the_backend_and_is_answered() {
    let (mut node, a, beyond, mut reader) = scene();
    for (n, family) in (1..).zip(FAMILIES) {
        node.serve(n, (vip(family), 80, UDP), &[(n, family.peer(), 8080)], 0);
        let server = receiver(&beyond, (family.peer(), 8080).into());
        let client = receiver(&a, (family.pool(A.host), 4000).into());
        client.send_to(b"question", (vip(family), 80)).unwrap();
        let frame = reader.next();
        node.pend(false);
        reader.release(&frame);
        let mut bytes = [0; 16];
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], from), (&b"question"[..], client.local_addr().unwrap()));
        server.send_to(b"answer", from).unwrap();
        let (length, from) = client.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], from), (&b"answer"[..], (vip(family), 80).into()));
        node.pend(true);
    }
    assert_eq!(drop_reasons(&node), []);
}
