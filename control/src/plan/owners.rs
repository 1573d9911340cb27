//! Whose an address is: which node the administrator gave it to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::NodeFacts;
use super::notes::{Notes, of_node};
use crate::world::World;

/// Ranges of nodes, to be asked about addresses.
pub(super) struct Owners<'a> {
    ranges: BTreeMap<IpNet, BTreeSet<&'a str>>,
    /// Lengths that occur, of each family.
    lengths: BTreeSet<(bool, u8)>,
    /// Addresses of nodes themselves.
    nodes: BTreeMap<IpAddr, &'a str>,
    own: &'a NodeFacts,
    services: [IpNet; 2],
}

impl<'a> Owners<'a> {
    pub(super) fn new(world: &'a World, own: &'a NodeFacts) -> Self {
        let mut ranges: BTreeMap<IpNet, BTreeSet<&str>> = BTreeMap::new();
        let declared = world
            .nodes
            .values()
            .flat_map(|node| node.pod_cidrs.iter().map(|range| (*range, node.name.as_str())));
        // Whatever is declared, this node gives out the addresses of its pools.
        let pools: [IpNet; 2] = [own.ipv4_pool.into(), own.ipv6_pool.into()];
        for (range, node) in declared.chain(pools.map(|pool| (pool, own.name.as_str()))) {
            ranges.entry(range.trunc()).or_default().insert(node);
        }
        let lengths = ranges.keys().map(|range| (range.addr().is_ipv4(), range.prefix_len())).collect();
        let nodes = world
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().map(|address| (*address, node.name.as_str())));
        let configuration = &world.configuration;
        let services = [configuration.ipv4_service_pool.into(), configuration.ipv6_service_pool.into()];
        Self { nodes: nodes.collect(), ranges, lengths, own, services }
    }

    /// Why an address cannot be that of an endpoint of a node.
    pub(super) fn refuse(&self, node: &str, address: IpAddr) -> Option<String> {
        let around = self.lengths.range((address.is_ipv4(), 0)..=(address.is_ipv4(), u8::MAX));
        let around = around.filter_map(|(_, length)| IpNet::new(address, *length).ok());
        let mut owners = BTreeSet::new();
        for range in around.filter_map(|range| self.ranges.get(&range.trunc())) {
            owners.extend(range.iter().copied());
        }
        if !owners.contains(node) {
            return Some(format!("is in no podCIDR of Node {node}"));
        }
        if let Some(other) = owners.into_iter().find(|owner| *owner != node) {
            return Some(format!("is in podCIDRs of Nodes {node} and {other}"));
        }
        if let Some(of) = self.nodes.get(&address) {
            return Some(format!("is an address of Node {of} itself"));
        }
        if self.own.addresses.iter().any(|own| own.contains(&address)) {
            return Some("is an address of this node itself".to_owned());
        }
        let pool = self.services.iter().find(|pool| pool.contains(&address))?;
        Some(format!("is in the pool of services, {pool}"))
    }
}

/// Notes of ranges that two nodes are given.
pub(super) fn overlaps(world: &World, notes: &mut Notes) {
    let ranges =
        world.nodes.values().flat_map(|node| node.pod_cidrs.iter().map(|it| (it.trunc(), &node.name)));
    // In order, what lies inside a range follows it.
    let ranges: BTreeSet<(IpNet, &String)> = ranges.collect();
    let mut around: Vec<(IpNet, &String)> = Vec::new();
    for (range, node) in ranges {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&range)) {
            around.pop();
        }
        if let Some((outer, other)) = around.iter().find(|(_, other)| *other != node) {
            for (own, range, other, of_other) in
                [(node, range, *other, *outer), (*other, *outer, node, range)]
            {
                let message = format!(
                    "spec.podCIDRs: {range} overlaps {of_other} of Node {other}: neither is believed about addresses in both; give each node ranges of its own"
                );
                notes.error(of_node(own), message);
            }
        }
        around.push((range, node));
    }
}
