//! A directory of a cluster's size: a hundred teams with a namespace each, ten files to a namespace.
//!
//! Ten thousand workloads on other nodes, a thousand sets of labels among them; five thousand policies about them. Of
//! the local workloads each has rules of its own, and all of them admit whoever is labelled `access: granted`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Namespaces, of a hundred remote workloads and fifty policies each.
    pub(super) namespaces: usize,
    /// Workloads of this node with rulesets of their own.
    pub(super) local: usize,
}

/// What the promise is about.
pub(super) const WHOLE: Extent = Extent { namespaces: 100, local: 100 };
/// A look whether it works.
pub(super) const QUICK: Extent = Extent { namespaces: 3, local: 10 };

const APPS: usize = 10;
const REPLICAS: usize = 10;
const WORKLOAD_FILES: usize = 5;
const POLICY_FILES: usize = 4;
/// Kinds of policies each app has; see [`policies`].
const POLICIES: usize = 5;

impl Extent {
    pub(super) fn endpoints(self) -> usize {
        self.namespaces * APPS * REPLICAS
    }

    pub(super) fn policies(self) -> usize {
        self.namespaces * APPS * POLICIES
    }

    /// Policies in all: with those of the local workloads and the one that is edited.
    pub(super) fn in_force(self) -> usize {
        self.policies() + self.local + 1
    }
}

/// Writes the namespaces below `path`.
pub(super) fn write(extent: Extent, path: &Path) {
    for number in 0..extent.namespaces {
        let namespace = format!("team-{number:03}");
        let directory = path.join(&namespace);
        fs::create_dir_all(&directory).expect("a directory");
        let file = |name: String, text: String| fs::write(directory.join(name), text).expect("a file");
        file(
            "namespace.yaml".to_owned(),
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{team: t{number}}}}}\n"
            ),
        );
        let (workloads, policies) = (workloads(&namespace, number), policies(&namespace, number, extent));
        for (count, name, documents) in
            [(WORKLOAD_FILES, "workloads", workloads), (POLICY_FILES, "policies", policies)]
        {
            for (part, documents) in documents.chunks(documents.len().div_ceil(count)).enumerate() {
                file(format!("{name}-{part}.yaml"), documents.join("---\n"));
            }
        }
    }
}

fn workloads(namespace: &str, number: usize) -> Vec<String> {
    let one = |app: usize, replica: usize| {
        let tier = ["frontend", "backend"][app % 2];
        format!(
            "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\nmetadata:\n  name: app-{app}-{replica}\n  \
             namespace: {namespace}\n  labels: {{app: app-{app}, tier: {tier}}}\nspec:\n  node: remote-{}\n  \
             serviceAccountName: app-{app}\n  ports: [{{name: http, port: {}}}]\n",
            (number * REPLICAS + replica) % 200,
            8000 + app,
        )
    };
    (0..APPS).flat_map(|app| (0..REPLICAS).map(move |replica| one(app, replica))).collect()
}

/// For each app: two from within the namespace, one from another team's, one to it and one to a prefix.
fn policies(namespace: &str, number: usize, extent: Extent) -> Vec<String> {
    let cilium = |name: String, app: usize, rule: String| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  endpointSelector: {{matchLabels: {{app: app-{app}}}}}\n{rule}"
        )
    };
    let ports =
        |app: usize| format!("    toPorts: [{{ports: [{{port: '{}', protocol: TCP}}]}}]\n", 8000 + app);
    let mut all = Vec::new();
    for app in 0..APPS {
        let (next, other) = ((app + 1) % APPS, format!("team-{:03}", (number + app + 1) % extent.namespaces));
        all.push(format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: near-{app}, namespace: {namespace}}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: app-{app}}}}}\n  ingress:\n  \
             - from: [{{podSelector: {{matchLabels: {{app: app-{next}}}}}}}]\n    ports: [{{port: {}, protocol: TCP}}]\n",
            8000 + app
        ));
        let from = |labels: &str| {
            format!("  ingress:\n  - fromEndpoints: [{{matchLabels: {labels}}}]\n{}", ports(app))
        };
        all.push(cilium(format!("tier-{app}"), app, from("{tier: frontend}")));
        let elsewhere = format!("{{'k8s:io.kubernetes.pod.namespace': {other}, app: app-{next}}}");
        all.push(cilium(format!("team-{app}"), app, from(&elsewhere)));
        let to = |peer: String| format!("  egress:\n  - {peer}\n{}", ports(next));
        all.push(cilium(
            format!("calls-{app}"),
            app,
            to(format!("toEndpoints: [{{matchLabels: {{app: app-{next}}}}}]")),
        ));
        let prefix = format!("toCIDR: [198.18.{}.0/24]", (number + app) % 64);
        all.push(cilium(format!("outside-{app}"), app, to(prefix)));
    }
    all
}

/// Rules of the local workloads: each admits those who are granted access, and three teams to a port that is its own.
pub(super) fn local(extent: Extent) -> String {
    let mut text = String::new();
    for number in 0..extent.local {
        let team = |nth: usize| (number + nth) % extent.namespaces;
        let _ = write!(
            text,
            "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: admits-{number}}}\nspec:\n  \
             endpointSelector: {{matchLabels: {{app: local-{number}}}}}\n  ingress:\n  \
             - fromEndpoints: [{{matchLabels: {{access: granted}}}}]\n    \
             toPorts: [{{ports: [{{port: '80', protocol: UDP}}]}}]\n  \
             - fromEndpoints: [{{matchExpressions: [{{key: 'k8s:io.kubernetes.pod.namespace', operator: In, \
             values: [team-{:03}, team-{:03}, team-{:03}]}}]}}]\n    \
             toPorts: [{{ports: [{{port: '{}', protocol: TCP}}]}}]\n",
            team(0),
            team(1),
            team(2),
            8000 + number,
        );
    }
    text
}

/// The client's object: whether it is granted access.
pub(super) fn client(granted: bool) -> String {
    let access = if granted { "granted" } else { "none" };
    format!(
        "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\nmetadata:\n  name: client\n  \
         labels: {{app: client, access: {access}}}\n"
    )
}

/// One selector: denies the client the port that it uses, or one that it does not.
pub(super) fn one_selector(closed: bool) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: one}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: local-0}}}}\n  ingressDeny:\n  \
         - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    \
         toPorts: [{{ports: [{{port: '{}', protocol: UDP}}]}}]\n",
        port(closed)
    )
}

/// The same rule as the last of a file of a thousand.
pub(super) fn one_of_a_thousand(closed: bool) -> String {
    let mut text = String::new();
    for number in 1..1000 {
        let _ = write!(
            text,
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: large-{number}}}\nspec:\n  \
             endpointSelector: {{matchLabels: {{app: large-{number}}}}}\n  ingress:\n  \
             - fromEndpoints: [{{matchLabels: {{app: large-{}}}}}]\n---\n",
            number - 1,
        );
    }
    text + &one_selector(closed)
}

/// Everything, as subject and as peer.
pub(super) fn everything(closed: bool) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: everything}}\nspec:\n  \
         endpointSelector: {{}}\n  ingressDeny:\n  - fromEndpoints: [{{}}]\n    \
         toPorts: [{{ports: [{{port: '{}', protocol: UDP}}]}}]\n",
        port(closed)
    )
}

fn port(closed: bool) -> u16 {
    if closed { 80 } else { 81 }
}
