//! What is decided of a request, one file each; none waits for anything.

pub mod admit;
pub mod authorize;
pub mod detect;
pub mod normalise;
