//! The maps, one file each: key, value, since which kernel, who writes. Names are [`abi::map`]'s.

mod assignments;
mod connections;
mod drops;
mod endpoints;
mod events;
mod ipcache;
mod lost;
mod node;
mod rules;
mod usage;

pub(crate) use assignments::ASSIGNMENTS;
pub(crate) use connections::{CONNECTIONS4, CONNECTIONS6};
pub(crate) use drops::DROPS;
pub(crate) use endpoints::ENDPOINTS;
pub(crate) use events::EVENTS;
pub(crate) use ipcache::IPCACHE;
pub(crate) use lost::LOST;
pub(crate) use node::NODE;
pub(crate) use rules::RULES;
pub(crate) use usage::USAGE;
