//! How long many services take, and how much memory. Prints; run it by hand in release mode:
//! `cargo test --release -p l4-datapath --test services_scale -- --ignored --nocapture`. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy knows only functions marked as tests to be tests; the numbers are the result"
)]

mod services;
mod support;

use std::net::Ipv4Addr;
use std::time::Instant;

use l4_datapath::{Datapath, Options, Sizes};
use mesh::service::{Backend, Frontend, Services};
use services::{backend, frontend};
use support::PinRoot;

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
        timed("lb list", || datapath.load_balancer().unwrap());
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
