//! What a run needs of a protocol.

use conformance::bench::l7::load::{Order, Protocol};

use super::h1::H1;
use super::h2::H2;

/// Why a connection cannot go on.
pub(crate) type Fault = String;

/// One request has been answered.
pub(crate) struct Answer {
    /// What was given when it was asked.
    pub(crate) began: u64,
    /// Whether as it should be.
    pub(crate) is_good: bool,
}

/// A client's end of a connection, without the socket.
pub(crate) trait Client {
    /// What is sent first.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// Makes a request; `false`: not now.
    fn ask(&mut self, began: u64, out: &mut Vec<u8>) -> bool;
    /// Reads on.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, answers: &mut Vec<Answer>) -> Result<(), Fault>;
    /// How many are not answered.
    fn asked(&self) -> usize;
}

pub(crate) fn client(order: &Order) -> Box<dyn Client> {
    match order.protocol {
        Protocol::H1 => Box::new(H1::new(&order.path, (order.status, order.body), order.padding)),
        Protocol::H2 => Box::new(H2::new(false, &order.path, order.body, order.streams)),
        Protocol::Grpc => Box::new(H2::new(true, &order.path, order.body, order.streams)),
    }
}
