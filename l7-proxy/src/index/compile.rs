//! From [`mesh::l7`] to what is matched.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use expression::{Account, Budget, ExpressionError, Expressions, Matcher};
use mesh::identity::Identity;
use mesh::l7::{HttpRule, HttpRules, L7Endpoint, L7Ports, L7Rules, left_of};

use super::{Access, Asks, Endpoint, HeaderMatcher, Ports, Rule, RuleSet, Side, names};

/// What cannot be used of an endpoint's rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which part: `ingress.ports[0].access[1].http[0].path`.
    pub field: String,
    /// Why, and what to write instead.
    pub why: String,
}

/// Compiles endpoints, and keeps expressions and lists of rules once for all of them.
#[derive(Debug, Default)]
pub struct Compiler {
    expressions: Expressions,
    sets: BTreeSet<Known>,
}

/// A list of rules that is there, found by what it consists of.
#[derive(Debug)]
struct Known(Arc<RuleSet>);

/// How much an endpoint under way may do at once: expressions looked at, and expressions and KiB of automata made.
const SLICE: (usize, usize) = (4096, 256);

/// The expressions of an endpoint, compiled a slice at a time before the endpoint is. It keeps them: others may end meanwhile.
#[derive(Debug)]
pub struct Preparation {
    lists: Vec<HttpRules>,
    /// List and rule that come next.
    next: (usize, usize),
    account: Account,
    kept: Vec<Arc<Matcher>>,
}

/// An endpoint under way: what it has taken, and the field that is being looked at.
struct Course<'a> {
    compiler: &'a mut Compiler,
    account: Account,
    /// How many of its names of servers can only be tried.
    tried: usize,
}

impl Preparation {
    /// Of the rules of an endpoint, none of which have been looked at.
    pub fn new(endpoint: &L7Endpoint) -> Self {
        let sides = [&endpoint.ingress, &endpoint.egress].into_iter().flatten();
        let access = sides.flat_map(|side| &side.ports).flat_map(|ports| &ports.access);
        let lists = access.filter_map(|access| access.http.clone()).collect();
        Self { lists, next: (0, 0), account: Account::new(Budget::WORKLOAD), kept: Vec::new() }
    }
}

impl Compiler {
    /// Compiles some more of an endpoint's expressions; true: that is all, and [`Compiler::endpoint`] has little left to do.
    pub fn prepare(&mut self, preparation: &mut Preparation) -> bool {
        let Preparation { lists, next: (list, at), account, kept } = preparation;
        let made = self.expressions.made();
        let mut looked = 0;
        while let Some(rules) = lists.get(*list) {
            let Some(rule) = rules.get(*at) else {
                (*list, *at) = (*list + 1, 0);
                continue;
            };
            *at += 1;
            for (expression, ignores_case) in expressions(rule) {
                let matcher = account.matcher(expression, ignores_case, &mut self.expressions);
                // What is wrong with it is said when the endpoint is compiled, which comes no further either.
                let Ok(matcher) = matcher else { return true };
                kept.push(matcher);
            }
            looked += 1;
            if looked >= SLICE.0 || self.expressions.made() - made >= SLICE.1 {
                return false;
            }
        }
        true
    }

    /// Compiles an endpoint's rules.
    pub fn endpoint(&mut self, endpoint: &L7Endpoint) -> Result<Endpoint, Refused> {
        let mut course = Course { compiler: self, account: Account::new(Budget::WORKLOAD), tried: 0 };
        let mut side = |name: &str, rules: &Option<Arc<L7Rules>>| {
            rules.as_ref().map(|rules| course.side(name, rules)).transpose()
        };
        let ingress = side("ingress", &endpoint.ingress)?;
        let egress = side("egress", &endpoint.egress)?;
        Ok(Endpoint { ingress, egress, ..Self::nothing(endpoint) })
    }

    /// An endpoint whose rules cannot be used, after those that it had before: these stay, and nothing passes where only the
    /// new ones say anything, for the kernel may send it here by them.
    pub fn kept(before: &Endpoint, refused: &L7Endpoint) -> Endpoint {
        Endpoint {
            ingress: keep(before.ingress.as_ref(), refused.ingress.as_deref()),
            egress: keep(before.egress.as_ref(), refused.egress.as_deref()),
            audit: before.audit && refused.audit,
            ..before.clone()
        }
    }

    /// An endpoint with the rules that it had before for the ports and directions that it has none for any more: by those the
    /// kernel may send connections here still.
    pub fn joined(endpoint: Endpoint, before: &Endpoint) -> Endpoint {
        Endpoint {
            ingress: beside(endpoint.ingress, before.ingress.as_ref()),
            egress: beside(endpoint.egress, before.egress.as_ref()),
            ..endpoint
        }
    }

    /// An endpoint whose rules cannot be used and never could: nothing passes where it has any.
    pub fn nothing(endpoint: &L7Endpoint) -> Endpoint {
        Endpoint {
            id: endpoint.id,
            instance: endpoint.instance,
            addresses: [endpoint.ipv4.into(), endpoint.ipv6.into()],
            ingress: endpoint.ingress.as_ref().map(|_| Side::Refused),
            egress: endpoint.egress.as_ref().map(|_| Side::Refused),
            audit: endpoint.audit,
        }
    }

    /// Forgets expressions and lists of rules that no endpoint has any more.
    pub fn collect(&mut self) {
        self.sets.retain(|known| Arc::strong_count(&known.0) > 1);
        self.expressions.collect();
    }

    /// How many lists of rules, expressions and automata there are.
    pub fn count(&self) -> (usize, usize, usize) {
        let (expressions, automata) = self.expressions.count();
        (self.sets.len(), expressions, automata)
    }

    fn set(&mut self, rules: Vec<Rule>) -> Arc<RuleSet> {
        if let Some(known) = self.sets.get(rules.as_slice()) {
            return Arc::clone(&known.0);
        }
        let set = Arc::new(RuleSet::new(rules));
        self.sets.insert(Known(Arc::clone(&set)));
        set
    }
}

impl Course<'_> {
    fn side(&mut self, name: &str, rules: &L7Rules) -> Result<Side, Refused> {
        let ports = rules.ports.iter().enumerate();
        let compiled = ports.map(|(number, ports)| self.ports(&format!("{name}.ports[{number}]"), ports));
        Ok(Side::Ports(compiled.collect::<Result<_, _>>()?))
    }

    fn ports(&mut self, field: &str, ports: &L7Ports) -> Result<Ports, Refused> {
        let rules = ports.access.iter().map(|access| access.http.as_ref().map_or(0, |rules| rules.len()));
        let (rules, most) = (rules.sum::<usize>(), Budget::WORKLOAD.rules);
        if rules > most {
            let why = format!("{rules} rules of all policies that select it; at most {most} can be used");
            return Err(Refused { field: field.to_owned(), why });
        }
        let mut plain = Vec::new();
        let mut by_peers: BTreeMap<Option<Vec<Identity>>, Vec<Rule>> = BTreeMap::new();
        let mut asks = (false, BTreeSet::new());
        for (number, one) in ports.access.iter().enumerate() {
            let peers = one.peers.as_ref().map(|peers| {
                let mut peers = peers.to_vec();
                peers.sort_unstable();
                peers
            });
            let Some(rules) = &one.http else {
                plain.push(Access { peers: peers.map(Arc::from), http: None });
                continue;
            };
            for rule in rules.iter() {
                asks.0 |= rule.path.is_some();
                asks.1.extend(rule.headers.iter().map(|header| Box::from(header.name.to_ascii_lowercase())));
            }
            let field = format!("{field}.access[{number}].http");
            let of_these = by_peers.entry(peers).or_default();
            for (number, rule) in rules.iter().enumerate() {
                of_these.push(self.rule(rule, &|| format!("{field}[{number}]"))?);
            }
        }
        let sets = by_peers.into_iter().map(|(peers, rules)| Access {
            peers: peers.map(Arc::from),
            http: Some(self.compiler.set(rules)),
        });
        let access = plain.into_iter().chain(sets).collect();
        let asks = Arc::new(Asks { path: asks.0, headers: asks.1.into_iter().collect() });
        let tls = names::compile(field, &ports.tls, &mut self.tried)?;
        Ok(Ports { first: ports.first, last: ports.last, access, tls, asks })
    }

    fn rule(&mut self, rule: &HttpRule, field: &dyn Fn() -> String) -> Result<Rule, Refused> {
        let mut part = |name: &str, text: &Option<mesh::l7::Expression>| {
            let Some(text) = text else { return Ok(None) };
            let matcher = self.account.matcher(&text.0, name == "host", &mut self.compiler.expressions);
            matcher.map(Some).map_err(|error| refused(&error, &text.0, || format!("{}.{name}", field())))
        };
        let path = part("path", &rule.path)?;
        let method = part("method", &rule.method)?;
        let host = part("host", &rule.host)?;
        let mut headers = Vec::with_capacity(rule.headers.len());
        for (number, header) in rule.headers.iter().enumerate() {
            header.check().map_err(|fault| Refused {
                field: format!("{}.headers[{number}].{}", field(), fault.part()),
                why: fault.to_string(),
            })?;
            headers.push(HeaderMatcher {
                name: header.name.to_ascii_lowercase().into(),
                value: header.value.as_deref().map(Box::from),
                mismatch: header.mismatch,
            });
        }
        let names_connect = rule.method.as_ref().is_some_and(|method| names_connect(&method.0));
        Ok(Rule { path, method, names_connect, host, headers: headers.into() })
    }
}

impl Borrow<[Rule]> for Known {
    fn borrow(&self) -> &[Rule] {
        self.0.rules()
    }
}

impl Ord for Known {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.rules().cmp(other.0.rules())
    }
}

impl PartialOrd for Known {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Known {}

/// The expressions of a rule, in the order in which they are compiled, and whether they disregard case.
fn expressions(rule: &HttpRule) -> impl Iterator<Item = (&str, bool)> {
    let parts = [(&rule.path, false), (&rule.method, false), (&rule.host, true)];
    parts.into_iter().filter_map(|(part, ignores_case)| Some((part.as_ref()?.0.as_str(), ignores_case)))
}

fn refused(error: &ExpressionError, text: &str, field: impl FnOnce() -> String) -> Refused {
    match error {
        // No one of them is at fault.
        ExpressionError::Spent(budget) => {
            let (most, size) = (budget.expressions, budget.bytes >> 20);
            let why = format!(
                "all policies that select it have more than {most} expressions together, or such that take more than {size} MiB when compiled"
            );
            Refused { field: "expressions".to_owned(), why }
        }
        other => {
            let shown: String = text.chars().take(100).collect();
            Refused { field: field(), why: format!("{shown:?}: {other}") }
        }
    }
}

/// A side with ranges besides that nobody may use: those of `refused` that it has not.
fn keep(before: Option<&Side>, refused: Option<&L7Rules>) -> Option<Side> {
    let Some(refused) = refused else { return before.cloned() };
    let kept: &[Ports] = match before {
        Some(Side::Refused) => return Some(Side::Refused),
        Some(Side::Ports(ports)) => ports,
        None => &[],
    };
    let has = || kept.iter().map(|ports| (ports.first, ports.last));
    let closed = refused.ports.iter().flat_map(|ports| left_of((ports.first, ports.last), has()));
    let closed = closed.map(|(first, last)| Ports {
        first,
        last,
        access: Box::default(),
        tls: Box::default(),
        asks: Arc::default(),
    });
    let mut ports: Vec<Ports> = kept.iter().cloned().chain(closed).collect();
    ports.sort_by_key(|ports| ports.first);
    Some(Side::Ports(ports.into()))
}

/// A side with those ranges besides that only `before` has.
fn beside(side: Option<Side>, before: Option<&Side>) -> Option<Side> {
    let Some(Side::Ports(earlier)) = before else { return side.or_else(|| before.cloned()) };
    let ports: &[Ports] = match &side {
        Some(Side::Refused) => return side,
        Some(Side::Ports(ports)) => ports,
        None => &[],
    };
    let has = || ports.iter().map(|ports| (ports.first, ports.last));
    let parts = earlier.iter().flat_map(|ports| {
        let left = left_of((ports.first, ports.last), has());
        left.into_iter().map(|(first, last)| Ports { first, last, ..ports.clone() })
    });
    let mut all: Vec<Ports> = ports.iter().cloned().chain(parts).collect();
    all.sort_by_key(|ports| ports.first);
    Some(Side::Ports(all.into()))
}

/// Whether an expression is the word CONNECT, or words of which it is one: what else matches it (`.*`, `[A-Z]+`) was hardly
/// meant to open a tunnel.
fn names_connect(expression: &str) -> bool {
    let inner = expression.strip_prefix('^').unwrap_or(expression);
    let inner = inner.strip_suffix('$').unwrap_or(inner);
    let group = inner.strip_prefix("(?:").or_else(|| inner.strip_prefix('('));
    let inner = group.and_then(|group| group.strip_suffix(')')).unwrap_or(inner);
    let mut words = inner.split('|');
    let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    words.clone().all(is_word) && words.any(|word| word == "CONNECT")
}
