//! The other proxies: where they are, and how they are told to do what ours does.
//!
//! Each judges method, path and source of a request, logs a line for each, keeps connections for as long as clients do, and
//! adds nothing to what it forwards that it need not.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PROXY, process::Process};

/// Where requests are to go.
pub(super) enum Before {
    /// To whom they were sent, in the name of who sent them.
    Called,
    /// There.
    Server(u16),
}

/// A proxy to be compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    Envoy,
    Haproxy,
    Nginx,
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }

    /// Where it is installed.
    fn program(self) -> Result<PathBuf, String> {
        let candidates: Vec<PathBuf> = match self {
            Self::Envoy => vec![directory().join("envoy")],
            Self::Haproxy => vec!["/usr/sbin/haproxy".into(), "/usr/local/sbin/haproxy".into()],
            Self::Nginx => vec!["/usr/sbin/nginx".into(), "/usr/local/sbin/nginx".into()],
        };
        candidates
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| format!("no {}: deploy/peers installs it", self.name()))
    }

    /// Starts it where `place` puts a program, listening at a port of 127.0.0.1; `source` is who may ask. Its files are in
    /// `files`; whoever reads logs listens at `sink`.
    pub(super) fn start(
        self,
        place: impl FnOnce(&Path) -> Command,
        files: &Path,
        port: u16,
        before: &Before,
        (source, sink): (&str, u16),
    ) -> Result<Process, String> {
        let program = self.program()?;
        let (name, text) = match self {
            Self::Envoy => ("envoy.yaml", envoy(port, before, source)),
            Self::Haproxy => ("haproxy.cfg", haproxy(port, before, source, sink)),
            Self::Nginx => ("nginx.conf", nginx(port, before, source, files)?),
        };
        let file = files.join(format!("{port}-{name}"));
        std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut command = place(&program);
        match self {
            Self::Envoy => {
                command.args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "-c"])
            }
            Self::Haproxy => command.args(["-db", "-f"]),
            Self::Nginx => command.args(["-c"]),
        };
        Ok(Process::start(PROXY, command.arg(&file)))
    }
}

/// Where `deploy/peers` puts what no distribution has: beside the directory of the profile.
fn directory() -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let folder = this.ancestors().find(|path| path.join("peers").is_dir());
    folder.unwrap_or(Path::new("target")).join("peers")
}

const ENVOY: &str = r#"
static_resources:
  listeners:
  - name: in
    address: { socket_address: { address: 127.0.0.1, port_value: PORT } }
    enable_reuse_port: false
    tcp_backlog_size: 4096
    FILTERS
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: AUTO
          generate_request_id: false
          server_header_transformation: PASS_THROUGH
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: REJECT_REQUEST
          access_log:
          - name: file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/null
              log_format:
                json_format:
                  time: "%START_TIME%"
                  source: "%DOWNSTREAM_REMOTE_ADDRESS%"
                  destination: "%UPSTREAM_HOST%"
                  method: "%REQ(:METHOD)%"
                  authority: "%REQ(:AUTHORITY)%"
                  path: "%REQ(:PATH)%"
                  protocol: "%PROTOCOL%"
                  code: "%RESPONSE_CODE%"
                  flags: "%RESPONSE_FLAGS%"
                  duration: "%DURATION%"
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route: { cluster: up, timeout: 0s }
          http_filters:
          - name: rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  bench:
                    permissions:
                    - and_rules:
                        rules:
                        - header: { name: ":method", string_match: { safe_regex: { regex: "GET|POST" } } }
                        - url_path: { path: { safe_regex: { regex: "/bench/.*" } } }
                    principals:
                    - direct_remote_ip: { address_prefix: SOURCE, prefix_len: 32 }
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: up
    connect_timeout: 5s
    CLUSTER
    circuit_breakers:
      thresholds:
      - { max_connections: 16384, max_pending_requests: 16384, max_requests: 16384 }
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        use_downstream_protocol_config: { http2_protocol_options: {} }
"#;

fn envoy(port: u16, before: &Before, source: &str) -> String {
    let (filters, cluster) = match before {
        Before::Called => (
            format!(
                r#"transparent: true
    listener_filters:
    - name: original_dst
      typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst }}
    - name: original_src
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc
        mark: {}"#,
                abi::MARK_FROM_PROXY
            ),
            "type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED".to_owned(),
        ),
        Before::Server(server) => (
            String::new(),
            format!(
                "type: STATIC\n    load_assignment: {{ cluster_name: up, endpoints: [ {{ lb_endpoints: [ {{ endpoint: \
                 {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {server} }} }} }} }} ] }} ] }}"
            ),
        ),
    };
    ENVOY
        .replace("PORT", &port.to_string())
        .replace("FILTERS", &filters)
        .replace("CLUSTER\n", &(cluster + "\n"))
        .replace("SOURCE", source)
}

fn haproxy(port: u16, before: &Before, source: &str, sink: u16) -> String {
    let (transparent, from, server) = match before {
        Before::Called => (" transparent", "  source 0.0.0.0 usesrc clientip\n", "0.0.0.0".to_owned()),
        Before::Server(server) => ("", "", format!("127.0.0.1:{server}")),
    };
    format!(
        "global\n  nbthread 1\n  maxconn 4096\n  log ring@log local0\n\
         ring log\n  format rfc5424\n  maxlen 1200\n  size 1048576\n  timeout connect 5s\n  timeout server 10s\n\
         \x20 server sink 127.0.0.1:{sink} log-proto octet-count\n\
         defaults\n  mode http\n  log global\n  option httplog\n  timeout connect 5s\n  timeout client 1h\n\
         \x20 timeout server 1h\n  http-reuse always\n\
         frontend in\n  bind 127.0.0.1:{port}{transparent}\n\
         \x20 acl may_ask src {source}\n  acl may_method method GET POST\n  acl may_path path_reg ^/bench/.*$\n\
         \x20 http-request deny unless may_ask may_method may_path\n  default_backend up\n\
         backend up\n{from}  server up {server} pool-max-conn -1\n"
    )
}

fn nginx(port: u16, before: &Before, source: &str, files: &Path) -> Result<String, String> {
    let Before::Server(server) = before else { return Err("nginx has no transparent listener".to_owned()) };
    let files = files.display();
    Ok(format!(
        "user root;\nworker_processes 1;\ndaemon off;\nmaster_process off;\npid {files}/nginx-{port}.pid;\n\
         error_log stderr error;\nevents {{ worker_connections 8192; }}\n\
         http {{\n  access_log /dev/null combined buffer=64k flush=1s;\n  keepalive_requests 100000000;\n\
         \x20 keepalive_timeout 1h;\n  client_body_temp_path {files}/b; proxy_temp_path {files}/p;\n\
         \x20 fastcgi_temp_path {files}/f; uwsgi_temp_path {files}/u; scgi_temp_path {files}/s;\n\
         \x20 upstream up {{ server 127.0.0.1:{server}; keepalive 1024; keepalive_requests 100000000; }}\n\
         \x20 server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    allow {source}; deny all;\n\
         \x20   location ~ ^/bench/.*$ {{\n      limit_except GET POST {{ deny all; }}\n      proxy_pass http://up;\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_set_header Host $host;\n    }}\n\
         \x20   location / {{ return 403; }}\n  }}\n}}\n"
    ))
}
