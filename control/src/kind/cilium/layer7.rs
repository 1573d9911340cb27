//! What of `toPorts` goes by the layer-7 proxy: `rules.http` (`http`), `serverNames` (`server_names`) and the contexts of TLS
//! (`tls_context`) are read. The rest is checked as Cilium checks it; its meaning waits for its enforcer.

use std::sync::Arc;

use mesh::l7::{HttpRules, L7Demand, ServerNames, TlsInspection};
use mesh::policy::{Entity, Needs, Peer, Peers, PortMatch, protocol};

use super::server_names::server_names;
use super::tls_context::{self, Given};
use super::{Direction, Scope, http};
use crate::yaml::{At, Fields};

/// What must hold of a connection beside its peers and ports.
#[derive(Clone, Default)]
pub(super) struct Demand {
    /// Nothing enforces it yet.
    pub(super) needs: Option<Needs>,
    /// What the proxy lets through.
    pub(super) l7: Option<L7Demand>,
    /// The field that says so.
    pub(super) field: Option<Arc<str>>,
}

/// What an item asks for. Says so with a warning where nothing enforces it: until something does it allows nothing.
pub(super) fn demand(
    fields: &Fields<'_>,
    scope: Scope<'_>,
    direction: Direction,
    ports: &[PortMatch],
) -> Demand {
    let rules = fields.get("rules").and_then(|at| Some((kind_of_rules(&at, scope)?, at)));
    let tls = tls_context::given(fields, scope);
    let names = server_names(fields, ports);
    let listener = fields.get("listener");
    if let Some((kind, at)) = &rules {
        check_rules(kind, at, direction, ports);
    }
    check_tls(&tls, rules.as_ref(), names.as_ref().map(|(_, at)| at), ports);
    if let Some(at) = &listener {
        if direction == Direction::Ingress {
            at.error("a listener is for egress only");
        }
        if rules.is_some() {
            at.error("cannot stand beside rules");
        }
    }
    let (http, other) = match rules {
        Some((Rules::Http(http), _)) => (http, None),
        Some((Rules::Dns | Rules::Custom, at)) => (None, Some(at)),
        None => (None, None),
    };
    let names = names.map(|(names, _)| names);
    let Some(first) = other.or(listener) else {
        let l7 = l7(tls, names, http);
        let field = l7.is_some().then(|| fields.whole().path().into());
        return Demand { needs: None, l7, field };
    };
    first.warn("needs what the layer-7 proxy of this version cannot do: what it would allow is denied");
    Demand { needs: Some(Needs::L7Proxy), l7: None, field: None }
}

/// What the proxy holds to it. One with contexts that are faulty is refused.
fn l7(tls: Given<'_>, names: Option<ServerNames>, http: Option<HttpRules>) -> Option<L7Demand> {
    if tls.at().is_none() {
        return names.map(L7Demand::ServerNames).or(http.map(L7Demand::Http));
    }
    let terminating = tls.terminating.and_then(|one| one.context);
    let originating = tls.originating.and_then(|one| one.context);
    Some(L7Demand::Inspection(Arc::new(TlsInspection { names, terminating, originating, http })))
}

/// Says what does not go together with TLS, ended by the proxy or not.
fn check_tls(tls: &Given<'_>, rules: Option<&(Rules, At<'_>)>, names: Option<&At<'_>>, ports: &[PortMatch]) {
    match (names, &tls.terminating, &tls.originating) {
        (Some(names), None, Some(_)) => names.error(
            "goes with terminatingTLS, which is missing: a client whose TLS the proxy begins speaks none, and so names no server",
        ),
        (Some(names), None, None) if rules.is_some() => names.error(
            "cannot stand beside rules without terminatingTLS: the proxy sees no request inside TLS; \
             write an item of toPorts for each",
        ),
        _ => {}
    }
    match rules {
        // Their ports are TCP's, which has been looked at.
        Some((Rules::Http(_), _)) => {}
        Some((Rules::Dns | Rules::Custom, at)) if tls.at().is_some() => at.error(
            "inside TLS only HTTP is judged: write rules.http beside terminatingTLS and originatingTLS, or an item of toPorts for each",
        ),
        _ => tls.check_ports(ports),
    }
}

/// Says where rules of the proxy for what a workload calls name the node itself, which the proxy cannot call in its name. Of peers
/// that have the node among others (`all`, `cluster`) nothing is said.
pub(super) fn warn_of_host(fields: &Fields<'_>, peers: &Peers) {
    let Peers::Selected(peers) = peers else { return };
    let Some(at) = fields.get("toEntities") else { return };
    if peers.contains(&Peer::Entity(Entity::Host)) {
        at.warn(
            "what goes by way of the layer-7 proxy cannot be the node itself (host): connections to it are refused; name its ports in a rule without http, serverNames and contexts of TLS",
        );
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Rules {
    /// `None`: an empty list, which asks for nothing.
    Http(Option<HttpRules>),
    Dns,
    Custom,
}

/// Which one kind of rules is given; `rules: {}` is none.
fn kind_of_rules(at: &At<'_>, scope: Scope<'_>) -> Option<Rules> {
    at.mapping(|fields| {
        fields.refuse(&["kafka"], "withdrawn by Cilium; allow the port, or use http");
        let http = fields.get("http");
        let dns = fields.get("dns");
        let protocol = fields.get("l7proto");
        if let (Some(l7), None) = (fields.get("l7"), &protocol) {
            l7.error("goes with l7proto, which is missing");
        }
        for name in dns.iter().flat_map(At::list) {
            name.mapping(|fields| fields.ignore(&["matchName", "matchPattern"]));
        }
        let http = http.map(|at| (Rules::Http(http::rules(&at, scope.taken)), at));
        let others = [(dns, Rules::Dns), (protocol, Rules::Custom)];
        let others = others.into_iter().filter_map(|(at, kind)| Some((kind, at?)));
        let given: Vec<_> = http.into_iter().chain(others).collect();
        if let [_, (_, second), ..] = given.as_slice() {
            second.error("one kind of rules per item of toPorts; write two items");
        }
        given.into_iter().next().map(|(kind, _)| kind)
    })?
}

fn check_rules(kind: &Rules, at: &At<'_>, direction: Direction, ports: &[PortMatch]) {
    if *kind == Rules::Dns && direction == Direction::Ingress {
        at.error("DNS rules are for egress only");
    }
    for port in ports {
        match port {
            PortMatch::Range { first: 0, .. } => at.error("rules go with ports, not with \"0\" (every port)"),
            PortMatch::Range { protocol: Some(protocol::TCP), .. }
            | PortMatch::Named { protocol: Some(protocol::TCP), .. } => {}
            PortMatch::Range { protocol: None | Some(protocol::UDP), first, last } if *kind == Rules::Dns => {
                if first != last {
                    at.error("DNS rules do not go with a range of ports");
                }
            }
            PortMatch::Named { protocol: None | Some(protocol::UDP), .. } if *kind == Rules::Dns => {}
            _ => at
                .error("rules are for TCP: write protocol: TCP beside the port (DNS rules: ANY, UDP or TCP)"),
        }
    }
}
