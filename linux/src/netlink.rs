//! Links, addresses, routes and neighbours of one network namespace, by rtnetlink.
//!
//! Promise: each method is one request and its acknowledgement; what it creates is not there yet, or the call fails
//! with `EEXIST` (see [`Error::is_present`]). Requests of one [`Netlink`] reach the kernel in the order they were first
//! polled, so independent ones can be joined.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteMessage;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::error::{Context, Error, Result};

mod address;
mod marked;
mod own_routes;
mod route;

pub use address::Address;
pub use marked::Marked;
pub use own_routes::OwnRoutes;
pub use route::{Route, RouteEntry, Via};

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
pub const LOOPBACK: u32 = 1;

/// A connection to the kernel's tables of one network namespace: that of the thread that opened it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, where it has one.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up at both ends, and the kernel has noticed: packets can be sent.
    pub running: bool,
    /// Made by the veth driver.
    pub veth: bool,
}

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Name.
    pub name: &'a str,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// False: IFF_NOARP, nothing is asked or answered on it.
    pub arp: bool,
    /// MTU in bytes; the kernel's default is 1500.
    pub mtu: u32,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace. Must be called within a tokio runtime, which runs
    /// the connection until the last clone is gone.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("open", "netlink route socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Makes a veth pair, both ends down. The peer is made in `namespace` if one is given, else beside the first.
    pub async fn add_veth(
        &self,
        end: VethEnd<'_>,
        peer: VethEnd<'_>,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let mut other = veth_end(LinkMessageBuilder::<LinkUnspec>::new(), peer).build();
        if let Some(namespace) = namespace {
            other.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        }
        let mut message = veth_end(LinkMessageBuilder::<LinkUnspec>::new(), end).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.handle.link().add(message).execute().await.context_netlink("create veth", end.name)
    }

    /// The device of this name, if there is one.
    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        match found.context_netlink("look up device", name) {
            Ok(message) => Ok(message.map(|message| link_of(&message))),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All devices.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let list = self.handle.link().get().execute().map_ok(|message| link_of(&message)).try_collect().await;
        list.context_netlink("list", "devices")
    }

    /// Brings a device up or down.
    pub async fn set_up(&self, device: u32, up: bool) -> Result<()> {
        let message = LinkUnspec::new_with_index(device);
        let message = if up { message.up() } else { message.down() }.build();
        let call = if up { "bring up device" } else { "bring down device" };
        self.handle.link().set(message).execute().await.context_netlink(call, device)
    }

    /// Keeps the kernel from giving the device a link-local address of its own when it comes up. Not possible while it
    /// is being created (`inet6_validate_link_af` wants a registered device).
    pub async fn disable_link_local(&self, device: u32) -> Result<()> {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkUnspec::new_with_index(device)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
            .build();
        self.handle.link().set(message).execute().await.context_netlink("set address mode of device", device)
    }

    /// Removes a device; of a veth pair, both ends.
    pub async fn delete_link(&self, device: u32) -> Result<()> {
        self.handle.link().del(device).execute().await.context_netlink("delete device", device)
    }

    /// Adds a permanent address. No duplicate address detection is done: the address is usable at once.
    pub async fn add_address(&self, device: u32, address: IpNet) -> Result<()> {
        let mut request = self.handle.address().add(device, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.context_netlink("add address", address)
    }

    /// All addresses of all devices.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        let list: Vec<AddressMessage> = (self.handle.address().get().execute().try_collect().await)
            .context_netlink("list", "addresses")?;
        Ok(list.iter().filter_map(Address::of).collect())
    }

    /// Adds a route to the main table.
    pub async fn add_route(&self, route: Route) -> Result<()> {
        let message = route.message().context("encode route", route.destination)?;
        self.handle.route().add(message).execute().await.context_netlink("add route", route.destination)
    }

    /// Removes the route with this destination and next hop from the main table.
    pub async fn delete_route(&self, route: Route) -> Result<()> {
        let message = route.message().context("encode route", route.destination)?;
        self.handle.route().del(message).execute().await.context_netlink("delete route", route.destination)
    }

    /// All routes of the main and local tables, both families.
    pub async fn routes(&self) -> Result<Vec<RouteEntry>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let list: Vec<RouteMessage> = (self.handle.route().get(query).execute().try_collect().await)
                .context_netlink("list", "routes")?;
            routes.extend(list.iter().filter_map(RouteEntry::of));
        }
        Ok(routes)
    }

    /// Adds a neighbour that is never asked for and never expires.
    pub async fn add_neighbour(&self, device: u32, address: IpAddr, mac: [u8; 6]) -> Result<()> {
        let request = self.handle.neighbours().add(device, address);
        let request = request.state(NeighbourState::Permanent).link_layer_address(&mac);
        request.execute().await.context_netlink("add neighbour", address)
    }
}

fn veth_end(builder: LinkMessageBuilder<LinkUnspec>, end: VethEnd<'_>) -> LinkMessageBuilder<LinkUnspec> {
    builder.name(end.name).address(end.mac.to_vec()).arp(end.arp).mtu(end.mtu)
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: false,
        veth: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.running = *state == State::Up,
            LinkAttribute::LinkInfo(facts) => link.veth = facts.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => {}
        }
    }
    link
}

trait NetlinkContext<T> {
    fn context_netlink(self, call: &'static str, object: impl std::fmt::Display) -> Result<T>;
}

impl<T> NetlinkContext<T> for std::result::Result<T, rtnetlink::Error> {
    fn context_netlink(self, call: &'static str, object: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Call {
            call,
            object: object.to_string(),
            source: match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    //! Need root: they make network namespaces.

    use std::os::fd::AsFd;

    use super::*;
    use crate::scratch;

    const A: VethEnd<'_> = VethEnd { name: "a", mac: [2, 0, 0, 0, 0, 1], arp: true, mtu: 1500 };
    const B: VethEnd<'_> = VethEnd { name: "b", mac: [2, 0, 0, 0, 0, 2], arp: false, mtu: 1500 };

    #[tokio::test]
    async fn a_veth_peer_is_made_in_the_other_namespace_and_has_no_link_local_address() {
        let (here, there) =
            (scratch::Namespace::new("linux").unwrap(), scratch::Namespace::new("linux").unwrap());
        let (near, far) = (here.namespace().netlink().unwrap(), there.namespace().netlink().unwrap());
        near.add_veth(A, B, Some(there.namespace().as_fd())).await.unwrap();

        assert_eq!(near.link("b").await.unwrap(), None);
        let (a, b) = (near.link("a").await.unwrap().unwrap(), far.link("b").await.unwrap().unwrap());
        assert_eq!((a.mac, b.mac, a.up), (Some(A.mac), Some(B.mac), false));
        near.disable_link_local(a.index).await.unwrap();
        far.disable_link_local(b.index).await.unwrap();
        near.set_up(a.index, true).await.unwrap();
        far.set_up(b.index, true).await.unwrap();
        let only_loopback = |address: &Address| address.device == LOOPBACK;
        assert!(near.addresses().await.unwrap().iter().all(only_loopback));
        assert!(far.addresses().await.unwrap().iter().all(only_loopback));

        near.delete_link(a.index).await.unwrap();
        assert_eq!(far.link("b").await.unwrap(), None, "both ends go together");
        assert!(near.delete_link(a.index).await.unwrap_err().is_absent());
    }

    #[tokio::test]
    async fn routes_of_both_families_can_be_added_listed_and_deleted() {
        let here = scratch::Namespace::new("linux").unwrap();
        let netlink = here.namespace().netlink().unwrap();
        netlink.add_veth(A, B, None).await.unwrap();
        let a = netlink.link("a").await.unwrap().unwrap().index;
        netlink.set_up(a, true).await.unwrap();
        let cases = [
            ("192.0.2.0/24", Via::Link(a)),
            ("198.51.100.0/24", Via::Gateway(a, "203.0.113.1".parse().unwrap())),
            ("203.0.113.0/24", Via::Unreachable),
            ("2001:db8:1::/64", Via::Link(a)),
            ("2001:db8:2::/64", Via::Gateway(a, "2001:db8::1".parse().unwrap())),
            ("2001:db8:3::/64", Via::Unreachable),
        ];
        for (destination, via) in cases {
            let route = Route { destination: destination.parse().unwrap(), via, source: None };
            netlink.add_route(route).await.unwrap();
            assert!(netlink.add_route(route).await.unwrap_err().is_present(), "{destination}");
            let listed = netlink.routes().await.unwrap();
            let entry = listed.iter().find(|entry| entry.destination == route.destination).unwrap();
            assert_eq!(entry.unreachable, via == Via::Unreachable, "{destination}");
            netlink.delete_route(route).await.unwrap();
            assert!(netlink.delete_route(route).await.unwrap_err().is_absent(), "{destination}");
        }
    }

    #[tokio::test]
    async fn an_address_is_usable_at_once_and_a_neighbour_is_permanent() {
        let here = scratch::Namespace::new("linux").unwrap();
        let netlink = here.namespace().netlink().unwrap();
        netlink.add_veth(A, B, None).await.unwrap();
        let a = netlink.link("a").await.unwrap().unwrap().index;
        netlink.set_up(a, true).await.unwrap();
        for address in ["192.0.2.1/32", "2001:db8::1/128"] {
            let address: IpNet = address.parse().unwrap();
            netlink.add_address(a, address).await.unwrap();
            let found = Address { device: a, address, global: true, usable: true, preferred: true };
            assert!(netlink.addresses().await.unwrap().contains(&found), "{address}");
            let bound = here.namespace().inside(|| std::net::UdpSocket::bind((address.addr(), 0)).map(drop));
            bound.unwrap().unwrap();
            netlink.add_neighbour(a, address.addr(), B.mac).await.unwrap();
        }
    }
}
