//! Putting the programs on workloads' host-side veths, on the node's own devices and on the hold device, by tcx or by
//! clsact.
//!
//! Promise: a program that is there is replaced in one step (`BPF_LINK_UPDATE`, or a filter changed in place), so no
//! packet passes unjudged; when the hook changes, the new one is on before the old one goes. The kernel keeps what is
//! attached when the agent dies. Programs of others on the same device are left alone, but ours stand first in the tcx
//! chain: there the first program that passes a packet ends the chain. On a device that is not ours, ours pass a packet
//! on to the next one. The clsact qdisc itself stays on the device and goes with it: others may have put filters on it
//! meanwhile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};

use crate::pins::Pins;
use crate::{Error, sys};

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hook {
    /// By tcx where the kernel has it (6.6), else by clsact.
    #[default]
    Auto,
    /// By tcx links.
    Tcx,
    /// By filters of a clsact qdisc.
    Clsact,
}

/// A place where a program stands on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Ingress of the host-side veth: what the workload sends.
    FromPod,
    /// Egress of the host-side veth: what reaches the workload through the stack.
    ToPod,
    /// Ingress of a device that leads out of the node.
    FromNetdev,
    /// Its egress.
    ToNetdev,
    /// Ingress of the hold device: packets that have waited for a proof.
    FromHold,
}

/// Priority and handle of our filters; together with interface and direction they name a filter.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0xfe, 1);

impl Place {
    /// Those of a workload's host-side veth.
    pub(crate) const VETH: &[Self] = &[Self::FromPod, Self::ToPod];
    /// Those of a device that leads out of the node.
    pub(crate) const NETDEV: &[Self] = &[Self::FromNetdev, Self::ToNetdev];
    /// That of the hold device.
    pub(crate) const HOLD: &[Self] = &[Self::FromHold];
    pub(crate) const ALL: [Self; 5] =
        [Self::FromPod, Self::ToPod, Self::FromNetdev, Self::ToNetdev, Self::FromHold];

    /// Name of the program in the object.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNetdev => "from_netdev",
            Self::ToNetdev => "to_netdev",
            Self::FromHold => "from_hold",
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::FromPod | Self::FromNetdev | Self::FromHold => TcAttachType::Ingress,
            Self::ToPod | Self::ToNetdev => TcAttachType::Egress,
        }
    }

    /// File name of a pin for an interface, and back.
    fn pin(self, directory: &Path, interface: &str) -> PathBuf {
        directory.join(format!("{interface}-{}", self.program()))
    }
}

/// Interface and place that a pin's file name stands for.
pub(crate) fn parse_pin(path: &Path) -> Option<(&str, Place)> {
    let (interface, program) = path.file_name()?.to_str()?.rsplit_once('-')?;
    let place = Place::ALL.into_iter().find(|place| place.program() == program)?;
    Some((interface, place))
}

/// Puts the program of this place on the interface, replacing what an earlier agent put there.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    hook: Hook,
    interface: &str,
    place: Place,
) -> Result<(), Error> {
    let program = program(ebpf, place)?;
    let link = place.pin(&pins.links(), interface);
    let filter = place.pin(&pins.filters(), interface);
    if hook == Hook::Clsact {
        attach_filter(program, interface, place, &filter)?;
        remove_link(&link)
    } else {
        attach_link(program, interface, place, &link)?;
        if filter.exists() { remove_filter(&filter) } else { Ok(()) }
    }
}

/// Takes the programs of these places off the interface. An interface that is gone has none.
pub(crate) fn detach(pins: &Pins, interface: &str, places: &[Place]) -> Result<(), Error> {
    for place in places {
        remove_link(&place.pin(&pins.links(), interface))?;
        let filter = place.pin(&pins.filters(), interface);
        if filter.exists() {
            remove_filter(&filter)?;
        }
    }
    Ok(())
}

/// Detaches a pinned link, if there is one, then removes the pin.
pub(crate) fn remove_link(pin: &Path) -> Result<(), Error> {
    match sys::detach_pinned_link(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path(pin, "detaching")(error)),
        _ => unpin(pin),
    }
}

/// Removes the filter that a pin stands for, then the pin.
pub(crate) fn remove_filter(pin: &Path) -> Result<(), Error> {
    if let Some((interface, place)) = parse_pin(pin)
        && let Ok(link) = SchedClassifierLink::attached(interface, place.direction(), PRIORITY, HANDLE, None)
    {
        match aya::programs::Link::detach(link) {
            Ok(()) => {}
            Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EINVAL)) => {}
            Err(error) => {
                return Err(Error::program(place.program(), format!("detaching from {interface}"))(error));
            }
        }
    }
    unpin(pin)
}

fn program(ebpf: &mut Ebpf, place: Place) -> Result<&mut SchedClassifier, Error> {
    let name = place.program();
    let program = ebpf.program_mut(name).ok_or(Error::Object(name))?;
    program.try_into().map_err(Error::program(name, "finding it"))
}

fn attach_link(
    program: &mut SchedClassifier,
    interface: &str,
    place: Place,
    pin: &Path,
) -> Result<(), Error> {
    match PinnedLink::from_pin(pin) {
        Ok(pinned) => {
            let link = FdLink::from(pinned).try_into().map_err(failed::<LinkError>(
                place,
                "adopting the link of",
                interface,
            ))?;
            match program.attach_to_link(link) {
                // The pin holds the link; our descriptor can go.
                Ok(id) => {
                    return program.take_link(id).map(drop).map_err(failed(place, "replacing on", interface));
                }
                // The interface it stood on is gone, and another has its name.
                Err(error) if errno(&error) == Some(libc::ENOLINK) => unpin(pin)?,
                Err(error) => return Err(failed(place, "replacing on", interface)(error)),
            }
        }
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(place, "reading the pinned link of", interface)(error)),
    }
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let attached = program
        .attach_with_options(interface, place.direction(), first)
        .and_then(|id| program.take_link(id))
        .map_err(failed(place, "attaching to", interface))?;
    let link = FdLink::try_from(attached).map_err(failed(place, "attaching to", interface))?;
    link.pin(pin).map(drop).map_err(|error| Error::path(pin, "pinning the link")(io::Error::other(error)))
}

fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    place: Place,
    pin: &Path,
) -> Result<(), Error> {
    match qdisc_add_clsact(interface).map_err(ProgramError::from) {
        Ok(()) => {}
        Err(error) if errno(&error) == Some(libc::EEXIST) => {}
        Err(error) => return Err(failed(place, "adding the qdisc to", interface)(error)),
    }
    let options =
        || TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
    let attached = match program.attach_with_options(interface, place.direction(), options()) {
        Err(error) if errno(&error) == Some(libc::EEXIST) => {
            let ours = SchedClassifierLink::attached(interface, place.direction(), PRIORITY, HANDLE, None)
                .map_err(failed(place, "finding", interface))?;
            program.attach_to_link(ours)
        }
        other => other,
    };
    let link =
        attached.and_then(|id| program.take_link(id)).map_err(failed(place, "attaching to", interface))?;
    // Dropping it would detach the filter.
    std::mem::forget(link);
    unpin(pin)?;
    program.pin(pin).map_err(|error| Error::path(pin, "pinning the program")(io::Error::other(error)))
}

fn failed<E: std::error::Error>(place: Place, operation: &str, interface: &str) -> impl FnOnce(E) -> Error {
    Error::program(place.program(), format!("{operation} {interface}"))
}

/// Removes a pin; one that is not there is fine.
pub(crate) fn unpin(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path(pin, "removing")(error)),
        _ => Ok(()),
    }
}

/// The system's error number somewhere in the chain of causes.
pub(crate) fn errno(error: &ProgramError) -> Option<i32> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        if let Some(call) = error.downcast_ref::<aya::sys::SyscallError>() {
            return call.io_error.raw_os_error();
        }
        cause = error.source();
    }
    None
}
