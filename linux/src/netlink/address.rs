//! Addresses of devices, as the kernel lists them.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

/// An address of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Device index.
    pub device: u32,
    /// Address and prefix length.
    pub address: IpNet,
    /// Valid beyond the link.
    pub global: bool,
    /// The kernel may choose it as a source: no duplicate of another's, nor still being tested for that.
    pub usable: bool,
    /// One that lasts: neither secondary, nor (IPv6) temporary or deprecated.
    pub preferred: bool,
}

/// Another host may turn out to have it.
const UNSURE: AddressFlags = AddressFlags::Tentative.union(AddressFlags::Dadfailed);
/// `IFA_F_SECONDARY` is `IFA_F_TEMPORARY` for IPv6.
const PASSING: AddressFlags = AddressFlags::Secondary.union(AddressFlags::Deprecated);

impl Address {
    pub(super) fn of(message: &AddressMessage) -> Option<Self> {
        // A point-to-point address stands in `Local`; for IPv6 only `Address` is set.
        let (mut local, mut address) = (None::<IpAddr>, None::<IpAddr>);
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(found) => local = Some(*found),
                AddressAttribute::Address(found) => address = Some(*found),
                AddressAttribute::Flags(found) => flags = *found,
                _ => {}
            }
        }
        Some(Self {
            device: message.header.index,
            address: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
            global: message.header.scope == AddressScope::Universe,
            usable: !flags.intersects(UNSURE),
            preferred: !flags.intersects(UNSURE.union(PASSING)),
        })
    }
}
