//! HTTP/1 as it must be on the wire, and the first message of a TLS client, without I/O.
//!
//! Promise: what is accepted has one reading. A head stays the bytes that came, with spans into them, so that what was
//! judged is what is forwarded; whatever another parser might read differently is a [`Fault`] with its name. Each byte of a
//! head is looked at once however it trickles in, each byte of a body is counted before it may be passed on, and everything
//! has a bound.

mod alike;
mod body;
mod client_hello;
mod fault;
mod head;
mod request;
mod response;
mod second_hello;

pub(crate) use alike::is_look_alike;
pub use body::Body;
pub(crate) use body::{is_forbidden_trailer, is_name};
pub use client_hello::{ClientHello, HelloFault, HelloScan, MAX_HELLO};
pub use fault::Fault;
pub(crate) use head::elements;
pub use head::{Header, Scan, Span};
pub use request::{Form, Framing, RequestHead};
pub(crate) use request::{is_authority, is_same_authority};
pub use response::{Asked, ResponseHead};
pub use second_hello::SecondHello;

/// The longest head, in bytes, request or response.
pub const MAX_HEAD: usize = 64 << 10;
/// The most header lines of a head that somebody sends.
pub const MAX_HEADERS: usize = 128;
/// The most header lines that may be added to it.
pub const MAX_ADDED: usize = 64;
/// The longest line that opens a chunk, its extensions included.
pub const MAX_CHUNK_LINE: usize = 256;
/// All extensions of one body together.
pub const MAX_EXTENSIONS: usize = 4096;
/// The longest trailer section.
pub const MAX_TRAILERS: usize = 8 << 10;
/// The most trailer lines.
pub const MAX_TRAILER_LINES: usize = 32;
/// The longest method.
pub const MAX_METHOD: usize = 32;
