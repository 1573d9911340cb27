//! `clusterIP`, `clusterIPs`, `ipFamilies`, `ipFamilyPolicy`: which addresses a service asks for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::Reach;
use crate::yaml::{At, Fields};

/// A family of addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What is wrong with an address that cannot be reached from elsewhere; `None` if nothing is.
fn special(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if link_local => Some("a link-local address"),
        _ if mapped => Some("an IPv4 address written as IPv6"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        _ => None,
    }
}

/// An address that others can reach.
pub(in crate::kind) fn address(at: &At<'_>, expected: &str) -> Option<IpAddr> {
    let address: IpAddr = at.parse(expected)?;
    if let Some(special) = special(address) {
        at.error(format_args!("found {address}, {special}; expected one that can be routed"));
        return None;
    }
    Some(address)
}

/// What `clusterIP` or an item of `clusterIPs` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    None,
    Any,
    This(IpAddr),
}

fn given(at: &At<'_>) -> Option<Given> {
    const EXPECTED: &str = "an IP address, or None for a headless service";
    match at.text(EXPECTED) {
        Some("") => Some(Given::Any),
        Some("None") => Some(Given::None),
        Some(_) => address(at, EXPECTED).map(Given::This),
        None => None,
    }
}

/// How a service that is no external name is reached; `None` if something is wrong. `published`: it is a node port's
/// or a load balancer's.
pub(super) fn reach(fields: &Fields<'_>, published: bool, selects: bool) -> Option<Reach> {
    let first_at = fields.get("clusterIP");
    let first = first_at.as_ref().map(given);
    let list_at = fields.get("clusterIPs");
    let list: Option<Vec<Given>> =
        list_at.as_ref().map_or(Some(Vec::new()), |at| at.list().iter().map(given).collect());
    let (list, first) = (list?, first.unwrap_or(Some(Given::Any))?);
    if let (Some(at), Some(one)) = (&list_at, list.first())
        && first != *one
        && first_at.is_some()
    {
        at.error("its first item is to be that of clusterIP");
    }
    let all = if list.is_empty() { vec![first] } else { list };
    let place = list_at.or(first_at);
    if all.contains(&Given::None) {
        let at = place?;
        if all.len() > 1 {
            at.error("None stands alone");
        }
        if published {
            at.error("a NodePort or LoadBalancer cannot be headless; choose type: ClusterIP");
        }
        let families = families(fields, &[], !selects)?;
        return Some(Reach::Headless(families));
    }
    let addresses: Vec<IpAddr> = all
        .iter()
        .filter_map(|given| match given {
            Given::This(address) => Some(*address),
            Given::None | Given::Any => None,
        })
        .collect();
    if let (Some(at), [one, two, ..]) = (&place, addresses.as_slice())
        && (addresses.len() > 2 || Family::of(*one) == Family::of(*two))
    {
        at.error("expected at most one address of each family");
        return None;
    }
    let families = families(fields, &addresses, false)?;
    let of = |family| addresses.iter().copied().find(|address| Family::of(*address) == family);
    Some(Reach::Cluster(families.into_iter().map(|family| (family, of(family))).collect()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Single,
    Dual,
}

/// The families in order. `both`: where nothing is said, both (a headless service without selector).
fn families(fields: &Fields<'_>, addresses: &[IpAddr], both: bool) -> Option<Vec<Family>> {
    let policies = [
        (Policy::Single, "SingleStack"),
        (Policy::Dual, "PreferDualStack"),
        (Policy::Dual, "RequireDualStack"),
    ];
    let policy_at = fields.get("ipFamilyPolicy");
    let policy = policy_at.as_ref().map(|at| at.one_of(&policies));
    let listed_at = fields.get("ipFamilies");
    let choices = [(Family::V4, "IPv4"), (Family::V6, "IPv6")];
    let listed: Vec<_> = listed_at
        .as_ref()
        .map(|at| at.list())
        .unwrap_or_default()
        .iter()
        .filter_map(|at| at.one_of(&choices))
        .collect();
    if let Some(at) = &listed_at
        && (listed.len() > 2 || listed.len() == 2 && listed.first() == listed.last())
    {
        at.error("expected each family at most once");
        return None;
    }
    let of_addresses: Vec<_> = addresses.iter().map(|address| Family::of(*address)).collect();
    if let Some(at) = &listed_at
        && of_addresses.iter().zip(&listed).any(|(one, other)| one != other)
    {
        at.error("is to name the families of clusterIPs in their order");
        return None;
    }
    let mut families = if of_addresses.len() > listed.len() { of_addresses } else { listed };
    let policy = match policy {
        Some(policy) => policy?,
        None if families.len() == 2 || both && families.is_empty() => Policy::Dual,
        None => Policy::Single,
    };
    if families.is_empty() {
        families.push(Family::V4);
    }
    match (policy, families.as_slice(), policy_at) {
        (Policy::Single, [_, _, ..], Some(at)) => {
            at.error("two families or addresses are given: expected PreferDualStack or RequireDualStack");
            return None;
        }
        (Policy::Dual, [one], _) => families.push(one.other()),
        _ => {}
    }
    Some(families)
}
