//! The node's L7 proxy: judges each HTTP request by the rules of both its ends, and passes on what may pass.
//!
//! Promise: what was judged is what is forwarded; what has two readings has none; what is not known is denied. It never
//! changes a message but as `docs/normalisation.md` and header rules say, and every denial leaves a flow with its reason.

pub mod codec;
pub mod index;
pub mod listener;
mod record;
pub mod runtime;
pub mod stage;
