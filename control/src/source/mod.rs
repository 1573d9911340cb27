//! Where objects come from.

mod accepted;
pub mod files;
