//! Rules that the proxy does not take, told by the objects that say them: by policy, workload, field and reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use control::{L7Part, Planned};
use mesh::flow::TrafficDirection;
use mesh::l7::{L7Demand, L7Endpoint, TlsInspection};
use mesh::policy::PolicyName;
use mesh::workload::{EndpointId, WorkloadName};
use node_api::PolicyView;
use parking_lot::Mutex;

/// Fields that are named of one policy.
const FIELDS: usize = 3;

/// Those of each endpoint.
pub(super) type Refusals = Arc<Mutex<BTreeMap<EndpointId, Refusal>>>;

/// Why an endpoint's rules are not in force.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Refusal {
    /// What of them is at fault.
    part: L7Part,
    /// Place in that list of rules.
    rule: Option<usize>,
    /// Part of that rule: `path`.
    of_rule: Option<String>,
    why: String,
}

impl Refusal {
    /// No part of them, but all together.
    pub(super) fn of_all(why: String) -> Self {
        Self { part: L7Part::default(), rule: None, of_rule: None, why }
    }

    /// As the proxy says it: `ingress.ports[0].access[1].http[0].path`, of what it was told.
    pub(super) fn new(told: &L7Endpoint, field: &str, why: String) -> Self {
        let mut refusal = Self::of_all(why);
        // What cannot be told more closely is the fault of all.
        let _ = refusal.find(told, field);
        refusal
    }

    /// What the proxy said.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// Whether all else of the rules is in force.
    fn is_of_secret(&self) -> bool {
        self.rule.is_none() && matches!(self.part.field, Some("terminatingTLS" | "originatingTLS"))
    }

    fn find(&mut self, told: &L7Endpoint, field: &str) -> Option<()> {
        let (side, rest) = field.split_once('.')?;
        let (direction, rules) = match side {
            "ingress" => (TrafficDirection::Ingress, told.ingress.as_ref()?),
            "egress" => (TrafficDirection::Egress, told.egress.as_ref()?),
            _ => return None,
        };
        let (place, rest) = item(rest, "ports")?;
        let ports = rules.ports.get(place)?;
        (self.part.direction, self.part.ports) = (Some(direction), Some((ports.first, ports.last)));
        if let Some((place, _)) = item(rest, "tls") {
            self.part.demand = Some(L7Demand::ServerNames(ports.tls.get(place)?.names.clone()));
            return Some(());
        }
        let (rule, rest) = match item(rest, "inspected") {
            Some((place, rest)) => self.find_inside(&ports.inspected.get(place)?.inspection, rest)?,
            None => {
                let (place, rest) = item(rest, "access")?;
                self.part.demand = Some(L7Demand::Http(ports.access.get(place)?.http.clone()?));
                item(rest, "http")?
            }
        };
        self.rule = Some(rule);
        // Headers are counted otherwise there: an object has two lists of them.
        self.of_rule = ["path", "method", "host"].into_iter().find(|part| rest == *part).map(str::to_owned);
        Some(())
    }

    /// The place in its HTTP rules, and what comes after, if it is one of these.
    fn find_inside<'a>(
        &mut self,
        inspection: &Arc<TlsInspection>,
        field: &'a str,
    ) -> Option<(usize, &'a str)> {
        self.part.demand = Some(L7Demand::Inspection(Arc::clone(inspection)));
        let rule = item(field, "http");
        let contexts = inspection.contexts().map(|(context, _)| context);
        self.part.field = match rule {
            Some(_) => Some("rules.http"),
            None if field.starts_with("names") => Some("serverNames"),
            None => contexts.into_iter().find(|context| field.starts_with(context)),
        };
        rule
    }

    /// Where a field says it.
    fn within(&self, field: &str) -> String {
        let rule = self.rule.map(|rule| format!("[{rule}]")).unwrap_or_default();
        let part = self.of_rule.as_ref().map(|part| format!(".{part}")).unwrap_or_default();
        format!("{field}{rule}{part}")
    }
}

/// `ports[0].rest`: 0 and `rest`.
fn item<'a>(text: &'a str, name: &str) -> Option<(usize, &'a str)> {
    let (place, rest) = text.strip_prefix(name)?.strip_prefix('[')?.split_once(']')?;
    Some((place.parse().ok()?, rest.strip_prefix('.').unwrap_or(rest)))
}

/// Rules of one endpoint that are not in force.
pub(super) struct Refused {
    workload: WorkloadName,
    why: String,
    /// `L7 rules are`, or `TLS is`, not in force.
    what: [&'static str; 2],
    /// All policies whose rules these are; of a Secret that cannot be used, those that name it.
    policies: BTreeSet<PolicyName>,
    /// Of those at fault, the fields.
    at_fault: BTreeMap<PolicyName, Vec<String>>,
}

/// All of them, of the endpoints that a plan knows.
pub(super) fn refused(refusals: &Refusals, planned: &Planned) -> Vec<Refused> {
    let refusals = refusals.lock();
    let known = refusals.iter().filter_map(|(id, why)| Some((planned.plan.endpoints.get(id)?, why)));
    let refused = known.map(|(endpoint, refusal)| {
        let fields = |part: &L7Part| control::l7_fields(planned, endpoint.identity, part);
        let mut at_fault = fields(&refusal.part);
        for field in at_fault.values_mut().flatten() {
            *field = refusal.within(field);
        }
        let all = || fields(&L7Part::default()).into_keys().collect();
        let (what, policies) = match refusal.is_of_secret() {
            true => (["TLS", "is"], at_fault.keys().cloned().collect()),
            false => (["L7 rules", "are"], all()),
        };
        let (workload, why) = (endpoint.endpoint.workload.clone(), refusal.why.clone());
        Refused { workload, why, what, policies, at_fault }
    });
    refused.collect()
}

impl Refused {
    /// A sentence.
    pub(super) fn sentence(&self) -> String {
        let Self { workload, what, .. } = self;
        let names: Vec<String> = self.policies.iter().map(ToString::to_string).collect();
        let [noun, verb] = what;
        format!("{noun} of {} {verb} not in force at {workload}: {}", names.join(", "), self.reason(None))
    }

    /// Says it of each of its policies.
    pub(super) fn note(&self, policies: &mut [PolicyView]) {
        let of_these =
            |view: &&mut PolicyView| view.policy.as_ref().is_some_and(|it| self.policies.contains(it));
        for view in policies.iter_mut().filter(of_these) {
            let reason = self.reason(view.policy.as_ref());
            view.valid = false;
            view.message = format!("{} not in force at {}: {reason}", self.what.join(" "), self.workload);
        }
    }

    /// Field and reason; a field of another policy than that of the reader goes with its name.
    fn reason(&self, reader: Option<&PolicyName>) -> String {
        let own = reader.and_then(|name| Some((name, self.at_fault.get(name)?)));
        let fields: Vec<String> = match own {
            Some((_, fields)) => fields.clone(),
            None => {
                let named = |(name, fields): (&PolicyName, &Vec<String>)| -> Vec<String> {
                    fields.iter().map(|field| format!("{name} {field}")).collect()
                };
                self.at_fault.iter().flat_map(named).collect()
            }
        };
        let shown = fields.iter().take(FIELDS).cloned().collect::<Vec<_>>().join(", ");
        match (fields.len(), fields.len().saturating_sub(FIELDS)) {
            // An edit has taken it out meanwhile.
            (0, _) => self.why.clone(),
            (_, 0) => format!("{shown}: {}", self.why),
            (_, more) => format!("{shown} and {more} more: {}", self.why),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh::l7::{
        Expression, HttpRule, L7Access, L7Inspected, L7Ports, L7Rules, L7Tls, SecretName, ServerNames,
        TlsContext,
    };

    use super::super::tests as l7;
    use super::*;

    fn inspection() -> Arc<TlsInspection> {
        let secret = SecretName { namespace: "default".to_owned(), name: "web".to_owned() };
        let context = TlsContext { secret, trusted_ca: None, certificate: None, private_key: None };
        let rule = HttpRule { path: Some(Expression("/c".to_owned())), ..HttpRule::default() };
        let (terminating, originating) = (Some(context.clone()), Some(context));
        Arc::new(TlsInspection { names: None, terminating, originating, http: Some([rule].into()) })
    }

    fn told() -> L7Endpoint {
        let rule = |path: &str| HttpRule { path: Some(Expression(path.to_owned())), ..HttpRule::default() };
        let list = |path: &str| L7Access { peers: None, http: Some([rule(path)].into()) };
        let names: ServerNames = ["a.example".parse().unwrap()].into();
        let tls = vec![L7Tls { peers: None, names }];
        let ports = |first, access: Vec<_>, tls: Vec<_>| {
            let (access, tls) = (access.into(), tls.into());
            let inspected = [L7Inspected { peers: None, inspection: inspection() }].into();
            L7Ports { first, last: first + 1, access, tls, inspected }
        };
        let access = vec![L7Access { peers: None, http: None }, list("/a"), list("/b")];
        let rules = L7Rules { ports: vec![ports(80, access, Vec::new()), ports(443, Vec::new(), tls)] };
        let endpoint = l7::plan(&[1]).endpoints.values().next().unwrap().clone();
        L7Endpoint { egress: Some(Arc::new(rules)), ..endpoint }
    }

    #[test]
    fn what_the_proxy_names_is_found_in_what_it_was_told() {
        let refusal = |field: &str| Refusal::new(&told(), field, "why".to_owned());
        let found = refusal("egress.ports[0].access[2].http[0].path");
        let part = &found.part;
        assert_eq!((part.direction, part.ports), (Some(TrafficDirection::Egress), Some((80, 81))));
        let list = part.demand.as_ref().and_then(L7Demand::http).unwrap();
        assert_eq!(list[0].path.as_ref().unwrap().0, "/b");
        assert_eq!(
            found.within("spec.egress[0].toPorts[3].rules.http"),
            "spec.egress[0].toPorts[3].rules.http[0].path"
        );
        let found = refusal("egress.ports[1].tls[0].names");
        assert_eq!(found.part.demand, Some(L7Demand::ServerNames(["a.example".parse().unwrap()].into())));
        assert_eq!(found.within("a.serverNames"), "a.serverNames");
        let found = refusal("egress.ports[0]");
        assert_eq!((found.part.ports, &found.part.demand, found.rule), (Some((80, 81)), &None, None));
        assert_eq!(refusal("egress.ports[0].access[1].http[0].headers[2].value").within("a"), "a[0]");
        // Of all together; or nothing that was told.
        for field in
            ["expressions", "egress.ports[7].access[0].http[0]", "ingress.ports[0]", "", "egress.ports[x]"]
        {
            assert_eq!(refusal(field), Refusal::of_all("why".to_owned()), "{field}");
        }
    }

    #[test]
    fn what_is_at_fault_of_an_inspection_is_found_in_its_own_field() {
        for (field, expected, within) in [
            ("terminatingTLS", "terminatingTLS", "a.terminatingTLS"),
            ("originatingTLS.certificate", "originatingTLS", "a.originatingTLS"),
            ("http[0].path", "rules.http", "a.rules.http[0].path"),
        ] {
            let field = format!("egress.ports[1].inspected[0].{field}");
            let found = Refusal::new(&told(), &field, "why".to_owned());
            assert_eq!(found.part.demand, Some(L7Demand::Inspection(inspection())), "{field}");
            assert_eq!((found.part.field, found.part.ports), (Some(expected), Some((443, 444))), "{field}");
            assert_eq!(found.within(&format!("a.{expected}")), within);
        }
    }

    #[test]
    fn each_policy_hears_of_its_own_fields_and_of_others_by_their_names() {
        let name = |name: &str| PolicyName {
            kind: mesh::policy::PolicyKind::CiliumNetworkPolicy,
            namespace: Some("default".to_owned()),
            name: name.to_owned(),
        };
        let fields = |count: usize| (0..count).map(|number| format!("spec[{number}]")).collect::<Vec<_>>();
        let refused = |at_fault: &[(&str, usize)]| Refused {
            what: ["L7 rules", "are"],
            workload: "default/deathstar".parse().unwrap(),
            why: "too many".to_owned(),
            policies: ["a", "b"].map(name).into(),
            at_fault: at_fault.iter().map(|(one, count)| (name(one), fields(*count))).collect(),
        };
        let view = |policy: Option<PolicyName>| PolicyView {
            policy,
            valid: true,
            location: "a.yaml:1".to_owned(),
            message: String::new(),
            selected: 1,
        };
        let mut views = [view(Some(name("a"))), view(Some(name("b"))), view(Some(name("c"))), view(None)];
        refused(&[("a", 1)]).note(&mut views);
        let said = views.each_ref().map(|view| (view.valid, view.message.as_str()));
        assert_eq!(said[0], (false, "L7 rules are not in force at default/deathstar: spec[0]: too many"));
        assert_eq!(
            said[1],
            (false, "L7 rules are not in force at default/deathstar: default/a spec[0]: too many")
        );
        assert_eq!((said[2], said[3]), ((true, ""), (true, "")));
        assert_eq!(
            refused(&[("a", 2), ("b", 3)]).sentence(),
            "L7 rules of default/a, default/b are not in force at default/deathstar: default/a spec[0], default/a \
             spec[1], default/b spec[0] and 2 more: too many"
        );
        assert_eq!(refused(&[]).reason(Some(&name("a"))), "too many");
    }
}
