//! Programs of others on this host's interfaces, for `check`: they see packets before or after ours and may drop or change
//! them. Only looks, in the calling thread's network namespace.

use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_nameindex;

use crate::attach::Place;

/// A sentence for each tcx program that is not ours. Filters on a clsact qdisc are not listed: the kernel tells no
/// names for what is not BPF, and `tc filter show` does it better.
pub fn programs() -> Vec<String> {
    let Ok(interfaces) = if_nameindex() else { return Vec::new() };
    let names = interfaces.iter().filter_map(|interface| interface.name().to_str().ok());
    names
        .flat_map(|name| {
            [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")]
                .map(|(hook, text)| (name, hook, text))
        })
        .flat_map(|(name, hook, text)| on(name, hook, text))
        .collect()
}

fn on(interface: &str, hook: TcAttachType, text: &str) -> Vec<String> {
    // A kernel without tcx has no tcx programs.
    let Ok((_, programs)) = SchedClassifier::query_tcx(interface, hook) else { return Vec::new() };
    let ours = Place::ALL.map(Place::program);
    let foreign =
        programs.iter().filter(|program| !program.name_as_str().is_some_and(|name| ours.contains(&name)));
    foreign
        .map(|program| {
            let name = program.name_as_str().unwrap_or("?");
            format!("interface {interface}: tcx {text} program {name} (id {}) is not ours; it may drop or change packets", program.id())
        })
        .collect()
}
