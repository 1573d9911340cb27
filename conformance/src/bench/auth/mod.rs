//! What mutual authentication costs, and how fast it ends.

mod alone;
pub mod first;
pub mod revocation;
pub mod steady;

/// The server's policy: who may call it, proven or not.
fn policy(required: bool, port: u16) -> String {
    let authentication = if required { "\n    authentication: {mode: required}" } else { "" };
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: server-{port}, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n\
         \x20 - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n\
         \x20   toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]{authentication}\n"
    )
}

/// The value below which this share of them is.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
