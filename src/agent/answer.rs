//! Answers to questions: views of the world, the plan and the kernel. Only an enrolment, and the end of its lease,
//! change anything.

use std::collections::BTreeSet;

use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::plan::EndpointPlan;
use mesh::spiffe::SpiffeId;
use mesh::workload::Endpoint;
use node_api::{EndpointView, Masquerading, Reply, Request, ServiceCounts, Status};

use super::node::Node;
use super::socket::{Answer, Call};

impl Node {
    /// Answers one call; who asked may be gone by then.
    pub(super) async fn answer(&mut self, call: Call) {
        match call {
            Call::Ask(question, reply) => {
                let answer = match (self.later(&question), self.rows(&question)) {
                    (Some(later), _) => Answer::Later(later),
                    (None, Some(rows)) => Answer::Rows(rows),
                    (None, None) => Answer::One(Box::new(self.reply(question))),
                };
                drop(reply.send(answer));
            }
            Call::Enrol(request, reply) => self.enrol(request, reply).await,
            Call::LeaseEnded(id) => self.lease_ended(id).await,
            // The loop has taken it out.
            Call::Down(_) => {}
        }
    }

    fn reply(&self, question: Request) -> Reply {
        match question {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Endpoints => Reply::Endpoints(self.endpoint_views()),
            Request::Identities => Reply::Identities(control::status::identities(&self.planned.plan)),
            Request::Policies => {
                let mut policies = control::status::policies(&self.world, &self.planned);
                self.l7.judge(&self.planned, &mut policies);
                Reply::Policies(policies)
            }
            Request::Plan => match serde_json::to_value(&self.planned.plan) {
                Ok(plan) => Reply::Plan(plan),
                Err(error) => Reply::Error(format!("the plan cannot be written as JSON: {error}")),
            },
            Request::Config => Reply::Config(self.world.config_entries()),
            Request::Trace(query) => match control::trace(&self.world, &self.planned, &query) {
                Ok(trace) => Reply::Trace(trace),
                Err(error) => Reply::Error(error.to_string()),
            },
            Request::Services
            | Request::LoadBalancer
            | Request::Connections
            | Request::Addresses
            | Request::Observe(_)
            | Request::Monitor(_)
            | Request::Drops
            | Request::Metrics
            | Request::PolicyGet { .. }
            | Request::Selectors
            | Request::WhatIf(_)
            | Request::Auth(_)
            | Request::AuthWhy(_)
            | Request::JoinToken { .. }
            | Request::TrustBundle
            | Request::ProxyConnections
            | Request::ProxyBudgets
            | Request::ProxyExplain(_)
            | Request::ProxyRestart
            | Request::Enrol(_)
            | Request::Down => Reply::Error("not a question".to_owned()),
        }
    }

    fn status(&self) -> Status {
        let endpoints = &self.planned.plan.endpoints;
        let (counters, unread) = match self.datapath.counters() {
            Ok(counters) => (Some(counters), None),
            Err(error) => (None, Some(format!("the kernel's counters cannot be read: {error}"))),
        };
        let (programs, unseen) = match self.datapath.programs() {
            Ok(programs) => (programs, None),
            Err(error) => (Vec::new(), Some(format!("the kernel's programs cannot be read: {error}"))),
        };
        Status {
            node: self.facts.name.clone(),
            pid: std::process::id(),
            build: crate::BUILD.to_owned(),
            schema: abi::SCHEMA,
            config: self.directories.config.clone(),
            snapshot: self.world.generation,
            revision: counters.as_ref().map_or(0, |counters| counters.generation),
            endpoints: endpoints.len(),
            ingress_enforced: endpoints.values().filter(|endpoint| endpoint.ingress.enforced).count(),
            egress_enforced: endpoints.values().filter(|endpoint| endpoint.egress.enforced).count(),
            policies: self.world.policies.len(),
            invalid: self.invalid(),
            services: self.service_counts(),
            masquerading: self.masquerading(),
            authentication: self.auth.status(&self.planned.plan),
            l7: self.l7.status(&self.planned.plan),
            dns: self.dns.clone(),
            adopted: self.adopted,
            degraded: self.degraded().into_iter().chain(unread).chain(unseen).collect(),
            host_changes: [self.host_changes.clone(), self.auth.host_changes(), self.l7.host_changes()]
                .concat(),
            capabilities: self.capabilities.clone(),
            lost_events: counters.as_ref().map_or(0, |counters| counters.lost_events),
            maps: counters.map(|counters| counters.maps).unwrap_or_default(),
            programs,
        }
    }

    fn service_counts(&self) -> ServiceCounts {
        let services = &self.planned.plan.services;
        let plans = services.frontends.values();
        let backends: BTreeSet<_> = plans.flat_map(|plan| plan.backends.iter()).collect();
        ServiceCounts {
            services: services.names.len(),
            frontends: services.frontends.len(),
            backends: backends.len(),
        }
    }

    fn masquerading(&self) -> Masquerading {
        let masquerade = &self.planned.plan.masquerade;
        Masquerading {
            ipv4: masquerade.ipv4,
            ipv6: masquerade.ipv6,
            ports: (*masquerade.ports.start(), *masquerade.ports.end()),
            devices: self.outward.devices.iter().map(|device| device.name.clone()).collect(),
        }
    }

    /// What works only in part.
    fn degraded(&self) -> Vec<String> {
        let refused = self.refused.iter().cloned();
        let invalid = self.invalid();
        let objects =
            (invalid > 0).then(|| format!("{invalid} objects have an error: see `ferromesh policy list`"));
        let source = self.world.degraded.iter().cloned();
        let outward = self.outward.problems.iter().cloned();
        let unpublished = self.unpublished.iter().cloned();
        let resting = self.endpoints.resting().map(|(pool, left)| {
            let seconds = left.as_millis().div_ceil(1000);
            format!("pool {pool}: new on this node; workloads can start in {seconds} s, when no other node can take its addresses for earlier ones")
        });
        let outward = outward.chain(unpublished).chain(resting).chain(self.auth.problems());
        let outward = outward.chain(self.l7.problems(&self.planned));
        refused.chain(objects).chain(self.stale_settings()).chain(source).chain(outward).collect()
    }

    /// Settings that were changed and wait for a restart.
    fn stale_settings(&self) -> Option<String> {
        let (old, new) = (&self.built_with, &self.world.configuration);
        let stale = [
            ("nodeName", old.node_name != new.node_name),
            ("ipv4Pool", old.ipv4_pool != new.ipv4_pool),
            ("ipv6Pool", old.ipv6_pool != new.ipv6_pool),
            ("mtu", old.mtu != new.mtu),
            ("metricsAddress", old.metrics_address != new.metrics_address),
            ("cgroupRoot", old.cgroup_root != new.cgroup_root),
            ("serviceCgroup", old.service_cgroup != new.service_cgroup),
            ("masqueradePorts", old.masquerade_ports != new.masquerade_ports),
            ("devices", old.devices != new.devices),
            ("clusterDomain", old.cluster_domain != new.cluster_domain),
            ("dnsUpstreams", old.dns_upstreams != new.dns_upstreams),
            ("hostResolver", old.host_resolver != new.host_resolver),
            ("attach", old.attach != new.attach),
            ("traceLevel", old.trace_level != new.trace_level),
            ("trustDomain", old.trust_domain != new.trust_domain),
            ("authPort", old.auth_port != new.auth_port),
            ("caListen", old.ca_listen != new.ca_listen),
            ("caAddress", old.ca_address != new.ca_address),
            ("joinTokenFile", old.join_token_file != new.join_token_file),
            ("trustBundleFile", old.trust_bundle_file != new.trust_bundle_file),
            ("svidLifetime", old.svid_lifetime != new.svid_lifetime),
            ("accessLog", old.access_log != new.access_log),
            ("requestId", old.request_id != new.request_id),
        ];
        let keys: Vec<_> = stale.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
        (!keys.is_empty())
            .then(|| format!("{}: changed, in use from the agent's next start", keys.join(", ")))
    }

    fn endpoint_views(&self) -> Vec<EndpointView> {
        let usage = self.datapath.counters().map(|counters| counters.usage).unwrap_or_default();
        let view = |planned: &EndpointPlan| {
            let connections = usage.get(&planned.endpoint.id).copied().unwrap_or(0);
            self.endpoint_view(planned, connections)
        };
        self.planned.plan.endpoints.values().map(view).collect()
    }

    fn endpoint_view(&self, planned: &EndpointPlan, connections: u64) -> EndpointView {
        let id = planned.endpoint.id;
        let labels = self.labels(planned.identity);
        let (ingress_ruleset, egress_ruleset) = self.datapath.ruleset_ids(id).unwrap_or_default();
        EndpointView {
            policies: control::status::policies_selecting(&self.world, &labels),
            spiffe_id: self.spiffe_id(&planned.endpoint),
            labels,
            identity: planned.identity,
            ingress_enforced: planned.ingress.enforced,
            egress_enforced: planned.egress.enforced,
            ingress_ruleset,
            egress_ruleset,
            audit: planned.audit,
            connections,
            state: "ready".to_owned(),
            endpoint: planned.endpoint.clone(),
        }
    }

    /// Of the authority's account where somebody must authenticate; else of the one it would have by its enrolment.
    fn spiffe_id(&self, endpoint: &Endpoint) -> Option<SpiffeId> {
        let auth = self.planned.plan.auth.as_ref();
        if let Some(planned) = auth.and_then(|auth| auth.endpoints.get(&endpoint.instance)) {
            return Some(planned.id.clone());
        }
        let domain = &self.world.configuration.trust_domain;
        domain.workload(&endpoint.workload.namespace, &endpoint.service_account).ok()
    }

    fn labels(&self, identity: Identity) -> LabelSet {
        self.planned.plan.identities.get(&identity).cloned().unwrap_or_default()
    }
}
