//! Programs of others on this host's interfaces and cgroups, for `check`: they see packets and calls before or after ours
//! and may drop or change them. Only looks, in the calling thread's network namespace.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use linux::cgroup::Cgroup;
use nix::net::if_::if_nameindex;

use crate::attach::Place;
use crate::cgroup::{HOOKS, SocketHook, TIMER};
use crate::{pins, sys};

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

/// A sentence for each program at a hook of ours that is attached to this cgroup or one above it and that is not pinned
/// under `pin_root`: all of them run for a socket of this cgroup.
pub fn socket_programs(cgroup: &Path, pin_root: &Path) -> Vec<String> {
    let ours = pinned(pin_root);
    // Those that are not cgroups end the walk: the mount point's parent is another file system's.
    let cgroups = cgroup.ancestors().filter_map(|path| Some((path, Cgroup::open(path).ok()?)));
    let found: Vec<_> = cgroups
        .flat_map(|(path, cgroup)| {
            let calls = HOOKS.iter().filter(|hook| hook.program != TIMER);
            calls.flat_map(move |hook| at(hook, &cgroup).into_iter().map(move |id| (path, hook, id)))
        })
        .filter(|(_, _, id)| !ours.contains(id))
        .collect();
    if found.is_empty() {
        return Vec::new();
    }
    let programs: Vec<ProgramInfo> = loaded_programs().filter_map(Result::ok).collect();
    found.iter().map(|(path, hook, id)| sentence(path, hook, *id, &programs)).collect()
}

fn at(hook: &SocketHook, cgroup: &Cgroup) -> Vec<u32> {
    // A kernel that does not know the hook has no programs there.
    sys::programs_of_cgroup(cgroup.as_fd(), hook.attach_type).unwrap_or_default()
}

fn sentence(path: &Path, hook: &SocketHook, id: u32, programs: &[ProgramInfo]) -> String {
    let program = programs.iter().find(|program| program.id() == id);
    let name = program.and_then(ProgramInfo::name_as_str).unwrap_or("?");
    format!(
        "cgroup {}: {} program {name} (id {id}) is not ours; it may refuse or change calls to services",
        path.display(),
        hook.program
    )
}

/// Programs of the cgroup links that are pinned under the root, of any schema.
fn pinned(pin_root: &Path) -> BTreeSet<u32> {
    let links = pins::links(pin_root).unwrap_or_default();
    let link = |pin: &std::path::PathBuf| sys::cgroup_link(sys::pinned(pin).ok()?.as_fd()).ok();
    links.iter().filter_map(|pin| Some(link(pin)?.program)).collect()
}
