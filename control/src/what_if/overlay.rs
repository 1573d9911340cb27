//! Files laid over the world in force.

use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use mesh::policy::PolicyName;
use node_api::{Edit, EditAction, WhatIf};

use super::WhatIfError;
use crate::analyze::{Analysis, Located, decoded, duplicates};
use crate::inspect::Wanted;
use crate::kind::{Decoded, Object, ObjectKey, Written};
use crate::objects::{File, pools_moved};
use crate::plan::{Planned, of_policy};
use crate::source::layout::Layout;
use crate::world::World;
use crate::yaml::Severity;

/// So many policies at most are taken away: each is looked for among all.
const MOST_WITHOUT: usize = 100;

/// The world as it would be.
pub(super) struct Overlay {
    pub(super) world: World,
    pub(super) edits: Vec<Edit>,
    /// Warnings about the files.
    warnings: Vec<Located>,
    /// Each object of the files and where it stands.
    places: Vec<(ObjectKey, String)>,
}

impl Overlay {
    pub(super) fn new(
        world: &World,
        query: &WhatIf,
        pools: Option<(Ipv4Net, Ipv6Net)>,
    ) -> Result<Self, WhatIfError> {
        let (mut analysis, layout) = (Analysis::default(), Layout::default());
        let files: Vec<File> = query
            .with
            .iter()
            .map(|file| decoded(&layout, &file.name, Ok(file.text.clone()), &mut analysis))
            .collect();
        duplicates(&files, &mut analysis);
        for given in objects(&files) {
            let moved = pools_moved(given.object, pools);
            analysis.findings.extend(moved.map(|finding| Located { file: given.file.to_owned(), finding }));
        }
        refuse(&analysis)?;
        let empty = files.iter().find(|file| file.documents.iter().all(|(_, read)| read.object.is_none()));
        if let Some(file) = empty {
            let name = &file.name;
            return Err(WhatIfError::Refused(format!("{name}: holds no object that an agent would read")));
        }
        let mut overlay =
            Self { world: world.clone(), edits: Vec::new(), warnings: analysis.findings, places: Vec::new() };
        if query.without.len() > MOST_WITHOUT {
            return Err(WhatIfError::Refused(format!("--without: at most {MOST_WITHOUT} policies at once")));
        }
        for named in &query.without {
            overlay.without(world, named)?;
        }
        for Given { file, key, object, line } in objects(&files) {
            overlay.put(world, key, object);
            overlay.places.push((key.clone(), format!("{file}:{line}")));
        }
        Ok(overlay)
    }

    fn without(&mut self, world: &World, named: &str) -> Result<(), WhatIfError> {
        let wanted = Wanted::parse(named);
        let meant: Vec<PolicyName> = world
            .policies
            .iter()
            .map(|policy| policy.name.clone())
            .filter(|name| wanted.is_some_and(|wanted| wanted.means(name)))
            .collect();
        if meant.is_empty() {
            return Err(WhatIfError::NotInForce(named.to_owned()));
        }
        for name in meant {
            remove_policy(&mut self.world, &name);
            self.edits.push(edit(world, EditAction::Remove, &of_policy(&name)));
        }
        Ok(())
    }

    fn put(&mut self, world: &World, key: &ObjectKey, object: &Object) {
        let action = match put(&mut self.world, object.clone()) {
            None => EditAction::Add,
            Some(earlier) if earlier == *object => EditAction::Keep,
            Some(_) => EditAction::Replace,
        };
        self.edits.push(edit(world, action, key));
    }

    /// Warnings, and what planning has to say of the objects, each with its place.
    pub(super) fn notes(&self, then: &Planned) -> Vec<String> {
        let place = |key: &ObjectKey| self.places.iter().find(|(own, _)| own == key).map(|(_, place)| place);
        let planning = then.notes.iter().filter_map(|(key, severity, text)| {
            let outcome = match severity {
                Severity::Error => "would not be in force as it is: ",
                Severity::Warning | Severity::Hint => "",
            };
            Some(format!("{} {outcome}{text}", place(key)?))
        });
        self.warnings.iter().map(ToString::to_string).chain(planning).collect()
    }
}

/// An object of a file: the file, and the object's key and line.
struct Given<'a> {
    file: &'a str,
    key: &'a ObjectKey,
    object: &'a Object,
    line: usize,
}

fn objects(files: &[File]) -> impl Iterator<Item = Given<'_>> {
    files.iter().flat_map(|file| {
        file.documents.iter().filter_map(|(_, Decoded { key, object, line, .. })| {
            Some(Given { file: &file.name, key: key.as_ref()?, object: object.as_ref()?, line: *line })
        })
    })
}

fn refuse(analysis: &Analysis) -> Result<(), WhatIfError> {
    let errors = analysis.findings.iter().filter(|located| located.finding.severity == Severity::Error);
    let mut errors: Vec<_> = errors.collect();
    errors.sort_by(|a, b| (&a.file, a.finding.line).cmp(&(&b.file, b.finding.line)));
    if errors.is_empty() {
        return Ok(());
    }
    Err(WhatIfError::Refused(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Puts an object in the place of the one of the same kind and name, which is returned.
pub(super) fn put(world: &mut World, object: Object) -> Option<Object> {
    match object {
        Object::Configuration(new) => {
            let earlier = world.configuration.clone();
            let origins = std::mem::take(&mut world.origins);
            world.set_configuration(Arc::unwrap_or_clone(new));
            world.origins = origins;
            Some(Object::Configuration(earlier.into()))
        }
        Object::Namespace(new) => {
            Arc::make_mut(&mut world.namespaces).insert(new.name.clone(), new).map(Object::Namespace)
        }
        Object::Node(new) => Arc::make_mut(&mut world.nodes).insert(new.name.clone(), new).map(Object::Node),
        Object::Workload(new) => {
            Arc::make_mut(&mut world.workloads).insert(new.name.clone().into(), new).map(Object::Workload)
        }
        // Nobody but its node says it: files that are laid over the world are refused before.
        Object::WorkloadEndpoint(_) => None,
        Object::Service(new) => {
            Arc::make_mut(&mut world.services).insert(new.name.clone(), new).map(Object::Service)
        }
        Object::EndpointSlice(new) => {
            Arc::make_mut(&mut world.slices).insert(new.name.clone(), new).map(Object::EndpointSlice)
        }
        Object::Secret(new) => {
            Arc::make_mut(&mut world.secrets).insert(new.name.clone(), new).map(Object::Secret)
        }
        Object::Policy(Written { policy, services }) => {
            let earlier = remove_policy(world, &policy.name);
            if !services.is_empty() {
                Arc::make_mut(&mut world.to_services).insert(policy.name.clone(), services);
            }
            let at = world.policies.partition_point(|other| other.name < policy.name);
            Arc::make_mut(&mut world.policies).insert(at, policy);
            earlier.map(Object::Policy)
        }
    }
}

/// Takes a policy away.
pub(super) fn remove_policy(world: &mut World, name: &PolicyName) -> Option<Written> {
    let at = world.policies.iter().position(|policy| policy.name == *name)?;
    let services = Arc::make_mut(&mut world.to_services).remove(name).unwrap_or_default();
    Some(Written { policy: Arc::make_mut(&mut world.policies).remove(at), services })
}

/// What is done to an object, and which version of it is in force.
fn edit(world: &World, action: EditAction, key: &ObjectKey) -> Edit {
    let status = world.statuses.iter().find(|status| status.key.as_ref() == Some(key) && status.valid);
    let status = status.filter(|_| action != EditAction::Add);
    Edit {
        action,
        object: key.to_string(),
        replaces: status.map(|status| format!("{}:{}", status.file, status.line)),
    }
}
