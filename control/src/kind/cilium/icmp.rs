//! `icmps`: ICMP and ICMPv6 by type.

use mesh::policy::{PortMatch, protocol};

use crate::yaml::{At, nearest};

const MOST_FIELDS: usize = 40;

/// Names of ICMP types, as Cilium's CRD lists them.
const IPV4: [(u8, &str); 14] = [
    (0, "EchoReply"),
    (3, "DestinationUnreachable"),
    (5, "Redirect"),
    (8, "Echo"),
    (8, "EchoRequest"),
    (9, "RouterAdvertisement"),
    (10, "RouterSelection"),
    (11, "TimeExceeded"),
    (12, "ParameterProblem"),
    (13, "Timestamp"),
    (14, "TimestampReply"),
    (40, "Photuris"),
    (42, "ExtendedEchoRequest"),
    (43, "ExtendedEchoReply"),
];

/// Names of ICMPv6 types.
const IPV6: [(u8, &str); 27] = [
    (1, "DestinationUnreachable"),
    (2, "PacketTooBig"),
    (3, "TimeExceeded"),
    (4, "ParameterProblem"),
    (128, "EchoRequest"),
    (129, "EchoReply"),
    (130, "MulticastListenerQuery"),
    (131, "MulticastListenerReport"),
    (132, "MulticastListenerDone"),
    (133, "RouterSolicitation"),
    (134, "RouterAdvertisement"),
    (135, "NeighborSolicitation"),
    (136, "NeighborAdvertisement"),
    (137, "RedirectMessage"),
    (138, "RouterRenumbering"),
    (139, "ICMPNodeInformationQuery"),
    (140, "ICMPNodeInformationResponse"),
    (141, "InverseNeighborDiscoverySolicitation"),
    (142, "InverseNeighborDiscoveryAdvertisement"),
    (144, "HomeAgentAddressDiscoveryRequest"),
    (145, "HomeAgentAddressDiscoveryReply"),
    (146, "MobilePrefixSolicitation"),
    (147, "MobilePrefixAdvertisement"),
    (157, "DuplicateAddressRequestCodeSuffix"),
    (158, "DuplicateAddressConfirmationCodeSuffix"),
    (160, "ExtendedEchoRequest"),
    (161, "ExtendedEchoReply"),
];

/// All fields of all items.
pub(super) fn icmps(at: &At<'_>) -> Vec<PortMatch> {
    let mut all = Vec::new();
    for item in at.list() {
        item.mapping(|fields| {
            let Some(list) = fields.require("fields", "a list of ICMP types") else { return };
            let items = list.list();
            if items.is_empty() {
                list.error("found an empty list, expected at least one ICMP type");
            }
            if items.len() > MOST_FIELDS {
                list.error(format_args!(
                    "found {} types, at most {MOST_FIELDS} fit one item; write two",
                    items.len()
                ));
            }
            all.extend(items.iter().filter_map(field));
        });
    }
    all
}

fn field(at: &At<'_>) -> Option<PortMatch> {
    at.mapping(|fields| {
        let family =
            fields.get("family").map(|at| at.one_of(&[(protocol::ICMP, "IPv4"), (protocol::ICMPV6, "IPv6")]));
        let kind = fields.require("type", "an ICMP type, by number or name")?;
        let protocol = family.unwrap_or(Some(protocol::ICMP))?;
        let names: &[(u8, &str)] = if protocol == protocol::ICMP { &IPV4 } else { &IPV6 };
        Some(PortMatch::Icmp { protocol, icmp_type: Some(icmp_type(&kind, names)?) })
    })?
}

fn icmp_type(at: &At<'_>, names: &[(u8, &str)]) -> Option<u8> {
    let text = at.text("an ICMP type")?;
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    if let Some((number, _)) = names.iter().find(|(_, name)| *name == text) {
        return Some(*number);
    }
    match nearest(text, names.iter().map(|(_, name)| *name)) {
        Some(near) => at.error(format_args!("found {text:?}, did you mean {near}")),
        None => at.expected("0-255, or the name of an ICMP type such as EchoRequest"),
    }
    None
}
