//! `authentication`: what a rule's peers must have proven.

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::policy::{Asked, Authentication, Entity, Peer, Peers, Universe};

use super::Direction;
use crate::yaml::{At, Fields};

/// `authentication.mode`, as Cilium spells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// As if nothing were said. It takes back nothing that another rule requires.
    Disabled,
    /// Both ends prove who they are.
    Required,
    /// Cilium's own test: every authentication fails.
    TestAlwaysFail,
}

const MODES: [(Mode, &str); 3] =
    [(Mode::Disabled, "disabled"), (Mode::Required, "required"), (Mode::TestAlwaysFail, "test-always-fail")];

/// The mode, and where it is given.
pub(super) fn mode<'a>(fields: &Fields<'a>) -> Option<(Mode, At<'a>)> {
    let at = fields.get("authentication")?;
    let mode = at.mapping(|fields| {
        let mode = fields.require("mode", "disabled, required or test-always-fail");
        mode.and_then(|at| at.one_of(&MODES))
    });
    Some((mode??, at))
}

/// Says which of the peers cannot authenticate: nobody of them is a workload. Of peers that are workloads among others
/// (everyone, `all`, `cluster`) nothing is said.
pub(super) fn warn_of_strangers(at: &At<'_>, peers: &Peers, direction: Direction) {
    let Peers::Selected(peers) = peers else { return };
    let universe = Universe::default();
    let strangers: Vec<String> = peers
        .iter()
        .filter(|peer| is_stranger(peer, direction, &universe))
        .map(ToString::to_string)
        .collect();
    if !strangers.is_empty() {
        at.warn(format_args!(
            "only workloads can authenticate, and {} is none: what the rule would allow there is denied",
            strangers.join(", ")
        ));
    }
}

/// `reserved` is the universe without workloads.
fn is_stranger(peer: &Peer, direction: Direction, reserved: &Universe) -> bool {
    let direction = match direction {
        Direction::Ingress => TrafficDirection::Ingress,
        Direction::Egress => TrafficDirection::Egress,
    };
    let refused =
        |identity: &Identity| Authentication::Required.of(*identity, direction) == Asked::NoPrincipal;
    match peer {
        Peer::Cidr { .. } => true,
        Peer::Entity(Entity::All | Entity::Cluster) => false,
        Peer::Entity(_) | Peer::Endpoints(_) => reserved.meant(peer).iter().any(refused),
    }
}
