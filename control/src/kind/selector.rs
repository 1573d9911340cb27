//! Label selectors of both families of policy.

use mesh::identity::Identity;
use mesh::labels::{NAMESPACE, NAMESPACE_LABELS, Source};
use mesh::policy::{Operator, Requirement, Selector};

use crate::yaml::{At, nearest};

/// How a selector's keys are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keys {
    /// NetworkPolicy, pods: `org` is `k8s:org`.
    Kubernetes,
    /// NetworkPolicy, namespaces: `team` is the namespace's label `team`.
    Namespaces,
    /// Cilium: `org` is `any:org`; `k8s:`, `any:` and `reserved:` name a source.
    Cilium,
}

/// Reads `matchLabels` and `matchExpressions`.
pub(super) fn selector(at: &At<'_>, keys: Keys) -> Selector {
    let requirements = at.mapping(|fields| {
        let mut all = Vec::new();
        if let Some(labels) = fields.get("matchLabels") {
            all.extend(labels.entries().into_iter().filter_map(|(key, at)| {
                let value = at.string();
                check_value(&at, &value);
                Some(requirement(read_key(&at, key, keys)?, Operator::In(vec![value])))
            }));
        }
        if let Some(expressions) = fields.get("matchExpressions") {
            all.extend(expressions.list().iter().filter_map(|at| expression(at, keys)));
        }
        all
    });
    Selector(requirements.unwrap_or_default())
}

fn expression(at: &At<'_>, keys: Keys) -> Option<Requirement> {
    at.mapping(|fields| {
        let key_at = fields.require("key", "a label's key")?;
        let key = read_key(&key_at, &key_at.string(), keys);
        let operator_at = fields.require("operator", "In, NotIn, Exists or DoesNotExist")?;
        let choices = [(0, "In"), (1, "NotIn"), (2, "Exists"), (3, "DoesNotExist")];
        let operator = operator_at.one_of(&choices)?;
        let values_at = fields.get("values");
        let values =
            values_at.as_ref().map(|at| at.list().iter().map(value).collect::<Vec<_>>()).unwrap_or_default();
        match (operator < 2, values.is_empty()) {
            (true, true) => operator_at.error("In and NotIn need at least one of values"),
            (false, false) => operator_at.error("Exists and DoesNotExist take no values"),
            _ => {}
        }
        let operator = match operator {
            0 => Operator::In(values),
            1 => Operator::NotIn(values),
            2 => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        Some(requirement(key?, operator))
    })?
}

fn value(at: &At<'_>) -> String {
    let value = at.string();
    check_value(at, &value);
    value
}

fn requirement((source, key): (Option<Source>, String), operator: Operator) -> Requirement {
    Requirement { source, key, operator }
}

fn read_key(at: &At<'_>, key: &str, keys: Keys) -> Option<(Option<Source>, String)> {
    let (source, key) = match keys {
        Keys::Kubernetes | Keys::Namespaces => (Some(Source::K8s), key),
        Keys::Cilium => match key.split_once(':') {
            None => (None, key),
            Some(("any", rest)) => (None, rest),
            Some(("k8s", rest)) => (Some(Source::K8s), rest),
            Some(("reserved", rest)) => (Some(Source::Reserved), reserved(at, rest)?),
            Some(("cidr", _)) => {
                at.error("prefixes are not selected by label; use fromCIDR, toCIDR or a CIDRSet");
                return None;
            }
            Some((other, _)) => {
                let near = nearest(other, ["k8s", "any", "reserved"].into_iter());
                let near = near.map(|near| format!(", did you mean {near}:")).unwrap_or_default();
                at.error(format_args!(
                    "found label source {other:?}, expected k8s:, any: or reserved:{near}"
                ));
                return None;
            }
        },
    };
    // The key of a namespace's label stands behind a prefix that makes it longer than a plain key may be.
    check_key(at, key.strip_prefix(NAMESPACE_LABELS).unwrap_or(key));
    let key = match keys {
        Keys::Namespaces => format!("{NAMESPACE_LABELS}{key}"),
        _ => key.to_owned(),
    };
    Some((source, key))
}

/// A deny rule for a reserved label that nobody has would deny nobody.
fn reserved<'a>(at: &At<'_>, name: &'a str) -> Option<&'a str> {
    let names = || Identity::RESERVED.iter().map(|(_, name)| *name);
    if names().any(|known| known == name) {
        return Some(name);
    }
    let near = nearest(name, names()).map(|near| format!(", did you mean {near}")).unwrap_or_default();
    at.error(format_args!("found reserved label {name:?}, which nothing has{near}"));
    None
}

/// Notes an error unless the text is a label key: `[dns-subdomain/]name`.
pub(super) fn check_key(at: &At<'_>, key: &str) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_fits = prefix.is_none_or(|prefix| {
        (1..=253).contains(&prefix.len())
            && prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
    });
    if name.is_empty() || !prefix_fits || !fits(name) {
        at.error(format_args!("found {key:?} as a label key, expected [prefix/]name of at most 63 letters, digits, '-', '_' and '.'"));
    }
}

/// Notes an error unless the text is a label value.
pub(super) fn check_value(at: &At<'_>, value: &str) {
    if !fits(value) {
        at.expected(
            "a label value: at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends",
        );
    }
}

fn fits(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || text.len() <= 63
            && text.starts_with(edge)
            && text.ends_with(edge)
            && text.chars().all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
}

/// The requirement that holds for the workloads of one namespace.
pub(super) fn in_namespace(namespace: &str) -> Requirement {
    requirement((Some(Source::K8s), NAMESPACE.to_owned()), Operator::In(vec![namespace.to_owned()]))
}

/// The requirement that holds for every workload, and for nothing else.
pub(super) fn in_any_namespace() -> Requirement {
    requirement((Some(Source::K8s), NAMESPACE.to_owned()), Operator::Exists)
}
