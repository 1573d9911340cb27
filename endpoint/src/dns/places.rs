//! How much of something scarce may be in use: in all, and by one client.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Places, each held by a client.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    each: usize,
    taken: Mutex<BTreeMap<IpAddr, usize>>,
}

impl Places {
    /// So many in all, of which one client has at most `each`: whoever floods does not keep others out.
    pub(super) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, taken: Mutex::new(BTreeMap::new()) })
    }

    /// A place until it is dropped, if there is one.
    pub(super) fn take(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock();
        // As many clients as places at most.
        let full = taken.values().sum::<usize>() >= self.all;
        let own = taken.get(&client).copied().unwrap_or(0);
        if full || own >= self.each {
            return None;
        }
        taken.insert(client, own + 1);
        Some(Place { places: Arc::clone(self), client })
    }
}

/// A place that is held.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        match taken.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_does_not_keep_others_out_and_a_place_given_back_is_free() {
        let places = Places::new(3, 2);
        let [a, b]: [IpAddr; 2] = ["10.0.0.2", "fd00::3"].map(|address| address.parse().unwrap());
        let held = [places.take(a), places.take(a)];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(a).is_none(), "its share");
        let other = places.take(b);
        assert!(other.is_some());
        assert!(places.take(b).is_none(), "all are taken");
        drop(held);
        assert!(places.take(b).is_some());
        drop(other);
        assert!(places.taken.lock().is_empty());
    }
}
