//! What the hooks of one call share: `connect` and `sendmsg` put a backend in the place of a VIP and note it,
//! `recvmsg` and `getpeername` put the VIP back.
//!
//! The note is per socket and backend: if two VIPs gave one socket the same backend, the later one is shown for both.

use core::ptr::read_volatile;

use abi::{Address, AffinityKey, Called, Frontend, SocketKey};

use crate::{
    balance::{self, Choice},
    header::protocol,
    maps::{NODE, SOCKETS},
    socket::{PROCEED, Socket},
    space::{Space, Zero},
};

pub(crate) use crate::balance::Call;

/// The verdict on a call to the socket's address. `entropy` is asked, with the socket's cookie, only when a VIP is called.
#[inline(always)]
pub(crate) fn call(socket: Socket, entropy: impl FnOnce(&Call, u64) -> u32) -> i32 {
    let Some(protocol) = socket.protocol() else { return PROCEED };
    let address = socket.address();
    if !balance::is_vip(&address) {
        return PROCEED;
    }
    let cookie = socket.cookie();
    let mut call = Call {
        frontend: Frontend { address, port: socket.port(), protocol, scope: 0 },
        entropy: 0,
        client: AffinityKey::namespace(socket.namespace()),
    };
    call.entropy = entropy(&call, cookie);
    let mut choice = Space::<Choice>::new();
    let choice = choice.zero();
    if !balance::choose(&call, choice) {
        return if may_be_an_answer(socket, &call.frontend) { PROCEED } else { socket.refuse() };
    }
    let backend = &choice.backend;
    if !socket.set(&backend.address, backend.port) {
        return socket.refuse();
    }
    let mut key = Space::new();
    let key = note_key(&mut key, cookie, backend.address, backend.port, protocol);
    remember(key, Note(Called { frontend: call.frontend, service: choice.service }));
    PROCEED
}

/// A workload that reaches itself through a service sees the VIP as its client, at a port that no service has. What it
/// answers there by UDP is no call: `from_pod` gives it to the client, and refuses it if there is none.
#[inline(always)]
fn may_be_an_answer(socket: Socket, frontend: &Frontend) -> bool {
    frontend.protocol == protocol::UDP && !balance::is_frontend(frontend) && !is_nodes_own(socket)
}

/// No program stands between the node's own sockets and the network.
#[inline(always)]
fn is_nodes_own(socket: Socket) -> bool {
    let Some(node) = NODE.get_ptr(0) else { return true };
    // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
    let own = unsafe { read_volatile(&raw const (*node).namespace) };
    own == 0 || own == socket.namespace()
}

/// Puts what was called in the place of the address of who answers, if that was a backend of a call.
#[inline(always)]
pub(crate) fn recall(socket: Socket) {
    let Some(protocol) = socket.protocol() else { return };
    let mut key = Space::new();
    let key = note_key(&mut key, socket.cookie(), socket.address(), socket.port(), protocol);
    // SAFETY: LRU may recycle the element under us, for another socket's: then a peer is shown that was somebody's.
    if let Some(called) = unsafe { SOCKETS.get(&*key) } {
        // An address of the wrong family cannot be shown; none is noted by a hook of the other.
        socket.set(&called.frontend.address, called.frontend.port);
    }
}

// SAFETY: numbers.
unsafe impl Zero for SocketKey {}

/// A key of `SOCKETS`.
#[inline(always)]
fn note_key(
    space: &mut Space<SocketKey>,
    cookie: u64,
    address: Address,
    port: [u8; 2],
    protocol: u8,
) -> &mut SocketKey {
    let key = space.zero();
    (key.cookie, key.address, key.port, key.protocol) = (cookie, address, port, protocol);
    key
}

/// A value of `SOCKETS`. Aligned to words, as it is in the map: LLVM copies by bytes what it does not know to be aligned.
#[repr(C, align(8))]
struct Note(Called);

impl Note {
    /// # Safety
    /// Aligned to eight bytes.
    #[inline(always)]
    unsafe fn words(called: *const Called) -> [u64; 3] {
        const { assert!(size_of::<Called>() == 24) };
        let words: *const u64 = called.cast();
        // SAFETY: the caller says it is aligned; it is three words long.
        unsafe { [read_volatile(words), read_volatile(words.add(1)), read_volatile(words.add(2))] }
    }
}

/// Notes what was called. A datagram socket calls again and again: an entry that says so already is left alone.
#[inline(always)]
fn remember(key: &SocketKey, note: Note) {
    if let Some(found) = SOCKETS.get_ptr(key) {
        // SAFETY: values of hash maps are aligned to eight bytes. LRU may recycle the element under us: then it
        // differs, and is written again.
        let is_same = unsafe { Note::words(found) == Note::words(&raw const note.0) };
        if is_same {
            return;
        }
    }
    // Refused only in want of memory: then the owner sees the backend, nothing worse.
    let _ = SOCKETS.insert(key, &note.0, 0);
}
