//! Identities as the kernel has them.

use std::net::IpAddr;
use std::sync::Arc;

use abi::Address;
use mesh::identity::Identity;

use crate::runtime::{Found, Identities};

/// The maps, shared by all workers.
#[derive(Clone)]
pub(super) struct Kernel(pub(super) Arc<maps::Identities>);

impl Identities for Kernel {
    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn find(&self, address: IpAddr) -> Found {
        let key = match address.to_canonical() {
            IpAddr::V4(address) => Address::v4(address.octets()),
            IpAddr::V6(address) => Address(address.octets()),
        };
        // The generation may have moved since the caller has read it; then he will ask again.
        match self.0.owner(key, self.0.generation()) {
            Ok(owner) => Found { identity: Identity::new(owner.identity), instance: owner.instance },
            Err(error) => {
                tracing::warn!(%error, %address, "who has this address is not known");
                Found::default()
            }
        }
    }
}
