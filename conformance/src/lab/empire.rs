//! The story that HTTP rules are told by: a deathstar, who may ask it what, and the proxy between them.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::command::{Session, wait_until};
use super::node::{Node, Workload, binary};

/// Who may land may ask to, and for nothing else.
pub const RULE1: &str = include_str!("../../../examples/star-wars/rule1-l7.yaml");
/// The same for TLS, by names of servers.
pub const RULE1_TLS: &str = include_str!("../../../examples/star-wars/rule1-tls.yaml");
/// Labels of a ship that may.
pub const EMPIRE: &[&str] = &["org=empire", "class=tiefighter"];
/// Labels of one that may not.
pub const ALLIANCE: &[&str] = &["org=alliance", "class=xwing"];
/// Labels of whom they call.
pub const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];

/// The rule of the story with these HTTP rules, each in braces, in place of its own.
pub fn rule1_with(http: &[&str]) -> String {
    let head = RULE1.split("        - method:").next().unwrap_or_default();
    http.iter().fold(head.to_owned(), |rule, http| rule + "        - " + http + "\n")
}

/// Both addresses of a workload, with a port.
pub fn at(workload: &Workload, port: u16) -> [SocketAddr; 2] {
    workload.addresses.map(|address| SocketAddr::new(address, port))
}

impl Node {
    /// Waits until the proxy has its rules.
    #[track_caller]
    pub fn proxy_ready(&self) {
        wait_until("the proxy has its rules", || {
            let status = self.json(&["status"]);
            status["l7"].is_object() && status["l7"]["problem"].is_null()
        });
    }

    /// Puts a rule in force, for the proxy too.
    #[track_caller]
    pub fn enforce(&self, rule: &str) {
        self.apply("rule1.yaml", rule);
        self.proxy_ready();
    }

    /// Process ids of the node's proxies, in order.
    pub fn proxies(&self) -> Vec<i32> {
        let directory: PathBuf = self.state().join("proxy");
        let words = ["proxy", "--directory", directory.to_str().expect("UTF-8")];
        let mut pids = linux::child::with_arguments(&words, 64_252).expect("the process table");
        pids.sort_unstable();
        pids
    }

    /// Has another process take the proxy's place; both process ids.
    #[track_caller]
    pub fn restart_proxy(&self) -> (i32, i32) {
        let restarted = self.json(&["proxy", "restart"]);
        let pid = |field: &str| {
            restarted[field].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process id")
        };
        (pid("from"), pid("to"))
    }

    /// Waits until those whose place another has taken have ended, by the word of the agent, and none of them is left.
    #[track_caller]
    pub fn proxy_drained(&self) {
        wait_until("the one before has ended", || self.json(&["status"])["l7"]["draining"] == 0);
        let left = self.proxies();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    /// To the next agent the proxies that run now are of another build.
    pub fn outdate_proxies(&self) {
        let path = self.run_dir().join("proxy.started");
        let noted = std::fs::read_to_string(&path).expect("what the agent has noted");
        let outdated = noted.replace("\"build\":\"", "\"build\":\"before ");
        assert_ne!(noted, outdated);
        std::fs::write(&path, outdated).expect("the note is written");
    }

    /// What the kernel has dropped, by reason, but for noise.
    pub fn drops(&self) -> Vec<String> {
        let rows = self.json(&["drops"]);
        let rows = rows.as_array().expect("rows").iter();
        let reasons = rows.map(|row| row["reason"].as_str().expect("a reason").to_owned());
        reasons.filter(|reason| !reason.contains("ulticast")).collect()
    }

    /// Ships that keep asking, so many over each family, by this mode of the probe.
    #[track_caller]
    pub fn fleets(
        &self,
        deathstar: &Workload,
        mode: &str,
        port: u16,
        count: u32,
        asked: &[&str],
    ) -> [Session; 2] {
        let probe = binary("probe").display().to_string();
        let count = count.to_string();
        [0, 1].map(|family| {
            let address = at(deathstar, port)[family].to_string();
            let command = [&[&probe, mode, &address, &count], asked].concat();
            self.start(&format!("{mode}-{family}"), EMPIRE, &command).session
        })
    }
}
