//! One machine by itself: what it makes of what a peer, a plan and packets say.
#![allow(clippy::expect_used, reason = "what a test is made of is right, or the test is wrong")]

mod bench;
mod marks;
mod packets;
mod proofs;
mod session;
