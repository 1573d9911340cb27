//! What a second agent finds, and what it refuses. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod support;

use std::fs;
use std::sync::Arc;

use aya::maps::{HashMap, MapData};
use l4_datapath::{Datapath, Error, leftovers, remove};
use mesh::plan::NodePlan;
use mesh::policy::Authentication;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use support::{PinRoot, Pinned, allow, id, open, plan, policy};

fn two() -> NodePlan {
    let rule1 = || allow("rule1", &[(300, 80)]);
    plan(vec![(1, 300, rule1(), open()), (2, 301, rule1(), allow("nobody", &[]))])
}

#[test]
fn a_restart_adopts_without_a_new_generation_and_then_goes_on() {
    let root = PinRoot::new();
    let (mut first, _) = Datapath::open(&root.options()).unwrap();
    first.apply(&two()).unwrap();
    let kernel = Pinned::of(&root);
    let before = (kernel.rules().entries().unwrap().len(), kernel.assignments(1), kernel.assignments(2));
    let second = Datapath::open(&root.options());
    assert!(matches!(second, Err(Error::Busy(_))), "a second agent is refused while the first lives");
    drop(first);

    let (mut second, adoption) = Datapath::open(&root.options()).unwrap();
    assert_eq!((adoption.generation, adoption.endpoints), (1, [id(1), id(2)].into()));
    let report = second.apply(&two()).unwrap();
    assert!(!report.changed, "{report:?}");
    let after = (kernel.rules().entries().unwrap().len(), kernel.assignments(1), kernel.assignments(2));
    assert_eq!((kernel.generation(), before), (1, after));

    let (ingress, egress) = second.ruleset_ids(id(2)).unwrap();
    let attribution = second.attribution();
    let cookie = kernel.rules().longest(abi::RuleKey::exact(ingress, 300, 6, 80)).unwrap().unwrap().cookie;
    assert_eq!(attribution.policies_of_cookie(cookie), [policy("rule1")]);
    assert_eq!(attribution.denied_by_default(egress), [policy("nobody")], "an empty ruleset is known, too");

    let mut edited = two();
    edited.endpoints.get_mut(&id(1)).unwrap().ingress = allow("rule2", &[(300, 80)]);
    let report = second.apply(&edited).unwrap();
    assert_eq!((report.generation, report.rulesets_written), (2, 1), "other names are another ruleset");
    let fresh = second.ruleset_ids(id(1)).unwrap().0;
    assert!(fresh > ingress.max(egress), "ids that an earlier agent used are not given out again");
}

#[test]
fn what_an_earlier_agent_allowed_without_a_proof_is_not_taken_for_what_requires_one() {
    let root = PinRoot::new();
    let (mut first, _) = Datapath::open(&root.options()).unwrap();
    first.apply(&two()).unwrap();
    drop(first);
    let kernel = Pinned::of(&root);
    let mut required = two();
    for planned in required.endpoints.values_mut() {
        let entries = Arc::make_mut(&mut planned.ingress).entries.values_mut();
        entries.for_each(|outcome| outcome.authentication = Authentication::Required);
    }
    let (mut second, _) = Datapath::open(&root.options()).unwrap();
    assert_eq!(second.apply(&required).unwrap().rulesets_written, 1);
    let ingress = second.ruleset_ids(id(1)).unwrap().0;
    assert_eq!(kernel.judge(ingress, 300, 6, 80), (true, abi::REQUIRED));
    drop(second);

    let (mut third, _) = Datapath::open(&root.options()).unwrap();
    assert!(!third.apply(&required).unwrap().changed, "and what requires one is adopted as it is");
}

#[test]
fn what_an_agent_killed_half_way_had_written_is_cleared_away() {
    let root = PinRoot::new();
    let (mut first, _) = Datapath::open(&root.options()).unwrap();
    first.apply(&two()).unwrap();
    drop(first);
    let kernel = Pinned::of(&root);
    let entries = kernel.rules().entries().unwrap().len();
    let value = abi::RuleValue { cookie: 50, verdict: 1, requirement: 0, zero: [0; 2] };
    let bits = abi::RuleKey::EXACT;
    kernel.rules().insert(maps::Prefix { bits, data: abi::RuleKey::exact(99, 300, 6, 80) }, value).unwrap();

    let (mut second, _) = Datapath::open(&root.options()).unwrap();
    assert!(
        !second.apply(&two()).unwrap().changed,
        "a ruleset that nobody points at is no reason for a switch"
    );
    second.settle().unwrap();
    assert_eq!(kernel.rules().entries().unwrap().len(), entries);
    drop(second);

    // A prefix in the slot not in force, an endpoint that no plan has.
    let remote = abi::Remote { identity: [77, 9], ..abi::Remote::default() };
    let stray = maps::Prefix { bits: 128, data: abi::Address::v4([192, 0, 2, 1]) };
    kernel.ipcache().insert(stray, remote).unwrap();
    let facts = kernel.endpoints()[&abi::Address::v4([10, 0, 0, 1])];
    let mut endpoints = maps::Endpoints::new(kernel.map(abi::map::ENDPOINTS)).unwrap();
    endpoints.insert(abi::Address::v4([10, 0, 0, 9]), abi::Endpoint { id: 9, ..facts }).unwrap();
    let (mut third, _) = Datapath::open(&root.options()).unwrap();
    let report = third.apply(&two()).unwrap();
    assert_eq!((report.generation, report.rulesets_written), (2, 0));
    third.settle().unwrap();
    assert_eq!((kernel.endpoints().len(), kernel.ipcache().entries().unwrap().len()), (6, 2));
    assert_eq!(kernel.remote(stray.data), 9);
}

#[test]
fn what_cannot_be_reused_is_refused_in_one_line_and_stays() {
    let root = PinRoot::new();
    let schema = root.path().join(format!("v{}", abi::SCHEMA));
    fs::create_dir_all(schema.join("maps")).unwrap();
    let other: HashMap<MapData, u64, u64> = HashMap::create(8, 0).unwrap();
    let pin = schema.join("maps/RULES");
    pin_map(other, &pin);
    let error = Datapath::open(&root.options()).err().unwrap();
    assert!(matches!(error, Error::IncompatiblePin { .. }));
    let line = error.to_string();
    assert!(line.contains("maps/RULES: pinned map type is Hash, expected LpmTrie"), "{line}");
    assert_eq!(line.lines().count(), 1);
    assert!(pin.exists());

    fs::remove_file(&pin).unwrap();
    let earlier = root.path().join("v0");
    fs::create_dir_all(earlier.join("maps")).unwrap();
    fs::create_dir_all(earlier.join("links")).unwrap();
    let other: HashMap<MapData, u64, u64> = HashMap::create(8, 0).unwrap();
    pin_map(other, &earlier.join("maps/policy"));
    let line = Datapath::open(&root.options()).err().unwrap().to_string();
    let expected = format!("v0: pins of schema 0, this version speaks schema {}", abi::SCHEMA);
    assert!(line.contains(&expected), "{line}");
    assert_eq!(line.lines().count(), 1);

    assert!(remove(&root.path()).unwrap().iter().any(|line| line.ends_with("v0/maps/policy")));
    assert_eq!(leftovers(&root.path()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_pin_root_elsewhere_must_be_on_a_bpf_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let options = l4_datapath::Options { pin_root: directory.path().join("pins"), ..Default::default() };
    let error = Datapath::open(&options).err().unwrap();
    assert!(matches!(error, Error::NotBpffs(_)), "{error}");
}

#[test]
fn a_bpf_file_system_is_mounted_where_it_belongs_and_unmounted_in_the_end() {
    // In a mount namespace of this thread's own, in which nothing is mounted there.
    let alone = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        while umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).is_ok() {}
        let options =
            l4_datapath::Options { pin_root: "/sys/fs/bpf/ferromesh".into(), ..PinRoot::new().options() };
        let (datapath, adoption) = Datapath::open(&options).unwrap();
        assert_eq!(adoption.mounted, Some("/sys/fs/bpf".into()));
        drop(datapath);
        let removed = remove(&options.pin_root).unwrap();
        assert_eq!(removed.last().unwrap(), "/sys/fs/bpf (unmounted)");
        assert!(umount2("/sys/fs/bpf", MntFlags::empty()).is_err(), "nothing is mounted there any more");
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap());
}

fn pin_map(map: HashMap<MapData, u64, u64>, path: &std::path::Path) {
    map.pin(path).unwrap();
}
