//! Devices that lead out of the node, and the addresses that stand for workloads' own there.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux::netlink::{Address, LOOPBACK, Link, Netlink, RouteEntry};
use mesh::plan::Device;

use crate::device;
use crate::error::Result;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outward {
    /// Devices through which packets leave the node, by name.
    pub devices: Vec<Device>,
    /// What is not as the configuration has it, a sentence each.
    pub problems: Vec<String>,
}

impl Outward {
    /// Looks at the network namespace of the calling thread. `names`: the devices that are meant; else each that is up,
    /// is neither loopback nor ours, and has an address valid beyond its link or a default route.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn find(names: Option<&[String]>) -> Result<Self> {
        let netlink = Netlink::open()?;
        let host = Host {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: netlink.routes().await?,
        };
        Ok(host.outward(names))
    }
}

/// What the kernel says.
struct Host {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<RouteEntry>,
}

impl Host {
    fn outward(&self, names: Option<&[String]>) -> Outward {
        let mut problems = Vec::new();
        for name in names.unwrap_or_default() {
            match self.links.iter().find(|link| link.name == *name) {
                None => problems.push(format!("devices: {name}: no such device on this host (yet)")),
                Some(link) if !Self::may_lead_out(link) => problems.push(format!(
                    "devices: {name}: cannot lead out of the node; name a device that is neither loopback nor one of \
                     ferromesh's own"
                )),
                Some(_) => {}
            }
        }
        let chosen = self.links.iter().filter(|link| Self::may_lead_out(link)).filter(|link| match names {
            Some(names) => names.contains(&link.name),
            None => link.up && self.is_outward(link),
        });
        let (framed, bare): (Vec<_>, Vec<_>) = chosen.partition(|link| link.mac.is_some());
        problems.extend(bare.iter().map(|link| {
            format!(
                "device {}: has no Ethernet header, so nothing is masqueraded on it: packets of workloads leave it \
                 under their own addresses",
                link.name
            )
        }));
        let mut devices: Vec<_> = framed.into_iter().map(|link| self.device(link)).collect();
        devices.sort();
        Outward { devices, problems }
    }

    fn may_lead_out(link: &Link) -> bool {
        link.index != LOOPBACK && !device::is_own(&link.name)
    }

    fn is_outward(&self, link: &Link) -> bool {
        self.addresses.iter().any(|found| found.device == link.index && is_unicast(found))
            || self.default_routes(link.index).next().is_some()
    }

    fn default_routes(&self, device: u32) -> impl Iterator<Item = &RouteEntry> {
        let default =
            |route: &&RouteEntry| route.main && route.unicast && route.destination.prefix_len() == 0;
        self.routes.iter().filter(default).filter(move |route| route.device == Some(device))
    }

    fn device(&self, link: &Link) -> Device {
        let v4 = self.source(link.index, |address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        let v6 = self.source(link.index, |address| match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        });
        Device { name: link.name.clone(), ifindex: link.index, ipv4: v4, ipv6: v6 }
    }

    /// As the kernel would choose for a packet of the host itself: what the default route prefers, else an address in
    /// the network of its gateway, else the first that lasts.
    fn source<T>(&self, device: u32, of_family: impl Fn(IpAddr) -> Option<T>) -> Option<T> {
        let of_route = |route: &&RouteEntry| of_family(route.destination.addr()).is_some();
        let default = self.default_routes(device).filter(of_route).min_by_key(|route| route.metric);
        if let Some(source) = default.and_then(|route| route.source) {
            return of_family(source);
        }
        let gateway = default.and_then(|route| route.gateway);
        let candidates = self.addresses.iter().filter(|found| found.device == device && is_unicast(found));
        let rank = |found: &&Address| {
            let near = gateway.is_some_and(|gateway| found.address.contains(&gateway));
            (Reverse(found.preferred), Reverse(near), is_unique_local(found.address.addr()))
        };
        // The first of equal rank, in the kernel's own order.
        let best = candidates.filter(|found| of_family(found.address.addr()).is_some()).min_by_key(rank)?;
        of_family(best.address.addr())
    }
}

/// An address that a packet can carry beyond the link.
fn is_unicast(found: &Address) -> bool {
    let beyond = match found.address.addr() {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback() && v4 != Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback() && v6 != Ipv6Addr::UNSPECIFIED,
    };
    found.global && found.usable && beyond
}

/// RFC 4193: of no use to the Internet, where there is another.
fn is_unique_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unique_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            running: true,
            veth: false,
        }
    }

    fn address(device: u32, text: &str) -> Address {
        Address { device, address: text.parse().unwrap(), global: true, usable: true, preferred: true }
    }

    fn default_route(device: u32, gateway: &str, metric: u32) -> RouteEntry {
        let gateway: IpAddr = gateway.parse().unwrap();
        let everywhere = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        RouteEntry {
            destination: everywhere.parse().unwrap(),
            device: Some(device),
            gateway: Some(gateway),
            source: None,
            metric,
            main: true,
            unicast: true,
            unreachable: false,
            own: false,
        }
    }

    fn host(addresses: Vec<Address>, routes: Vec<RouteEntry>) -> Host {
        Host { links: vec![link(1, "lo"), link(2, "eth0"), link(3, "fm0001")], addresses, routes }
    }

    fn found(host: &Host) -> (Option<String>, Option<String>) {
        let [device] = &host.outward(None).devices[..] else { panic!("one device") };
        assert_eq!((device.name.as_str(), device.ifindex), ("eth0", 2));
        (device.ipv4.map(|v4| v4.to_string()), device.ipv6.map(|v6| v6.to_string()))
    }

    fn texts(v4: &str, v6: &str) -> (Option<String>, Option<String>) {
        (Some(v4.to_owned()), Some(v6.to_owned()))
    }

    #[test]
    fn loopback_our_own_devices_and_those_with_link_local_addresses_alone_do_not_lead_out() {
        let addresses = ["127.0.0.2/32", "192.0.2.9/32"].map(|text| address(1, text));
        let mut here = host(addresses.to_vec(), Vec::new());
        here.addresses.extend([address(3, "192.0.2.8/32"), address(2, "169.254.1.1/16")]);
        here.addresses.push(Address { global: false, ..address(2, "fe80::1/64") });
        assert_eq!(here.outward(None), Outward::default());
        here.routes.push(default_route(2, "fe80::2", 0));
        assert_eq!(found(&here), (None, None), "what needs an address is dropped there, not let out without");
        here.links[1].up = false;
        assert_eq!(here.outward(None), Outward::default());
    }

    #[test]
    fn the_source_that_the_best_default_route_prefers_comes_first() {
        let addresses = ["192.0.2.5/24", "198.51.100.5/24", "2001:db8::5/64", "2001:db8:1::5/64"];
        let mut here = host(addresses.map(|text| address(2, text)).to_vec(), Vec::new());
        assert_eq!(found(&here), texts("192.0.2.5", "2001:db8::5"), "no route: the first");
        here.routes = vec![default_route(2, "198.51.100.1", 100), default_route(2, "2001:db8:1::1", 1024)];
        assert_eq!(found(&here), texts("198.51.100.5", "2001:db8:1::5"), "the gateway's network");
        let preferred = RouteEntry {
            source: Some("192.0.2.77".parse().unwrap()),
            ..default_route(2, "198.51.100.1", 50)
        };
        here.routes.push(preferred);
        assert_eq!(found(&here), texts("192.0.2.77", "2001:db8:1::5"));
        here.routes[2].main = false;
        assert_eq!(found(&here), texts("198.51.100.5", "2001:db8:1::5"), "another table's is not asked");
    }

    #[test]
    fn addresses_that_pass_or_serve_a_site_alone_come_last_and_unsure_ones_never() {
        let mut here = host(Vec::new(), Vec::new());
        here.addresses = vec![
            Address { preferred: false, ..address(2, "192.0.2.6/24") },
            address(2, "192.0.2.5/24"),
            address(2, "fd00::5/64"),
            Address { preferred: false, ..address(2, "2001:db8::6/64") },
            address(2, "2001:db8::5/64"),
        ];
        assert_eq!(found(&here), texts("192.0.2.5", "2001:db8::5"));
        here.addresses.remove(4);
        assert_eq!(found(&here), texts("192.0.2.5", "fd00::5"));
        here.addresses.remove(2);
        here.addresses.remove(1);
        assert_eq!(found(&here), texts("192.0.2.6", "2001:db8::6"), "better than none");
        here.addresses[1].usable = false;
        assert_eq!(found(&here), (Some("192.0.2.6".to_owned()), None));
    }

    #[test]
    fn named_devices_are_taken_as_they_are_and_what_is_wrong_with_them_is_told() {
        let mut here = host(vec![address(2, "192.0.2.5/24")], Vec::new());
        here.links.push(Link { up: false, ..link(4, "eth1") });
        here.links.push(Link { mac: None, ..link(5, "wg0") });
        let names = ["eth1", "wg0", "eth9", "fm0001"].map(str::to_owned);
        let Outward { devices, problems } = here.outward(Some(&names));
        let expected = Device { name: "eth1".to_owned(), ifindex: 4, ipv4: None, ipv6: None };
        assert_eq!(devices, [expected], "one that is down may come up");
        for (problem, begins) in problems.iter().zip([
            "devices: eth9: no such device",
            "devices: fm0001: cannot",
            "device wg0: has no",
        ]) {
            assert!(problem.starts_with(begins), "{problem}");
        }
        assert_eq!(problems.len(), 3);
    }
}
