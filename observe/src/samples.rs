//! What `/metrics` serves, as values: for `ferromesh metrics list`.

use std::collections::BTreeMap;

use node_api::MetricView;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// Every sample of the registry, in the order of names and labels; buckets of a histogram from the smallest.
pub fn samples(registry: &Registry) -> Vec<MetricView> {
    let mut served = String::new();
    // Writing to a string does not fail; what a broken metric left out is missing here as it is there.
    let _ = text::encode(&mut served, registry);
    let mut samples: Vec<_> = served.lines().filter_map(sample).collect();
    // Stable: buckets stay as they are served.
    samples.sort_by(|one, other| key(one).cmp(&key(other)));
    samples
}

fn key(sample: &MetricView) -> (&str, Vec<(&String, &String)>) {
    (&sample.name, sample.labels.iter().filter(|(label, _)| *label != "le").collect())
}

/// `name{key="value",…} number`; none for a comment.
fn sample(line: &str) -> Option<MetricView> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    (!name.starts_with('#')).then(|| MetricView { name: name.to_owned(), labels, value })
}

/// The labels up to `}`, and what follows it.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.to_owned(), value);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
}

/// Text up to the closing quote, without its escapes, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((position, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(position + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            character => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{FlowMetrics, PolicyMetrics, registry};

    #[test]
    fn what_is_served_is_read_back() {
        let mut registry = registry("0.1.0", "a\"b\\c\nd", 1);
        let flows = FlowMetrics::register(&mut registry);
        flows.count(&crate::compact::tests::dropped());
        PolicyMetrics::register(&mut registry).observe_edit(Duration::from_millis(8));
        let samples = samples(&registry);
        let find = |name: &str, key: &str, value: &str| {
            let fits = |sample: &&MetricView| {
                sample.name == name && (key.is_empty() || sample.labels.get(key).is_some_and(|v| v == value))
            };
            samples.iter().find(fits).unwrap_or_else(|| panic!("{name}: {samples:?}")).value
        };
        assert_eq!(find("ferromesh_flows_processed_total", "verdict", "DROPPED"), 1.0);
        assert_eq!(find("ferromesh_policy_edit_to_live_seconds_bucket", "le", "0.01"), 1.0);
        assert_eq!(find("ferromesh_policy_edit_to_live_seconds_count", "", ""), 1.0);
        assert_eq!(find("ferromesh_build_info", "commit", "a\"b\\c\nd"), 1.0);
    }

    #[test]
    fn samples_are_in_order_and_so_are_buckets() {
        let mut registry = registry("0.1.0", "c", 1);
        PolicyMetrics::register(&mut registry).set_invalid(1);
        crate::metrics::NodeMetrics::register(&mut registry).set_endpoints(1, 0);
        let samples = samples(&registry);
        assert!(samples.is_sorted_by_key(|sample| sample.name.clone()), "{samples:?}");
        let states = samples.iter().filter_map(|sample| sample.labels.get("state"));
        assert_eq!(states.collect::<Vec<_>>(), ["leaving", "ready"]);
        let bounds = samples.iter().filter_map(|sample| sample.labels.get("le"));
        let bounds: Vec<&str> = bounds.map(String::as_str).collect();
        assert_eq!((bounds.first(), bounds.last()), (Some(&"0.001"), Some(&"+Inf")));
    }

    #[test]
    fn what_is_no_sample_is_none() {
        for line in ["# EOF", "# HELP a b.", "", "a", "a{b=\"c", "a{b} 1", "a b"] {
            assert_eq!(sample(line), None, "{line}");
        }
        assert_eq!(sample("a{} 2.5").map(|sample| sample.value), Some(2.5));
    }
}
