//! The L7 proxy as the kernel knows it: who listens, whose sockets are the proxy's, and the way to it.
//!
//! Promise: the programs see a proxy only while all of its listeners are in their places; without one, what policy lets
//! pass by way of the proxy is dropped. The listeners leave the map by themselves when their last descriptor is closed, the
//! rule for marked packets stays until it is taken back: it says nothing about packets that no program has marked.

use std::os::fd::BorrowedFd;

use linux::netlink::{Marked, Netlink};

use crate::{Datapath, Error};

/// Marked packets are for this node.
const TO_PROXY: Marked = Marked { mark: abi::MARK_TO_PROXY, mask: 0x0f00, table: 20_700, priority: 100 };

impl Datapath {
    /// Sends what needs the proxy to these sockets, IPv4 and IPv6 of each worker. They listen, are transparent
    /// (`IP_TRANSPARENT`), without `SO_REUSEPORT`, and were made by a process in the cgroup with this number (inode of its
    /// directory), in which the proxy runs: by that alone the programs know the proxy's packets, those of connections that
    /// it accepts too. Call [`add_route`] before.
    ///
    /// # Errors
    /// More than 64 workers, a socket that does not listen, or what the kernel refused: then there is no proxy.
    pub fn proxy_ready(&mut self, workers: &[[BorrowedFd<'_>; 2]], cgroup: u64) -> Result<(), Error> {
        let sockets = workers.as_flattened();
        let placed = (0..).zip(sockets).try_for_each(|(index, socket)| self.listeners.set(index, *socket));
        if let Err(error) = placed {
            self.proxy_gone()?;
            return Err(error.into());
        }
        self.kernel.set_proxy(cgroup, workers.len() as u32);
        (sockets.len() as u32..abi::LISTENERS).try_for_each(|index| Ok(self.listeners.clear(index)?))
    }

    /// There is no proxy: connections that need one wait, or are reset where they have none any more. What it sends passes
    /// on as part of connections that are there.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn proxy_gone(&mut self) -> Result<(), Error> {
        self.kernel.set_listeners(0);
        (0..abi::LISTENERS).try_for_each(|index| Ok(self.listeners.clear(index)?))
    }
}

/// Leads to this node what the programs have marked for the proxy, in the calling thread's network namespace. There already
/// is fine.
///
/// # Errors
/// What the kernel refused; loopback that is down, for one.
pub async fn add_route() -> linux::Result<()> {
    Netlink::open()?.add_marked(TO_PROXY).await
}

/// Takes that back; a line for what was there.
///
/// # Errors
/// What the kernel refused. Calling it again continues.
pub async fn remove_route() -> linux::Result<Option<String>> {
    Ok(Netlink::open()?.delete_marked(TO_PROXY).await?.then(line))
}

/// A line if the rule is there.
///
/// # Errors
/// The kernel's rules cannot be listed.
pub async fn leftover_route() -> linux::Result<Option<String>> {
    Ok(Netlink::open()?.has_marked(TO_PROXY).await?.then(line))
}

fn line() -> String {
    format!("routing rule for packets with mark {:#06x}, table {}", TO_PROXY.mark, TO_PROXY.table)
}
