//! One endpoint on its way from [`mesh::l7`] to what is matched, a little at a time.
//!
//! Promise: what it costs goes with what the rules consist of and with how lists of rules come together, which has a bound
//! ([`WORKLOAD_PARTS`]); not with how many ranges of ports share that. No step of it takes long: one range, one rule, one name,
//! one branch of a path, the Secrets of one range.

mod inspections;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use expression::{Account, Budget};
use mesh::identity::Identity;
use mesh::l7::{
    HttpRules, L7Access, L7Endpoint, L7Inspected, L7Ports, L7Rules, L7Tls, Measure, PATTERNS, SERVER_NAMES,
    ServerNames, WORKLOAD_PARTS,
};

use super::rule::{Fault, compiled};
use super::set::Building;
use super::{Access, Asks, Compiler, Endpoint, Names, Ports, Refused, Rule, RuleSet, Side, Terms, Tls};

/// What an endpoint under way may do at once: rules, names and branches of paths that are looked at.
pub const SLICE: usize = 4096;
/// What an expression, or a KiB of an automaton, that is made counts for.
const MADE: usize = 16;

const SIDES: [&str; 2] = ["ingress", "egress"];

/// An endpoint, and how far it is compiled. It keeps what it has made: others may end meanwhile.
#[derive(Debug)]
pub struct Preparation {
    endpoint: Box<L7Endpoint>,
    stage: Stage,
    account: Account,
    measure: Measure,
    /// What the rules of the side come to that is looked at.
    parts: usize,
    /// How many of its names of servers can only be tried.
    tried: usize,
    ranges: [Vec<(u16, u16, usize)>; 2],
    kinds: Table<[Place; 3], Kind>,
    lists: Table<Place, List>,
    names: Table<Place, NameList>,
    peers: BTreeSet<Arc<[Identity]>>,
    /// By the lists that they consist of.
    sets: BTreeMap<Vec<usize>, Arc<RuleSet>>,
    terms: Vec<Arc<Terms>>,
    /// The first Secret that cannot be used: the rest is in force all the same.
    fault: Option<Refused>,
}

/// Where a slice is: what ranges share is met once.
type Place = (usize, usize);

fn place<T>(slice: &[T]) -> Place {
    (slice.as_ptr() as usize, slice.len())
}

/// What has been met, in the order in which it was.
#[derive(Debug)]
struct Table<K, T> {
    known: BTreeMap<K, usize>,
    all: Vec<T>,
}

/// What is done next.
#[derive(Debug)]
enum Stage {
    /// Range of a side: what is there is found.
    Look(usize, usize),
    /// List and rule.
    Rules(usize, usize),
    /// List and name.
    Names(usize, usize),
    /// What holds at some range: what it consists of.
    Kind(usize, Vec<Wanted>, Vec<Access>),
    /// It is being put together.
    Set(usize, Vec<Wanted>, Vec<Access>, Gathering),
}

/// What these lists are for.
type Wanted = (For, Vec<usize>);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum For {
    /// Requests of these peers.
    Peers(Option<Arc<[Identity]>>),
    /// Requests inside TLS, of whomever that is for.
    Inside,
}

/// What holds at some ranges: first met at this range of this side.
#[derive(Debug)]
struct Kind {
    side: usize,
    range: usize,
    access: Arc<[L7Access]>,
    tls: Arc<[L7Tls]>,
    inspected: Arc<[L7Inspected]>,
}

/// A list of rules: where it was met first, and what has been made of it.
#[derive(Debug)]
struct List {
    kind: usize,
    /// `access` or `inspected`, and the place in it.
    of: (&'static str, usize),
    rules: HttpRules,
    made: Vec<Rule>,
    done: Arc<[Rule]>,
    path: bool,
    headers: BTreeSet<Box<str>>,
}

#[derive(Debug)]
struct NameList {
    names: ServerNames,
    made: Names,
    done: Arc<Names>,
}

/// Lists that come together.
#[derive(Debug)]
enum Gathering {
    /// List and rule that come next.
    Rules(Vec<Rule>, usize, usize),
    Building(Box<Building>),
}

impl<K: Ord, T> Table<K, T> {
    fn new() -> Self {
        Self { known: BTreeMap::new(), all: Vec::new() }
    }

    /// The place of what has this key, and whether it was made now.
    fn enter(&mut self, key: K, make: impl FnOnce() -> T) -> (usize, bool) {
        let Self { known, all } = self;
        let next = all.len();
        let place = *known.entry(key).or_insert_with(|| {
            all.push(make());
            next
        });
        (place, place == next)
    }
}

impl Preparation {
    /// Of the rules of an endpoint, none of which have been looked at.
    pub fn new(endpoint: Box<L7Endpoint>) -> Self {
        Self {
            endpoint,
            stage: Stage::Look(0, 0),
            account: Account::new(Budget::WORKLOAD),
            measure: Measure::default(),
            parts: 0,
            tried: 0,
            ranges: [Vec::new(), Vec::new()],
            kinds: Table::new(),
            lists: Table::new(),
            names: Table::new(),
            peers: BTreeSet::new(),
            sets: BTreeMap::new(),
            terms: Vec::new(),
            fault: None,
        }
    }

    /// What it is of.
    pub fn endpoint(&self) -> &L7Endpoint {
        &self.endpoint
    }

    /// Whether anything has been done.
    pub fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Look(0, 0))
    }

    /// See [`Compiler::advance`].
    pub(super) fn advance(
        &mut self,
        compiler: &mut Compiler,
        effort: &mut usize,
    ) -> Option<Result<Endpoint, Refused>> {
        while *effort > 0 {
            let made = compiler.expressions.made();
            match self.step(compiler) {
                Ok(Some(taken)) => {
                    let made = compiler.expressions.made() - made;
                    *effort = effort.saturating_sub(taken + MADE * made);
                }
                Ok(None) => return Some(Ok(self.finish())),
                Err(refused) => return Some(Err(refused)),
            }
        }
        None
    }

    /// Does what is next, and says what it took; nothing: all is done.
    fn step(&mut self, compiler: &mut Compiler) -> Result<Option<usize>, Refused> {
        match &mut self.stage {
            Stage::Look(side, range) => {
                let (side, range) = (*side, *range);
                let rules = [&self.endpoint.ingress, &self.endpoint.egress].get(side).copied().cloned();
                let Some(rules) = rules else {
                    self.stage = Stage::Rules(0, 0);
                    return Ok(Some(1));
                };
                match rules.as_ref().and_then(|rules: &Arc<L7Rules>| rules.ports.get(range)) {
                    Some(ports) => {
                        self.stage = Stage::Look(side, range + 1);
                        self.look(side, range, ports).map(Some)
                    }
                    None => {
                        (self.stage, self.parts) = (Stage::Look(side + 1, 0), 0);
                        Ok(Some(1))
                    }
                }
            }
            Stage::Rules(list, rule) => {
                let (list, rule) = (*list, *rule);
                self.compile(list, rule, compiler).map(Some)
            }
            Stage::Names(list, name) => {
                let (list, name) = (*list, *name);
                self.name(list, name).map(Some)
            }
            Stage::Kind(..) => Ok(self.assemble(compiler)),
            Stage::Set(..) => Ok(Some(self.gather(compiler))),
        }
    }

    /// A range: what is new in it is entered.
    fn look(&mut self, side: usize, range: usize, ports: &L7Ports) -> Result<usize, Refused> {
        let L7Ports { first, last, access, tls, inspected } = ports.clone();
        let places = [place(&access), place(&tls), place(&inspected)];
        let kind = || Kind { side, range, access, tls, inspected };
        let (kind, is_new) = self.kinds.enter(places, kind);
        if let Some(ranges) = self.ranges.get_mut(side) {
            ranges.push((first, last, kind));
        }
        if !is_new {
            return Ok(1);
        }
        let L7Ports { access, tls, inspected, .. } = ports;
        let field = || format!("{}.ports[{range}]", SIDES.get(side).copied().unwrap_or_default());
        let refused = |field: String, why: String| Err(Refused { field, why });
        let inside = inspected.iter().map(|one| &one.inspection.http);
        let lists = access.iter().map(|access| &access.http).chain(inside).flatten();
        let (rules, most) = (lists.map(|rules| rules.len()).sum::<usize>(), Budget::WORKLOAD.rules);
        if rules > most {
            let why = format!("{rules} rules of all policies that select it; at most {most} can be used");
            return refused(field(), why);
        }
        self.parts += self.measure.parts(access, tls, inspected);
        if self.parts > WORKLOAD_PARTS {
            let why = format!(
                "the rules of all policies that select it come to more than {WORKLOAD_PARTS} at all ranges of ports \
                 together (alternatives and headers are counted, and lists for each range where others hold beside \
                 them); name fewer ranges, or fewer rules for many ports"
            );
            return refused(field(), why);
        }
        let mut taken = 1;
        let plain = access.iter().enumerate().map(|(number, one)| (("access", number), &one.http));
        let inside = inspected.iter().enumerate();
        let inside = inside.map(|(number, one)| (("inspected", number), &one.inspection.http));
        for (of, rules) in plain.chain(inside) {
            let Some(rules) = rules else { continue };
            let list = || List {
                kind,
                of,
                rules: Arc::clone(rules),
                made: Vec::with_capacity(rules.len()),
                done: Arc::default(),
                path: false,
                headers: BTreeSet::new(),
            };
            // It has been measured.
            taken += if self.lists.enter(place(rules), list).1 { 1 + rules.len() / 8 } else { 1 };
        }
        let untouched = tls.iter().enumerate().map(|(number, one)| (("tls", number), &one.names));
        let inside = inspected.iter().enumerate();
        let inside =
            inside.filter_map(|(number, one)| Some((("inspected", number), one.inspection.names.as_ref()?)));
        for ((list, number), names) in untouched.chain(inside) {
            let entry =
                || NameList { names: Arc::clone(names), made: Names::default(), done: Arc::default() };
            let is_new = self.names.enter(place(names), entry).1;
            taken += 1;
            if is_new {
                let field = || format!("{}.{list}[{number}].names", field());
                if names.len() > SERVER_NAMES {
                    let why = format!("{} names; at most {SERVER_NAMES} can be used", names.len());
                    return refused(field(), why);
                }
                self.tried += names.iter().filter(|name| name.is_tried()).count();
                if self.tried > PATTERNS {
                    let why = format!(
                        "more than {PATTERNS} names of the endpoint have a * elsewhere than as their first part; \
                         write **.example.com or *.example.com where that says it"
                    );
                    return refused(field(), why);
                }
                taken += names.len() / 8;
            }
        }
        Ok(taken)
    }

    fn field(&self, kind: usize) -> String {
        let kind = self.kinds.all.get(kind);
        let (side, range) = kind.map_or((0, 0), |kind| (kind.side, kind.range));
        format!("{}.ports[{range}]", SIDES.get(side).copied().unwrap_or_default())
    }

    /// A rule of a list.
    fn compile(&mut self, at: usize, number: usize, compiler: &mut Compiler) -> Result<usize, Refused> {
        let Some(list) = self.lists.all.get_mut(at) else {
            self.stage = Stage::Names(0, 0);
            return Ok(1);
        };
        let Some(rule) = list.rules.get(number) else {
            list.done = std::mem::take(&mut list.made).into();
            self.stage = Stage::Rules(at + 1, 0);
            return Ok(1);
        };
        self.stage = Stage::Rules(at, number + 1);
        match compiled(rule, &mut self.account, &mut compiler.expressions) {
            Ok(made) => {
                list.path |= rule.path.is_some();
                list.headers.extend(made.headers.iter().map(|header| header.name.clone()));
                list.made.push(made);
                Ok(1 + rule.headers.len())
            }
            Err(Fault { part: None, why }) => Err(Refused { field: "expressions".to_owned(), why }),
            Err(Fault { part: Some(part), why }) => {
                let (kind, (of, place)) = (list.kind, list.of);
                let field = format!("{}.{of}[{place}].http[{number}].{part}", self.field(kind));
                Err(Refused { field, why })
            }
        }
    }

    /// A name of a list.
    fn name(&mut self, at: usize, number: usize) -> Result<usize, Refused> {
        let Some(list) = self.names.all.get_mut(at) else {
            self.stage = Stage::Kind(0, Vec::new(), Vec::new());
            self.wanted(0);
            return Ok(1);
        };
        self.stage = match list.names.get(number) {
            Some(name) => {
                list.made.add(name);
                Stage::Names(at, number + 1)
            }
            None => {
                list.done = Arc::new(std::mem::take(&mut list.made));
                Stage::Names(at + 1, 0)
            }
        };
        Ok(1)
    }

    /// What is to be put together for a kind: the lists for the same peers are one.
    fn wanted(&mut self, number: usize) -> usize {
        let Some(kind) = self.kinds.all.get(number) else {
            self.stage = Stage::Kind(number, Vec::new(), Vec::new());
            return 1;
        };
        let mut by_peers: BTreeMap<Option<Arc<[Identity]>>, Vec<usize>> = BTreeMap::new();
        let (mut plain, mut taken) = (Vec::new(), 1);
        for one in kind.access.iter() {
            let peers = one.peers.as_ref().map(|peers| sorted(peers, &mut self.peers));
            taken += 1 + peers.as_ref().map_or(0, |peers| peers.len() / 64);
            let Some(rules) = &one.http else {
                plain.push(Access { peers, http: None });
                continue;
            };
            let list = self.lists.known.get(&place(rules)).copied();
            by_peers.entry(peers).or_default().extend(list);
        }
        let inside = kind.inspected.iter().filter_map(|one| one.inspection.http.as_ref());
        let inside = inside.filter_map(|rules| self.lists.known.get(&place(rules)).copied());
        let inside = inside.map(|list| (For::Inside, vec![list]));
        let by_peers = by_peers.into_iter().map(|(peers, lists)| (For::Peers(peers), lists));
        // The last comes first.
        let wanted = inside.chain(by_peers.rev()).collect();
        self.stage = Stage::Kind(number, wanted, plain);
        taken
    }

    /// What comes next for what holds at some ranges; nothing: there is no more.
    fn assemble(&mut self, compiler: &mut Compiler) -> Option<usize> {
        let Stage::Kind(number, wanted, access) = &mut self.stage else { return None };
        let number = *number;
        self.kinds.all.get(number)?;
        let Some((whom, lists)) = wanted.last() else {
            let access = std::mem::take(access);
            let taken = self.close(number, access, compiler);
            return Some(taken + self.wanted(number + 1));
        };
        let single = match lists.as_slice() {
            [only] => self.lists.all.get(*only).map(|list| &list.done),
            _ => None,
        };
        let known = self.sets.get(lists).cloned();
        let known = known.or_else(|| single.and_then(|rules| compiler.known(rules)));
        if let Some(set) = known {
            if let For::Peers(peers) = whom {
                access.push(Access { peers: peers.clone(), http: Some(Arc::clone(&set)) });
            }
            let lists = wanted.pop().map(|(_, lists)| lists).unwrap_or_default();
            self.sets.insert(lists, set);
            return Some(1);
        }
        let gathering = match single {
            Some(rules) => Gathering::Building(Box::new(Building::new(Arc::clone(rules)))),
            None => Gathering::Rules(Vec::new(), 0, 0),
        };
        let (wanted, access) = (std::mem::take(wanted), std::mem::take(access));
        self.stage = Stage::Set(number, wanted, access, gathering);
        Some(1)
    }

    /// What a rule, or a branch, of lists that come together took.
    fn gather(&mut self, compiler: &mut Compiler) -> usize {
        let Stage::Set(number, wanted, access, gathering) = &mut self.stage else { return 1 };
        let lists = wanted.last().map(|(_, lists)| lists.as_slice()).unwrap_or_default();
        let set = match gathering {
            Gathering::Rules(rules, list, at) => {
                let from = lists.get(*list).map(|list| self.lists.all.get(*list));
                match from.map(|list| list.and_then(|list| list.done.get(*at))) {
                    Some(Some(rule)) => {
                        rules.push(rule.clone());
                        *at += 1;
                        return 1;
                    }
                    Some(None) => {
                        (*list, *at) = (*list + 1, 0);
                        return 1;
                    }
                    None => {}
                }
                let rules: Arc<[Rule]> = std::mem::take(rules).into();
                match compiler.known(&rules) {
                    Some(known) => known,
                    None => {
                        *gathering = Gathering::Building(Box::new(Building::new(rules)));
                        return 1;
                    }
                }
            }
            Gathering::Building(building) => match building.step() {
                Some(taken) => return taken,
                None => {
                    let building = std::mem::replace(&mut **building, Building::new(Arc::default()));
                    compiler.keep(building.finish())
                }
            },
        };
        // From now on it is found.
        self.sets.insert(lists.to_vec(), set);
        let (number, wanted, access) = (*number, std::mem::take(wanted), std::mem::take(access));
        self.stage = Stage::Kind(number, wanted, access);
        1
    }

    /// What holds at some ranges, all of which has been put together.
    fn close(&mut self, number: usize, access: Vec<Access>, compiler: &mut Compiler) -> usize {
        let inspected = self.inspected(number, compiler);
        let Some(kind) = self.kinds.all.get(number) else { return 1 };
        let tls = kind.tls.iter().map(|one| {
            let names = self.names.known.get(&place(&one.names)).and_then(|at| self.names.all.get(*at));
            let peers = one.peers.as_ref().map(|peers| sorted(peers, &mut self.peers));
            Tls { peers, names: names.map(|list| Arc::clone(&list.done)).unwrap_or_default() }
        });
        let tls = tls.collect();
        let inside = kind.inspected.iter().filter_map(|one| one.inspection.http.as_ref());
        let lists = kind.access.iter().filter_map(|access| access.http.as_ref()).chain(inside);
        let lists = lists.filter_map(|rules| self.lists.all.get(*self.lists.known.get(&place(rules))?));
        let (mut path, mut headers) = (false, BTreeSet::new());
        for list in lists {
            path |= list.path;
            headers.extend(list.headers.iter().cloned());
        }
        let taken = 1 + access.len() + headers.len() + MADE * inspected.len();
        let asks = Arc::new(Asks { path, headers: headers.into_iter().collect() });
        self.terms.push(Arc::new(Terms { access: access.into(), tls, inspected, asks }));
        taken
    }

    fn finish(&mut self) -> Endpoint {
        let [ingress, egress] = std::mem::take(&mut self.ranges);
        let side = |rules: &Option<Arc<L7Rules>>, ranges: Vec<(u16, u16, usize)>| {
            let ports = ranges.into_iter().map(|(first, last, kind)| {
                let terms = self.terms.get(kind).cloned().unwrap_or_default();
                Ports { first, last, terms }
            });
            rules.as_ref().map(|_| Side::Ports(ports.collect()))
        };
        let (ingress, egress) = (side(&self.endpoint.ingress, ingress), side(&self.endpoint.egress, egress));
        Endpoint { ingress, egress, fault: self.fault.take(), ..Compiler::nothing(&self.endpoint) }
    }
}

/// Peers in order; those that are alike are the same.
fn sorted(peers: &Arc<[Identity]>, known: &mut BTreeSet<Arc<[Identity]>>) -> Arc<[Identity]> {
    let mut peers = Arc::clone(peers);
    if !peers.is_sorted() {
        let mut in_order = peers.to_vec();
        in_order.sort_unstable();
        peers = in_order.into();
    }
    if let Some(known) = known.get(&peers) {
        return Arc::clone(known);
    }
    known.insert(Arc::clone(&peers));
    peers
}
