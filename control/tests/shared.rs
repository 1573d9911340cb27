//! Several nodes and one directory: who may say what in it, and what becomes of that.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use control::World;
use control::source::SourceError;
use control::source::files::{Directory, peek};
use control::source::published::Published;
use mesh::workload::{Endpoint, EndpointId, Mac};
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(10);

struct Bench {
    config: TempDir,
    state: TempDir,
    shared: TempDir,
}

impl Bench {
    fn new() -> Self {
        let [config, state, shared] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        for part in ["admin", "nodes"] {
            fs::create_dir(shared.path().join(part)).unwrap();
        }
        Self { config, state, shared }
    }

    /// By rename; makes the directories on the way.
    fn write(&self, name: &str, text: &str) {
        let path = self.shared.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("new");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, path).unwrap();
    }

    fn open(&self) -> Directory {
        Directory::open(self.config.path(), self.state.path(), Some(self.shared.path())).unwrap()
    }

    /// Statuses without the path of the shared directory.
    fn statuses(&self, world: &World) -> Vec<String> {
        let path = format!("{}/", self.shared.path().display());
        let show = |status: &Arc<control::ObjectStatus>| {
            let key = status.key.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{key} {} {}:{} {}", status.valid, status.file, status.line, status.message)
                .replace(&path, "")
        };
        world.statuses.iter().map(show).collect()
    }
}

fn endpoint(workload: &str, instance: u64, host: u8) -> String {
    format!(
        "apiVersion: ferromesh.io/v1alpha1\nkind: WorkloadEndpoint\nmetadata: {{name: instance-{instance}}}\nspec: {{workload: {workload}, instance: {instance}, ipv4: 10.2.0.{host}, ipv6: 'fd00:2::{host}'}}\n"
    )
}

fn workload(name: &str) -> String {
    format!(
        "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec: {{node: node2}}\n"
    )
}

async fn until(directory: &mut Directory, what: impl Fn(&World) -> bool) -> Arc<World> {
    let wait = async {
        loop {
            let world = directory.world();
            if what(&world) {
                return world;
            }
            directory.changed().await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("a change in time")
}

fn endpoints(world: &World) -> Vec<String> {
    let show = |claim: &control::Claim| {
        let it = &claim.endpoint;
        format!("{} {} {} {} {}", it.node, it.workload, it.instance, it.ipv4, it.ipv6)
    };
    world.endpoints.values().map(show).collect()
}

#[tokio::test]
async fn each_part_of_the_directory_is_read_as_its_writers_word() {
    let bench = Bench::new();
    fs::write(bench.config.path().join("own.yaml"), workload("own")).unwrap();
    bench.write("admin/web.yaml", &workload("web"));
    let mut directory = bench.open();
    let world = directory.world();
    assert_eq!(world.workloads.len(), 2);
    assert!(world.shared && world.endpoints.is_empty());
    let labels = world.config_entries().into_iter().find(|entry| entry.key == "workloadLabels").unwrap();
    assert_eq!((labels.value.as_str(), labels.origin.as_str()), ("declared", "--shared"));

    // A node that comes later, with two instances of one workload.
    bench.write("nodes/node2/1.yaml", &endpoint("web", 1, 7));
    bench.write("nodes/node2/2.yaml", &endpoint("web", 2, 8));
    let world = until(&mut directory, |world| world.endpoints.len() == 2).await;
    assert_eq!(
        endpoints(&world),
        ["node2 default/web 1 10.2.0.7 fd00:2::7", "node2 default/web 2 10.2.0.8 fd00:2::8"]
    );
    // Another node may use the same names.
    bench.write("nodes/node3/1.yaml", &endpoint("web", 1, 9));
    let world = until(&mut directory, |world| world.endpoints.len() == 3).await;
    assert!(bench.statuses(&world).iter().all(|status| status.contains(" true ")));
    let seen = peek(bench.config.path(), bench.state.path(), Some(bench.shared.path())).unwrap();
    assert_eq!(seen.endpoints, world.endpoints);

    fs::remove_dir_all(bench.shared.path().join("nodes/node2")).unwrap();
    let world = until(&mut directory, |world| world.endpoints.len() == 1).await;
    assert_eq!(endpoints(&world), ["node3 default/web 1 10.2.0.9 fd00:2::9"]);
}

#[tokio::test]
async fn what_is_not_its_writers_to_say_counts_for_nothing_and_takes_no_name_away() {
    let bench = Bench::new();
    let settings = "apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {workloadLabels: run}\n";
    fs::write(bench.config.path().join("own.yaml"), settings).unwrap();
    fs::write(bench.config.path().join("web.yaml"), workload("web")).unwrap();
    fs::write(bench.config.path().join("claim.yaml"), endpoint("web", 1, 7)).unwrap();
    bench.write("admin/settings.yaml", settings);
    bench.write("admin/claim.yaml", &endpoint("web", 1, 7));
    bench.write("nodes/node2/web.yaml", &workload("web").replace("node2", "node3"));
    bench.write("nodes/node2/labels.yaml", &endpoint("web", 3, 8).replace("-3}", "-3, labels: {a: b}}"));
    bench.write("nodes/stray.yaml", &endpoint("web", 4, 9));
    bench.write("nodes/Node_2/1.yaml", &endpoint("web", 5, 9));
    std::os::unix::fs::symlink(
        bench.config.path().join("web.yaml"),
        bench.shared.path().join("nodes/node2/link.yaml"),
    )
    .unwrap();
    let world = bench.open().world();
    assert!(world.endpoints.is_empty(), "{:?}", world.endpoints);
    assert_eq!(world.workloads.values().next().unwrap().node.as_deref(), Some("node2"));
    let written = "written by nodes, each in its own nodes/NAME/ of the shared directory";
    let stray = "not in the directory of a node: nodes/NAME/, NAME as the Node object has it";
    assert_eq!(
        bench.statuses(&world),
        [
            format!(" false admin/claim.yaml:1 kind: WorkloadEndpoint default/instance-1: {written}"),
            " false admin/settings.yaml:1 kind: Configuration: settings are each node's own: put them into its directory of --config".to_owned(),
            format!(" false nodes/Node_2/1.yaml:1 kind: WorkloadEndpoint default/instance-5: {stray}"),
            "WorkloadEndpoint default/instance-3 of node2 false nodes/node2/labels.yaml:3 metadata: labels of a workload are its Workload object's; leave labels out".to_owned(),
            " false nodes/node2/link.yaml:1 a symbolic link; what a node writes is a file".to_owned(),
            " false nodes/node2/web.yaml:1 kind: Workload default/web: a node says only which endpoints it has: WorkloadEndpoint; what is not node2's own goes to admin/".to_owned(),
            format!(" false nodes/stray.yaml:1 kind: WorkloadEndpoint default/instance-4: {stray}"),
            format!(" false claim.yaml:1 kind: WorkloadEndpoint default/instance-1: {written}"),
            "Configuration true own.yaml:1 Configuration is valid".to_owned(),
            "Workload default/web true web.yaml:1 Workload is valid".to_owned(),
        ]
    );
    let labels = world.config_entries().into_iter().find(|entry| entry.key == "workloadLabels").unwrap();
    assert_eq!((labels.value.as_str(), labels.origin.as_str()), ("declared", "--shared"));
}

#[tokio::test]
async fn a_shared_directory_that_goes_away_takes_nothing_along_and_the_nodes_own_is_read_on() {
    let bench = Bench::new();
    bench.write("admin/web.yaml", &workload("web"));
    bench.write("nodes/node2/1.yaml", &endpoint("web", 1, 7));
    let mut directory = bench.open();
    assert_eq!(directory.world().endpoints.len(), 1);
    let aside = bench.state.path().join("aside");
    fs::rename(bench.shared.path(), &aside).unwrap();
    let world = until(&mut directory, |world| world.degraded.len() == 2).await;
    assert_eq!((world.workloads.len(), world.endpoints.len()), (1, 1));
    fs::write(bench.config.path().join("own.yaml"), workload("own")).unwrap();
    let world = until(&mut directory, |world| world.workloads.len() == 2).await;
    assert_eq!(world.endpoints.len(), 1);

    // An agent that is started meanwhile says what is wrong.
    let error = Directory::open(bench.config.path(), bench.state.path(), Some(bench.shared.path())).err();
    let error = error.unwrap();
    assert!(matches!(error, SourceError::Shared { .. }), "{error}");
    assert!(error.to_string().contains("holds admin/ and nodes/"), "{error}");

    fs::rename(&aside, bench.shared.path()).unwrap();
    fs::remove_file(bench.shared.path().join("nodes/node2/1.yaml")).unwrap();
    let world = until(&mut directory, |world| world.endpoints.is_empty()).await;
    assert_eq!((world.workloads.len(), world.degraded.as_slice()), (2, [].as_slice()));
}

#[tokio::test]
async fn a_node_that_floods_its_directory_crowds_out_nobody_else() {
    let bench = Bench::new();
    let flood = bench.shared.path().join("nodes/node1");
    fs::create_dir(&flood).unwrap();
    for number in 0..4_200 {
        fs::write(flood.join(format!("{number}.yaml")), endpoint("web", number, 1)).unwrap();
    }
    bench.write("nodes/node2/large.yaml", &format!("{}#{}\n", endpoint("web", 1, 1), " ".repeat(65 << 10)));
    bench.write("nodes/node3/1.yaml", &endpoint("web", 1, 3));
    let mut directory = bench.open();
    let world = directory.world();
    assert_eq!(world.endpoints.len(), 4_097);
    assert!(world.endpoints.keys().any(|(node, ..)| node == "node3"));
    assert!(
        bench
            .statuses(&world)
            .iter()
            .any(|status| status.ends_with("large.yaml:1 larger than 64 KiB; split it"))
    );
    bench.write("nodes/node3/2.yaml", &endpoint("web", 2, 4));
    until(&mut directory, |world| world.endpoints.len() == 4_098).await;
}

#[tokio::test]
async fn what_a_node_publishes_is_what_the_others_read() {
    let bench = Bench::new();
    let mut directory = bench.open();
    let stale = bench.shared.path().join("nodes/node2");
    fs::create_dir(&stale).unwrap();
    for name in ["77.yaml", ".78.yaml.new", "notes.txt"] {
        fs::write(stale.join(name), endpoint("gone", 77, 77)).unwrap();
    }
    let mut published = Published::open(bench.shared.path(), "node2").unwrap();
    let two = [published_endpoint("default/web", 1), published_endpoint("team/12", u64::MAX)];
    published.publish(&two).unwrap();
    let world = until(&mut directory, |world| world.endpoints.len() == 2).await;
    assert!(bench.statuses(&world).iter().all(|status| status.contains(" true ")), "{:?}", world.statuses);
    assert_eq!(
        endpoints(&world),
        [
            "node2 default/web 1 10.2.0.1 fd00:2::1",
            "node2 team/12 18446744073709551615 10.2.0.255 fd00:2::ff"
        ]
    );
    let names = || {
        let all =
            fs::read_dir(&stale).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        all.collect::<std::collections::BTreeSet<_>>()
    };
    let expected = ["1.yaml", "18446744073709551615.yaml", "notes.txt"].map(str::to_owned);
    assert_eq!(names(), expected.into());

    // What stands is left alone.
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(stale.join("1.yaml")).unwrap());
    let before = inode();
    published.publish(&two[..1]).unwrap();
    assert_eq!(inode(), before);
    until(&mut directory, |world| world.endpoints.len() == 1).await;
    published.publish(&[]).unwrap();
    until(&mut directory, |world| world.endpoints.is_empty()).await;

    let error = Published::open(std::path::Path::new("/nowhere"), "node2").unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/nodes/node2: No such file"), "{error}");
}

fn published_endpoint(workload: &str, instance: u64) -> Endpoint {
    let host = instance as u8;
    Endpoint {
        id: EndpointId::new(1).unwrap(),
        instance,
        workload: workload.parse().unwrap(),
        labels: "a=b".parse().unwrap(),
        service_account: "admin".to_owned(),
        interface: "fm1".to_owned(),
        ifindex: 1,
        mac: Mac([2; 6]),
        gateway_mac: Mac([2; 6]),
        ipv4: [10, 2, 0, host].into(),
        ipv6: [0xfd00, 2, 0, 0, 0, 0, 0, u16::from(host)].into(),
    }
}
