//! Ports, port names and protocols, as NetworkPolicy and CiliumNetworkPolicy share them.

use mesh::policy::{PortMatch, protocol};

use crate::yaml::{At, Fields};

const PORT: &str = "1-65535 or a port name";

/// `port` of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Port {
    Number(u16),
    Name(String),
}

/// A number from 1 to 65535.
pub(super) fn number(at: &At<'_>) -> Option<u16> {
    let text = at.text("1-65535")?;
    let number = decimal(text).filter(|number| *number != 0);
    if number.is_none() {
        at.expected("1-65535");
    }
    number
}

/// An IANA service name (RFC 6335): at most 15 letters, digits and single inner '-', with a letter.
pub(super) fn name(at: &At<'_>) -> Option<String> {
    let text = at.text("a port name")?;
    if !is_name(text) {
        at.expected("a port name: at most 15 letters, digits and '-', one of them a letter");
        return None;
    }
    Some(text.to_ascii_lowercase())
}

/// A number or a name; zero where `zero` allows it.
pub(super) fn port(at: &At<'_>, zero: bool) -> Option<Port> {
    let expected = if zero { "1-65535, a port name, or 0 for every port" } else { PORT };
    let text = at.text(PORT)?;
    match decimal(text) {
        Some(0) if !zero => {}
        Some(number) => return Some(Port::Number(number)),
        None if is_name(text) => return Some(Port::Name(text.to_ascii_lowercase())),
        None => {}
    }
    at.expected(if text == "0" { expected } else { PORT });
    None
}

/// `endPort`, checked against the `port` it goes with.
pub(super) fn end(fields: &Fields<'_>, port: Option<&Port>) -> Option<u16> {
    let at = fields.get("endPort")?;
    let last = number(&at)?;
    match port {
        Some(Port::Number(first)) if *first != 0 && last >= *first => return Some(last),
        Some(Port::Number(first)) if *first != 0 => {
            at.error(format_args!("found {last}, expected {first} (port) or more"))
        }
        Some(Port::Number(_)) => at.error("goes with a port from 1, not with every port"),
        Some(Port::Name(name)) => {
            at.error(format_args!("goes with a number, not with the port name {name:?}"))
        }
        None => at.error("goes with port, which is missing"),
    }
    None
}

/// Ports of one protocol (`None`: TCP, UDP and SCTP).
pub(super) fn matching(protocol: Option<u8>, port: Option<Port>, end: Option<u16>) -> PortMatch {
    match port {
        None | Some(Port::Number(0)) => PortMatch::Range { protocol, first: 0, last: u16::MAX },
        Some(Port::Number(first)) => PortMatch::Range { protocol, first, last: end.unwrap_or(first) },
        Some(Port::Name(name)) => PortMatch::Named { protocol, name },
    }
}

/// Protocols of NetworkPolicy.
pub(super) const KUBERNETES: [(u8, &str); 3] =
    [(protocol::TCP, "TCP"), (protocol::UDP, "UDP"), (protocol::SCTP, "SCTP")];

fn decimal(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// `8080-tcp` is a name that people use; `80x` is one too by the letter of the RFC, but is taken for a slip of the pen.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric();
    let slip = text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains('-');
    if slip {
        return false;
    }
    (1..=15).contains(&text.len())
        && text.bytes().all(|b| inner(b) || b == b'-')
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}
