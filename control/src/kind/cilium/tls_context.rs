//! `terminatingTLS` and `originatingTLS`: TLS that the proxy ends and begins itself, and which Secret it does so with.
//!
//! Cilium's `TLSContext`. Whether the Secret is there is not known here: `plan` says so. An item is never shown where it is
//! refused, for who has misread the fields has written a key there.

use mesh::l7::{SecretName, TlsContext};
use mesh::policy::{PortMatch, protocol};

use super::Scope;
use crate::kind::{metadata, secret};
use crate::yaml::{At, Fields};

/// What of the two an item of `toPorts` has.
pub(super) struct Given<'a> {
    pub(super) terminating: Option<One<'a>>,
    pub(super) originating: Option<One<'a>>,
}

/// One of the fields.
pub(super) struct One<'a> {
    pub(super) at: At<'a>,
    /// `None`: it is faulty, which has been said.
    pub(super) context: Option<TlsContext>,
}

/// Reads both.
pub(super) fn given<'a>(fields: &Fields<'a>, scope: Scope<'_>) -> Given<'a> {
    let one = |name| fields.get(name).map(|at| One { context: context(&at, scope), at });
    Given { terminating: one("terminatingTLS"), originating: one("originatingTLS") }
}

impl<'a> Given<'a> {
    /// Where the first of them is.
    pub(super) fn at(&self) -> Option<&At<'a>> {
        self.terminating.as_ref().or(self.originating.as_ref()).map(|one| &one.at)
    }

    /// Says it where they stand beside ports at which nobody could speak TLS.
    pub(super) fn check_ports(&self, ports: &[PortMatch]) {
        let Some(at) = self.at() else { return };
        for port in ports {
            match port {
                PortMatch::Range { first: 0, .. } => at.error("goes with ports, not with \"0\" (every port)"),
                PortMatch::Range { protocol: Some(protocol::TCP), .. }
                | PortMatch::Named { protocol: Some(protocol::TCP), .. } => {}
                _ => at.error("TLS goes over TCP: write protocol: TCP beside the port"),
            }
        }
    }
}

fn context(at: &At<'_>, scope: Scope<'_>) -> Option<TlsContext> {
    at.mapping(|fields| {
        let secret = fields.require("secret", "the name of a Secret").and_then(|at| secret_name(&at, scope));
        let [trusted_ca, certificate, private_key] =
            ["trustedCA", "certificate", "privateKey"].map(|name| item(fields, name));
        Some(TlsContext { secret: secret?, trusted_ca, certificate, private_key })
    })?
}

/// Without a namespace, the policy's own.
fn secret_name(at: &At<'_>, scope: Scope<'_>) -> Option<SecretName> {
    at.mapping(|fields| {
        let name = fields.require("name", "the name of a Secret").and_then(|at| metadata::name(&at));
        let namespace = match (fields.get("namespace"), scope.namespace) {
            (Some(at), _) => metadata::name(&at),
            (None, Some(own)) => Some(own.to_owned()),
            (None, None) => fields.require("namespace", "the namespace of the Secret").and(None),
        };
        Some(SecretName { namespace: namespace?, name: name? })
    })?
}

fn item(fields: &Fields<'_>, name: &'static str) -> Option<String> {
    let at = fields.get(name)?;
    let text = at.hidden().filter(|text| secret::is_item(text));
    if text.is_none() {
        at.error(format_args!("expected the name of an item of the Secret: {}", secret::ITEM));
    }
    text.map(str::to_owned)
}
