//! *admit*: whether a workload may have more of what its worker has: connections, unfinished heads, streams, buffered bytes.
//!
//! Promise: nobody holds more of anything than there is left of it for others. So a workload that is alone has at most half,
//! of two that want all each has a third, and who comes next finds as much as each of them has. A client's address holds at
//! most half as many connections as are left. Nothing is taken away from who has it; all is given back when the connection,
//! head, stream or buffer ends. What is refused is counted.
//!
//! Whose a connection is: the caller's, if he is of this node, else the called workload's. Between two of this node who
//! calls pays, for to be called is nobody's choice.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Whose a connection is: the unit of turns and of budgets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tenant {
    /// The worker itself, that accepts.
    Worker,
    /// Nobody of this node has either address (any more).
    Nobody,
    /// The endpoint of this node whose creation has this number.
    Endpoint(u64),
}

/// What there is a budget of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Connections of clients.
    Connections,
    /// Heads, ClientHellos and first bytes that have begun and are not all there, beyond what one read brings; handshakes of
    /// clients whose TLS the proxy ends.
    Heads,
    /// Streams of HTTP/2.
    Streams,
    /// Bytes of buffers of HTTP/1.1 and relays beyond the first 4 KB of each.
    Bytes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Heads, Self::Streams, Self::Bytes];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Heads => "heads",
            Self::Streams => "streams",
            Self::Bytes => "bytes",
        }
    }

    /// Why something is refused, as flows say it.
    pub fn spent(self) -> &'static str {
        match self {
            Self::Connections => "over the workload's budget of connections",
            Self::Heads => "over the workload's budget of unfinished heads",
            Self::Streams => "over the workload's budget of streams",
            Self::Bytes => "over the workload's budget of buffered bytes",
        }
    }
}

/// Why a connection from an address is refused that has more than its part of them.
pub const CLIENT_SPENT: &str = "over the client's budget of connections";

/// So much of each kind, in the order of [`Kind::ALL`].
pub type Amounts = [u64; 4];

/// Workloads without a connection of which it is known what they were refused.
const MOST_REFUSED: usize = 1024;

/// What a worker has, and who has it. Its own thread alone takes and gives back; any may look.
#[derive(Debug)]
pub struct Budgets {
    pool: Arc<Pool>,
    accounts: Mutex<BTreeMap<Tenant, Arc<Account>>>,
    /// Connections of each client's address.
    clients: Mutex<BTreeMap<IpAddr, u64>>,
    /// What those were refused that have no connection: an address of each, and how often.
    refused: Mutex<BTreeMap<Tenant, (IpAddr, Amounts)>>,
}

#[derive(Debug)]
struct Pool {
    bounds: Amounts,
    used: Counts,
    refused: Counts,
}

#[derive(Debug, Default)]
struct Counts([AtomicU64; 4]);

impl Counts {
    fn new(amounts: Amounts) -> Self {
        Self(amounts.map(AtomicU64::new))
    }

    fn all(&self) -> Amounts {
        Kind::ALL.map(|kind| self.of(kind))
    }

    fn of(&self, kind: Kind) -> u64 {
        self.0.get(kind as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn add(&self, kind: Kind, amount: u64) {
        if let Some(count) = self.0.get(kind as usize) {
            count.fetch_add(amount, Ordering::Relaxed);
        }
    }

    fn subtract(&self, kind: Kind, amount: u64) {
        if let Some(count) = self.0.get(kind as usize) {
            count.fetch_sub(amount, Ordering::Relaxed);
        }
    }
}

/// What a workload has of a worker.
#[derive(Debug)]
pub struct Account {
    /// The address that its first connection was about.
    address: IpAddr,
    used: Counts,
    refused: Counts,
    pool: Arc<Pool>,
}

impl Pool {
    fn free(&self, kind: Kind) -> u64 {
        let bound = self.bounds.get(kind as usize).copied().unwrap_or(0);
        bound.saturating_sub(self.used.of(kind))
    }
}

impl Account {
    /// Takes so much, if what the workload has then is not more than what is left then; else counts that it was refused.
    #[must_use]
    pub fn take(&self, kind: Kind, amount: u64) -> bool {
        let is_taken = self.take_if_idle(kind, amount);
        if !is_taken {
            self.refused.add(kind, 1);
            self.pool.refused.add(kind, 1);
        }
        is_taken
    }

    /// The same for who can do without: nothing is counted.
    #[must_use]
    pub fn take_if_idle(&self, kind: Kind, amount: u64) -> bool {
        let used = self.used.of(kind).saturating_add(amount);
        let is_enough = amount == 0 || used <= self.pool.free(kind).saturating_sub(amount);
        if is_enough {
            self.used.add(kind, amount);
            self.pool.used.add(kind, amount);
        }
        is_enough
    }

    /// Gives back what [`Account::take`] has given.
    pub fn give_back(&self, kind: Kind, amount: u64) {
        self.used.subtract(kind, amount);
        self.pool.used.subtract(kind, amount);
    }

    /// Takes one, until what is returned is dropped.
    pub fn hold(self: &Arc<Self>, kind: Kind) -> Option<Held> {
        self.take(kind, 1).then(|| Held { account: Arc::clone(self), kind })
    }
}

/// One of something.
#[derive(Debug)]
pub struct Held {
    account: Arc<Account>,
    kind: Kind,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.give_back(self.kind, 1);
    }
}

/// The place of a connection.
#[derive(Debug)]
pub struct Place {
    /// Whose it is.
    pub tenant: Tenant,
    /// What that workload has.
    pub account: Arc<Account>,
    /// Whether it is the client's, and not the server's.
    pub is_callers: bool,
    client: IpAddr,
    budgets: Arc<Budgets>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.account.give_back(Kind::Connections, 1);
        let mut clients = self.budgets.clients.lock();
        match clients.get_mut(&self.client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(clients.remove(&self.client)),
        }
        drop(clients);
        if self.account.used.of(Kind::Connections) == 0 {
            self.budgets.accounts.lock().remove(&self.tenant);
            self.budgets.remember(self.tenant, &self.account);
        }
    }
}

/// Of whom a place is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payer {
    /// Whose the connection is.
    pub tenant: Tenant,
    /// The address of his that it is about.
    pub address: IpAddr,
    /// Whether he is the client.
    pub is_caller: bool,
}

/// What a workload has of a worker, for who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TenantBudgets {
    /// Whose.
    pub tenant: Tenant,
    /// An address of the workload.
    pub address: IpAddr,
    /// By kind, in the order of [`Kind::ALL`].
    pub budgets: [Budget; 4],
}

/// What a workload has of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Of what.
    pub kind: Kind,
    /// So much.
    pub used: u64,
    /// As much as it could have as things are; less than it has if it came when others wanted less.
    pub bound: u64,
    /// How often it was refused more.
    pub refused: u64,
}

impl Budgets {
    /// Of a worker that has so much.
    pub fn new(bounds: Amounts) -> Self {
        let pool = Arc::new(Pool { bounds, used: Counts::default(), refused: Counts::default() });
        Self { pool, accounts: Mutex::default(), clients: Mutex::default(), refused: Mutex::default() }
    }

    /// A place for a connection of that client, or why there is none.
    pub fn admit(self: &Arc<Self>, payer: Payer, client: IpAddr) -> Result<Place, &'static str> {
        let Payer { tenant, address, is_caller } = payer;
        let mut accounts = self.accounts.lock();
        let known = accounts.get(&tenant).map(Arc::clone);
        let account = known.unwrap_or_else(|| {
            let before = self.refused.lock().remove(&tenant).map_or([0; 4], |(_, refused)| refused);
            let (used, refused) = (Counts::default(), Counts::new(before));
            Arc::new(Account { address, used, refused, pool: Arc::clone(&self.pool) })
        });
        let has_none = !accounts.contains_key(&tenant);
        let mut clients = self.clients.lock();
        let held = clients.get(&client).copied().unwrap_or(0);
        if (held + 1) * 2 > self.pool.free(Kind::Connections).saturating_sub(1) {
            account.refused.add(Kind::Connections, 1);
            self.pool.refused.add(Kind::Connections, 1);
            if has_none {
                self.remember(tenant, &account);
            }
            return Err(CLIENT_SPENT);
        }
        if !account.take(Kind::Connections, 1) {
            if has_none {
                self.remember(tenant, &account);
            }
            return Err(Kind::Connections.spent());
        }
        clients.insert(client, held + 1);
        drop(clients);
        accounts.insert(tenant, Arc::clone(&account));
        drop(accounts);
        Ok(Place { tenant, account, is_callers: is_caller, client, budgets: Arc::clone(self) })
    }

    /// Keeps what a workload was refused that has no connection any more, or has got none. Of those that are too many, who
    /// was made first is forgotten: he is the likeliest to be gone.
    fn remember(&self, tenant: Tenant, account: &Account) {
        let refused = account.refused.all();
        if refused == [0; 4] {
            return;
        }
        let mut all = self.refused.lock();
        all.insert(tenant, (account.address, refused));
        if all.len() > MOST_REFUSED {
            let first = all.range(Tenant::Endpoint(0)..).next().map(|(tenant, _)| *tenant);
            first.and_then(|first| all.remove(&first));
        }
    }

    /// What each workload has that has a connection.
    pub fn tenants(&self) -> Vec<TenantBudgets> {
        let accounts = self.accounts.lock();
        let all = accounts.iter().map(|(tenant, account)| {
            self.view(*tenant, account.address, account.used.all(), account.refused.all())
        });
        all.collect()
    }

    /// The same, and what those were refused that have none now.
    pub fn known(&self) -> Vec<TenantBudgets> {
        let mut all = self.tenants();
        let without = self.refused.lock();
        let without = without.iter().filter(|(tenant, _)| !all.iter().any(|it| it.tenant == **tenant));
        let without =
            without.map(|(tenant, (address, refused))| self.view(*tenant, *address, [0; 4], *refused));
        let without: Vec<_> = without.collect();
        all.extend(without);
        all
    }

    fn view(&self, tenant: Tenant, address: IpAddr, used: Amounts, refused: Amounts) -> TenantBudgets {
        let of = |amounts: Amounts, kind: Kind| amounts.get(kind as usize).copied().unwrap_or(0);
        let budgets = Kind::ALL.map(|kind| {
            let (used, refused) = (of(used, kind), of(refused, kind));
            Budget { kind, used, bound: used.saturating_add(self.pool.free(kind)) / 2, refused }
        });
        TenantBudgets { tenant, address, budgets }
    }

    /// What somebody could have who has nothing, in the order of [`Kind::ALL`].
    pub fn left(&self) -> Amounts {
        Kind::ALL.map(|kind| self.pool.free(kind) / 2)
    }

    /// What all have together, of how much there is.
    pub fn all(&self) -> [Budget; 4] {
        Kind::ALL.map(|kind| {
            let bound = self.pool.bounds.get(kind as usize).copied().unwrap_or(0);
            Budget { kind, used: self.pool.used.of(kind), bound, refused: self.pool.refused.of(kind) }
        })
    }

    /// How often something was refused, by kind, of all workloads there ever were.
    pub fn refused(&self) -> Amounts {
        self.pool.refused.all()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn of(number: u64) -> Payer {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + number as u32).into();
        Payer { tenant: Tenant::Endpoint(number), address, is_caller: false }
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    fn budgets() -> Arc<Budgets> {
        Arc::new(Budgets::new([120, 12, 12, 1200]))
    }

    /// Takes all that it can, each for another client.
    fn fill(budgets: &Arc<Budgets>, payer: Payer) -> Vec<Place> {
        (0..).map_while(|client| budgets.admit(payer, address(client)).ok()).collect()
    }

    #[test]
    fn who_is_alone_has_half_and_who_comes_finds_as_much_as_is_left() {
        let budgets = budgets();
        let first = fill(&budgets, of(1));
        assert_eq!(first.len(), 60);
        let second = fill(&budgets, of(2));
        let third = fill(&budgets, of(3));
        assert_eq!((second.len(), third.len()), (30, 15));
        let Err(reason) = budgets.admit(of(1), address(99)) else { panic!("more than its part") };
        assert_eq!(reason, "over the workload's budget of connections");
        // As the first gives back, the others may have more, and it may not have all of that again.
        drop(first);
        let more = fill(&budgets, of(2));
        assert_eq!(second.len() + more.len(), 52);
        assert!(fill(&budgets, of(1)).len() < 60);
    }

    #[test]
    fn those_that_want_all_end_with_equal_parts() {
        let budgets = budgets();
        let mut held: [Vec<Place>; 3] = Default::default();
        for client in 0..200 {
            for (number, held) in held.iter_mut().enumerate() {
                held.extend(budgets.admit(of(number as u64), address(client)));
            }
        }
        assert_eq!(held.map(|held| held.len()), [30, 30, 30], "and 30 are left");
    }

    #[test]
    fn a_client_leaves_most_to_others() {
        let budgets = budgets();
        let held: Vec<Place> = std::iter::from_fn(|| budgets.admit(of(1), address(7)).ok()).collect();
        assert_eq!(held.len(), 40, "half of the 80 that are left");
        assert_eq!(budgets.admit(of(2), address(7)).map(drop), Err(CLIENT_SPENT), "whoever pays");
        assert!(budgets.admit(of(1), address(8)).is_ok());
        assert_eq!(budgets.refused()[0], 2);
        drop(held);
        assert!(budgets.tenants().is_empty() && budgets.clients.lock().is_empty());
    }

    #[test]
    fn what_somebody_was_refused_is_known_when_he_has_no_connection_any_more() {
        let budgets = budgets();
        let fill = |number: u64| -> Vec<Place> {
            let clients = number as u32 * 1000..;
            clients.map_while(|client| budgets.admit(of(number), address(client)).ok()).collect()
        };
        let places = fill(1);
        let others: Vec<_> = (2..20).flat_map(fill).collect();
        // One that gets none at all.
        assert!(fill(99).is_empty() && fill(99).is_empty());
        drop(others);
        let refused = |number| {
            let known = budgets.known();
            let one = known.iter().find(|it| it.tenant == Tenant::Endpoint(number)).cloned();
            one.map(|it| (it.budgets[0].used, it.budgets[0].refused))
        };
        assert_eq!((refused(99), refused(1)), (Some((0, 2)), Some((60, 1))));
        drop(places);
        assert_eq!((refused(1), budgets.tenants().len()), (Some((0, 1)), 0));
        let again = budgets.admit(of(1), address(1)).unwrap();
        assert_eq!(refused(1), Some((1, 1)), "counted on");
        drop(again);
        assert_eq!(budgets.known().iter().map(|it| it.budgets[0].refused).sum::<u64>(), budgets.refused()[0]);
        assert_eq!(budgets.left(), [60, 6, 6, 600]);
        let held = fill(1);
        for number in 100..MOST_REFUSED as u64 + 200 {
            let all = fill(number);
            assert!(budgets.admit(of(number), address(9)).is_err());
            drop(all);
        }
        assert_eq!(budgets.known().len(), MOST_REFUSED + 1, "those that were made first are forgotten");
        assert_eq!((refused(99), refused(MOST_REFUSED as u64 + 199)), (None, Some((0, 2))));
        drop(held);
    }

    #[test]
    fn what_is_held_is_given_back_and_can_be_looked_at() {
        let budgets = budgets();
        let place = budgets.admit(of(1), address(1)).unwrap();
        let held: Vec<Held> = std::iter::from_fn(|| place.account.hold(Kind::Streams)).collect();
        assert_eq!(held.len(), 6);
        assert!(place.account.take(Kind::Bytes, 600) && !place.account.take(Kind::Bytes, 1));
        assert!(!place.account.take_if_idle(Kind::Bytes, 1), "not counted");
        let seen = budgets.tenants();
        let of = |kind: Kind| seen[0].budgets[kind as usize];
        assert_eq!(seen[0].address, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(of(Kind::Connections), Budget { kind: Kind::Connections, used: 1, bound: 60, refused: 0 });
        assert_eq!(of(Kind::Streams), Budget { kind: Kind::Streams, used: 6, bound: 6, refused: 1 });
        assert_eq!(of(Kind::Bytes), Budget { kind: Kind::Bytes, used: 600, bound: 600, refused: 1 });
        place.account.give_back(Kind::Bytes, 600);
        drop(held);
        drop(place);
        assert!(budgets.tenants().is_empty());
        let place = budgets.admit(Payer { tenant: Tenant::Nobody, ..self::of(1) }, address(1)).unwrap();
        assert!(place.account.take(Kind::Streams, 6) && place.account.take(Kind::Bytes, 600));
    }
}
