//! What is kept from edit to edit changes nothing: random edits, each held against a plan from nothing.

use mesh::flow::TrafficDirection;
use mesh::policy::compile;

use std::path::Path;

use super::bench::{endpoint, facts};
use super::*;
use crate::objects::{File, Objects};
use crate::source::layout::Layout;
use crate::yaml::documents;

/// SplitMix64: small, seeded, the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % below
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.roll(all.len())]
    }

    fn labels(&mut self) -> String {
        let labels = [("app", ["web", "db"]), ("tier", ["front", "back"])];
        let some = labels.into_iter().filter(|_| self.roll(3) > 0).collect::<Vec<_>>();
        let some: Vec<_> = some.iter().map(|(key, values)| format!("{key}: {}", self.pick(values))).collect();
        format!("{{{}}}", some.join(", "))
    }

    fn selector(&mut self) -> String {
        match self.roll(6) {
            0 => "{}".to_owned(),
            1 => "{matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}".to_owned(),
            2 => "{matchExpressions: [{key: app, operator: Exists}]}".to_owned(),
            3 => "{matchLabels: {k8s:io.kubernetes.pod.namespace: right}}".to_owned(),
            _ => format!("{{matchLabels: {}}}", self.labels()),
        }
    }

    fn ports(&mut self) -> String {
        let port = self.pick(&["80", "web", "8080", "443"]);
        let protocol = self.pick(&["TCP", "ANY"]);
        // By what was rolled last: it costs the others no roll.
        let tls = match protocol == "TCP" && self.0.is_multiple_of(3) {
            true => format!(", terminatingTLS: {{secret: {{name: secret-{}}}}}", self.0 / 3 % 2),
            false => String::new(),
        };
        let ports = format!("[{{ports: [{{port: \"{port}\", protocol: {protocol}}}]{tls}}}]");
        if self.roll(3) == 0 { String::new() } else { format!(", toPorts: {ports}") }
    }

    fn cidr(&mut self) -> &'static str {
        self.pick(&[
            "192.0.2.0/24",
            "198.51.100.0/24",
            "198.51.100.7/32",
            "10.217.0.0/24",
            "2001:db8:f::/48",
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.2.0.0/28",
        ])
    }

    fn entity(&mut self) -> &'static str {
        self.pick(&["world", "cluster", "all", "host", "remote-node", "world-ipv4", "init"])
    }

    fn peers(&mut self, from: bool) -> String {
        let direction = if from { "from" } else { "to" };
        match self.roll(if from { 5 } else { 7 }) {
            0 => format!("{direction}Entities: [{}]", self.entity()),
            1 => format!("{direction}CIDR: [{}]", self.cidr()),
            2 => format!("{direction}CIDRSet: [{{cidr: 198.51.100.0/24, except: [198.51.100.64/26]}}]"),
            3 | 4 => format!("{direction}Endpoints: [{}]", self.selector()),
            _ => format!(
                "toServices: [{{k8sService: {{serviceName: service-{}, namespace: left}}}}]",
                self.roll(3)
            ),
        }
    }

    fn policy(&mut self) -> String {
        let (number, selector) = (self.roll(8), self.selector());
        let (from, from_ports, to, to_ports) =
            (self.peers(true), self.ports(), self.peers(false), self.ports());
        let denied = self.peers(true);
        let deny = if self.roll(4) == 0 { format!("  ingressDeny: [{{{denied}}}]\n") } else { String::new() };
        let to_ports = if to.starts_with("toServices") { String::new() } else { to_ports };
        let egress =
            if self.roll(2) == 0 { format!("  egress: [{{{to}{to_ports}}}]\n") } else { String::new() };
        let proof = if self.roll(3) == 0 { ", authentication: {mode: required}" } else { "" };
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: policy-{number}, namespace: left}}\nspec:\n  endpointSelector: {selector}\n  ingress: [{{{from}{from_ports}{proof}}}]\n{deny}{egress}"
        )
    }

    fn document(&mut self) -> String {
        let number = self.roll(4);
        match self.roll(18) {
            0..6 => self.policy(),
            6..10 => {
                let labels = self.labels();
                let node = self.pick(&["node1", "node1", "node2", "node3"]);
                let node = if self.roll(6) == 0 { String::new() } else { format!("node: {node}, ") };
                let (port, labels_of) = ([80, 8080][self.roll(2)], self.pick(&["one", "two"]));
                format!(
                    "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}, namespace: left, labels: {labels}}}\nspec: {{{node}serviceAccountName: {labels_of}, ports: [{{name: web, port: {port}}}]}}\n"
                )
            }
            10 => format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: left, labels: {{team: team-{number}}}}}\n"
            ),
            11 | 16 | 17 => {
                let node = 1 + self.roll(3);
                let own = format!("10.{node}.0.0/24, 'fd00:{node}::/64'");
                let ranges = self.pick(&[&own, &own, &own, "10.2.0.0/28, 'fd00:4::/64'", ""]).to_owned();
                format!(
                    "apiVersion: ferromesh.io/v1alpha1\nkind: Node\nmetadata: {{name: node{node}}}\nspec: {{addresses: [{{address: 198.51.100.{}}}], podCIDRs: [{ranges}]}}\n",
                    node + 5
                )
            }
            12 => format!(
                "apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {{policyEnforcementMode: {}, workloadLabels: {}, trustDomain: {}}}\n",
                self.pick(&["default", "always", "never"]),
                self.pick(&["declared", "run"]),
                self.pick(&["one", "two"])
            ),
            13 => format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{number}, namespace: left}}\nspec: {{selector: {}, ports: [{{port: 80, targetPort: web}}]}}\n",
                self.labels()
            ),
            14 => format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: slice-{number}, namespace: left, labels: {{kubernetes.io/service-name: service-{number}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [198.51.100.{}]}}]\nports: [{{port: 8080}}]\n",
                number + 7
            ),
            _ => self.pick(&["kind: [", "apiVersion: v1\nkind: Service\nmetadata: {name: service-1, namespace: left}\nspec: {wrong: 1}\n", ""]).to_owned(),
        }
    }

    /// What a node says of its endpoints, rightly or not.
    fn claim(&mut self, node: usize) -> String {
        let net = if self.roll(6) == 0 { 2 } else { node };
        let (number, name, host) = (self.roll(4), self.roll(9), self.roll(3));
        let instance = self.roll(6);
        format!(
            "apiVersion: ferromesh.io/v1alpha1\nkind: WorkloadEndpoint\nmetadata: {{name: name-{name}, namespace: left}}\nspec: {{workload: w{number}, instance: {instance}, ipv4: 10.{net}.0.{host}, ipv6: 'fd00:{net}::{host}'}}\n"
        )
    }

    fn file(&mut self, layout: &Layout) -> (String, Option<Arc<File>>) {
        let node = 1 + self.roll(3);
        let of_node = layout.is_shared() && self.roll(3) == 0;
        let name = match of_node {
            true => format!("/shared/nodes/node{node}/{}.yaml", self.roll(4)),
            false if layout.is_shared() => format!("/shared/admin/{}.yaml", self.roll(12)),
            false => format!("file-{}.yaml", self.roll(12)),
        };
        if self.roll(8) == 0 {
            return (name, None);
        }
        let document = |dice: &mut Self| if of_node { dice.claim(node) } else { dice.document() };
        let text: Vec<_> = (0..=self.roll(2)).map(|_| document(self)).collect();
        let text = text.join("---\n");
        (name.clone(), Some(decoded(layout, name, &text)))
    }

    /// A Secret that may lack what is needed of it; or there is none.
    fn secret(&mut self, layout: &Layout) -> (String, Option<Arc<File>>) {
        let number = self.roll(2);
        let name = format!("{}secret-{number}.yaml", if layout.is_shared() { "/shared/admin/" } else { "" });
        let items = self.pick(&["tls.crt: a", "tls.crt: a, tls.key: b", "tls.crt: c, tls.key: d, other: e"]);
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: secret-{number}, namespace: left}}\nstringData: {{{items}}}\n"
        );
        let is_there = self.roll(4) > 0;
        (name.clone(), is_there.then(|| decoded(layout, name, &text)))
    }

    fn endpoints(&mut self) -> Vec<Endpoint> {
        let names = [
            "left/w0=app=web",
            "left/w1=app=db",
            "left/w2=tier=front",
            "right/other=app=web",
            "left/x=app=db",
        ];
        let some = (1..).zip(names).filter(|_| self.roll(5) > 0);
        some.map(|(number, text)| endpoint(number, text)).collect()
    }
}

fn decoded(layout: &Layout, name: String, text: &str) -> Arc<File> {
    let writer = layout.writer(&name);
    let documents = documents(text).iter().map(|d| (d.position, writer.decode(d))).collect();
    Arc::new(File { name, text: text.into(), documents })
}

/// The objects decided about at once, not file by file.
fn at_once(before: &Objects, files: &BTreeMap<String, Arc<File>>) -> Objects {
    let mut objects = Objects::restored(before.accepted.clone());
    objects.update(files.iter().map(|(name, file)| (name.clone(), Some(Arc::clone(file)))), None);
    objects
}

fn statuses(objects: &Objects) -> Vec<String> {
    let mut all: Vec<_> = objects.statuses.iter().map(|status| format!("{status:?}")).collect();
    all.sort();
    all
}

/// Every ruleset that a universe can be asked for.
fn answers(world: &World, planned: &Planned) -> Vec<mesh::policy::Ruleset> {
    let policies = || planned.policies.iter().map(AsRef::as_ref);
    let subjects = planned.plan.identities.values();
    let both = subjects.flat_map(|labels| {
        [TrafficDirection::Ingress, TrafficDirection::Egress].map(|direction| (labels, direction))
    });
    let ports = [(("web".to_owned(), TCP), 81)].into();
    let enforcement = world.configuration.enforcement;
    both.map(|(labels, direction)| {
        compile::ruleset(labels, &ports, direction, policies(), &planned.universe, enforcement)
    })
    .collect()
}

#[test]
fn a_plan_after_edits_is_the_plan_from_nothing() {
    let (mut prefixes, mut enforced, mut served, mut shared) = (0, 0, 0, 0);
    let (mut believed, mut contested, mut proven, mut kept, mut inspected) = (0, 0, 0, 0, 0);
    for seed in 0..16 {
        let (mut dice, mut of_secrets) = (Dice(seed), Dice(seed ^ 0x5ec4e7));
        let state = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(state.path()).unwrap();
        let mut planner = Planner::default();
        let several = (seed % 2 == 1).then_some(Path::new("/shared"));
        let layout = Layout::new(Path::new("/config"), several).unwrap();
        let (mut objects, mut files) = (Objects::default(), BTreeMap::new());
        let mut world = World::new(&objects, 0, layout.is_shared());
        let mut endpoints = dice.endpoints();
        let mut earlier: Option<Planned> = None;
        for step in 0..60 {
            let mut edits: Vec<_> = (0..=dice.roll(3)).map(|_| dice.file(&layout)).collect();
            if of_secrets.roll(4) == 0 {
                edits.push(of_secrets.secret(&layout));
            }
            for (name, file) in &edits {
                match file {
                    Some(file) => drop(files.insert(name.clone(), Arc::clone(file))),
                    None => drop(files.remove(name)),
                }
            }
            // A file that is edited twice in one go: the last counts.
            let edits: BTreeMap<_, _> = edits.into_iter().collect();
            let whole = at_once(&objects, &files);
            let changes = objects.update(edits, None);
            for key in &changes.objects {
                world.put(key, objects.accepted.get(key));
            }
            world.statuses = Arc::clone(&objects.statuses);
            assert_eq!(statuses(&objects), statuses(&whole), "seed {seed} step {step}");
            let mut expected = World::new(&whole, 0, layout.is_shared());
            expected.statuses = Arc::clone(&objects.statuses);
            assert_eq!(world, expected, "seed {seed} step {step}");

            if dice.roll(4) == 0 {
                endpoints = dice.endpoints();
            }
            let leaving: BTreeSet<_> =
                endpoints.iter().map(|it| it.id).filter(|_| dice.roll(6) == 0).collect();
            let before = earlier.as_ref().map(|planned| planned.plan.as_ref());
            let present = Present { endpoints: &endpoints, leaving: &leaving, plan: before };
            let mut scratch = allocator.scratch();
            let fresh = plan(&expected, present, &facts(), &mut scratch).unwrap();
            let planned = planner.plan(&world, present, &facts(), &mut allocator).unwrap();
            assert_eq!(*planned.plan, *fresh.plan, "seed {seed} step {step}");
            assert_eq!(planned.policies, fresh.policies, "seed {seed} step {step}");
            assert_eq!(planned.notes, fresh.notes, "seed {seed} step {step}");
            assert_eq!(allocator.idle(), scratch.idle(), "seed {seed} step {step}");
            assert!(answers(&world, &planned) == answers(&world, &fresh), "seed {seed} step {step}");

            prefixes += planned.plan.identities.keys().filter(|identity| identity.is_cidr()).count();
            let plans = planned.plan.endpoints.values();
            enforced += plans.filter(|it| it.ingress.enforced && it.egress.entries.len() > 1).count();
            served += planned.plan.services.frontends.values().filter(|it| !it.backends.is_empty()).count();
            shared += earlier.as_ref().map_or(0, |earlier| {
                let same = |(id, now): (&EndpointId, &EndpointPlan)| {
                    earlier.plan.endpoints.get(id).is_some_and(|it| Arc::ptr_eq(&it.ingress, &now.ingress))
                };
                planned.plan.endpoints.iter().filter(|it| same(*it)).count()
            });
            let is_remote = |there: &&Whereabouts| there.identity.is_workload();
            believed += planned.plan.ipcache.values().filter(is_remote).count();
            contested +=
                planned.notes.iter().filter(|(_, _, text)| text.ends_with("neither is believed")).count();
            let l7 = planned.plan.l7.iter().flat_map(|l7| l7.endpoints.values());
            inspected += l7.flat_map(|it| &it.secrets).filter(|it| !it.items.0.is_empty()).count();
            if let Some(auth) = &planned.plan.auth {
                proven += auth.pairs.len();
                let before = earlier.as_ref().and_then(|earlier| earlier.plan.auth.as_ref());
                kept += usize::from(before.is_some_and(|before| Arc::ptr_eq(before, auth)));
            }
            earlier = Some(planned);
            allocator.save(std::time::SystemTime::now()).unwrap();
        }
    }
    let least = [
        ("prefixes", prefixes, 100),
        ("egress", enforced, 100),
        ("served", served, 100),
        ("shared", shared, 100),
        ("believed", believed, 50),
        ("contested", contested, 20),
        ("proven", proven, 50),
        ("kept", kept, 10),
        ("inspected", inspected, 20),
    ];
    for (what, seen, least) in least {
        assert!(seen > least, "the edits make too few: {what} {seen}");
    }
}
