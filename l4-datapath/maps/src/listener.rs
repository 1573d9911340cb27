//! `LISTENERS`: the listening sockets of the L7 proxy.

use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::{Map, MapData, MapError, SockMap};

use crate::Error;

/// `LISTENERS`: worker × 2, plus 1 for IPv6 → socket. Written by the agent; read by `from_pod`.
pub struct Listeners(SockMap<MapData>);

impl Listeners {
    const MAP: &str = abi::map::LISTENERS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        SockMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Puts a listening socket into its place.
    pub fn set(&mut self, index: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.0.set(index, &socket.as_raw_fd(), 0).map_err(Error::of(Self::MAP, "writing a listener"))
    }

    /// Takes out whatever is there.
    pub fn clear(&mut self, index: u32) -> Result<(), Error> {
        match self.0.clear_index(&index) {
            // What a sockmap says of an empty place.
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(())
            }
            other => crate::absent_is_fine(other).map_err(Error::of(Self::MAP, "removing a listener")),
        }
    }
}
