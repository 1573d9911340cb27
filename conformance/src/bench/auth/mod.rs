//! What mutual authentication costs, and how fast it ends.

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
