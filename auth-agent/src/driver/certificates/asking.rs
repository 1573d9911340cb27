//! What the CA is asked, beside the driver's loop: each question is a task that ends with its answer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use certs::bundle::Bundle;
use certs::enrol::{Client, EnrolError};
use certs::svid::Svid;
use mesh::auth::Refusal;
use mesh::spiffe::TrustDomain;
use tokio::sync::mpsc;
use tracing::warn;

use super::super::trust::Trust;
use super::held::RETRY;
use super::{Answer, Asked, BUNDLE, Certificates, Heard, MAX_ASKING, Source};
use crate::event::Time;

/// What the agent leaves there for a node that has no certificate.
const TOKEN: &str = "join-token";

impl Certificates {
    /// Asks for what is due.
    pub(in super::super) fn ask(&mut self, trust: &Trust, now: Time) {
        let Some(domain) = self.domain.clone() else { return };
        let Source { node, ca, .. } = self.source.clone();
        let age = self.bundle_age;
        let client = Client::new(ca, domain.clone(), Arc::clone(&trust.bundles), Arc::clone(&trust.clock));
        if self.node.due <= now && !self.node.asking {
            self.ask_for_node(&client, &domain, &node, now);
        }
        let Some(own) = self.node.svid.clone() else { return };
        let due = self.workloads.iter_mut().filter(|(_, held)| held.due <= now && !held.asking);
        for (id, held) in due.take(MAX_ASKING.saturating_sub(self.asking)) {
            held.asking = true;
            self.asking += 1;
            let (client, own, id, answers) = (client.clone(), own.clone(), id.clone(), self.answers.clone());
            tokio::spawn(async move {
                let result = client.issue(&own, &id).await.map(|(svid, bundle)| (Some(svid), bundle));
                answer(&answers, Asked::Workload(id), age, result).await;
            });
        }
        self.watching.ensure(&client, &own, trust, &self.answers, now);
        if self.bundle_due <= now {
            self.bundle_due = now.saturating_add(BUNDLE);
            let answers = self.answers.clone();
            tokio::spawn(async move {
                let result = client.bundle(&own).await.map(|bundle| (None, bundle));
                answer(&answers, Asked::Bundle(domain), age, result).await;
            });
        }
    }

    fn ask_for_node(&mut self, client: &Client, domain: &TrustDomain, node: &str, now: Time) {
        let id = match domain.node(node) {
            Ok(id) => id,
            Err(error) => return self.node.fail(Refusal::NoCertificate, error.to_string(), RETRY.0, now),
        };
        let (client, answers, own) = (client.clone(), self.answers.clone(), self.node.svid.clone());
        let file = self.source.directory.join(TOKEN);
        let token = match (&own, fs::read_to_string(&file)) {
            (Some(_), _) => String::new(),
            (None, Ok(token)) => token.trim().to_owned(),
            (None, Err(error)) => {
                let problem = format!(
                    "it needs a join token: {TOKEN}: {error}; `ferromesh auth token {node}` where the CA is makes one, for \
                     the file that joinTokenFile of this node's configuration names"
                );
                self.node.fail(Refusal::NoCertificate, problem, RETRY.0, now);
                // Nobody else is asked: it may come at any time.
                return self.node.due = self.node.due.min(now.saturating_add(RETRY.0));
            }
        };
        self.node.asking = true;
        let age = self.bundle_age;
        let node = node.to_owned();
        tokio::spawn(async move {
            let result = match own {
                Some(own) => client.issue(&own, &id).await,
                None => join(&client, &node, &token, &file).await,
            };
            let result = result.map(|(svid, bundle)| (Some(svid), bundle));
            answer(&answers, Asked::Node(id), age, result).await;
        });
    }
}

async fn answer(
    answers: &mpsc::Sender<Heard>,
    to: Asked,
    age: u64,
    result: Result<(Option<Svid>, Bundle), EnrolError>,
) {
    // Who asked may be gone.
    let _ = answers.send(Heard::Answer(Box::new(Answer { to, age, result }))).await;
}

/// A token is good once: it goes unless the CA cannot have seen it.
async fn join(client: &Client, node: &str, token: &str, file: &Path) -> Result<(Svid, Bundle), EnrolError> {
    let result = client.join(node, token).await;
    if !matches!(result, Err(EnrolError::Connection { .. }))
        && let Err(error) = fs::remove_file(file)
    {
        warn!("cannot remove {}: {error}", file.display());
    }
    result
}
