//! The programs stay in force whatever happens to the agent, and are gone when they are told to go.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use l4_datapath::{Datapath, leftovers, remove};
use nix::libc::ENETUNREACH;

use crate::client::Client;
use crate::support::PinRoot;
use crate::tables::{TCP, frontend};
use crate::world::{Family, OBJECT, ScratchCgroup, World, call, stop};

/// A service of one backend.
fn serve(world: &mut World) -> (SocketAddr, TcpListener) {
    let (vip, server) = (Family::V4.vip(1, 80), world.tcp_server(Family::V4));
    world.tables.set_backend(1, server.local_addr().unwrap());
    world.tables.set_service(1, frontend(vip, TCP), &[1], 0);
    (vip, server)
}

/// That no program has changed the call: nothing leads to a VIP.
fn assert_untouched(result: io::Result<std::net::TcpStream>) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(ENETUNREACH));
}

fn links(root: &PinRoot) -> PathBuf {
    root.path().join(format!("v{}/links", abi::SCHEMA))
}

fn pins(root: &PinRoot) -> Vec<String> {
    let entries = std::fs::read_dir(links(root)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const PINS: [&str; 12] = [
    "cgroup-connect4",
    "cgroup-connect6",
    "cgroup-getpeername4",
    "cgroup-getpeername6",
    "cgroup-post_bind4",
    "cgroup-post_bind6",
    "cgroup-recvmsg4",
    "cgroup-recvmsg6",
    "cgroup-sendmsg4",
    "cgroup-sendmsg6",
    "cgroup-sock_ops",
    "cgroup-sock_release",
];

/// Calls again and again while `work` is done; all must be answered.
fn under_calls(client: &Client, vip: SocketAddr, server: &TcpListener, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let call_on = || {
        let mut calls = 0;
        while !over.load(Ordering::Relaxed) || calls < 10 {
            call(client.socket(Family::V4.tcp()), vip)
                .unwrap_or_else(|error| panic!("call {calls}: {error}"));
            server.accept().unwrap();
            calls += 1;
        }
    };
    thread::scope(|scope| {
        let calls = scope.spawn(call_on);
        work();
        over.store(true, Ordering::Relaxed);
        calls.join().unwrap();
    });
}

/// The next agent, on the same pins.
fn restart(world: &mut World) {
    stop(&mut world.datapath);
    world.datapath = Some(Datapath::open(&world.root.options()).unwrap().0);
}

#[test]
fn replacing_the_programs_loses_no_call() {
    let mut world = World::new();
    let (vip, server) = serve(&mut world);
    let (options, cgroup, datapath) = (world.root.options(), world.cgroup.path(), &mut world.datapath);
    under_calls(&world.client, vip, &server, || {
        for _ in 0..4 {
            stop(datapath);
            let next = datapath.insert(Datapath::open(&options).unwrap().0);
            next.attach_cgroup(cgroup).unwrap();
            next.attach_cgroup(cgroup).unwrap();
        }
    });
    assert_eq!(pins(&world.root), PINS);
}

#[test]
fn what_is_attached_stays_in_force_without_an_agent() {
    let mut world = World::new();
    let (vip, _server) = serve(&mut world);
    stop(&mut world.datapath);
    world.tcp(Family::V4, vip).unwrap();
    assert_eq!(pins(&world.root), PINS);
    let (_datapath, adoption) = Datapath::open(&world.root.options()).unwrap();
    assert!(adoption.interfaces.is_empty(), "no pin of a cgroup is taken for an interface: {adoption:?}");
    assert_eq!(pins(&world.root), PINS);
    world.tcp(Family::V4, vip).unwrap();
}

#[test]
fn moving_to_the_cgroup_above_and_back_loses_no_call() {
    let mut world = World::new();
    let (vip, server) = serve(&mut world);
    let below = ScratchCgroup::below(world.cgroup.path());
    let client = world.namespace.namespace().inside(|| Client::start(below.path())).unwrap();
    let (above, datapath) = (world.cgroup.path(), world.datapath.as_mut().unwrap());
    under_calls(&client, vip, &server, || {
        for _ in 0..4 {
            datapath.attach_cgroup(below.path()).unwrap();
            datapath.attach_cgroup(above).unwrap();
        }
        datapath.attach_cgroup(below.path()).unwrap();
    });
    assert_eq!(pins(&world.root), PINS);
    assert_untouched(world.tcp(Family::V4, vip));
}

#[test]
fn a_cgroup_that_is_gone_is_replaced_by_the_one_that_is_asked_for() {
    let mut world = World::detached();
    let (vip, _server) = serve(&mut world);
    let gone = ScratchCgroup::new();
    world.attach(gone.path());
    drop(gone);
    restart(&mut world);
    world.attach_own();
    world.tcp(Family::V4, vip).unwrap();
    assert_eq!(pins(&world.root), PINS);
}

/// What an agent leaves that dies between attaching to another cgroup and taking the old link away.
#[test]
fn a_move_that_was_interrupted_is_completed() {
    let mut world = World::detached();
    let (vip, _server) = serve(&mut world);
    let before = ScratchCgroup::new();
    world.attach(before.path());
    stop(&mut world.datapath);
    let mut object = aya::Ebpf::load(OBJECT).unwrap();
    let program: &mut CgroupSockAddr = object.program_mut("connect4").unwrap().try_into().unwrap();
    program.load().unwrap();
    let cgroup = std::fs::File::open(world.cgroup.path()).unwrap();
    let link = program.attach(cgroup, CgroupAttachMode::Single).unwrap();
    let link: FdLink = program.take_link(link).unwrap().try_into().unwrap();
    link.pin(links(&world.root).join("cgroup-connect4-next")).unwrap();
    restart(&mut world);
    world.attach_own();
    assert_eq!(pins(&world.root), PINS);
    world.tcp(Family::V4, vip).unwrap();
    let outside = world.namespace.namespace().inside(|| Client::start(before.path())).unwrap();
    assert_untouched(call(outside.socket(Family::V4.tcp()), vip));
    assert_eq!(foreign(before.path(), &world.root), Vec::<String>::new(), "nobody is there any more");
}

#[test]
fn removing_takes_the_programs_away_at_once() {
    let mut world = World::new();
    let (vip, _server) = serve(&mut world);
    world.tcp(Family::V4, vip).unwrap();
    stop(&mut world.datapath);
    let removed = remove(&world.root.path()).unwrap();
    assert!(PINS.iter().all(|pin| removed.iter().any(|line| line.ends_with(pin))), "{removed:?}");
    assert_untouched(world.tcp(Family::V4, vip));
    assert_eq!(leftovers(&world.root.path()).unwrap(), Vec::<String>::new());
    assert_eq!(foreign(world.cgroup.path(), &world.root), Vec::<String>::new(), "nobody is there");
}

#[test]
fn a_path_that_is_no_cgroup_is_refused_by_name() {
    let mut world = World::detached();
    let error = world.datapath.as_mut().unwrap().attach_cgroup(Path::new("/etc")).unwrap_err().to_string();
    assert!(error.starts_with("/etc: opening the cgroup for services: "), "{error}");
    assert_eq!(pins(&world.root), Vec::<String>::new());
}

#[test]
fn a_program_of_somebody_else_on_this_cgroup_or_above_is_named_and_ours_are_not() {
    let mut world = World::detached();
    let below = ScratchCgroup::below(world.cgroup.path());
    world.attach(below.path());
    assert_eq!(foreign(below.path(), &world.root), Vec::<String>::new());
    let mut object = aya::Ebpf::load(OBJECT).unwrap();
    let program: &mut CgroupSockAddr = object.program_mut("sendmsg6").unwrap().try_into().unwrap();
    program.load().unwrap();
    let id = program.info().unwrap().id();
    let above = std::fs::File::open(world.cgroup.path()).unwrap();
    program.attach(above, CgroupAttachMode::Single).unwrap();
    let sentence = format!(
        "cgroup {}: sendmsg6 program sendmsg6 (id {id}) is not ours; it may refuse or change calls to services",
        world.cgroup.path().display()
    );
    assert_eq!(foreign(below.path(), &world.root), [sentence]);
}

/// What `check` says of a cgroup, but for what stands on the mount: that is this host's, not the test's.
fn foreign(cgroup: &Path, root: &PinRoot) -> Vec<String> {
    let mut found = l4_datapath::foreign::socket_programs(cgroup, &root.path());
    let mount = format!("cgroup {}: ", linux::cgroup::hierarchy().unwrap().display());
    found.retain(|sentence| !sentence.starts_with(&mount));
    found
}
