//! What people see of services and connections is what the kernel has. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod services;
mod support;

use abi::{
    Called, Connection, ConnectionKey4, ConnectionKey6, PacketTuple, SocketKey, Translation, TranslationKind,
};
use aya::maps::{HashMap, MapData};
use l4_datapath::Datapath;
use nix::time::{ClockId, clock_gettime};
use services::{Raw, backend, backends, frontend, key, services};
use support::{PinRoot, Pinned};

#[test]
fn the_load_balancer_shows_what_programs_find() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let plan = services(&[
        ("10.96.0.1:80/TCP", &[1, 2], None),
        ("10.96.0.1:53/UDP", &[], None),
        ("[fd96::1]:80/TCP", &[2], Some(60)),
    ]);
    datapath.apply_services(&plan).unwrap();
    let views = datapath.view().load_balancer().unwrap();
    let names: Vec<_> = views.iter().map(|view| view.frontend).collect();
    assert_eq!(names, plan.frontends.keys().copied().collect::<Vec<_>>());
    for view in &views {
        let planned = &plan.frontends[&view.frontend];
        assert_eq!(Some(view.id), datapath.service_id(&view.frontend));
        assert_eq!(view.affinity, planned.affinity.unwrap_or(0));
        let slots: Vec<_> = view.slots.iter().map(|(_, backend)| *backend).collect();
        assert_eq!(slots, planned.backends.to_vec());
    }

    // Behind the agent's back: the view is of the kernel, not of what the agent believes.
    let mut raw = Raw::of(&root);
    let index = datapath.service_id(&frontend("10.96.0.1:80/TCP")).unwrap();
    let mut service = raw.services.get(&index, 0).unwrap();
    service.affinity = 7;
    raw.services.set(index, service, 0).unwrap();
    raw.frontends.insert(key(&frontend("10.96.0.9:9/TCP")), index, 0).unwrap();
    let views = datapath.view().load_balancer().unwrap();
    let view = |name: &str| views.iter().find(|view| view.frontend == frontend(name)).unwrap();
    assert_eq!(view("10.96.0.1:80/TCP").affinity, 7);
    assert_eq!(view("10.96.0.9:9/TCP").slots, [], "a key that leads to another's service leads nowhere");

    // An agent that finds such a key takes it out, and corrects what is not the plan.
    drop(datapath);
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    assert!(datapath.apply_services(&plan).unwrap().changed);
    raw.check(&plan);
    let maps = datapath.counters().unwrap().maps;
    assert_eq!((maps["FRONTENDS"].used, maps["SLOTS"].used), (Some(5), Some(3)));
    assert!(maps["FRONTENDS"].bytes > 5 * 24 && maps["SLOTS"].bytes >= 1024 * 8, "{maps:?}");
}

#[test]
fn what_a_socket_called_is_known_by_its_backend() {
    let root = PinRoot::new();
    let (datapath, _) = Datapath::open(&root.options()).unwrap();
    let mut sockets: HashMap<MapData, SocketKey, Called> =
        Pinned::of(&root).map(abi::map::SOCKETS).try_into().unwrap();
    let vip = frontend("[fd96::1]:53/UDP");
    let backend6 = backend("fd00::7", 5353);
    let address = services::address(backend6.ip());
    let port = backend6.port().to_be_bytes();
    let socket = SocketKey { cookie: 77, address, port, protocol: 17, zero: [0; 5] };
    sockets.insert(socket, Called { frontend: key(&vip), service: 3 }, 0).unwrap();
    assert_eq!(datapath.view().called(77, backend6, 17).unwrap(), Some(vip));
    assert_eq!(datapath.view().called(78, backend6, 17).unwrap(), None);
    assert_eq!(datapath.view().called(77, backend6, 6).unwrap(), None);
    assert_eq!(datapath.view().called(77, backends("10.96.0.1:1/UDP", &[1])[0], 17).unwrap(), None);
}

fn now() -> u32 {
    u32::try_from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap().tv_sec()).unwrap()
        + abi::timeout::BOOT
}

fn tuple(source: &str, destination: &str, protocol: u8) -> PacketTuple {
    let [source, destination]: [std::net::SocketAddr; 2] =
        [source, destination].map(|end| end.parse().unwrap());
    PacketTuple {
        source: services::address(source.ip()),
        destination: services::address(destination.ip()),
        source_port: source.port().to_be_bytes(),
        destination_port: destination.port().to_be_bytes(),
        protocol,
        zero: [0; 3],
    }
}

fn half(tuple: PacketTuple, kind: TranslationKind, is_forward: u8) -> Translation {
    Translation { tuple, kind: kind as u8, is_forward, orphaned: 0, zero: 0 }
}

#[test]
fn connections_are_shown_as_they_were_opened_with_what_they_are_translated_to() {
    let root = PinRoot::new();
    let (datapath, _) = Datapath::open(&root.options()).unwrap();
    let pinned = Pinned::of(&root);
    let mut four: HashMap<MapData, ConnectionKey4, Connection> =
        pinned.map(abi::map::CONNECTIONS4).try_into().unwrap();
    let mut six: HashMap<MapData, ConnectionKey6, Connection> =
        pinned.map(abi::map::CONNECTIONS6).try_into().unwrap();
    let mut translations: HashMap<MapData, PacketTuple, Translation> =
        pinned.map(abi::map::TRANSLATIONS).try_into().unwrap();
    let key4 = |low: u8, high: u8, low_port: u16, high_port: u16, protocol| ConnectionKey4 {
        low: [10, 0, 0, low],
        high: [10, 0, 0, high],
        low_port: low_port.to_be_bytes(),
        high_port: high_port.to_be_bytes(),
        protocol,
        leg: 0,
        zero: [0; 2],
    };
    let alive = Connection { seen: now(), memo: 5 << 16 | 1, ..Connection::EMPTY };

    // 10.0.0.2:4000 called 10.96.0.1:80 and got 10.0.0.1:8080.
    let called = Connection { translated: 1, replied: 1, opened_by_high: 1, charged: 9, ..alive };
    four.insert(key4(1, 2, 8080, 4000, 6), called, 0).unwrap();
    let call = tuple("10.0.0.2:4000", "10.96.0.1:80", 6);
    let given = tuple("10.0.0.2:4000", "10.0.0.1:8080", 6);
    translations.insert(call, half(given, TranslationKind::Service, 1), 0).unwrap();
    translations.insert(given.reversed(), half(call.reversed(), TranslationKind::Service, 0), 0).unwrap();

    // 10.0.0.4:4000 called the same backend itself; a half of an earlier connection is still there.
    four.insert(key4(1, 4, 8080, 4000, 6), Connection { opened_by_high: 1, ..alive }, 0).unwrap();
    let stale = tuple("10.0.0.4:4000", "10.0.0.1:8080", 6);
    let called = tuple("10.0.0.4:4000", "10.96.0.1:80", 6);
    translations.insert(called, half(stale, TranslationKind::Service, 1), 0).unwrap();

    // 10.0.0.3:500 is its own backend: it called 10.96.0.1:53 from port 501.
    four.insert(key4(3, 3, 500, 501, 17), Connection { translated: 1, opened_by_high: 1, ..alive }, 0)
        .unwrap();
    let itself = tuple("10.96.0.1:501", "10.0.0.3:500", 17);
    translations
        .insert(tuple("10.0.0.3:501", "10.96.0.1:53", 17), half(itself, TranslationKind::Service, 1), 0)
        .unwrap();

    // fd00::1 went out as fd99::1, port 50000; in audit mode.
    let out = tuple("[fd00::1]:4000", "[2001:db8::1]:443", 6);
    let masqueraded = tuple("[fd99::1]:50000", "[2001:db8::1]:443", 6);
    translations.insert(out, half(masqueraded, TranslationKind::Masquerade, 1), 0).unwrap();
    let key6 = ConnectionKey6 {
        low: out.destination.0,
        high: out.source.0,
        low_port: out.destination_port,
        high_port: out.source_port,
        protocol: 6,
        leg: 0,
        zero: [0; 2],
    };
    six.insert(key6, Connection { opened_by_high: 1, memo: 6 << 16 | 3, ..alive }, 0).unwrap();

    // And one that has been dead for long.
    four.insert(key4(1, 9, 1, 2, 17), Connection { seen: now().saturating_sub(1000), ..alive }, 0).unwrap();

    let views = datapath.view().connections().unwrap();
    let row = |view: &node_api::ConnectionView| {
        let address = |socket: Option<std::net::SocketAddr>| {
            socket.map(|socket| socket.to_string()).unwrap_or_default()
        };
        let ends = format!("{} {} > {}", view.protocol, view.source, view.destination);
        let translated = format!("called {} as {}", address(view.called), address(view.masqueraded));
        format!("{ends} {translated} {} {} {:?} {}", view.state, view.generation, view.charged, view.audited)
    };
    let rows: Vec<String> = views.iter().map(row).collect();
    assert_eq!(
        rows,
        [
            "6 10.0.0.2:4000 > 10.0.0.1:8080 called 10.96.0.1:80 as  established 5 Some(9) false",
            "6 10.0.0.4:4000 > 10.0.0.1:8080 called  as  opening 5 None false",
            "6 [fd00::1]:4000 > [2001:db8::1]:443 called  as [fd99::1]:50000 opening 6 None true",
            "17 10.0.0.3:501 > 10.0.0.3:500 called 10.96.0.1:53 as  opening 5 None false",
        ]
    );
    let established = views[0].expires;
    assert!((7990..=8000).contains(&established), "{established}");
}
