//! What of `toPorts` needs the layer-7 proxy. It is checked as Cilium checks it; its meaning waits for its enforcer.

use mesh::policy::{Needs, PortMatch, protocol};

use super::Direction;
use crate::yaml::{At, Fields};

/// Whether the item needs the proxy. Says so with a warning, for until there is one it allows nothing.
pub(super) fn needs(fields: &Fields<'_>, direction: Direction, ports: &[PortMatch]) -> Option<Needs> {
    let rules = fields.get("rules").and_then(|at| Some((kind_of_rules(&at)?, at)));
    let names = fields.get("serverNames").filter(|at| !at.list().is_empty());
    let terminating = fields.get("terminatingTLS");
    let originating = fields.get("originatingTLS");
    let listener = fields.get("listener");
    for at in names.iter().flat_map(At::list) {
        if at.string().is_empty() {
            at.expected("a server name");
        }
    }
    if let Some((kind, at)) = &rules {
        check_rules(*kind, at, direction, ports);
        if let (Some(names), None) = (&names, &terminating) {
            names.error(
                "cannot stand beside rules without terminatingTLS: the proxy sees no request inside TLS",
            );
        }
    }
    if let Some(at) = &listener {
        if direction == Direction::Ingress {
            at.error("a listener is for egress only");
        }
        if rules.is_some() {
            at.error("cannot stand beside rules");
        }
    }
    let rules = rules.map(|(_, at)| at);
    let first = [rules, names, terminating, originating, listener].into_iter().flatten().next()?;
    first.warn("needs the layer-7 proxy, which this version does not have: what it would allow is denied");
    Some(Needs::L7Proxy)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rules {
    Http,
    Dns,
    Custom,
}

/// Which one kind of rules is given; `rules: {}` is none.
fn kind_of_rules(at: &At<'_>) -> Option<Rules> {
    at.mapping(|fields| {
        fields.refuse(&["kafka"], "withdrawn by Cilium; allow the port, or use http");
        let http = fields.get("http");
        let dns = fields.get("dns");
        let protocol = fields.get("l7proto");
        if let (Some(l7), None) = (fields.get("l7"), &protocol) {
            l7.error("goes with l7proto, which is missing");
        }
        for request in http.iter().flat_map(At::list) {
            request.mapping(|fields| fields.ignore(&["path", "method", "host", "headers", "headerMatches"]));
        }
        for name in dns.iter().flat_map(At::list) {
            name.mapping(|fields| fields.ignore(&["matchName", "matchPattern"]));
        }
        let given: Vec<_> = [(http, Rules::Http), (dns, Rules::Dns), (protocol, Rules::Custom)]
            .into_iter()
            .filter_map(|(at, kind)| Some((at?, kind)))
            .collect();
        if let [_, (second, _), ..] = given.as_slice() {
            second.error("one kind of rules per item of toPorts; write two items");
        }
        given.first().map(|(_, kind)| *kind)
    })?
}

fn check_rules(kind: Rules, at: &At<'_>, direction: Direction, ports: &[PortMatch]) {
    if kind == Rules::Dns && direction == Direction::Ingress {
        at.error("DNS rules are for egress only");
    }
    for port in ports {
        match port {
            PortMatch::Range { first: 0, .. } => at.error("rules go with ports, not with \"0\" (every port)"),
            PortMatch::Range { protocol: Some(protocol::TCP), .. }
            | PortMatch::Named { protocol: Some(protocol::TCP), .. } => {}
            PortMatch::Range { protocol: None | Some(protocol::UDP), first, last } if kind == Rules::Dns => {
                if first != last {
                    at.error("DNS rules do not go with a range of ports");
                }
            }
            PortMatch::Named { protocol: None | Some(protocol::UDP), .. } if kind == Rules::Dns => {}
            _ => at
                .error("rules are for TCP: write protocol: TCP beside the port (DNS rules: ANY, UDP or TCP)"),
        }
    }
}
