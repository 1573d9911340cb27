//! `serverNames`: which servers a TLS client may name.
//!
//! As Cilium reads them: none is no list (its CRD refuses it), each stands once, they stand beside no `rules` unless the proxy
//! ends the TLS. They ask for TLS, and so for TCP: of ports of any protocol its TCP is meant.

use std::collections::BTreeSet;

use mesh::l7::{PATTERNS, SERVER_NAMES, ServerName, ServerNames};
use mesh::policy::{PortMatch, protocol};

use crate::yaml::{At, Fields};

/// The names, and where they are given; `None`: the field is not there, or says nothing that holds.
pub(super) fn server_names<'a>(fields: &Fields<'a>, ports: &[PortMatch]) -> Option<(ServerNames, At<'a>)> {
    let at = fields.get("serverNames")?;
    let items = at.list();
    if items.is_empty() && !at.failed() {
        at.error("found an empty list, expected at least one name (\"*\" is every name)");
    }
    if items.len() > SERVER_NAMES {
        at.error(format_args!(
            "found {} names, at most {SERVER_NAMES} fit one item of toPorts; write two",
            items.len()
        ));
    }
    let mut names = BTreeSet::new();
    for item in items.iter().take(SERVER_NAMES) {
        let text = item.string();
        match text.parse::<ServerName>() {
            Ok(name) => {
                if !names.insert(name) {
                    item.error(format_args!("{text:?} is there twice; leave one out"));
                }
            }
            // It is no text, which has been said.
            Err(_) if text.is_empty() && !item.is_empty() => {}
            Err(error) => item.error(format_args!("{text:?}: {error}")),
        }
    }
    let tried = names.iter().filter(|name| name.is_tried()).count();
    if tried > PATTERNS {
        at.error(format_args!(
            "found {tried} names with a * elsewhere than as their first part, at most {PATTERNS} fit one item of toPorts; \
             write **.example.com or *.example.com where that says it, or two items"
        ));
    }
    if ports.iter().any(is_never_tls) {
        at.error("names are said in TLS, over TCP: write protocol: TCP beside the port");
    }
    Some((names.into_iter().collect(), at))
}

fn is_never_tls(port: &PortMatch) -> bool {
    match port {
        PortMatch::Range { protocol: carrier, .. } | PortMatch::Named { protocol: carrier, .. } => {
            carrier.is_some_and(|carrier| carrier != protocol::TCP)
        }
        PortMatch::Icmp { .. } => true,
        PortMatch::Protocol(number) => *number != protocol::TCP,
    }
}
