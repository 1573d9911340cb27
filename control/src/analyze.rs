//! `ferromesh analyze FILE…`: what an agent would say of these files, without an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use mesh::policy::compile;

use crate::authority;
use crate::kind::{Decoded, Object, ObjectKey, Written};
use crate::objects::{File, Objects};
use crate::plan;
use crate::source::layout::Layout;
use crate::source::walk::{list, read};
use crate::status::selects;
use crate::world::World;
use crate::yaml::{Finding, Severity, documents};

/// A finding and its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Located {
    /// The file as it was named on the command line, or found below a directory named there.
    pub file: String,
    /// What is to be said.
    pub finding: Finding,
}

impl fmt::Display for Located {
    /// `file:line path: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} {}", self.file, self.finding.line, self.finding)
    }
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Analysis {
    /// In order of files and lines.
    pub findings: Vec<Located>,
    /// Objects that would be in force.
    pub objects: usize,
}

impl Analysis {
    /// The worst that was found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|located| located.finding.severity).max()
    }
}

/// Reads files, and directories as an agent would. All of them count as one configuration.
pub fn analyze(paths: &[PathBuf]) -> Analysis {
    let mut files = BTreeSet::new();
    let mut layout = Layout::default();
    for path in paths {
        match path.is_dir() {
            true => {
                layout.add(Layout::shown(path));
                files.extend(list(path).unwrap_or_default().iter().map(|path| path.display().to_string()));
            }
            false => drop(files.insert(path.display().to_string())),
        }
    }
    let mut analysis = Analysis::default();
    let files: Vec<File> =
        files.iter().map(|name| decoded(&layout, name, read(&layout, name), &mut analysis)).collect();
    judge(&files, layout.is_shared(), &mut analysis);
    analysis
}

fn judge(files: &[File], shared: bool, analysis: &mut Analysis) {
    duplicates(files, analysis);
    let objects = Objects::of(files.iter().cloned());
    analysis.objects = objects.accepted.len();
    let world = World::new(&objects, 0, shared);
    unselected(&world, files, analysis);
    among_themselves(&world, files, analysis);
    for (key, message) in vips_as_prefixes(&world) {
        note(files, &key, at(Severity::Warning, 0, "spec", message), analysis);
    }
    analysis.findings.sort_by(|a, b| (&a.file, a.finding.line).cmp(&(&b.file, b.finding.line)));
}

/// The same of one text.
#[cfg(test)]
pub(crate) fn analyze_text(text: &str) -> Analysis {
    let mut analysis = Analysis::default();
    let files = [decoded(&Layout::default(), "text.yaml", Ok(text.to_owned()), &mut analysis)];
    judge(&files, false, &mut analysis);
    analysis
}

pub(crate) fn decoded(
    layout: &Layout,
    name: &str,
    text: Result<String, (usize, String)>,
    analysis: &mut Analysis,
) -> File {
    let mut note = |finding: Finding| analysis.findings.push(Located { file: name.to_owned(), finding });
    let (text, documents) = match text {
        Ok(text) => {
            let documents: Vec<_> = {
                let writer = layout.writer(name);
                documents(&text).iter().map(|d| (d.position, writer.decode(d))).collect()
            };
            (text, documents)
        }
        Err((line, message)) => {
            note(at(Severity::Error, line, "", message));
            (String::new(), Vec::new())
        }
    };
    documents.iter().flat_map(|(_, decoded)| &decoded.findings).cloned().for_each(note);
    File { name: name.to_owned(), text: text.into(), documents }
}

fn at(severity: Severity, line: usize, path: &str, message: String) -> Finding {
    Finding { severity, line, column: 1, path: path.to_owned(), message }
}

pub(crate) fn duplicates(files: &[File], analysis: &mut Analysis) {
    let mut first: BTreeMap<&ObjectKey, (&str, usize)> = BTreeMap::new();
    for (file, decoded) in identified(files) {
        let Some(key) = &decoded.key else { continue };
        match first.get(key) {
            Some((other, line)) => {
                let message = format!("{key} is already given in {other}:{line}; rename or remove one");
                let finding = at(Severity::Error, decoded.line, "metadata.name", message);
                analysis.findings.push(Located { file: file.name.clone(), finding });
            }
            None => drop(first.insert(key, (&file.name, decoded.line))),
        }
    }
}

fn identified(files: &[File]) -> impl Iterator<Item = (&File, &Decoded)> {
    files.iter().flat_map(|file| file.documents.iter().map(move |(_, decoded)| (file, decoded)))
}

/// What only shows when objects are held against each other.
fn among_themselves(world: &World, files: &[File], analysis: &mut Analysis) {
    for (key, severity, message) in plan::review(world).iter() {
        note(files, key, at(severity, 0, "", message.to_owned()), analysis);
    }
}

/// Adds a finding at the object it is about.
fn note(files: &[File], key: &ObjectKey, finding: Finding, analysis: &mut Analysis) {
    let found = identified(files).find(|(_, decoded)| decoded.key.as_ref() == Some(key));
    if let Some((file, decoded)) = found {
        let finding = Finding { line: decoded.line, ..finding };
        analysis.findings.push(Located { file: file.name.clone(), finding });
    }
}

/// Policies that name the address of a service: it is never asked for, and the rule is a mistake.
fn vips_as_prefixes(world: &World) -> Vec<(ObjectKey, String)> {
    let configuration = &world.configuration;
    let pools: [IpNet; 2] = [configuration.ipv4_service_pool.into(), configuration.ipv6_service_pool.into()];
    let explicit: BTreeSet<IpNet> =
        world.services.values().flat_map(|s| s.explicit()).map(IpNet::from).collect();
    let is_vip = |prefix: &IpNet| explicit.contains(prefix) || pools.iter().any(|pool| pool.contains(prefix));
    let mut all = Vec::new();
    for policy in world.policies.iter() {
        for prefix in compile::prefixes([policy.as_ref()]).into_iter().filter(is_vip) {
            let message = format!(
                "{prefix} is an address of services, which no prefix matches: who answers is judged; use toServices or toEndpoints"
            );
            all.push((plan::of_policy(&policy.name), message));
        }
    }
    all
}

/// Hints at policies and services that select none of the declared workloads; says nothing where none is declared.
fn unselected(world: &World, files: &[File], analysis: &mut Analysis) {
    let declared: Vec<_> = world.workloads.values().map(|w| authority::declared(world, w).labels).collect();
    if declared.is_empty() {
        return;
    }
    for (file, decoded) in identified(files) {
        let (what, path, selected) = match &decoded.object {
            Some(Object::Policy(Written { policy, .. })) => {
                let selected = declared.iter().any(|labels| selects(policy, labels));
                (policy.name.to_string(), "spec", selected)
            }
            Some(Object::Service(service)) => {
                let Some(selector) = &service.selector else { continue };
                let selected = declared.iter().any(|labels| selector.matches(labels));
                (plan::of_service(&service.name).to_string(), "spec.selector", selected)
            }
            _ => continue,
        };
        if !selected {
            let message = format!("{what} selects none of the {} declared workloads", declared.len());
            let finding = at(Severity::Hint, decoded.line, path, message);
            analysis.findings.push(Located { file: file.name.clone(), finding });
        }
    }
}
