//! What rules cost: time of a judgement, and private memory, for 1, 1000 and 5000 rules of paths.

#![allow(clippy::unwrap_used, reason = "a tool for measurements: it ends with what is wrong")]

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use l7_proxy::index::{Compiler, Endpoint, Subject};
use l7_proxy::stage::authorize::Judge;
use l7_proxy::stage::normalise::Path;
use mesh::flow::TrafficDirection::Ingress;
use mesh::identity::Identity;
use mesh::l7::{Expression, HttpRule, L7Access, L7Endpoint, L7Ports, L7Rules};
use mesh::workload::EndpointId;

struct Get;

impl Subject for Get {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn path(&self) -> &[u8] {
        b""
    }
    fn authority(&self) -> &[u8] {
        b"server"
    }
    fn header(&self, _: &str) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        [&b"host"[..], b"accept", b"user-agent"].into_iter()
    }
}

/// The shapes that policies have which programs make.
fn shape(number: usize) -> String {
    match number % 3 {
        0 => format!("/v1/resource-{number}"),
        1 => format!("/v1/resource-{number}/.*"),
        _ => format!("/api/{number}/[0-9]+"),
    }
}

fn endpoint(count: usize) -> Endpoint {
    let rule = |number| HttpRule {
        path: Some(Expression(shape(number))),
        method: Some(Expression("GET".to_owned())),
        ..HttpRule::default()
    };
    let access = vec![L7Access { peers: None, http: Some((0..count).map(rule).collect()) }];
    let endpoint = L7Endpoint {
        id: EndpointId::new(1).unwrap(),
        instance: 1,
        workload: "default/server".parse().unwrap(),
        ipv4: Ipv4Addr::LOCALHOST,
        ipv6: Ipv6Addr::LOCALHOST,
        identity: Identity::new(256).unwrap(),
        ingress: Some(Arc::new(L7Rules {
            ports: vec![L7Ports {
                first: 80,
                last: 80,
                access: access.into(),
                tls: Arc::default(),
                inspected: Arc::default(),
            }],
        })),
        egress: None,
        audit: false,
        secrets: Vec::new(),
    };
    Compiler::default().endpoint(&endpoint).unwrap()
}

fn private() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

fn main() {
    const ROUNDS: usize = 1_000_000;
    for count in [1, 1000, 5000] {
        let (before, began) = (private(), Instant::now());
        let endpoint = endpoint(count);
        let (made, memory) = (began.elapsed(), private().saturating_sub(before));
        let judge = Judge::new(&endpoint, Ingress, 80, Identity::new(300)).unwrap();
        let asked = |number: usize| match number % 3 {
            0 => format!("/v1/resource-{number}"),
            1 => format!("/v1/resource-{number}/a/b?c=d"),
            _ => format!("/api/{number}/4711"),
        };
        let targets: Vec<String> = (0..count).map(asked).collect();
        let (mut path, began) = (Path::default(), Instant::now());
        for round in 0..ROUNDS {
            path.normalise(targets[round * 7919 % count].as_bytes()).unwrap();
            assert!(black_box(judge.judge(&Get, &path)).is_ok());
        }
        let each = began.elapsed().as_nanos() / ROUNDS as u128;
        println!("{count} rules: {each} ns a request, {memory} KiB private memory, compiled in {made:?}");
    }
}
