//! Who may be connected at one time.
//!
//! Promise: strangers never keep a node out: who comes when there is no room pushes out the oldest connection that has
//! not shown a node's certificate, of his own address if he has too many himself.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::task::AbortHandle;
use tracing::debug;

use super::Server;

/// Connections at one time.
const MAX_CONNECTIONS: usize = 256;
/// Of those, from one address.
const MAX_PER_ADDRESS: usize = 64;

/// Those that are taken, the oldest first.
#[derive(Default)]
pub(super) struct Slots {
    number: u64,
    taken: Vec<Taken>,
}

struct Taken {
    number: u64,
    address: IpAddr,
    /// Its other end has shown a node's certificate.
    is_known: bool,
    task: AbortHandle,
}

impl Slots {
    /// Begins a connection, if need be in the place of another; false: every one that there is is a node's.
    pub(super) fn take(&mut self, address: IpAddr, begin: impl FnOnce(u64) -> AbortHandle) -> bool {
        if !self.make_room(address) {
            return false;
        }
        self.number += 1;
        let number = self.number;
        self.taken.push(Taken { number, address, is_known: false, task: begin(number) });
        true
    }

    fn make_room(&mut self, address: IpAddr) -> bool {
        let own = self.taken.iter().filter(|taken| taken.address == address).count();
        let is_crowd = own >= MAX_PER_ADDRESS;
        if !is_crowd && self.taken.len() < MAX_CONNECTIONS {
            return true;
        }
        let oldest =
            self.taken.iter().position(|taken| !taken.is_known && (!is_crowd || taken.address == address));
        let Some(oldest) = oldest else { return false };
        let evicted = self.taken.remove(oldest);
        debug!(address = %evicted.address, "pushed out before it showed a certificate");
        evicted.task.abort();
        true
    }
}

/// The right to one connection; given back when it is dropped.
pub(super) struct Slot {
    pub(super) server: Arc<Server>,
    pub(super) number: u64,
}

impl Slot {
    /// Its other end has shown a node's certificate.
    pub(super) fn is_known(&self) {
        let mut state = self.server.state.lock();
        if let Some(taken) = state.slots.taken.iter_mut().find(|taken| taken.number == self.number) {
            taken.is_known = true;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.server.state.lock().slots.taken.retain(|taken| taken.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::task::JoinHandle;

    use super::*;

    /// Connections that do nothing, by number.
    #[derive(Default)]
    struct Scene {
        slots: Slots,
        tasks: BTreeMap<u64, JoinHandle<()>>,
    }

    impl Scene {
        fn take(&mut self, last: u8) -> Option<u64> {
            let address = IpAddr::from([10, 0, 0, last]);
            let tasks = &mut self.tasks;
            let taken = self.slots.take(address, |number| {
                let task = tokio::spawn(std::future::pending());
                let handle = task.abort_handle();
                tasks.insert(number, task);
                handle
            });
            taken.then_some(self.slots.number)
        }

        async fn is_pushed_out(&mut self, number: u64) -> bool {
            let is_there = self.slots.taken.iter().any(|taken| taken.number == number);
            !is_there && self.tasks.remove(&number).unwrap().await.unwrap_err().is_cancelled()
        }
    }

    #[tokio::test]
    async fn who_comes_when_all_is_full_pushes_out_the_oldest_stranger_and_no_node() {
        let mut scene = Scene::default();
        for number in 0..MAX_CONNECTIONS {
            scene.take(1 + (number / MAX_PER_ADDRESS) as u8).unwrap();
        }
        // The two oldest have shown who they are.
        for taken in &mut scene.slots.taken[..2] {
            taken.is_known = true;
        }
        scene.take(100).unwrap();
        assert!(scene.is_pushed_out(3).await);
        scene.take(4).unwrap();
        let first_of_four = 3 * MAX_PER_ADDRESS as u64 + 1;
        assert!(scene.is_pushed_out(first_of_four).await, "a crowd pushes out its own");
        assert_eq!(scene.slots.taken.len(), MAX_CONNECTIONS);
        for taken in &mut scene.slots.taken {
            taken.is_known = true;
        }
        assert_eq!(scene.take(100), None);
    }
}
