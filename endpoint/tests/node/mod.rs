//! A node for tests: a network namespace, directories and a cgroup of its own.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test code, of which each file uses a part"
)]

use std::future::Future;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use endpoint::{Config, Endpoints, Host, Prepared};
use linux::cgroup::{self, Cgroup};
use linux::scratch;
use mesh::labels::LabelSet;
use node_api::Enrol;

pub(crate) struct Node {
    scratch: scratch::Namespace,
    _directory: tempfile::TempDir,
    config: Config,
}

impl Node {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let scratch = scratch::Namespace::new("endpoint").unwrap();
        let name = scratch.path().file_name().unwrap();
        let config = Config {
            run_dir: directory.path().join("run"),
            state_dir: directory.path().join("state"),
            cgroup: cgroup::hierarchy().unwrap().join(name),
            ipv4_pool: "10.42.0.0/24".parse().unwrap(),
            ipv6_pool: "fd42::/112".parse().unwrap(),
            mtu: None,
            service_pools: Vec::new(),
            masquerade_ports: None,
            host_resolver: None,
        };
        Self { scratch, _directory: directory, config }
    }

    /// Runs in the node's network namespace, as an agent of it would.
    pub(crate) fn run<F: Future>(&self, work: impl FnOnce(Config) -> F + Send)
    where
        F::Output: Send,
    {
        let config = self.config.clone();
        self.scratch.namespace().inside_async(|| work(config)).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let config = self.config.clone();
        let undone = self.scratch.namespace().inside_async(|| async move { Host::undo(&config).await });
        if !std::thread::panicking() {
            undone.unwrap().unwrap();
        }
    }
}

pub(crate) fn enrol(name: &str) -> Enrol {
    Enrol {
        workload: name.parse().unwrap(),
        labels: "org=empire".parse::<LabelSet>().unwrap(),
        service_account: "default".to_owned(),
    }
}

pub(crate) async fn start(endpoints: &Endpoints, name: &str) -> Prepared {
    let prepared = endpoints.prepare(&enrol(name)).await.unwrap();
    endpoints.release(prepared.endpoint.id).await.unwrap();
    prepared
}

/// A process in the workload's cgroup that ends when its input is closed.
pub(crate) fn inhabit(cgroup: &Path) -> Child {
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    Cgroup::open(cgroup).unwrap().add(child.id()).unwrap();
    child
}

pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), event).await.expect("in time")
}
