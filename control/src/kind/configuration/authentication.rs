//! Keys about authentication.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Configuration, or, path, set, values};
use crate::kind::ports;
use crate::yaml::At;

/// Shorter, and a late answer of a node ends connections; longer, and a node that is gone is believed too long.
const GRACE: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(600);
/// Shorter, and nothing but renewal is done.
const LIFETIME: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(86_400);
/// The auth-agent keeps 131 072 pairs in all; what is left of them is for packets that ask.
const AHEAD: RangeInclusive<u32> = 0..=100_000;

pub(super) fn settings<'a>(all: &mut Configuration, key: &mut impl FnMut(&'static str) -> Option<At<'a>>) {
    set(&mut all.trust_domain, key("trustDomain").and_then(|at| trust_domain(&at)));
    set(&mut all.authentication_grace, key("authenticationGrace").and_then(|at| duration(&at, &GRACE)));
    set(&mut all.authentication_ahead, key("authenticationAhead").and_then(|at| count(&at, &AHEAD)));
    set(&mut all.auth_port, key("authPort").and_then(|at| ports::number(&at)));
    let listen = key("caListen");
    set(&mut all.ca_listen, listen.as_ref().and_then(|at| server(at, "127.0.0.1:4251")));
    let address = key("caAddress");
    all.ca_address = address.as_ref().and_then(|at| server(at, "192.0.2.1:4251"));
    let token = key("joinTokenFile");
    all.join_token_file = token.as_ref().and_then(values::directory);
    let bundle = key("trustBundleFile");
    all.trust_bundle_file = bundle.as_ref().and_then(values::directory);
    let lifetime = key("svidLifetime");
    set(&mut all.svid_lifetime, lifetime.as_ref().and_then(|at| duration(at, &LIFETIME)));
    match &address {
        Some(at) => {
            if bundle.is_none() {
                at.error("goes with trustBundleFile, which is missing: the file with the roots that this CA's certificates lead to");
            }
            for own in [listen, lifetime].into_iter().flatten() {
                own.error("is about a CA of this node, and caAddress says that there is none; leave one out");
            }
        }
        None => {
            for other in [token, bundle].into_iter().flatten() {
                other.error("goes with caAddress, which is missing: the CA of this node needs no such file");
            }
        }
    }
}

fn trust_domain(at: &At<'_>) -> Option<mesh::spiffe::TrustDomain> {
    let parsed = at.string().parse();
    if let Err(mesh::spiffe::SpiffeIdError { text, problem }) = &parsed {
        at.error(format_args!("found {text:?}: {problem}"));
    }
    parsed.ok()
}

fn server(at: &At<'_>, example: &str) -> Option<SocketAddr> {
    let expected = format!("address:port such as {example}");
    let server: SocketAddr = at.parse(&expected)?;
    if server.port() == 0 {
        at.expected(expected);
        return None;
    }
    Some(server)
}

fn count(at: &At<'_>, bounds: &RangeInclusive<u32>) -> Option<u32> {
    let expected = format!("a number between {} and {}", bounds.start(), bounds.end());
    let text = at.text(&expected)?;
    // No sign, no leading zero: it is read by everybody as it is here.
    let found =
        text.parse().ok().filter(|number: &u32| number.to_string() == text && bounds.contains(number));
    if found.is_none() {
        at.expected(expected);
    }
    found
}

/// As Kubernetes writes them: `90s`, `1h30m`.
fn duration(at: &At<'_>, bounds: &RangeInclusive<Duration>) -> Option<Duration> {
    let expected = format!(
        "a duration between {} and {}, such as 90s or 1h30m",
        shown(*bounds.start()),
        shown(*bounds.end())
    );
    let found = parsed(at.text(&expected)?).filter(|duration| bounds.contains(duration));
    if found.is_none() {
        at.expected(expected);
    }
    found
}

fn parsed(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds) = (text, 0u64);
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(unit);
        let (scale, after) = [("h", 3600), ("m", 60), ("s", 1)]
            .into_iter()
            .find_map(|(name, scale)| Some((scale, after.strip_prefix(name)?)))?;
        seconds = number.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(seconds)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

fn shown(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    let mut text = String::new();
    for (name, scale) in [("h", 3600), ("m", 60), ("s", 1)] {
        if seconds >= scale {
            text.push_str(&format!("{}{name}", seconds / scale));
            seconds %= scale;
        }
    }
    text
}

/// Rows of `config view`.
pub(super) fn entries(all: &Configuration) -> [(&'static str, String); 9] {
    [
        ("trustDomain", all.trust_domain.to_string()),
        ("authenticationGrace", shown(all.authentication_grace)),
        ("authenticationAhead", all.authentication_ahead.to_string()),
        ("authPort", all.auth_port.to_string()),
        ("caListen", all.ca_listen.to_string()),
        ("caAddress", or(all.ca_address, "(the CA of this node)")),
        ("joinTokenFile", or(path(all.join_token_file.as_ref()), "(none)")),
        ("trustBundleFile", or(path(all.trust_bundle_file.as_ref()), "(of the CA of this node)")),
        ("svidLifetime", shown(all.svid_lifetime)),
    ]
}
