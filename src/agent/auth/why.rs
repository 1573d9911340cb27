//! Why two workloads are, or are not, authenticated to each other: step by step, up to the first that does not hold.

use std::net::IpAddr;
use std::sync::Arc;

use mesh::auth::{AuthEndpoint, AuthPlan};
use mesh::policy::Authentication;
use mesh::workload::WorkloadName;
use node_api::auth::{
    AuthAnswer, AuthQuestion, AuthStep, AuthWhy, CertificateView, NodeView, PairState, PairView,
};
use node_api::{Trace, TraceQuery};

use super::prover::Askers;

/// The question, and what the agent's loop knows of it.
pub(in crate::agent) struct Asked {
    pub(in crate::agent) query: TraceQuery,
    pub(in crate::agent) trace: Trace,
    pub(in crate::agent) auth: Option<Arc<AuthPlan>>,
    pub(in crate::agent) askers: Option<Askers>,
}

/// What the auth-agent knows.
#[derive(Default)]
struct Known {
    certificates: Vec<CertificateView>,
    pairs: Vec<PairView>,
    nodes: Vec<NodeView>,
}

impl Asked {
    /// Asks the auth-agent and judges.
    pub(in crate::agent) async fn answer(self) -> AuthWhy {
        let known = match &self.askers {
            Some(askers) => ask(askers).await,
            None => None,
        };
        judge(&self, known)
    }
}

async fn ask(askers: &Askers) -> Option<Known> {
    let mut known = Known::default();
    for question in [AuthQuestion::Certificates, AuthQuestion::Pairs, AuthQuestion::Nodes] {
        match askers.ask(question).await? {
            AuthAnswer::Certificates(certificates) => known.certificates = certificates,
            AuthAnswer::Pairs(pairs) => known.pairs = pairs,
            AuthAnswer::Nodes(nodes) => known.nodes = nodes,
            AuthAnswer::Counters(_) => {}
        }
    }
    Some(known)
}

/// An end of the question.
struct End<'a> {
    endpoint: &'a AuthEndpoint,
    instance: u64,
    /// The node it runs on; none: this one.
    node: Option<&'a str>,
}

#[derive(Default)]
struct Steps(Vec<AuthStep>);

/// A step does not hold; the ones before and this one are told.
struct Failed;

impl Steps {
    fn good(&mut self, step: &str, text: impl Into<String>) {
        self.0.push(AuthStep { step: step.to_owned(), ok: true, text: text.into() });
    }

    fn bad<T>(&mut self, step: &str, text: impl Into<String>) -> Result<T, Failed> {
        self.0.push(AuthStep { step: step.to_owned(), ok: false, text: text.into() });
        Err(Failed)
    }
}

fn judge(asked: &Asked, known: Option<Known>) -> AuthWhy {
    let mut steps = Steps::default();
    let ok = walk(asked, known, &mut steps).is_ok();
    AuthWhy { ok, steps: steps.0 }
}

fn walk(asked: &Asked, known: Option<Known>, steps: &mut Steps) -> Result<(), Failed> {
    let TraceQuery { from, to, .. } = &asked.query;
    let reason = asked.trace.lines.first().cloned().unwrap_or_default();
    if !asked.trace.allowed {
        return steps.bad("policy", format!("{reason}; a proof changes nothing: allow it first"));
    }
    if asked.trace.authentication == Authentication::None {
        steps.good("policy", format!("{reason}; no authentication is required, so none is made"));
        return Ok(());
    }
    steps.good("policy", reason);
    let Some(plan) = &asked.auth else {
        return steps.bad("identity", "no workload of this mesh has a SPIFFE ID yet; ask again");
    };
    let from = identify(plan, from, steps)?;
    let to = identify(plan, to, steps)?;
    let Some(known) = known else {
        return steps.bad(
            "session",
            "the auth-agent does not answer; see `ferromesh status`, and auth.log beside the agent's socket",
        );
    };
    for end in [&from, &to] {
        session(end, &known, steps)?;
    }
    for end in [&from, &to] {
        certificate(end, plan, &known, steps)?;
    }
    proof(&from, &to, plan, &known, steps)
}

fn identify<'a>(plan: &'a AuthPlan, which: &str, steps: &mut Steps) -> Result<End<'a>, Failed> {
    let (address, name) = (which.parse::<IpAddr>().ok(), which.parse::<WorkloadName>().ok());
    let is_it = |endpoint: &AuthEndpoint| {
        address.is_some_and(|address| endpoint.addresses().contains(&address))
            || (address.is_none() && name.as_ref() == Some(&endpoint.workload))
    };
    let here = plan.endpoints.iter().find(|(_, endpoint)| is_it(endpoint));
    let here = here.map(|(instance, endpoint)| End { endpoint, instance: *instance, node: None });
    let there = || {
        let found = plan.remotes.iter().find(|(_, endpoint)| is_it(endpoint));
        found.map(|(name, endpoint)| End {
            endpoint,
            instance: name.instance,
            node: Some(name.node.as_str()),
        })
    };
    match here.or_else(there) {
        Some(end) => {
            let node = end.node.unwrap_or(&plan.node);
            steps.good("identity", format!("{} on {node} is {}", end.endpoint.workload, end.endpoint.id));
            Ok(end)
        }
        None => steps.bad(
            "identity",
            format!(
                "{which} has no SPIFFE ID: it is no running workload of the mesh, or two nodes claim its address; \
                 see `ferromesh endpoint list` on its node, and `ferromesh ip list`"
            ),
        ),
    }
}

fn session(end: &End<'_>, known: &Known, steps: &mut Steps) -> Result<(), Failed> {
    let Some(name) = end.node else { return Ok(()) };
    match known.nodes.iter().find(|node| node.name == name) {
        Some(NodeView { connected: true, address, .. }) => {
            let at = address.map(|address| format!(" at {address}")).unwrap_or_default();
            steps.good("session", format!("node {name}{at} is connected"));
            Ok(())
        }
        Some(NodeView { problem, .. }) => {
            let why = problem.as_deref().unwrap_or("it has not been reached yet");
            steps.bad(
                "session",
                format!("node {name} is not connected: {why}; is its auth-agent up, and TCP 4250 open between the nodes?"),
            )
        }
        None => steps.bad("session", format!("node {name} has no Node object; add one with its addresses")),
    }
}

/// Of an end of this node; what another holds, the proof shows.
fn certificate(end: &End<'_>, plan: &AuthPlan, known: &Known, steps: &mut Steps) -> Result<(), Failed> {
    if end.node.is_some() {
        return Ok(());
    }
    let id = &end.endpoint.id;
    match known.certificates.iter().find(|view| view.id == *id) {
        Some(CertificateView { serial: Some(serial), expires: Some(expires), .. }) => {
            let end = utc(*expires);
            steps.good("certificate", format!("{id} until {end}, serial {serial}"));
            Ok(())
        }
        Some(CertificateView { problem, .. }) => {
            let why = problem.as_deref().unwrap_or("the CA has not answered yet");
            steps.bad(
                "certificate",
                format!(
                    "none for {id}: {why}; see `ferromesh auth list`, and whether the CA places it on {}",
                    plan.node
                ),
            )
        }
        None => steps.bad("certificate", format!("none is wanted for {id} yet; ask again")),
    }
}

fn proof(
    from: &End<'_>,
    to: &End<'_>,
    plan: &AuthPlan,
    known: &Known,
    steps: &mut Steps,
) -> Result<(), Failed> {
    let same = |view: &PairView, local: &End<'_>, remote: &End<'_>| {
        local.node.is_none()
            && view.local.instance == local.instance
            && view.remote.instance == remote.instance
            && view.remote.node == remote.node.unwrap_or(&plan.node)
    };
    let view = known.pairs.iter().find(|view| same(view, from, to) || same(view, to, from));
    let Some(view) = view else {
        return steps.bad("proof", "nobody has tried yet: the first packet does (`ferromesh auth pairs`)");
    };
    let detail = view.detail.clone().or_else(|| Some(view.refusal?.text().to_owned()));
    match view.state {
        PairState::Proven => {}
        PairState::Idle => return steps.bad("proof", "nobody has tried yet: the first packet does"),
        PairState::Proving => return steps.bad("proof", "is being made just now; ask again"),
        PairState::Refused => {
            let why = detail.unwrap_or_else(|| "no reason is known".to_owned());
            return steps.bad("proof", format!("refused: {why}; it is tried again with the next packet"));
        }
    }
    steps.good(
        "proof",
        format!("{} and {} have shown each other their certificates", view.local_id, view.remote_id),
    );
    let expiry =
        view.expires_in.map(|seconds| format!(", ends in {seconds} s unless renewed")).unwrap_or_default();
    steps.good("mark", format!("number {}, epoch {}{expiry}", view.mark, view.epoch));
    lease(if from.node.is_some() { from } else { to }, plan, known, steps)
}

fn lease(peer: &End<'_>, plan: &AuthPlan, known: &Known, steps: &mut Steps) -> Result<(), Failed> {
    let name = peer.node.unwrap_or(&plan.node);
    match known.nodes.iter().find(|node| node.name == name) {
        Some(node) if node.lease == 0 => steps.bad(
            "lease",
            format!("node {name} has not been heard of for longer than the grace ({} ms); until it is, nothing passes", plan.grace),
        ),
        Some(node) => {
            steps.good("lease", format!("of node {name}, good for {} ms more", node.lease));
            Ok(())
        }
        // The list need not hold this node.
        None => Ok(()),
    }
}

/// RFC 3339, UTC.
fn utc(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv6Addr;

    use mesh::auth::{InstanceName, Refusal};
    use mesh::identity::Identity;

    use super::*;

    fn endpoint(name: &str, ipv4: [u8; 4]) -> AuthEndpoint {
        AuthEndpoint {
            workload: name.parse().unwrap(),
            id: format!("spiffe://mesh/ns/default/sa/{name}").parse().unwrap(),
            identity: Identity::new(300).unwrap(),
            ipv4: ipv4.into(),
            ipv6: Ipv6Addr::LOCALHOST,
        }
    }

    type Change<'a> = &'a dyn Fn(&mut Known);

    /// xwing runs here, deathstar on node2.
    fn asked(authentication: Authentication) -> Asked {
        let plan = AuthPlan {
            trust_domain: "mesh".parse().unwrap(),
            node: "node1".to_owned(),
            grace: 10_000,
            ahead: 20_000,
            nodes: BTreeMap::new(),
            endpoints: [(1, endpoint("xwing", [10, 0, 0, 1]))].into(),
            remotes: [(
                InstanceName { node: "node2".to_owned(), instance: 4 },
                endpoint("deathstar", [10, 1, 0, 4]),
            )]
            .into(),
            pairs: BTreeSet::new(),
        };
        let query = TraceQuery {
            from: "xwing".to_owned(),
            to: "default/deathstar".to_owned(),
            port: 80,
            protocol: 6,
        };
        let trace = Trace { allowed: true, authentication, lines: vec!["allowed: by rule1".to_owned()] };
        Asked { query, trace, auth: Some(Arc::new(plan)), askers: None }
    }

    fn known() -> Known {
        let of = |name: &str| endpoint(name, [0; 4]).id;
        Known {
            certificates: vec![CertificateView {
                id: of("xwing"),
                serial: Some("5f".to_owned()),
                expires: Some(1_767_225_600),
                workloads: BTreeSet::new(),
                problem: None,
            }],
            pairs: vec![PairView {
                local: InstanceName { node: "node1".to_owned(), instance: 1 },
                local_workload: "default/xwing".parse().unwrap(),
                local_id: of("xwing"),
                remote: InstanceName { node: "node2".to_owned(), instance: 4 },
                remote_workload: "default/deathstar".parse().unwrap(),
                remote_id: of("deathstar"),
                state: PairState::Proven,
                mark: 9,
                epoch: 77,
                expires_in: Some(1800),
                proof_micros: Some(1_900),
                refusal: None,
                detail: None,
            }],
            nodes: vec![NodeView {
                name: "node2".to_owned(),
                id: "spiffe://mesh/ferromesh/node/node2".parse().unwrap(),
                connected: true,
                address: Some("192.0.2.2:4250".parse().unwrap()),
                lease: 9_500,
                marks: 1,
                problem: None,
            }],
        }
    }

    /// Names of the steps, and the text of the one that failed.
    fn told(asked: &Asked, known: Option<Known>) -> (Vec<String>, Option<String>) {
        let AuthWhy { ok, steps } = judge(asked, known);
        let failed = steps.iter().find(|step| !step.ok).map(|step| step.text.clone());
        assert_eq!(ok, failed.is_none());
        (steps.into_iter().map(|step| step.step).collect(), failed)
    }

    #[test]
    fn all_steps_hold_for_a_pair_that_is_proven() {
        let (steps, failed) = told(&asked(Authentication::Required), Some(known()));
        let all = ["policy", "identity", "identity", "session", "certificate", "proof", "mark", "lease"];
        assert_eq!((steps, failed), (all.map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn what_policy_does_not_ask_for_is_no_further_matter() {
        let (steps, failed) = told(&asked(Authentication::None), None);
        assert_eq!((steps.len(), failed), (1, None));
        let mut denied = asked(Authentication::None);
        denied.trace.allowed = false;
        assert!(told(&denied, None).1.unwrap().contains("a proof changes nothing"));
    }

    #[test]
    fn the_first_step_that_does_not_hold_says_what_to_do_and_ends_it() {
        let required = asked(Authentication::Required);
        let fails = |change: Change<'_>| {
            let mut known = known();
            change(&mut known);
            let (steps, failed) = told(&required, Some(known));
            (steps.last().unwrap().clone(), failed.unwrap())
        };
        let cases: [(Change<'_>, &str, &str); 6] = [
            (&|known| known.nodes.clear(), "session", "has no Node object"),
            (
                &|known| {
                    (known.nodes[0].connected, known.nodes[0].problem) = (false, Some("refused".to_owned()))
                },
                "session",
                "not connected: refused; is its auth-agent up",
            ),
            (&|known| known.certificates[0].serial = None, "certificate", "the CA has not answered yet"),
            (&|known| known.pairs.clear(), "proof", "nobody has tried yet"),
            (
                &|known| {
                    (known.pairs[0].state, known.pairs[0].refusal) =
                        (PairState::Refused, Some(Refusal::Expired))
                },
                "proof",
                "refused: the certificate has expired",
            ),
            (&|known| known.nodes[0].lease = 0, "lease", "longer than the grace (10000 ms)"),
        ];
        for (change, step, text) in cases {
            let (failed, why) = fails(change);
            assert!(failed == step && why.contains(text), "{failed}: {why}");
        }
        let mut unknown = asked(Authentication::Required);
        unknown.query.to = "10.1.0.99".to_owned();
        assert!(told(&unknown, Some(known())).1.unwrap().contains("has no SPIFFE ID"));
        assert!(told(&required, None).1.unwrap().contains("does not answer"));
    }
}
