//! Where a node keeps its things; the same flags for every verb that starts, checks or ends one.

use std::path::PathBuf;

use control::World;

/// Whom the host asks for names.
pub(crate) const RESOLVER: &str = "/etc/resolv.conf";

/// Directories of a node.
#[derive(clap::Args, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Directories {
    /// YAML files the node runs from
    #[arg(long, value_name = "DIR", default_value = "/etc/ferromesh")]
    pub(crate) config: PathBuf,
    /// Directory that several nodes share: `admin/` is the administrator's, in `nodes/NAME/` node NAME says where its
    /// workloads are
    #[arg(long, value_name = "DIR")]
    pub(crate) shared: Option<PathBuf>,
    /// What is remembered across restarts: identity numbers, accepted objects, changes to the host
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ferromesh")]
    pub(crate) state: PathBuf,
    /// Socket, namespaces, log; a reboot empties it
    #[arg(long, value_name = "DIR", default_value = "/run/ferromesh")]
    pub(crate) run_dir: PathBuf,
    /// Where maps and links are pinned; must be on bpffs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/ferromesh")]
    pub(crate) pins: PathBuf,
}

impl Directories {
    /// The agent's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// What an agent started by `up` says.
    pub(crate) fn log(&self) -> PathBuf {
        self.run_dir.join("agent.log")
    }

    /// What no workload may see.
    pub(crate) fn hidden(&self) -> Vec<PathBuf> {
        vec![self.config.clone(), self.state.clone(), self.run_dir.clone()]
    }

    /// What the endpoints of a node in this world are made with.
    pub(crate) fn endpoints(&self, world: &World) -> linux::Result<endpoint::Config> {
        let configuration = &world.configuration;
        let cgroup = match &configuration.cgroup_root {
            Some(cgroup) => cgroup.clone(),
            None => linux::cgroup::hierarchy()?.join("ferromesh"),
        };
        let resolver = endpoint::HostResolver {
            file: PathBuf::from(RESOLVER),
            domain: configuration.cluster_domain.clone(),
        };
        Ok(endpoint::Config {
            host_resolver: configuration.host_resolver.then_some(resolver),
            run_dir: self.run_dir.clone(),
            state_dir: self.state.clone(),
            cgroup,
            ipv4_pool: configuration.ipv4_pool,
            ipv6_pool: configuration.ipv6_pool,
            mtu: configuration.mtu,
            service_pools: vec![
                configuration.ipv4_service_pool.into(),
                configuration.ipv6_service_pool.into(),
            ],
            masquerade_ports: (configuration.ipv4_masquerade || configuration.ipv6_masquerade)
                .then(|| configuration.masquerade_ports.clone()),
        })
    }

    /// The cgroup whose processes reach services by their VIPs; it holds the workloads' own.
    pub(crate) fn service_cgroup(world: &World) -> linux::Result<PathBuf> {
        match &world.configuration.service_cgroup {
            Some(cgroup) => Ok(cgroup.clone()),
            None => linux::cgroup::hierarchy(),
        }
    }
}
