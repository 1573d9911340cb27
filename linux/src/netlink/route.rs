//! Routes: as they are asked for, and as the kernel lists them.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;

use super::own_routes::is_own;

/// What a route does with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// The destination is a neighbour on this device.
    Link(u32),
    /// Through a gateway that is reached on this device, whether or not a route to it exists.
    Gateway(u32, IpAddr),
    /// Refused with ICMP unreachable.
    Unreachable,
}

/// A route of the main table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where packets go.
    pub destination: IpNet,
    /// How.
    pub via: Via,
    /// Source address for packets of the host itself.
    pub source: Option<IpAddr>,
}

impl Route {
    pub(super) fn message(self) -> io::Result<RouteMessage> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let destination = self.destination;
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .map_err(invalid)?;
        builder = match self.via {
            Via::Link(device) => builder.output_interface(device).scope(RouteScope::Link),
            Via::Gateway(device, gateway) => {
                builder.output_interface(device).gateway(gateway).map_err(invalid)?.onlink()
            }
            Via::Unreachable => builder.kind(RouteType::Unreachable),
        };
        if let Some(source) = self.source {
            builder = builder.pref_source(source).map_err(invalid)?;
        }
        Ok(builder.build())
    }
}

/// A route as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteEntry {
    /// Where packets go.
    pub destination: IpNet,
    /// Outgoing device, where there is one.
    pub device: Option<u32>,
    /// Next hop, where the destination is not a neighbour.
    pub gateway: Option<IpAddr>,
    /// Source address for packets of the host itself.
    pub source: Option<IpAddr>,
    /// The lower is taken first.
    pub metric: u32,
    /// Of the main table.
    pub main: bool,
    /// `local`, `broadcast`, `anycast` and `multicast` routes are the kernel's own book-keeping of addresses.
    pub unicast: bool,
    /// Refused with ICMP unreachable.
    pub unreachable: bool,
    /// The host itself receives what goes there, see [`super::OwnRoutes`].
    pub own: bool,
}

impl RouteEntry {
    pub(super) fn of(message: &RouteMessage) -> Option<Self> {
        let unspecified = match message.header.address_family {
            AddressFamily::Inet => IpAddr::from([0u8; 4]),
            AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
            _ => return None,
        };
        let mut entry = Self {
            destination: IpNet::new(unspecified, message.header.destination_prefix_length).ok()?,
            device: None,
            gateway: None,
            source: None,
            metric: 0,
            main: message.header.table == RouteHeader::RT_TABLE_MAIN,
            unicast: message.header.kind == RouteType::Unicast,
            unreachable: message.header.kind == RouteType::Unreachable,
            own: is_own(message),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    let length = message.header.destination_prefix_length;
                    entry.destination = IpNet::new(ip(address)?, length).ok()?;
                }
                RouteAttribute::Oif(index) => entry.device = Some(*index),
                RouteAttribute::Gateway(address) => entry.gateway = ip(address),
                RouteAttribute::PrefSource(address) => entry.source = ip(address),
                RouteAttribute::Priority(metric) => entry.metric = *metric,
                _ => {}
            }
        }
        Some(entry)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
