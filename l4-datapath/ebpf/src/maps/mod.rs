//! The maps, one file each: key, value, since which kernel, who writes. Names are [`abi::map`]'s.

mod affinities;
mod assignments;
mod auth;
mod connections;
mod devices;
mod drops;
mod endpoints;
mod events;
mod fragments;
mod hold;
mod ipcache;
mod lost;
mod node;
mod rules;
mod services;
mod sockets;
mod translations;
mod usage;

pub(crate) use affinities::AFFINITIES;
pub(crate) use assignments::ASSIGNMENTS;
pub(crate) use auth::{AUTH, LEASES, MARKS};
pub(crate) use connections::{CONNECTIONS4, CONNECTIONS6};
pub(crate) use devices::{BOUND, DEVICES, UNMASQUERADED};
pub(crate) use drops::DROPS;
pub(crate) use endpoints::ENDPOINTS;
pub(crate) use events::EVENTS;
pub(crate) use fragments::FRAGMENTS;
pub(crate) use hold::{HELD, HOLD, HOLD_COUNTS, HOLD_FLOWS, HOLD_RATES};
pub(crate) use ipcache::IPCACHE;
pub(crate) use lost::LOST;
pub(crate) use node::NODE;
pub(crate) use rules::RULES;
pub(crate) use services::{BACKENDS, FRONTENDS, MEMBERS, SERVICES, SLOTS};
pub(crate) use sockets::SOCKETS;
pub(crate) use translations::TRANSLATIONS;
pub(crate) use usage::USAGE;
