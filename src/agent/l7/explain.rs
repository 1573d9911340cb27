//! `ferromesh proxy explain`: who is meant and which way the connection goes is known here; what becomes of the request the
//! running proxy is asked; whose rules those are is known here again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use control::{Connection, NamedEnd, Planned, World};
use mesh::flow::Verdict;
use mesh::workload::EndpointId;
use node_api::proxy::{
    ExplainQuery, ExplainedEnd, KernelWay, ProxyAnswer, ProxyBudgets, ProxyExplained, ProxyQuestion,
    ProxySays, ProxySupposed, SupposedEnd, SupposedRequest,
};

use super::keeper::Askers;

/// The question, and what the agent's loop knows of it.
pub(in crate::agent) struct Asked {
    pub(in crate::agent) query: ExplainQuery,
    pub(in crate::agent) world: Arc<World>,
    pub(in crate::agent) planned: Arc<Planned>,
    pub(in crate::agent) askers: Option<Askers>,
    /// Why the latest rules of an endpoint are not in force.
    pub(in crate::agent) refusals: BTreeMap<EndpointId, String>,
    /// A request without a number is given one.
    pub(in crate::agent) request_id: bool,
}

/// Nobody answers.
pub(in crate::agent) const SILENT: &str =
    "the L7 proxy does not answer; see `ferromesh status`, and proxy.log beside the agent's socket";

impl Asked {
    /// Asks the proxy, if the connection would come to it.
    pub(in crate::agent) async fn answer(self) -> Result<ProxyExplained, String> {
        let ExplainQuery { from, to, port, asked } = &self.query;
        check(asked)?;
        let connection = Connection::find(&self.world, &self.planned, from, to, *port)
            .map_err(|error| error.to_string())?;
        let [client, server] = &connection.ends;
        let host = asked.host.clone().unwrap_or_else(|| host(server, connection.port));
        let request = SupposedRequest { host: Some(host), ..asked.clone() };
        let way = connection.kernel.way;
        let proxy = match way {
            KernelWay::Proxy => Some(self.ask(&connection, &request).await?),
            KernelWay::Direct | KernelWay::Dropped => None,
        };
        let passes = proxy.as_ref().is_none_or(|says| says.verdict != Verdict::Dropped);
        let mut notes = connection.notes.clone();
        notes.extend(proxy.iter().flat_map(|says| self.notes(&connection, says)));
        Ok(ProxyExplained {
            allowed: way != KernelWay::Dropped && passes,
            from: explained(client),
            to: explained(server),
            port: connection.port,
            request,
            kernel: connection.kernel.clone(),
            proxy,
            notes,
        })
    }

    async fn ask(&self, connection: &Connection, request: &SupposedRequest) -> Result<ProxySays, String> {
        let [client, server] = connection.ends.each_ref().map(supposed);
        let asked = ProxySupposed { client, server, port: connection.port, request: request.clone() };
        let askers = self.askers.as_ref().ok_or(SILENT)?;
        let answer = askers.ask(ProxyQuestion::Explain(Box::new(asked))).await;
        let Some(ProxyAnswer::Explained(mut says)) = answer else { return Err(SILENT.to_owned()) };
        for judge in &mut says.judges {
            let planned = self.planned.plan.endpoints.get(&judge.endpoint);
            judge.workload = planned.map(|planned| planned.endpoint.workload.to_string());
            judge.refused = self.refusals.get(&judge.endpoint).cloned();
            let direction = judge.direction;
            let readings = judge.readings.iter_mut().filter_map(|reading| reading.rule.as_mut());
            for rule in readings.chain(judge.nearest.iter_mut().map(|near| &mut near.rule)) {
                rule.places = connection.places(&self.world, &self.planned, direction, &rule.rule);
            }
        }
        Ok(*says)
    }

    fn notes(&self, connection: &Connection, says: &ProxySays) -> Vec<String> {
        let [client, server] = &connection.ends;
        let ends = [(client, says.client_identity), (server, says.server_identity)];
        let differ = ends.into_iter().filter(|(end, seen)| *seen != Some(end.identity));
        let differ = differ.map(|(end, seen)| {
            let seen = seen.map_or_else(|| "nobody".to_owned(), |seen| format!("identity {seen}"));
            format!("the proxy takes {} for {seen}, and policy has it as {}", end.name, end.identity)
        });
        let has_number =
            self.query.asked.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-request-id"));
        let is_given = self.request_id && !has_number && !says.forwarded.is_empty();
        let given = is_given.then(|| "requestId is set: it is given an X-Request-ID besides".to_owned());
        differ.chain(given).collect()
    }
}

/// Nothing of a request can have a line break.
fn check(request: &SupposedRequest) -> Result<(), String> {
    let headers = request.headers.iter().flat_map(|(name, value)| [("header", name), ("header", value)]);
    let parts = [("method", &request.method), ("path", &request.path)].into_iter();
    for (field, text) in parts.chain(request.host.iter().map(|host| ("host", host))).chain(headers) {
        if text.contains(['\r', '\n']) {
            return Err(format!("{field} {text:?}: has a line break; write it in one line"));
        }
    }
    Ok(())
}

/// As a client says that calls an address.
fn host(server: &NamedEnd, port: u16) -> String {
    match server.address {
        Some(IpAddr::V6(address)) if port == 80 => format!("[{address}]"),
        Some(address) if port == 80 => address.to_string(),
        Some(address) => SocketAddr::new(address, port).to_string(),
        None => server.name.clone(),
    }
}

fn supposed(end: &NamedEnd) -> SupposedEnd {
    match end.address {
        Some(address) => SupposedEnd { address, identity: None },
        None => SupposedEnd { address: Ipv4Addr::UNSPECIFIED.into(), identity: Some(end.identity) },
    }
}

fn explained(end: &NamedEnd) -> ExplainedEnd {
    let NamedEnd { name, identity, address, endpoint, .. } = end.clone();
    ExplainedEnd { name, address, identity, here: endpoint.is_some() }
}

/// Names the workloads that are endpoints of this node.
pub(in crate::agent) fn name(planned: &Planned, mut rows: Vec<ProxyBudgets>) -> Vec<ProxyBudgets> {
    let endpoints = planned.plan.endpoints.values().map(|it| &it.endpoint);
    let names: BTreeMap<_, _> = endpoints.map(|it| (it.instance, &it.workload)).collect();
    for row in &mut rows {
        row.workload = row.instance.and_then(|instance| names.get(&instance)).map(|name| (*name).clone());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_is_refused_and_a_host_is_what_a_client_would_say() {
        let request = SupposedRequest {
            http2: false,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            headers: vec![("x-a".to_owned(), "b\r\nx-b: c".to_owned())],
        };
        let error = check(&request).unwrap_err();
        assert_eq!(error, "header \"b\\r\\nx-b: c\": has a line break; write it in one line");
        assert_eq!(check(&SupposedRequest { headers: Vec::new(), ..request }), Ok(()));
        let end = |address: Option<&str>| NamedEnd {
            name: "default/deathstar".to_owned(),
            identity: mesh::identity::Identity::WORLD,
            address: address.map(|address| address.parse().unwrap()),
            endpoint: None,
            is_workload: true,
        };
        assert_eq!(host(&end(Some("10.1.0.3")), 80), "10.1.0.3");
        assert_eq!(host(&end(Some("10.1.0.3")), 8080), "10.1.0.3:8080");
        assert_eq!(host(&end(Some("fd00::3")), 80), "[fd00::3]");
        assert_eq!(host(&end(None), 80), "default/deathstar");
    }
}
