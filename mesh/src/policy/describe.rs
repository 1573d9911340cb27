//! Policy in words: how selectors, peers and ports are printed for people.

use std::fmt;

use super::{Entity, Operator, Peer, Peers, PortMatch, Requirement, Selector, protocol};
use crate::l7::{HeaderRule, HttpRule, Mismatch};
use crate::labels::Source;

impl fmt::Display for Selector {
    /// As kubectl writes selectors: `app=web,tier in (front,back),!legacy`; `{}` without requirements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("{}");
        }
        list(f, &self.0, ",")
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `any:` and `k8s:` are what everyone means by a label.
        let source = match self.source {
            None | Some(Source::K8s) => "",
            Some(Source::Reserved) => "reserved:",
            Some(Source::Cidr) => "cidr:",
        };
        let key = &self.key;
        match &self.operator {
            Operator::In(values) => match values.as_slice() {
                [value] if value.is_empty() => write!(f, "{source}{key}"),
                [value] => write!(f, "{source}{key}={value}"),
                values => write!(f, "{source}{key} in ({})", values.join(",")),
            },
            Operator::NotIn(values) => write!(f, "{source}{key} notin ({})", values.join(",")),
            Operator::Exists => write!(f, "{source}{key}"),
            Operator::DoesNotExist => write!(f, "!{source}{key}"),
        }
    }
}

impl fmt::Display for HttpRule {
    /// As a request line begins, then what else is asked: `POST /v1/request-landing host=deathstar x-has-pass`;
    /// `any request` without requirements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, method, host, headers } = self;
        let mut parts: Vec<String> = [method, path].into_iter().flatten().map(|it| it.0.clone()).collect();
        parts.extend(host.iter().map(|host| format!("host={}", host.0)));
        parts.extend(headers.iter().map(|HeaderRule { name, value, mismatch }| {
            let action = match mismatch {
                Mismatch::Deny => "",
                Mismatch::Log => " (else LOG)",
                Mismatch::Add => " (else ADD)",
                Mismatch::Delete => " (else DELETE)",
                Mismatch::Replace => " (else REPLACE)",
            };
            value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")) + action
        }));
        f.write_str(if parts.is_empty() { "any request" } else { "" })?;
        list(f, &parts, " ")
    }
}

impl fmt::Display for Entity {
    /// Its name in YAML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(entity, _)| entity == self).map(|(_, name)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoints(selector) if selector.0.is_empty() => f.write_str("all workloads"),
            Self::Endpoints(selector) => selector.fmt(f),
            Self::Entity(entity) => entity.fmt(f),
            Self::Cidr { cidr, except } => {
                cidr.fmt(f)?;
                if !except.is_empty() {
                    f.write_str(" except ")?;
                    list(f, except, ", ")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anyone"),
            Self::Selected(peers) if peers.is_empty() => f.write_str("nobody"),
            Self::Selected(peers) => list(f, peers, " or "),
        }
    }
}

impl fmt::Display for PortMatch {
    /// `80/TCP`, `80-90/UDP`, `any/SCTP`, `web/ANY`, `ICMP type 8`, `protocol 47`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { protocol, first: 0, last: u16::MAX } => write!(f, "any/{}", Carrier(*protocol)),
            Self::Range { protocol, first, last } if first == last => {
                write!(f, "{first}/{}", Carrier(*protocol))
            }
            Self::Range { protocol, first, last } => write!(f, "{first}-{last}/{}", Carrier(*protocol)),
            Self::Named { protocol, name } => write!(f, "{name}/{}", Carrier(*protocol)),
            Self::Icmp { protocol, icmp_type: Some(kind) } => {
                write!(f, "{} type {kind}", Carrier(Some(*protocol)))
            }
            Self::Icmp { protocol, icmp_type: None } => Carrier(Some(*protocol)).fmt(f),
            Self::Protocol(number) => Carrier(Some(*number)).fmt(f),
        }
    }
}

/// A protocol by name, `ANY` for none.
struct Carrier(Option<u8>);

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.0.and_then(protocol::name)) {
            (_, Some(name)) => f.write_str(name),
            (Some(number), None) => write!(f, "protocol {number}"),
            (None, None) => f.write_str("ANY"),
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T], between: &str) -> fmt::Result {
    for (position, item) in items.iter().enumerate() {
        let separator = if position == 0 { "" } else { between };
        write!(f, "{separator}{item}")?;
    }
    Ok(())
}
