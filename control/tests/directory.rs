//! The directory as an agent lives with it: edits by every kind of editor, mistakes, restarts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use control::World;
use control::source::SourceError;
use control::source::files::{Directory, peek};
use mesh::policy::PolicyName;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(10);

fn policy(name: &str, org: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  endpointSelector: {{}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{org: {org}}}}}]\n"
    )
}

struct Bench {
    config: TempDir,
    state: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { config: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() }
    }

    /// Rename, as `sed -i`, most editors and configuration management do.
    fn write(&self, name: &str, text: &str) {
        let beside = self.config.path().join(format!(".{name}.new"));
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.config.path().join(name)).unwrap();
    }

    fn open(&self) -> Directory {
        Directory::open(self.config.path(), self.state.path(), None).unwrap()
    }
}

async fn changed(directory: &mut Directory) -> Arc<World> {
    tokio::time::timeout(BOUND, directory.changed()).await.expect("a change in time")
}

/// Which policies are in force, and whom they let in.
fn in_force(world: &World) -> Vec<String> {
    let show = |policy: &Arc<mesh::policy::Policy>| {
        let text = format!("{:?}", policy.rules[0].ingress.allow);
        let org = ["empire", "alliance"].into_iter().find(|org| text.contains(org)).unwrap_or("?");
        format!("{}={org}", policy.name)
    };
    world.policies.iter().map(show).collect()
}

fn statuses(world: &World) -> Vec<String> {
    let show = |status: &Arc<control::ObjectStatus>| {
        let name = status.key.as_ref().and_then(|key| key.policy()).as_ref().map(PolicyName::to_string);
        let (name, valid) = (name.unwrap_or_default(), if status.valid { "True" } else { "False" });
        format!("{name} {valid} {}:{} {}", status.file, status.line, status.message)
    };
    world.statuses.iter().map(show).collect()
}

#[tokio::test]
async fn an_edit_by_rename_and_one_in_place_are_both_noticed() {
    let bench = Bench::new();
    bench.write("rule1.yaml", &policy("rule1", "empire"));
    let mut directory = bench.open();
    assert_eq!(in_force(&directory.world()), ["default/rule1=empire"]);
    assert_eq!(statuses(&directory.world()), ["default/rule1 True rule1.yaml:1 Policy validation succeeded"]);

    bench.write("rule1.yaml", &policy("rule1", "alliance"));
    let world = changed(&mut directory).await;
    assert_eq!(in_force(&world), ["default/rule1=alliance"]);
    assert_eq!(world.generation, 2);

    fs::write(bench.config.path().join("rule1.yaml"), policy("rule1", "empire")).unwrap();
    assert_eq!(in_force(&*changed(&mut directory).await), ["default/rule1=empire"]);
}

#[tokio::test]
async fn a_removed_file_takes_its_objects_along_and_a_new_one_brings_them() {
    let bench = Bench::new();
    bench.write("a.yaml", &policy("a", "empire"));
    bench.write("b.yml", &format!("{}---\n{}", policy("b", "empire"), policy("c", "alliance")));
    let mut directory = bench.open();
    assert_eq!(in_force(&directory.world()), ["default/a=empire", "default/b=empire", "default/c=alliance"]);
    fs::remove_file(bench.config.path().join("b.yml")).unwrap();
    assert_eq!(in_force(&*changed(&mut directory).await), ["default/a=empire"]);
    fs::create_dir(bench.config.path().join("team")).unwrap();
    fs::write(bench.config.path().join("team/d.yaml"), policy("d", "alliance")).unwrap();
    let mut world = changed(&mut directory).await;
    while world.policies.len() < 2 {
        world = changed(&mut directory).await;
    }
    assert_eq!(in_force(&world), ["default/a=empire", "default/d=alliance"]);
}

#[tokio::test]
async fn an_invalid_edit_leaves_the_previous_version_and_its_neighbours_in_force() {
    let bench = Bench::new();
    bench.write("a.yaml", &policy("a", "empire"));
    bench.write("rule1.yaml", &format!("{}---\n{}", policy("rule1", "empire"), policy("rule2", "empire")));
    let mut directory = bench.open();
    let slip = policy("rule1", "alliance").replace("fromEndpoints", "fromEndpoint");
    bench.write("rule1.yaml", &format!("{slip}---\n{}", policy("rule2", "alliance")));
    let world = changed(&mut directory).await;
    assert_eq!(in_force(&world), ["default/a=empire", "default/rule1=empire", "default/rule2=alliance"]);
    assert_eq!(
        statuses(&world)[1],
        "default/rule1 False rule1.yaml:7 spec.ingress[0].fromEndpoint: unknown, did you mean fromEndpoints; previous version in force"
    );

    // Not even YAML: which objects it held is known from before.
    bench.write("rule1.yaml", "apiVersion: [\n");
    let world = changed(&mut directory).await;
    assert_eq!(in_force(&world), ["default/a=empire", "default/rule1=empire", "default/rule2=alliance"]);
    assert_eq!(
        statuses(&world)[1..],
        [
            "default/rule1 False rule1.yaml:1 no valid YAML: unclosed bracket '['; previous version in force",
            "default/rule2 False rule1.yaml:1 no valid YAML: unclosed bracket '['; previous version in force",
        ]
    );

    // Emptied, not removed: perhaps half written.
    bench.write("rule1.yaml", "");
    let world = changed(&mut directory).await;
    assert_eq!(world.policies.len(), 3);
    assert!(statuses(&world)[1].contains("the file is empty; remove it to take its objects away"));
}

#[tokio::test]
async fn what_was_accepted_survives_a_restart_with_an_invalid_file() {
    let bench = Bench::new();
    bench.write("rule1.yaml", &policy("rule1", "empire"));
    bench.write("gone.yaml", &policy("gone", "empire"));
    drop(bench.open());
    bench.write("rule1.yaml", &policy("rule1", "alliance").replace("ingress", "ingres"));
    fs::remove_file(bench.config.path().join("gone.yaml")).unwrap();
    let kept = fs::read(bench.state.path().join("accepted.json")).unwrap();
    assert_eq!(
        in_force(&peek(bench.config.path(), bench.state.path(), None).unwrap()),
        ["default/rule1=empire"]
    );
    assert_eq!(fs::read(bench.state.path().join("accepted.json")).unwrap(), kept, "a look changes nothing");
    let directory = bench.open();
    assert_eq!(in_force(&directory.world()), ["default/rule1=empire"]);
    assert!(statuses(&directory.world())[0].ends_with("; previous version in force"));
}

#[tokio::test]
async fn a_secret_that_others_may_read_is_told_until_they_may_not() {
    let bench = Bench::new();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let path = bench.config.path().join("web.yaml");
    bench.write("web.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: web}\nstringData: {a: hush}\n");
    mode(&path, 0o640);
    let mut directory = bench.open();
    let valid = " True web.yaml:1 Secret is valid";
    let open = "; others than its owner may read the file: chmod 600 web.yaml";
    assert_eq!(statuses(&directory.world()), [format!("{valid}{open}")]);
    mode(&path, 0o600);
    assert_eq!(statuses(&*changed(&mut directory).await), [valid]);
    assert_eq!(directory.world().secrets.len(), 1);
    drop(directory);
    let kept = fs::metadata(bench.state.path().join("accepted.json")).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    assert_eq!(bench.open().world().secrets.len(), 1);
}

#[tokio::test]
async fn a_duplicate_name_belongs_to_who_had_it_first() {
    let bench = Bench::new();
    bench.write("b.yaml", &policy("rule1", "empire"));
    let mut directory = bench.open();
    bench.write("a.yaml", &policy("rule1", "alliance"));
    let world = changed(&mut directory).await;
    assert_eq!(in_force(&world), ["default/rule1=empire"]);
    assert_eq!(
        statuses(&world)[0],
        "default/rule1 False a.yaml:1 metadata.name: CiliumNetworkPolicy default/rule1 is already given in b.yaml:1, which stays; rename or remove one"
    );
    // Without history the first by path has it.
    let fresh = Directory::open(bench.config.path(), tempfile::tempdir().unwrap().path(), None).unwrap();
    assert_eq!(in_force(&fresh.world()), ["default/rule1=alliance"]);
    // When the first owner goes, the other one gets it.
    fs::remove_file(bench.config.path().join("b.yaml")).unwrap();
    assert_eq!(in_force(&*changed(&mut directory).await), ["default/rule1=alliance"]);
}

#[tokio::test]
async fn pools_cannot_be_moved_under_living_endpoints() {
    let bench = Bench::new();
    let pool = |v4: &str| {
        format!("apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec:\n  ipv4Pool: {v4}\n")
    };
    bench.write("ferromesh.yaml", &pool("10.1.0.0/16"));
    let mut directory = bench.open();
    let used = directory.world().configuration.clone();
    directory.set_pools_in_use(Some((used.ipv4_pool, used.ipv6_pool)));
    bench.write("ferromesh.yaml", &pool("10.2.0.0/16"));
    let world = changed(&mut directory).await;
    assert_eq!(world.configuration.ipv4_pool.to_string(), "10.1.0.0/16");
    assert_eq!(
        statuses(&world),
        [
            " False ferromesh.yaml:4 spec.ipv4Pool: found 10.2.0.0/16, but endpoints have addresses of 10.1.0.0/16; end them first; previous version in force"
        ]
    );
    drop(directory);
    let mut directory = bench.open();
    assert_eq!(
        directory.world().configuration.ipv4_pool.to_string(),
        "10.1.0.0/16",
        "endpoints outlive the agent"
    );
    directory.set_pools_in_use(None);
    let world = changed(&mut directory).await;
    assert_eq!(world.configuration.ipv4_pool.to_string(), "10.2.0.0/16");
    let pool = world.config_entries().into_iter().find(|entry| entry.key == "ipv4Pool").unwrap();
    assert_eq!((pool.value.as_str(), pool.origin.as_str()), ("10.2.0.0/16", "ferromesh.yaml:4"));
}

#[tokio::test]
async fn links_are_followed_and_what_is_no_file_of_ours_is_left_alone() {
    let bench = Bench::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target");
    fs::write(&target, policy("linked", "empire")).unwrap();
    std::os::unix::fs::symlink(&target, bench.config.path().join("linked.yaml")).unwrap();
    for name in [".hidden.yaml", "rule1.yaml~", "#rule1.yaml#", ".rule1.yaml.swp", "notes.txt"] {
        fs::write(bench.config.path().join(name), policy("never", "empire")).unwrap();
    }
    fs::write(bench.config.path().join("bytes.yaml"), b"a: b\n\xff\xfe").unwrap();
    fs::create_dir(bench.config.path().join("directory.yaml")).unwrap();
    let mut directory = bench.open();
    assert_eq!(in_force(&directory.world()), ["default/linked=empire"]);
    assert_eq!(statuses(&directory.world())[0], " False bytes.yaml:2 no valid UTF-8");
    fs::write(&target, policy("linked", "alliance")).unwrap();
    assert_eq!(in_force(&*changed(&mut directory).await), ["default/linked=alliance"]);
}

#[tokio::test]
async fn a_file_that_is_away_for_a_moment_is_not_missed() {
    let bench = Bench::new();
    bench.write("rule1.yaml", &policy("rule1", "empire"));
    let mut directory = bench.open();
    // vi with 'backupcopy=no': the old file moves away, then the new one is written.
    let (path, backup) = (bench.config.path().join("rule1.yaml"), bench.config.path().join("rule1.yaml~"));
    fs::rename(&path, &backup).unwrap();
    fs::write(&path, policy("rule1", "alliance")).unwrap();
    assert_eq!(in_force(&*changed(&mut directory).await), ["default/rule1=alliance"]);
}

#[tokio::test]
async fn a_directory_or_state_that_cannot_be_used_is_one_clear_line() {
    let bench = Bench::new();
    let error = Directory::open(Path::new("/nowhere"), bench.state.path(), None).err().unwrap();
    assert!(matches!(error, SourceError::Directory { .. }));
    assert!(
        error.to_string().starts_with("configuration directory /nowhere: No such file or directory"),
        "{error}"
    );
    fs::write(bench.state.path().join("accepted.json"), "{}").unwrap();
    let error = Directory::open(bench.config.path(), bench.state.path(), None).err().unwrap();
    assert!(error.to_string().contains("accepted.json: missing field"), "{error}");
}

#[tokio::test]
async fn who_asks_in_small_portions_of_time_misses_nothing() {
    let bench = Bench::new();
    bench.write("rule1.yaml", &policy("rule1", "empire"));
    let mut directory = bench.open();
    bench.write("rule1.yaml", &policy("rule1", "alliance"));
    let one_poll = async {
        loop {
            // Polled once and dropped, as the losing arm of a select! is.
            if let Some(world) = futures_util::FutureExt::now_or_never(directory.changed()) {
                return world;
            }
            tokio::task::yield_now().await;
        }
    };
    let world = tokio::time::timeout(BOUND, one_poll).await.expect("a change in time");
    assert_eq!(in_force(&world), ["default/rule1=alliance"]);
}

#[tokio::test]
async fn a_directory_that_vanishes_takes_nothing_along() {
    let bench = Bench::new();
    bench.write("rule1.yaml", &policy("rule1", "empire"));
    let mut directory = bench.open();
    let aside = bench.state.path().join("aside");
    fs::rename(bench.config.path(), &aside).unwrap();
    let world = changed(&mut directory).await;
    assert_eq!(in_force(&world), ["default/rule1=empire"]);
    assert!(
        world.degraded[0]
            .ends_with("No such file or directory (os error 2); everything accepted earlier stays in force")
    );
    fs::rename(&aside, bench.config.path()).unwrap();
    bench.write("rule1.yaml", &policy("rule1", "alliance"));
    let world = changed(&mut directory).await;
    assert_eq!(in_force(&world), ["default/rule1=alliance"]);
    assert!(world.degraded.is_empty());
}
