//! The programs that an agent has loaded, for people: where they are attached and what they cost.
//!
//! Only looks. Attachments are counted by their pins, so those of a workload that is being removed may still be in it.

use std::path::PathBuf;

use aya::Ebpf;
use node_api::ProgramView;

use crate::Error;
use crate::attach::{self, Place};
use crate::cgroup::HOOKS;
use crate::pins::{Pins, children};

/// Every program that is attached, and `others`, by name.
pub(crate) fn of(ebpf: &Ebpf, pins: &Pins, others: &[&'static str]) -> Result<Vec<ProgramView>, Error> {
    let links = pins.links();
    let pinned: Vec<PathBuf> = children(&links)?.into_iter().chain(children(&pins.filters())?).collect();
    let on_interfaces = |name: &str| {
        let places = pinned.iter().filter_map(|pin| attach::parse_pin(pin));
        places.filter(|(_, place)| place.program() == name).count()
    };
    let mut views = Vec::new();
    for place in Place::ALL {
        views.push(view(ebpf, place.program(), on_interfaces(place.program()))?);
    }
    // Without `sock_ops` where the kernel has none.
    let is_loaded = |name: &str| ebpf.program(name).is_some_and(|program| program.fd().is_ok());
    for hook in HOOKS.iter().filter(|hook| is_loaded(hook.program)) {
        views.push(view(ebpf, hook.program, usize::from(hook.pin(&links).exists()))?);
    }
    for name in others {
        views.push(view(ebpf, name, 0)?);
    }
    views.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(views)
}

fn view(ebpf: &Ebpf, name: &'static str, attached: usize) -> Result<ProgramView, Error> {
    let failed = || Error::program(name, "reading");
    let info = ebpf.program(name).ok_or(Error::Object(name))?.info().map_err(failed())?;
    Ok(ProgramView {
        name: name.to_owned(),
        id: info.id(),
        attached,
        verified: info.verified_instruction_count(),
        bytes: info.memory_locked().map_err(failed())?.into(),
    })
}
