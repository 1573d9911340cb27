//! Identities as the kernel has them.

use std::net::IpAddr;
use std::sync::Arc;

use abi::Address;
use mesh::identity::Identity;

use super::seldom::Seldom;
use crate::runtime::{Found, Identities};

/// The maps, shared by all workers.
#[derive(Clone)]
pub(super) struct Kernel(Arc<Inner>);

struct Inner {
    maps: maps::Identities,
    failed: Seldom,
}

impl Kernel {
    pub(super) fn new(maps: maps::Identities) -> Self {
        Self(Arc::new(Inner { maps, failed: Seldom::default() }))
    }
}

impl Identities for Kernel {
    fn generation(&self) -> u64 {
        self.0.maps.generation()
    }

    fn find(&self, address: IpAddr) -> Found {
        let key = match address.to_canonical() {
            IpAddr::V4(address) => Address::v4(address.octets()),
            IpAddr::V6(address) => Address(address.octets()),
        };
        // The generation may have moved since the caller has read it; then he will ask again.
        match self.0.maps.owner(key, self.0.maps.generation()) {
            Ok(owner) => Found { identity: Identity::new(owner.identity), instance: owner.instance },
            Err(error) => {
                if let Some(times) = self.0.failed.note() {
                    tracing::warn!(%error, %address, times, "who has this address is not known");
                }
                Found::default()
            }
        }
    }
}
