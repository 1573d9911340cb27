//! Waiting for what proofs need, so that a scenario judges them and not how fast processes start on a busy machine: the
//! auth-agent and the CA start with the first policy that asks for authentication, certificates with their workloads.

use serde_json::Value;

use super::command::wait_until;
use super::mesh::Mesh;
use super::node::{Node, Workload, binary};

/// Whoever is called `app: client` may call whoever is called `app: server`, if it proves who it is: the called one asks.
pub const REQUIRED: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: proven, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    authentication: {mode: required}
";

/// The same, and the caller asks.
pub const REQUIRED_BY_CALLER: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: caller, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: server}}]
    authentication: {mode: required}
";

/// A policy: its name, whom it is about (`KEY: VALUE`), and its rules, a line or more of YAML each.
pub fn policy(name: &str, of: &str, rules: &[&str]) -> String {
    let rules: String = rules.iter().map(|rule| format!("  {rule}\n")).collect();
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{{of}}}}}\n{rules}"
    )
}

/// A short grace, so that what waits for its end ends within a test: more of a mesh's settings.
pub const HASTY: &str = ", authenticationGrace: 2s";

/// Whether the other side has gone, by whichever word `probe` has for it.
pub fn is_dead(word: &str) -> bool {
    ["reset", "aborted", "refused", "unreachable"].contains(&word)
}

impl Node {
    /// Waits until the certificate of a service account is there.
    #[track_caller]
    pub fn certified(&self, account: &str) {
        let end = format!("/sa/{account}");
        wait_until(&format!("there is a certificate of {account}"), || {
            self.answers(&["auth", "list"]).iter().any(|row| {
                row["serial"].is_string() && row["id"].as_str().is_some_and(|id| id.ends_with(&end))
            })
        });
    }

    /// Rows of a verb; none while there is nobody to answer.
    fn answers(&self, arguments: &[&str]) -> Vec<Value> {
        let outcome = self.ferromesh(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&outcome.stdout).unwrap_or_default()
    }

    /// Starts a client of `probe` as a workload; it calls once its account has a certificate and `others` know where it is.
    #[track_caller]
    pub fn call(
        &self,
        name: &str,
        labels: &[&str],
        account: &str,
        others: &[&Node],
        words: &[&str],
    ) -> Workload {
        let probe = binary("probe").display().to_string();
        let mut workload = self.start(name, labels, &[&[&probe, "later"], words].concat());
        self.certified(account);
        for other in others {
            let known = || other.answers(&["ip", "list"]);
            wait_until(&format!("it is known where {name} is"), || {
                let known = Value::from(known()).to_string();
                workload.addresses.iter().all(|address| known.contains(&format!("\"{address}")))
            });
        }
        let said = workload.session.ask("now");
        assert_eq!(said, "open", "{name}");
        workload
    }
}

impl Mesh {
    /// Waits until the nodes talk to each other and a workload's account on one of them has its certificate.
    #[track_caller]
    pub fn ready(&self, node: usize, account: &str) {
        for node in &self.nodes {
            wait_until("the nodes talk to each other", || {
                node.answers(&["auth", "nodes"]).iter().any(|node| node["connected"] == true)
            });
        }
        self.nodes[node].certified(account);
    }
}
