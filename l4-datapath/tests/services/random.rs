//! Random plans of services, the same ones in every run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use mesh::service::{Backend, Frontend, FrontendPlan, ServiceName, Services};

/// A stream of numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Below a bound.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Any plan of at most 24 frontends on six VIPs.
    pub(crate) fn plan(&mut self) -> Services {
        let rows = (0..self.below(13)).map(|_| (self.frontend(), self.planned()));
        let mut frontends: BTreeMap<Frontend, FrontendPlan> = rows.collect::<Vec<_>>().into_iter().collect();
        for (frontend, planned) in &mut frontends {
            if frontend.address.is_ipv6() {
                planned.backends = planned.backends.iter().map(six).collect();
                planned.draining = planned.draining.iter().map(six).collect();
            }
        }
        Services { frontends, names: BTreeMap::new() }
    }

    /// A plan that differs from another in a few frontends.
    pub(crate) fn edit(&mut self, plan: &Services) -> Services {
        let other = self.plan();
        let mut edited = plan.clone();
        for (frontend, planned) in other.frontends.into_iter().take(3) {
            edited.frontends.insert(frontend, planned);
        }
        if self.below(2) == 0 {
            edited.frontends.pop_first();
        }
        edited
    }

    fn frontend(&mut self) -> Frontend {
        let vips = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd96::1", "fd96::2", "fd96::3"];
        let address = vips[self.below(6) as usize].parse().unwrap();
        Frontend {
            address,
            port: [80, 443][self.below(2) as usize],
            protocol: [6, 17][self.below(2) as usize],
        }
    }

    fn planned(&mut self) -> FrontendPlan {
        let all: BTreeSet<Backend> = (0..self.below(8)).map(|_| self.backend()).collect();
        let (ready, draining): (Vec<_>, Vec<_>) =
            all.into_iter().map(|one| (self.below(5), one)).partition(|one| one.0 != 0);
        let list = |rows: Vec<(u64, Backend)>| rows.into_iter().map(|(_, backend)| backend).collect();
        FrontendPlan {
            service: ServiceName { namespace: "default".to_owned(), name: "service".to_owned() },
            port_name: String::new(),
            backends: list(ready),
            draining: list(draining),
            affinity: [None, None, Some(10), Some(20)][self.below(4) as usize],
        }
    }

    fn backend(&mut self) -> Backend {
        SocketAddr::new([10, 0, 0, self.below(20) as u8].into(), 8000 + self.below(2) as u16)
    }
}

fn six(backend: &Backend) -> Backend {
    let SocketAddr::V4(four) = backend else { return *backend };
    let last = u16::from(four.ip().octets()[3]);
    SocketAddr::new(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into(), four.port())
}

/// Everyone in any list of the plan.
pub(crate) fn listed(plan: &Services) -> BTreeSet<(u8, Backend)> {
    let lists = |(frontend, planned): (&Frontend, &FrontendPlan)| {
        let protocol = frontend.protocol;
        let both = planned.backends.iter().chain(planned.draining.iter());
        both.map(|backend| (protocol, *backend)).collect::<Vec<_>>()
    };
    plan.frontends.iter().flat_map(lists).collect()
}
