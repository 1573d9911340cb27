//! From [`mesh::l7`] to what is matched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::l7::{HeaderRule, HttpRule, L7Endpoint, L7Ports, L7Rules, Mismatch, left_of};

use super::names;
use super::{Access, Asks, Endpoint, HeaderMatcher, Matcher, Ports, Rule, RuleSet, Side};

/// What cannot be used of an endpoint's rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which part: `ingress.ports[0].access[1].http[0].path`.
    pub field: String,
    /// Why, and what to write instead.
    pub why: String,
}

/// Compiles endpoints, and keeps each expression once for all of them.
#[derive(Debug, Default)]
pub struct Compiler {
    matchers: BTreeMap<(String, bool), Arc<Matcher>>,
    /// What the automata of the endpoint under way take, bytes.
    spent: usize,
    /// How many of its names of servers can only be tried.
    tried: usize,
}

/// The most that the automata of one endpoint may take, bytes: making them takes time in which nobody else is told anything.
const MAX_MEMORY: usize = 16 << 20;

/// The most rules of one access.
const MAX_RULES: usize = 20_000;

impl Compiler {
    /// Compiles an endpoint's rules.
    pub fn endpoint(&mut self, endpoint: &L7Endpoint) -> Result<Endpoint, Refused> {
        (self.spent, self.tried) = (0, 0);
        let mut side = |name: &str, rules: &Option<Arc<L7Rules>>| {
            rules.as_ref().map(|rules| self.side(name, rules)).transpose()
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

    /// Forgets expressions that no endpoint has any more.
    pub fn collect(&mut self) {
        self.matchers.retain(|_, matcher| Arc::strong_count(matcher) > 1);
    }

    fn side(&mut self, name: &str, rules: &L7Rules) -> Result<Side, Refused> {
        let ports = rules.ports.iter().enumerate();
        let compiled = ports.map(|(number, ports)| self.ports(&format!("{name}.ports[{number}]"), ports));
        Ok(Side::Ports(compiled.collect::<Result<_, _>>()?))
    }

    fn ports(&mut self, base: &str, ports: &L7Ports) -> Result<Ports, Refused> {
        let mut access = Vec::with_capacity(ports.access.len());
        let mut asks = (false, BTreeSet::new());
        for (number, one) in ports.access.iter().enumerate() {
            let field = format!("{base}.access[{number}].http");
            let peers = one.peers.as_ref().map(|peers| {
                let mut peers = peers.to_vec();
                peers.sort_unstable();
                Arc::from(peers)
            });
            let http = one.http.as_ref().map(|rules| self.rules(&field, rules)).transpose()?;
            for rule in one.http.iter().flat_map(|rules| rules.iter()) {
                asks.0 |= rule.path.is_some();
                asks.1.extend(rule.headers.iter().map(|header| Box::from(header.name.to_ascii_lowercase())));
            }
            access.push(Access { peers, http: http.map(Arc::new) });
        }
        let asks = Arc::new(Asks { path: asks.0, headers: asks.1.into_iter().collect() });
        let tls = names::compile(base, &ports.tls, &mut self.tried)?;
        Ok(Ports { first: ports.first, last: ports.last, access: access.into(), tls, asks })
    }

    fn rules(&mut self, field: &str, rules: &[HttpRule]) -> Result<RuleSet, Refused> {
        if rules.len() > MAX_RULES {
            let why = format!("{} rules; at most {MAX_RULES} can be used", rules.len());
            return Err(Refused { field: field.to_owned(), why });
        }
        let compiled = rules.iter().enumerate();
        let compiled = compiled.map(|(number, rule)| self.rule(&format!("{field}[{number}]"), rule));
        Ok(RuleSet { rules: compiled.collect::<Result<_, _>>()? })
    }

    fn rule(&mut self, field: &str, rule: &HttpRule) -> Result<Rule, Refused> {
        let mut part = |name: &str, expression: &Option<mesh::l7::Expression>| {
            let Some(expression) = expression else { return Ok(None) };
            self.matcher(&expression.0, name == "host")
                .map(Some)
                .map_err(|why| Refused { field: format!("{field}.{name}"), why })
        };
        let path = part("path", &rule.path)?;
        let method = part("method", &rule.method)?;
        let host = part("host", &rule.host)?;
        let headers = rule.headers.iter().enumerate();
        let headers = headers.map(|(number, rule)| header(&format!("{field}.headers[{number}]"), rule));
        let names_connect = rule.method.as_ref().is_some_and(|method| names_connect(&method.0));
        Ok(Rule { path, method, names_connect, host, headers: headers.collect::<Result<_, _>>()? })
    }

    fn matcher(&mut self, pattern: &str, ignores_case: bool) -> Result<Arc<Matcher>, String> {
        if self.spent > MAX_MEMORY {
            return Err(format!(
                "the expressions before it take more than {} MiB when compiled; write shorter repetitions",
                MAX_MEMORY >> 20
            ));
        }
        let key = (pattern.to_owned(), ignores_case);
        // Also where it is there already: what an endpoint may have does not depend on others.
        if let Some(matcher) = self.matchers.get(&key) {
            self.spent += matcher.memory();
            return Ok(Arc::clone(matcher));
        }
        let shown: String = pattern.chars().take(100).collect();
        let matcher = Matcher::new(pattern, ignores_case).map_err(|error| format!("{shown:?}: {error}"))?;
        let matcher = Arc::new(matcher);
        self.spent += matcher.memory();
        self.matchers.insert(key, Arc::clone(&matcher));
        Ok(matcher)
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

fn header(field: &str, rule: &HeaderRule) -> Result<HeaderMatcher, Refused> {
    let refused = |part: &str, why: &str| Refused { field: format!("{field}.{part}"), why: why.to_owned() };
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if rule.name.is_empty() || !rule.name.bytes().all(is_token) {
        return Err(refused("name", "not the name of a header"));
    }
    let name = rule.name.to_ascii_lowercase();
    let is_changed = matches!(rule.mismatch, Mismatch::Add | Mismatch::Delete | Mismatch::Replace);
    if is_changed && FRAMING.contains(&name.as_str()) {
        return Err(refused(
            "mismatch",
            "this header says how requests are framed or whom they are for; use DENY",
        ));
    }
    if matches!(rule.mismatch, Mismatch::Add | Mismatch::Replace) && rule.value.is_none() {
        return Err(refused("value", "ADD and REPLACE need the value that is to be there"));
    }
    let is_sound = |byte: u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    if rule.value.as_ref().is_some_and(|value| !value.bytes().all(is_sound) || value.trim() != value) {
        return Err(refused("value", "no header can have it: control characters, or blanks around it"));
    }
    let value = rule.value.as_deref().map(Box::from);
    Ok(HeaderMatcher { name: name.into(), value, mismatch: rule.mismatch })
}

/// Headers that rules may look at and not change.
const FRAMING: [&str; 8] =
    ["connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"];
