//! `/etc/resolv.conf` (resolv.conf(5)): read, and written for workloads and for the host.

use std::net::IpAddr;

/// As many search domains, and as many characters of them, as kubelet allows.
const MAX_SEARCH: usize = 32;
const MAX_SEARCH_LENGTH: usize = 2048;
/// As many servers as glibc asks (`MAXNS`).
const MAX_SERVERS: usize = 3;
/// The stubs of systemd-resolved; it may itself ask whom `/etc/resolv.conf` names.
pub(super) const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];

/// What such a file says, as far as it concerns us.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Resolver {
    pub(super) servers: Vec<IpAddr>,
    pub(super) search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// Lines that make no sense are passed over, as glibc does. The last of several `search` or `domain` lines counts.
    pub(super) fn parse(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            let owned = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect::<Vec<_>>();
            match words.next() {
                Some("nameserver") => {
                    all.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                Some("search") => all.search = owned(words),
                Some("domain") => all.search = words.next().map(str::to_owned).into_iter().collect(),
                Some("options") => all.options.extend(owned(words)),
                _ => {}
            }
        }
        all
    }

    /// What a workload of `namespace` has: the node's servers alone, the cluster's names first, and, as kubelet has it
    /// (`ClusterFirst`), what the host searches; names with fewer than five dots are searched for first.
    pub(super) fn for_workload(host: &str, servers: &[IpAddr], namespace: &str, domain: &str) -> String {
        let search = search(&Self::parse(host).search, namespace, domain);
        write(servers, &search, &["ndots:5".to_owned()])
    }

    /// What the host has while the node's servers are its own: the servers it had come after them, for when the agent
    /// is not there.
    pub(crate) fn for_host(host: &str, servers: &[IpAddr], domain: &str) -> String {
        let old = Self::parse(host);
        let others = old.servers.iter().filter(|server| !servers.contains(server));
        let all: Vec<_> = servers.iter().take(1).chain(others).take(MAX_SERVERS).copied().collect();
        write(&all, &search(&old.search, "default", domain), &old.options)
    }
}

fn search(host: &[String], namespace: &str, domain: &str) -> Vec<String> {
    let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    let mut all: Vec<String> = Vec::new();
    let mut length = 0;
    for name in own.iter().chain(host) {
        length += name.len() + 1;
        if all.len() == MAX_SEARCH || length > MAX_SEARCH_LENGTH {
            break;
        }
        // A host whose resolver we are has names of the domain too, of another namespace maybe.
        let known = all.contains(name) || (all.len() >= own.len() && is_within(name, domain));
        if name != "." && !known {
            all.push(name.clone());
        }
    }
    all
}

fn is_within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn write(servers: &[IpAddr], search: &[String], options: &[String]) -> String {
    let mut text = String::from("# Written by Ferromesh.\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text.push_str(&format!("search {}\n", search.join(" ")));
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}
