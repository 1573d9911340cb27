//! After any sequence of plans the maps say what the last plan says, as a program reads them. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use l4_datapath::Datapath;
use mesh::plan::NodePlan;
use mesh::policy::{Authentication, Match, Needs, Outcome, Ruleset};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use support::{PinRoot, Pinned, identity, net, plan, policy};

const PEERS: [u32; 4] = [1, 300, 301, 0x0100_0001];
const PREFIXES: [&str; 8] = [
    "192.0.2.0/24",
    "192.0.2.128/25",
    "192.0.2.200/32",
    "198.51.100.0/24",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
    "10.0.0.0/8",
];
const ADDRESSES: [&str; 9] = [
    "192.0.2.1",
    "192.0.2.200",
    "192.0.2.201",
    "198.51.100.9",
    "203.0.113.1",
    "10.9.9.9",
    "2001:db8::1",
    "2001:db8:1::7",
    "fd77::1",
];

/// Identity of the peer, protocol, destination port.
type Packet = (u32, u8, u16);

fn any_match() -> impl Strategy<Value = Match> {
    let peer =
        prop_oneof![Just(None), prop::sample::select(&PEERS[..]).prop_map(|peer| Some(identity(peer)))];
    let ports = (0..=16u8, any::<u16>()).prop_map(|(bits, port)| {
        let mask = u16::MAX.checked_shl(16 - u32::from(bits)).unwrap_or(0);
        (port & mask, bits)
    });
    (peer, prop::option::of(prop::sample::select(&[1u8, 6, 17, 58][..])), ports).prop_map(
        |(identity, protocol, (port, port_bits))| match protocol {
            None => Match { identity, protocol, port: 0, port_bits: 0 },
            Some(_) => Match { identity, protocol, port, port_bits },
        },
    )
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let verdict = prop_oneof![
        Just((true, None, Authentication::None, false)),
        Just((true, None, Authentication::Required, false)),
        Just((true, None, Authentication::None, true)),
        Just((true, None, Authentication::Required, true)),
        Just((false, None, Authentication::None, false)),
        Just((false, Some(Needs::L7Proxy), Authentication::None, false)),
    ];
    (verdict, prop::sample::subsequence(vec!["a", "b", "c"], 0..=2)).prop_map(
        |((allow, needs, authentication, proxied), by)| Outcome {
            allow,
            by: by.into_iter().map(policy).collect(),
            needs,
            authentication,
            proxied,
        },
    )
}

fn any_ruleset() -> impl Strategy<Value = Arc<Ruleset>> {
    let entries = prop::collection::btree_map(any_match(), any_outcome(), 0..8);
    (any::<bool>(), entries).prop_map(|(enforced, entries)| {
        Arc::new(Ruleset { enforced, denied_by_default: vec![policy("d")], entries })
    })
}

/// Endpoints draw their rulesets from a small pool, so that some share one.
fn any_plan() -> impl Strategy<Value = NodePlan> {
    let pool = prop::collection::vec(any_ruleset(), 1..4);
    let choice = (
        prop::sample::select(vec![300u32, 301, 302]),
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
    );
    let endpoints = prop::collection::btree_map(1..6u16, choice, 0..5);
    let ipcache = prop::collection::btree_map(prop::sample::select(&PREFIXES[..]), 1..9u32, 0..7);
    (pool, endpoints, ipcache).prop_map(|(pool, endpoints, ipcache)| {
        let endpoints = endpoints.into_iter().map(|(number, (own, ingress, egress))| {
            (number, own, ingress.get(&pool).clone(), egress.get(&pool).clone())
        });
        let mut plan = plan(endpoints.collect());
        Arc::make_mut(&mut plan.ipcache)
            .extend(ipcache.into_iter().map(|(prefix, own)| (net(prefix), identity(own).into())));
        plan
    })
}

#[test]
fn the_maps_say_what_the_last_of_any_sequence_of_plans_says() {
    let root = PinRoot::new();
    let datapath = RefCell::new(Datapath::open(&root.options()).unwrap().0);
    let kernel = Pinned::of(&root);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let sequence = prop::collection::vec((any_plan(), any::<bool>()), 1..4);
    let packets = prop::collection::vec(
        (prop::sample::select(&PEERS[..]), prop::sample::select(&[1u8, 6, 17, 58][..]), any::<u16>()),
        24,
    );
    let run = |(plans, packets): (Vec<(NodePlan, bool)>, Vec<Packet>)| {
        for (plan, settle) in plans {
            datapath.borrow_mut().apply(&plan).unwrap();
            equal(&kernel, &plan, &packets)?;
            if settle {
                datapath.borrow_mut().settle().unwrap();
                equal(&kernel, &plan, &packets)?;
                nothing_more(&kernel, &plan)?;
            }
        }
        Ok(())
    };
    TestRunner::new(config).run(&(sequence, packets), run).unwrap();
}

/// What programs read is the plan.
fn equal(kernel: &Pinned, plan: &NodePlan, packets: &[Packet]) -> Result<(), TestCaseError> {
    let ids: BTreeSet<u32> = kernel.endpoints().values().map(|endpoint| endpoint.id).collect();
    prop_assert_eq!(ids, plan.endpoints.keys().map(|id| u32::from(id.number())).collect::<BTreeSet<_>>());
    for (id, planned) in &plan.endpoints {
        let assignment = kernel.assignment(id.number());
        prop_assert_eq!(assignment.identity, planned.identity.number());
        for (ruleset, content) in
            [(assignment.ingress, &planned.ingress), (assignment.egress, &planned.egress)]
        {
            for packet in packets.iter().chain(&edges(content)) {
                let (peer, protocol, port) = *packet;
                let (allowed, outcome) = content.judge(identity(peer), protocol, port);
                let expected = (allowed, outcome.map_or(0, |it| it.requirement()));
                prop_assert_eq!(
                    kernel.judge(ruleset, peer, protocol, port),
                    expected,
                    "{:?} {:?}",
                    packet,
                    content
                );
            }
        }
    }
    for address in ADDRESSES {
        let address: std::net::IpAddr = address.parse().unwrap();
        let key = match address {
            std::net::IpAddr::V4(four) => abi::Address::v4(four.octets()),
            std::net::IpAddr::V6(six) => abi::Address(six.octets()),
        };
        prop_assert_eq!(kernel.remote(key), expected_remote(&plan.ipcache, address), "{}", address);
    }
    Ok(())
}

/// A packet on each entry, and one just beyond its range.
fn edges(content: &Ruleset) -> Vec<Packet> {
    let edge = |matched: &Match| {
        let peer = matched.identity.map_or(300, mesh::identity::Identity::number);
        let last = matched.port | u16::MAX.checked_shr(u32::from(matched.port_bits)).unwrap_or(0);
        let protocol = matched.protocol.unwrap_or(6);
        [(peer, protocol, matched.port), (peer, protocol, last), (peer, protocol, last.wrapping_add(1))]
    };
    content.entries.keys().flat_map(edge).collect()
}

fn expected_remote(ipcache: &BTreeMap<IpNet, mesh::plan::Whereabouts>, address: std::net::IpAddr) -> u32 {
    let covers = ipcache.iter().filter(|(net, _)| net.contains(&address));
    covers.max_by_key(|(net, _)| net.prefix_len()).map_or(0, |(_, there)| there.identity.number())
}

/// After settling the maps hold nothing that the plan does not need.
fn nothing_more(kernel: &Pinned, plan: &NodePlan) -> Result<(), TestCaseError> {
    let contents: BTreeSet<&Arc<Ruleset>> =
        plan.endpoints.values().flat_map(|planned| [&planned.ingress, &planned.egress]).collect();
    let entries: usize = contents.iter().map(|content| content.entries.len()).sum();
    prop_assert_eq!(kernel.rules().entries().unwrap().len(), entries);
    prop_assert_eq!(kernel.ipcache().entries().unwrap().len(), plan.ipcache.len());
    Ok(())
}
