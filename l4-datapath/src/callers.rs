//! By which network namespace a call's endpoint is known.
//!
//! Promise: an endpoint has one namespace at most, and a namespace one endpoint. What an earlier agent wrote of endpoints
//! that are gone is found by nobody: the kernel gives out no cookie twice.

use std::collections::BTreeMap;

use crate::Error;

/// The map, and a copy of it.
pub(crate) struct Callers {
    map: maps::Namespaces,
    /// Endpoint id → cookie.
    cookies: BTreeMap<u32, u64>,
}

impl Callers {
    /// With what an earlier agent wrote.
    pub(crate) fn read(map: maps::Namespaces) -> Result<Self, Error> {
        let cookies = map.entries()?.into_iter().map(|(cookie, id)| (id, cookie)).collect();
        Ok(Self { map, cookies })
    }

    pub(crate) fn set(&mut self, endpoint: u32, cookie: u64) -> Result<(), Error> {
        if self.cookies.get(&endpoint) == Some(&cookie) {
            return Ok(());
        }
        self.forget(endpoint)?;
        self.map.insert(cookie, endpoint)?;
        self.cookies.insert(endpoint, cookie);
        Ok(())
    }

    pub(crate) fn forget(&mut self, endpoint: u32) -> Result<(), Error> {
        if let Some(cookie) = self.cookies.get(&endpoint) {
            self.map.remove(*cookie)?;
            self.cookies.remove(&endpoint);
        }
        Ok(())
    }
}
