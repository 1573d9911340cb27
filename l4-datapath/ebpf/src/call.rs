//! What `connect` and `sendmsg` share: a socket calls a VIP, and a backend takes its place.

use abi::{AffinityKey, Called, Frontend, SocketKey};

use crate::{
    balance::{self, Call, Choice},
    maps::SOCKETS,
    socket::{PROCEED, Socket},
};

/// The verdict on a call to the socket's address. `entropy` is asked only when a VIP is called.
#[inline(always)]
pub(crate) fn call(socket: Socket, entropy: impl FnOnce(&Frontend, u64) -> u32) -> i32 {
    let Some(protocol) = socket.protocol() else { return PROCEED };
    let address = socket.address();
    if !balance::is_vip(&address) {
        return PROCEED;
    }
    let cookie = socket.cookie();
    let frontend = Frontend { address, port: socket.port(), protocol, scope: 0 };
    let entropy = entropy(&frontend, cookie);
    let call = Call { frontend, entropy, client: AffinityKey::namespace(socket.namespace()) };
    let mut choice = Choice::NONE;
    if !balance::choose(&call, &mut choice) {
        return socket.refuse();
    }
    let backend = &choice.backend;
    let key = SocketKey { cookie, address: backend.address, port: backend.port, protocol, zero: [0; 5] };
    remember(&key, &Called { frontend: call.frontend, service: choice.service });
    if socket.set(&backend.address, backend.port) { PROCEED } else { socket.refuse() }
}

/// Notes what was called. A datagram socket calls again and again: an entry that says so already is left alone.
#[inline(always)]
fn remember(key: &SocketKey, called: &Called) {
    // SAFETY: LRU may recycle the element under us: then it differs, or an entry is missed and shows the backend.
    if unsafe { SOCKETS.get(key) } != Some(called) {
        // Refused only in want of memory: then the owner sees the backend, nothing worse.
        let _ = SOCKETS.insert(key, called, 0);
    }
}
