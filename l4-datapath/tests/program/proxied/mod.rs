//! Connections that go by way of the L7 proxy.

mod asked;
mod errors;
mod forged;
mod live;
mod relay;
mod rules;

use std::os::{fd::AsFd, unix::fs::MetadataExt as _};

use abi::{Node as NodeValue, RuleVerdict, map};
use aya::maps::{Array, SockMap};

use super::{
    frame::TCP,
    node::Node,
    world::{A, B, Ports},
};

/// The port whose requests the proxy judges.
const PORT: u16 = 80;

/// The number of the cgroup of this process, whose sockets are the proxy's.
fn own_cgroup() -> u64 {
    let lines = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = lines.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2");
    std::fs::metadata(linux::cgroup::hierarchy().unwrap().join(path)).unwrap().ino()
}

impl Node {
    /// Says whose sockets are the proxy's and how many workers listen, in a generation.
    fn set_proxy(&mut self, generation: u64, proxy: u64, listeners: u32) {
        let mut map: Array<_, NodeValue> = Array::try_from(self.bpf().map_mut(map::NODE).unwrap()).unwrap();
        let there = map.get(&0, 0).unwrap();
        map.set(0, NodeValue { generation, proxy, listeners, ..there }, 0).unwrap();
    }

    /// Puts a worker's listeners into their places.
    fn listen(&mut self, worker: u32, [ipv4, ipv6]: [&impl AsFd; 2]) {
        use std::os::fd::AsRawFd as _;
        let mut map = SockMap::try_from(self.bpf().map_mut(map::LISTENERS).unwrap()).unwrap();
        for (index, socket) in (worker * 2..).zip([ipv4, ipv6]) {
            map.set(index, &socket.as_fd().as_raw_fd(), 0).unwrap();
        }
    }

    /// Everybody may call everybody, but on [`PORT`] only by way of the proxy: so says the ingress of both pods.
    fn allow_by_proxy(&mut self) {
        for pod in [A, B] {
            self.allow(pod.egress, 0, Ports::All);
            self.allow(pod.ingress, 0, Ports::All);
            self.rule(pod.ingress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
        }
    }
}
