//! Marked packets that are for this node, whatever their destination: a rule by mark, and the table it leads to.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{LOOPBACK, Netlink, NetlinkContext as _};
use crate::error::Result;

/// A rule of both families, and the one route of its table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marked {
    /// The mark, in the bits of the mask.
    pub mark: u32,
    /// Which bits of a packet's mark are compared.
    pub mask: u32,
    /// Table that is asked for what has the mark; has nothing else in it.
    pub table: u32,
    /// The lower is asked first; the main table is asked at 32766.
    pub priority: u32,
}

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

impl Marked {
    fn rule(self, family: AddressFamily) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Table(self.table),
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
        ];
        rule
    }

    fn is(self, rule: &RuleMessage) -> bool {
        let wanted = self.rule(rule.header.family).attributes;
        rule.header.action == RuleAction::ToTable
            && wanted.iter().all(|attribute| rule.attributes.contains(attribute))
    }

    fn route(self, family: AddressFamily) -> RouteMessage {
        let mut route = match family {
            AddressFamily::Inet6 => RouteMessageBuilder::<Ipv6Addr>::new().output_interface(LOOPBACK).build(),
            _ => RouteMessageBuilder::<Ipv4Addr>::new().output_interface(LOOPBACK).build(),
        };
        route.header.kind = RouteType::Local;
        route.header.scope = RouteScope::Host;
        route.header.table = 0;
        route.attributes.push(netlink_packet_route::route::RouteAttribute::Table(self.table));
        route
    }
}

impl Netlink {
    /// Adds both rules and their routes; what is there is left. Loopback must be up.
    pub async fn add_marked(&self, marked: Marked) -> Result<()> {
        for family in FAMILIES {
            let route = self.handle.route().add(marked.route(family)).execute().await;
            unless_present(route.context_netlink("add local route to table", marked.table))?;
        }
        let there = self.marked_rules(marked).await?;
        for family in FAMILIES.into_iter().filter(|family| !there.contains(family)) {
            let mut request = self.handle.rule().add();
            *request.message_mut() = marked.rule(family);
            unless_present(request.execute().await.context_netlink("add rule for mark", marked.mark))?;
        }
        Ok(())
    }

    /// Removes both rules, then their routes; `true` if there were any.
    pub async fn delete_marked(&self, marked: Marked) -> Result<bool> {
        let mut found = false;
        for family in FAMILIES {
            let rule = self.handle.rule().del(marked.rule(family)).execute().await;
            found |= unless_absent(rule.context_netlink("delete rule for mark", marked.mark))?;
        }
        for family in FAMILIES {
            let route = self.handle.route().del(marked.route(family)).execute().await;
            found |= unless_absent(route.context_netlink("delete local route of table", marked.table))?;
        }
        Ok(found)
    }

    /// Whether either rule is there.
    pub async fn has_marked(&self, marked: Marked) -> Result<bool> {
        Ok(!self.marked_rules(marked).await?.is_empty())
    }

    /// Families whose rule is there.
    async fn marked_rules(&self, marked: Marked) -> Result<Vec<AddressFamily>> {
        let mut found = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<RuleMessage> = (self.handle.rule().get(version).execute().try_collect().await)
                .context_netlink("list", "routing rules")?;
            found.extend(rules.iter().filter(|rule| marked.is(rule)).map(|rule| rule.header.family).take(1));
        }
        Ok(found)
    }
}

fn unless_present(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_present() => Ok(()),
        other => other,
    }
}

/// `false`: it was not there.
fn unless_absent(result: Result<()>) -> Result<bool> {
    match result {
        Err(error) if error.is_absent() => Ok(false),
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    //! Need root: they make network namespaces.

    use super::*;
    use crate::netlink::VethEnd;
    use crate::scratch;

    const MARKED: Marked = Marked { mark: 0x200, mask: 0xf00, table: 512, priority: 100 };

    #[tokio::test]
    async fn marked_packets_are_for_this_node_until_the_rule_goes() {
        let here = scratch::Namespace::new("linux").unwrap();
        let netlink = here.namespace().netlink().unwrap();
        netlink.set_up(LOOPBACK, true).await.unwrap();
        let [a, b] = ["a", "b"].map(|name| VethEnd { name, mac: [2, 0, 0, 0, 0, 1], arp: true, mtu: 1500 });
        netlink.add_veth(a, b, None).await.unwrap();
        assert!(!netlink.has_marked(MARKED).await.unwrap());
        for _ in 0..2 {
            netlink.add_marked(MARKED).await.unwrap();
            assert!(netlink.has_marked(MARKED).await.unwrap());
            let other = Marked { mark: 0x300, ..MARKED };
            assert!(!netlink.has_marked(other).await.unwrap());
        }
        let way = |destination: &'static str, mark: &'static str| {
            let command = move || {
                let mut ip = std::process::Command::new("ip");
                ip.args(["route", "get", destination, "mark", mark]).output().unwrap().stdout
            };
            String::from_utf8(here.namespace().inside(command).unwrap()).unwrap()
        };
        for destination in ["192.0.2.1", "2001:db8::1"] {
            assert!(way(destination, "0x200").starts_with("local"), "{}", way(destination, "0x200"));
            assert!(!way(destination, "0x300").starts_with("local"), "{}", way(destination, "0x300"));
        }
        assert!(netlink.delete_marked(MARKED).await.unwrap());
        assert!(!netlink.has_marked(MARKED).await.unwrap());
        assert!(!netlink.delete_marked(MARKED).await.unwrap());
        assert!(!way("192.0.2.1", "0x200").starts_with("local"));
    }
}
