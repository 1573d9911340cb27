//! What policy comes to: `policy get`, `policy selectors`.
//!
//! Everything is read from the plan and the policies in force, so an answer is what packets are judged by.

use std::collections::{BTreeMap, BTreeSet};

use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::plan::{EndpointPlan, NodePlan};
use mesh::policy::{
    Match, Outcome, Peer, Peers, Policy, PolicyKind, PolicyName, Rule, Ruleset, Selector, Side, Statement,
};
use mesh::workload::WorkloadName;
use node_api::{
    EndpointPolicy, IdentityView, Listed, PeerView, PolicyDetails, PolicyView, PortRange, RuleEntry,
    RuleView, RulesetView, SelectorRole, SelectorView, SideView, StatementView,
};

use crate::plan::Planned;
use crate::world::World;
use crate::yaml::nearest;

/// Of a list that grows with the cluster, as many as are told: several such lists stand in an answer of many rows.
const MOST: usize = 1000;

/// Why there is nothing to show.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InspectError {
    /// It names nothing.
    #[error(
        "{what}: no endpoint of this node and no policy{near}; see `ferromesh endpoint list` and `ferromesh policy list`"
    )]
    Unknown {
        /// As it was given.
        what: String,
        /// `, did you mean …`, or nothing.
        near: String,
    },
    /// It names an endpoint and a policy.
    #[error("{what}: is an endpoint and a policy; say endpoint/{workload} or {policy}")]
    Ambiguous {
        /// As it was given.
        what: String,
        /// The endpoint.
        workload: WorkloadName,
        /// The policy, by all that it is called.
        policy: String,
    },
}

/// What was found under a name.
#[derive(Clone, PartialEq, Debug)]
pub enum Found {
    /// An endpoint.
    Endpoint(Box<EndpointPolicy>),
    /// Policies of this name.
    Policies(Vec<PolicyDetails>),
}

/// What `policy get` shows; all policies, without a name.
pub fn inspect(world: &World, planned: &Planned, what: Option<&str>) -> Result<Found, InspectError> {
    let Some(what) = what else {
        return Ok(Found::Policies(details(world, planned, |_| true)));
    };
    let endpoint = endpoint(&planned.plan, what);
    let wanted = Wanted::parse(what);
    let policies =
        wanted.map(|wanted| details(world, planned, |name| wanted.means(name))).unwrap_or_default();
    match (endpoint, policies.first()) {
        (Some(endpoint), None) => Ok(Found::Endpoint(Box::new(endpoint_policy(&planned.plan, endpoint)))),
        (None, Some(_)) => Ok(Found::Policies(policies)),
        (Some(endpoint), Some(policy)) => Err(InspectError::Ambiguous {
            what: what.to_owned(),
            workload: endpoint.endpoint.workload.clone(),
            policy: format!("{}/{}", short(policy.policy.kind), policy.policy),
        }),
        (None, None) => Err(unknown(world, &planned.plan, what)),
    }
}

fn unknown(world: &World, plan: &NodePlan, what: &str) -> InspectError {
    let workloads = plan.endpoints.values().map(|planned| planned.endpoint.workload.to_string());
    let names: Vec<String> =
        workloads.chain(world.policies.iter().map(|policy| policy.name.to_string())).collect();
    let full = if what.contains('/') { what.to_owned() } else { format!("default/{what}") };
    let near = nearest(&full, names.iter().map(String::as_str));
    let near = near.map(|near| format!(", did you mean {near}")).unwrap_or_default();
    InspectError::Unknown { what: what.to_owned(), near }
}

/// The short names of kubectl.
fn short(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::NetworkPolicy => "netpol",
        PolicyKind::CiliumNetworkPolicy => "cnp",
        PolicyKind::CiliumClusterwideNetworkPolicy => "ccnp",
    }
}

/// `[KIND/][NAMESPACE/]NAME`, as kubectl has it; without a namespace `default`, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    kind: Option<PolicyKind>,
    namespace: Option<&'a str>,
    name: &'a str,
}

impl<'a> Wanted<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let kind = |word: &str| {
            let all = [
                PolicyKind::NetworkPolicy,
                PolicyKind::CiliumNetworkPolicy,
                PolicyKind::CiliumClusterwideNetworkPolicy,
            ];
            let is = |kind: &PolicyKind| word.eq_ignore_ascii_case(kind.as_str()) || word == short(*kind);
            all.into_iter().find(is)
        };
        let parts: Vec<&str> = text.split('/').collect();
        Some(match parts.as_slice() {
            [name] => Self { kind: None, namespace: None, name },
            [first, name] => match kind(first) {
                Some(kind) => Self { kind: Some(kind), namespace: None, name },
                None => Self { kind: None, namespace: Some(first), name },
            },
            [first, namespace, name] => Self { kind: Some(kind(first)?), namespace: Some(namespace), name },
            _ => return None,
        })
    }

    pub(crate) fn means(&self, policy: &PolicyName) -> bool {
        let namespace = match (&policy.namespace, self.namespace) {
            (Some(own), asked) => own == asked.unwrap_or("default"),
            (None, asked) => asked.is_none(),
        };
        namespace && policy.name == self.name && self.kind.is_none_or(|kind| kind == policy.kind)
    }
}

fn endpoint<'a>(plan: &'a NodePlan, what: &str) -> Option<&'a EndpointPlan> {
    let bare = ["endpoint/", "ep/"].into_iter().find_map(|prefix| what.strip_prefix(prefix)).unwrap_or(what);
    let name = bare.parse::<WorkloadName>().ok();
    let mut all = plan.endpoints.values();
    // A number is also a valid name; the name goes first, because numbers change.
    let named = all.clone().find(|planned| Some(&planned.endpoint.workload) == name.as_ref());
    named.or_else(|| all.find(|planned| planned.endpoint.id.to_string() == bare))
}

fn endpoint_policy(plan: &NodePlan, planned: &EndpointPlan) -> EndpointPolicy {
    let rulesets = [&planned.ingress, &planned.egress];
    let named =
        rulesets.into_iter().flat_map(|ruleset| ruleset.entries.keys()).filter_map(|key| key.identity);
    let named: BTreeSet<Identity> = named.collect();
    let spiffe_ids = crate::status::spiffe_ids(plan);
    let view = |identity: Identity| IdentityView {
        identity,
        spiffe_ids: spiffe_ids.get(&identity).cloned().unwrap_or_default(),
        labels: plan.identities.get(&identity).cloned().unwrap_or_default(),
    };
    EndpointPolicy {
        endpoint: planned.endpoint.id,
        workload: planned.endpoint.workload.clone(),
        identity: planned.identity,
        audit: planned.audit,
        ingress: ruleset(&planned.ingress),
        egress: ruleset(&planned.egress),
        identities: named.into_iter().map(view).collect(),
    }
}

fn ruleset(ruleset: &Ruleset) -> RulesetView {
    let entry = |(key, outcome): (&Match, &Outcome)| RuleEntry {
        allow: outcome.allow,
        identity: key.identity,
        ports: PortRange {
            protocol: key.protocol,
            except: Vec::new(),
            first: key.port,
            last: key.port | u16::MAX.checked_shr(key.port_bits.into()).unwrap_or(0),
        },
        authentication: outcome.authentication,
        proxied: outcome.proxied,
        needs: outcome.needs,
        policies: outcome.by.to_vec(),
    };
    RulesetView {
        enforced: ruleset.enforced,
        denied_by_default: ruleset.denied_by_default.clone(),
        entries: ruleset.entries.iter().map(entry).collect(),
    }
}

/// Endpoints of this node by identity, and which of them a subject selects.
struct Here<'a> {
    planned: &'a Planned,
    endpoints: BTreeMap<Identity, Vec<&'a WorkloadName>>,
}

impl<'a> Here<'a> {
    fn new(planned: &'a Planned) -> Self {
        let mut endpoints: BTreeMap<Identity, Vec<&WorkloadName>> = BTreeMap::new();
        for endpoint in planned.plan.endpoints.values() {
            endpoints.entry(endpoint.identity).or_default().push(&endpoint.endpoint.workload);
        }
        Self { planned, endpoints }
    }

    /// The universe has an index of labels; who has no labels of his own is not in it.
    fn selected(&self, subject: &Selector) -> BTreeSet<Identity> {
        let meant = self.planned.universe.meant(&Peer::Endpoints(subject.clone()));
        let unlabelled = subject.matches(&LabelSet::reserved("init")).then_some(Identity::INIT);
        meant.into_iter().chain(unlabelled).filter(|identity| self.endpoints.contains_key(identity)).collect()
    }

    fn workloads(&self, rules: &[Rule]) -> BTreeSet<&'a WorkloadName> {
        let identities: BTreeSet<_> = rules.iter().flat_map(|rule| self.selected(&rule.subject)).collect();
        identities.iter().filter_map(|identity| self.endpoints.get(identity)).flatten().copied().collect()
    }
}

fn details(world: &World, planned: &Planned, wanted: impl Fn(&PolicyName) -> bool) -> Vec<PolicyDetails> {
    let here = Here::new(planned);
    let in_force: BTreeMap<&PolicyName, &Policy> =
        planned.policies.iter().map(|policy| (&policy.name, policy.as_ref())).collect();
    let mut statuses: BTreeMap<PolicyName, Vec<PolicyView>> = BTreeMap::new();
    for status in world.statuses.iter() {
        let Some(policy) = World::policy_of(status).filter(|name| wanted(name)) else { continue };
        let status = planned.notes.add_to(status);
        let view = PolicyView {
            policy: Some(policy.clone()),
            valid: status.valid,
            location: format!("{}:{}", status.file, status.line),
            message: status.message,
            selected: 0,
        };
        statuses.entry(policy).or_default().push(view);
    }
    let one = |(name, mut statuses): (PolicyName, Vec<PolicyView>)| {
        let rules = in_force.get(&name).map(|policy| policy.rules.as_slice()).unwrap_or_default();
        let selected = here.workloads(rules);
        for status in &mut statuses {
            status.selected = selected.len();
        }
        PolicyDetails {
            in_force: in_force.contains_key(&name),
            policy: name,
            statuses,
            endpoints: Listed::first(MOST, selected.into_iter().cloned()),
            rules: rules.iter().map(|rule| rule_view(planned, rule)).collect(),
        }
    };
    statuses.into_iter().map(one).collect()
}

fn rule_view(planned: &Planned, rule: &Rule) -> RuleView {
    let side = |side: &Side| SideView {
        default_deny: side.default_deny,
        statements: statements(side)
            .map(|(allow, statement)| statement_view(planned, allow, statement))
            .collect(),
    };
    RuleView { subject: rule.subject.to_string(), ingress: side(&rule.ingress), egress: side(&rule.egress) }
}

fn statements(side: &Side) -> impl Iterator<Item = (bool, &Statement)> {
    let denials = side.deny.iter().map(|statement| (false, statement));
    denials.chain(side.allow.iter().map(|statement| (true, statement)))
}

fn statement_view(planned: &Planned, allow: bool, statement: &Statement) -> StatementView {
    let view = |peer: &Peer| PeerView {
        peer: peer.to_string(),
        identities: Listed::first(MOST, planned.universe.meant(peer)),
    };
    let peers = match &statement.peers {
        Peers::Any => None,
        Peers::Selected(peers) => Some(peers.iter().map(view).collect()),
    };
    let ports = statement.ports.iter().map(ToString::to_string).collect();
    let Statement { authentication, needs, .. } = *statement;
    StatementView { allow, peers, ports, authentication, needs, l7: statement.l7.clone() }
}

/// A selector and who uses it.
struct Use<'a> {
    role: SelectorRole,
    peer: Peer,
    policies: BTreeSet<&'a PolicyName>,
}

/// Rows of `policy selectors`, in order of their text.
pub fn selectors(planned: &Planned) -> Vec<SelectorView> {
    // By text and by what tells apart selectors that are written alike, such as `k8s:app` and `any:app`.
    let mut uses: BTreeMap<(String, SelectorRole, String), Use<'_>> = BTreeMap::new();
    for policy in planned.policies.iter() {
        let mut add = |role, text: String, peer: &Peer| {
            let new = || Use { role, peer: peer.clone(), policies: BTreeSet::new() };
            uses.entry((text, role, format!("{peer:?}"))).or_insert_with(new).policies.insert(&policy.name);
        };
        for rule in &policy.rules {
            let subject = Peer::Endpoints(rule.subject.clone());
            add(SelectorRole::Subject, rule.subject.to_string(), &subject);
            let sides = [&rule.ingress, &rule.egress].into_iter().flat_map(statements);
            for (_, statement) in sides {
                if let Peers::Selected(peers) = &statement.peers {
                    peers.iter().for_each(|peer| add(SelectorRole::Peer, peer.to_string(), peer));
                }
            }
        }
    }
    let here = Here::new(planned);
    let row = |((selector, ..), Use { role, peer, policies }): ((String, _, _), Use<'_>)| {
        let identities: Vec<Identity> = match (&peer, role) {
            (Peer::Endpoints(subject), SelectorRole::Subject) => here.selected(subject).into_iter().collect(),
            _ => planned.universe.meant(&peer),
        };
        SelectorView {
            selector,
            role,
            users: policies.len(),
            policies: Listed::first(MOST, policies.into_iter().cloned()),
            identities: Listed::first(MOST, identities),
        }
    };
    uses.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use mesh::policy::Authentication;

    use super::*;
    use crate::plan::tests::{Bench, SHIPS};

    const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
    const MORE: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: rule1}
spec:
  podSelector: {matchLabels: {org: alliance}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.8/29]}}], ports: [{port: 8000, endPort: 8003}]}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: xwing}
spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [remote-node]}]}
";

    fn found(bench: &Bench, what: &str) -> Result<Found, String> {
        inspect(&bench.world, &bench.planned, Some(what)).map_err(|error| error.to_string())
    }

    fn policies(bench: &Bench, what: &str) -> Vec<PolicyDetails> {
        match found(bench, what) {
            Ok(Found::Policies(policies)) => policies,
            other => panic!("{what}: {other:?}"),
        }
    }

    fn endpoint(bench: &Bench, what: &str) -> EndpointPolicy {
        match found(bench, what) {
            Ok(Found::Endpoint(policy)) => *policy,
            other => panic!("{what}: {other:?}"),
        }
    }

    #[test]
    fn an_endpoint_has_the_entries_of_its_rulesets() {
        let bench = Bench::new(RULE1, &SHIPS);
        for what in
            ["deathstar-1", "default/deathstar-1", "ep/deathstar-1", "endpoint/default/deathstar-1", "1"]
        {
            let policy = endpoint(&bench, what);
            assert_eq!(policy.workload.to_string(), "default/deathstar-1", "{what}");
            assert!(policy.ingress.enforced && !policy.egress.enforced);
            assert_eq!(policy.ingress.denied_by_default[0].name, "rule1");
            let at_80 = PortRange { protocol: Some(6), except: Vec::new(), first: 80, last: 80 };
            let peers: BTreeSet<_> =
                policy.ingress.entries.iter().filter(|it| it.ports == at_80).map(|it| it.identity).collect();
            let empire = ["default/deathstar-1", "default/tiefighter"].map(|name| Some(bench.identity(name)));
            assert_eq!(peers, empire.into());
            let known: BTreeSet<_> = policy.identities.iter().map(|view| Some(view.identity)).collect();
            assert!(known.is_superset(&peers));
        }
        let ranged = Bench::new(MORE, &SHIPS);
        let egress = endpoint(&ranged, "endpoint/xwing").egress;
        let ports: BTreeSet<_> = egress.entries.iter().map(|it| (it.ports.first, it.ports.last)).collect();
        assert_eq!(ports, [(8000, 8003)].into());
    }

    #[test]
    fn what_must_be_authenticated_is_told_of_statements_and_entries() {
        let required = RULE1.replace("toPorts:", "authentication: {mode: required}\n    toPorts:");
        let bench = Bench::new(&required, &SHIPS);
        let entries = endpoint(&bench, "deathstar-1").ingress.entries;
        let (of_rule, own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|it| !it.policies.is_empty());
        assert!(of_rule.len() == 2 && of_rule.iter().all(|it| it.authentication == Authentication::Required));
        assert!(own.iter().all(|it| it.allow && it.authentication == Authentication::None), "{own:?}");
        let [rule1] = policies(&bench, "rule1").try_into().unwrap();
        let [statement] = rule1.rules[0].ingress.statements.as_slice() else { panic!("{rule1:?}") };
        assert!(statement.allow && statement.authentication == Authentication::Required);
    }

    #[test]
    fn a_policy_is_found_by_kind_namespace_and_name() {
        let bench = Bench::new(&format!("{RULE1}\n{MORE}"), &SHIPS);
        let kinds = |what: &str| -> Vec<_> {
            policies(&bench, what).iter().map(|policy| policy.policy.kind.as_str()).collect()
        };
        assert_eq!(kinds("rule1"), ["NetworkPolicy", "CiliumNetworkPolicy"]);
        assert_eq!(kinds("default/rule1"), ["NetworkPolicy", "CiliumNetworkPolicy"]);
        assert_eq!(kinds("cnp/rule1"), ["CiliumNetworkPolicy"]);
        assert_eq!(kinds("networkpolicy/default/rule1"), ["NetworkPolicy"]);
        assert_eq!(kinds("ccnp/xwing"), ["CiliumClusterwideNetworkPolicy"]);
        let Ok(Found::Policies(all)) = inspect(&bench.world, &bench.planned, None) else { panic!() };
        assert_eq!(all.len(), 3);
        assert_eq!(
            found(&bench, "xwing").unwrap_err(),
            "xwing: is an endpoint and a policy; say endpoint/default/xwing or ccnp/xwing"
        );
        assert_eq!(
            found(&bench, "ruel1").unwrap_err(),
            "ruel1: no endpoint of this node and no policy, did you mean default/rule1; \
             see `ferromesh endpoint list` and `ferromesh policy list`"
        );
        assert!(found(&bench, "cnp/other/rule1").is_err() && found(&bench, "a/b/c/d").is_err());
    }

    #[test]
    fn a_policys_peers_are_told_with_whom_they_mean() {
        let bench = Bench::new(RULE1, &SHIPS);
        let [rule1] = policies(&bench, "rule1").try_into().unwrap();
        assert!(rule1.in_force);
        assert_eq!(rule1.statuses[0].location, "world.yaml:1");
        let selected: Vec<_> = rule1.endpoints.items.iter().map(ToString::to_string).collect();
        assert_eq!(selected, ["default/deathstar-1", "default/deathstar-2"]);
        let side = &rule1.rules[0].ingress;
        assert!(side.default_deny && !rule1.rules[0].egress.default_deny);
        let peer = &side.statements[0].peers.as_ref().unwrap()[0];
        assert_eq!(peer.peer, "org=empire,io.kubernetes.pod.namespace=default");
        let empire = ["default/deathstar-1", "default/tiefighter"].map(|name| bench.identity(name));
        assert_eq!(peer.identities, Listed::first(9, empire));
        assert_eq!(side.statements[0].ports, ["80/TCP"]);
    }

    #[test]
    fn selectors_are_told_once_with_all_who_use_them() {
        let twice = RULE1.replace("rule1", "rule2");
        let bench = Bench::new(&format!("{RULE1}\n---\n{twice}\n{MORE}"), &SHIPS);
        let rows = selectors(&bench.planned);
        let row = |text: &str, role| {
            rows.iter()
                .find(|row| row.selector == text && row.role == role)
                .unwrap_or_else(|| panic!("{rows:#?}"))
        };
        let empire = row("org=empire,io.kubernetes.pod.namespace=default", SelectorRole::Peer);
        assert_eq!((empire.users, empire.identities.total), (2, 2));
        let everyone = row("{}", SelectorRole::Subject);
        assert_eq!((everyone.users, everyone.identities.total), (1, 3), "three label sets: {everyone:?}");
        let cidr = row("203.0.113.0/24 except 203.0.113.8/29", SelectorRole::Peer);
        assert_eq!(cidr.identities.items, [bench.identity("203.0.113.1")]);
        assert_eq!(row("remote-node", SelectorRole::Peer).identities.items, [Identity::REMOTE_NODE]);
    }

    #[test]
    fn one_whose_labels_are_not_known_is_selected_by_whoever_selects_everyone() {
        let declared =
            "---\napiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {workloadLabels: declared}\n";
        let bench = Bench::new(&format!("{MORE}{declared}"), &["default/stranger=a=b"]);
        let [everyone] = policies(&bench, "ccnp/xwing").try_into().unwrap();
        assert_eq!(everyone.endpoints.total, 1, "{everyone:?}");
    }
}
