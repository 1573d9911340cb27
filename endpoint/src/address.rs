//! Which number is next: addresses of a pool, endpoint ids.
//!
//! Promise: numbers go round. One that was given back is given out again only after all others, because peers and
//! people still know it under its old owner.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{Ipv4Net, Ipv6Net};

/// The first number after `last`, going round within `range`, that is not taken.
pub(crate) fn next_free(range: RangeInclusive<u128>, last: u128, taken: &BTreeSet<u128>) -> Option<u128> {
    let (first, end) = range.into_inner();
    let mut candidate = last;
    // Each step that finds its number taken uses up one element of `taken`.
    for _ in 0..=taken.len() {
        candidate = if (first..end).contains(&candidate) { candidate + 1 } else { first };
        if !taken.contains(&candidate) {
            return Some(candidate);
        }
    }
    None
}

/// The workloads' part of a pool: without network, gateway and broadcast address.
pub(crate) fn ipv4_range(pool: Ipv4Net) -> RangeInclusive<u128> {
    number_v4(pool.network()) + 2..=number_v4(pool.broadcast()).saturating_sub(1)
}

/// The workloads' part of a pool: without the subnet router's anycast address and the gateway.
pub(crate) fn ipv6_range(pool: Ipv6Net) -> RangeInclusive<u128> {
    pool.network().to_bits().saturating_add(2)..=pool.broadcast().to_bits()
}

pub(crate) fn number_v4(address: Ipv4Addr) -> u128 {
    u128::from(address.to_bits())
}

/// The reverse of [`number_v4`]; numbers come from [`ipv4_range`].
pub(crate) fn address_v4(number: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))
}

pub(crate) fn address_v6(number: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_and_one_given_back_comes_last() {
        let mut taken = BTreeSet::new();
        let mut last = 0;
        let mut take = |taken: &mut BTreeSet<u128>| {
            let number = next_free(5..=8, last, taken)?;
            taken.insert(number);
            last = number;
            Some(number)
        };
        assert_eq!([take(&mut taken), take(&mut taken)], [Some(5), Some(6)]);
        taken.remove(&6);
        assert_eq!([take(&mut taken), take(&mut taken)], [Some(7), Some(8)]);
        assert_eq!(take(&mut taken), Some(6));
        assert_eq!(take(&mut taken), None, "exhausted");
    }

    #[test]
    fn the_node_network_and_broadcast_addresses_are_not_given_out() {
        let range = ipv4_range("10.0.0.0/29".parse().unwrap());
        assert_eq!(
            (address_v4(*range.start()), address_v4(*range.end())),
            ([10, 0, 0, 2].into(), [10, 0, 0, 6].into())
        );
        let range = ipv6_range("fd00::/125".parse().unwrap());
        let ends = (address_v6(*range.start()), address_v6(*range.end()));
        assert_eq!(ends, ("fd00::2".parse().unwrap(), "fd00::7".parse().unwrap()));
    }
}
