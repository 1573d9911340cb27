//! What is decided of a request or a connection, one file each; none waits for anything.

pub mod admit;
pub mod authorize;
pub mod detect;
pub mod normalise;
pub mod server_name;
