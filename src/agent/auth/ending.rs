//! The sockets whose proof is gone, ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh::auth::{AuthEndpoint, AuthPlan};
use mesh::identity::Identity;
use node_api::auth::EndedPair;
use tokio::task::JoinHandle;

use super::prover::Surroundings;

impl Surroundings {
    /// Marks have gone: ends the sockets that depended on them, beside this task.
    pub(super) fn end(&self, pairs: &[EndedPair]) {
        let view = Arc::clone(&self.view);
        let pass = self.endpoints.end_unproven(pairs, move |socket| {
            let epoch = view.epoch(socket.protocol.number(), socket.local, socket.remote);
            epoch.unwrap_or_else(|error| {
                tracing::warn!(%error, "on which proof a socket depends cannot be told; it is left alone");
                None
            })
        });
        tokio::spawn(report(pass));
    }

    /// Ends the sockets that depend on marks that are gone, whenever and whoever was told of it: once for each connection
    /// to an auth-agent, when it has the plan in force. Those of whom the plan asks no proof any more stay.
    pub(super) fn sweep(&self, plan: Option<Arc<AuthPlan>>) {
        let Some(plan) = plan else { return };
        let identities: BTreeMap<IpAddr, Identity> = plan
            .endpoints
            .values()
            .chain(plan.remotes.values())
            .flat_map(|end| end.addresses().map(|address| (address, end.identity)))
            .collect();
        let view = Arc::clone(&self.view);
        let pass = self.endpoints.end_each(move |socket| {
            let ends = [socket.local.ip(), socket.remote.ip()].map(|address| identities.get(&address));
            if let [Some(own), Some(peer)] = ends
                && !plan.requires(*own, *peer)
            {
                return false;
            }
            let is_dead = view.is_unproven(socket.protocol.number(), socket.local, socket.remote);
            is_dead.unwrap_or_else(|error| {
                tracing::warn!(%error, "on which proof a socket depends cannot be told; it is left alone");
                false
            })
        });
        tokio::spawn(report(pass));
    }
}

/// How a pass over sockets has ended.
async fn report<E: std::fmt::Display>(pass: JoinHandle<Result<usize, E>>) {
    match pass.await {
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => tracing::debug!(count, "sockets without a proof have been ended"),
        Ok(Err(error)) => tracing::warn!("sockets without a proof are not all ended: {error}"),
        // The runtime ends.
        Err(_) => {}
    }
}

/// Whether a mark has gone because policy asks these two for no proof any more, and for nothing else: both are who they
/// were. What they have open depends on nothing then; and where policy denies them, that is the programs' to enforce.
pub(super) fn switched_off(before: &AuthPlan, now: &AuthPlan, pair: &EndedPair) -> bool {
    let ends = |plan: &AuthPlan| {
        let remote =
            |end: &&AuthEndpoint| end.addresses().iter().any(|address| pair.remote.contains(address));
        let local = plan.endpoints.get(&pair.instance)?.identity;
        let remote = plan.endpoints.values().chain(plan.remotes.values()).find(remote)?.identity;
        Some((local, remote))
    };
    match (ends(before), ends(now)) {
        (Some(was), Some(is)) => was == is && !now.requires(is.0, is.1),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use mesh::auth::{IdentityPair, Refusal};

    use super::*;

    fn identity(number: u32) -> Identity {
        Identity::new(number).unwrap()
    }

    /// Endpoints 1, 2, … with these identities, at 10.0.0.1, 10.0.0.2, …
    fn plan(identities: &[u32], pairs: &[(u32, u32)]) -> AuthPlan {
        let endpoint = |(instance, number): (u8, &u32)| {
            let end = AuthEndpoint {
                workload: "default/ship".parse().unwrap(),
                id: "spiffe://mesh/ns/default/sa/ship".parse().unwrap(),
                identity: identity(*number),
                ipv4: [10, 0, 0, instance].into(),
                ipv6: Ipv6Addr::from(u128::from(instance)),
            };
            (u64::from(instance), end)
        };
        AuthPlan {
            trust_domain: "mesh".parse().unwrap(),
            node: "node1".to_owned(),
            grace: 10_000,
            ahead: 20_000,
            nodes: BTreeMap::new(),
            endpoints: (1..).zip(identities).map(endpoint).collect(),
            remotes: BTreeMap::new(),
            pairs: pairs
                .iter()
                .map(|(one, other)| IdentityPair::new(identity(*one), identity(*other)))
                .collect(),
        }
    }

    #[test]
    fn only_who_is_who_he_was_keeps_what_he_has_open_when_no_proof_is_asked_for_any_more() {
        let pair = EndedPair {
            instance: 1,
            remote: vec![[10, 0, 0, 2].into(), Ipv6Addr::from(2).into()],
            epoch: 7,
            why: Refusal::Withdrawn,
        };
        let before = plan(&[300, 301], &[(300, 301)]);
        for (now, expected, what) in [
            (plan(&[300, 301], &[]), true, "policy asks no more"),
            (plan(&[300, 301], &[(300, 301)]), false, "a certificate has ended"),
            (plan(&[300, 302], &[(300, 301)]), false, "the peer has other labels"),
            (plan(&[302, 301], &[(300, 301)]), false, "the endpoint has other labels"),
            (plan(&[300], &[(300, 301)]), false, "the peer is gone"),
            (plan(&[], &[]), false, "both are gone"),
        ] {
            assert_eq!(switched_off(&before, &now, &pair), expected, "{what}");
        }
    }
}
