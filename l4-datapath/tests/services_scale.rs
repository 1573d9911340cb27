//! How long many services take, and how much memory. Prints; run it by hand (the test profile is optimised):
//! `cargo test -p l4-datapath --test services_scale -- --ignored --nocapture`. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy knows only functions marked as tests to be tests; the numbers are the result"
)]

mod services;
mod support;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use aya::maps::{HashMap, MapData};
use l4_datapath::{Datapath, Options, Sizes};
use mesh::service::{Backend, Frontend, Services};
use services::{backend, frontend};
use support::PinRoot;

#[test]
#[ignore = "a measurement"]
fn what_a_full_table_of_connections_costs_to_list() {
    let root = PinRoot::new();
    let connections = 1 << 17;
    let options =
        Options { sizes: Sizes { connections: 2 * connections, ..Sizes::default() }, ..root.options() };
    let (datapath, _) = Datapath::open(&options).unwrap();
    let mut map: HashMap<MapData, abi::ConnectionKey6, abi::Connection> =
        support::Pinned::of(&root).map(abi::map::CONNECTIONS6).try_into().unwrap();
    for number in 0..connections {
        let low = Ipv6Addr::from(1 + u128::from(number)).octets();
        let (high, port) = ([0xfd; 16], [0; 2]);
        let (protocol, leg, zero) = (6, 0, [0; 2]);
        let key = abi::ConnectionKey6 { low, high, low_port: port, high_port: port, protocol, leg, zero };
        let value = abi::Connection { seen: u32::MAX, ..abi::Connection::EMPTY };
        map.insert(key, value, 0).unwrap();
    }
    let views = timed("ct list", || datapath.view().connections().unwrap());
    println!("  {} connections", views.len());
    assert_eq!(views.len(), connections as usize);
}

/// Services of three backends each, every backend in one service.
fn plan(count: u32) -> Services {
    let name = "10.96.0.1:80/TCP";
    let (_, like) = services::services(&[(name, &[], None)]).frontends.pop_first().unwrap();
    let row = |number: u32| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + number).into();
        let host = |which| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number * 3 + which);
        let mut planned = like.clone();
        planned.backends = (0..3).map(|which| Backend::new(host(which).into(), 8080)).collect();
        (Frontend { address, ..frontend(name) }, planned)
    };
    Services { frontends: (0..count).map(row).collect(), ..Services::default() }
}

fn timed<T>(what: &str, action: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = action();
    println!("{what:<40} {:>9.3} ms", begin.elapsed().as_secs_f64() * 1000.0);
    result
}

#[test]
#[ignore = "a measurement"]
fn what_ten_and_fifty_thousand_services_cost() {
    for count in [10_000, 50_000] {
        let root = PinRoot::new();
        let options = Options { sizes: Sizes { backends: 1 << 18, ..Sizes::default() }, ..root.options() };
        let (mut datapath, _) = Datapath::open(&options).unwrap();
        let mut plan = plan(count);
        println!("\n{count} services of three backends");
        let report = timed("from nothing", || datapath.apply_services(&plan).unwrap());
        println!("  {} elements written", report.written);
        timed("unchanged", || datapath.apply_services(&plan).unwrap());
        let edited = plan.frontends.values_mut().nth(7).unwrap();
        edited.backends = [backend("10.255.0.1", 1)].into();
        timed("one edited", || datapath.apply_services(&plan).unwrap());
        timed("lb list", || datapath.view().load_balancer().unwrap());
        for map in ["FRONTENDS", "SERVICES", "SLOTS", "BACKENDS", "MEMBERS"] {
            let found = datapath.counters().unwrap().maps[map];
            println!(
                "  {map:<12} {:>8} of {:>8}, {:>7} KiB",
                found.used.unwrap(),
                found.capacity,
                found.bytes / 1024
            );
        }
        drop(datapath);
        let (mut datapath, _) =
            timed("opened again, programs included", || Datapath::open(&options).unwrap());
        timed("unchanged after a restart", || assert!(!datapath.apply_services(&plan).unwrap().changed));
        timed("all removed", || datapath.apply_services(&Services::default()).unwrap());
    }
}
