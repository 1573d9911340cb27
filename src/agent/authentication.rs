//! Answers of which others know than the loop: asked of the processes that the agent keeps, beside the loop.

use std::sync::Arc;

use node_api::auth::{AuthAnswer, AuthQuestion};
use node_api::proxy::{ExplainQuery, ProxyAnswer, ProxyQuestion};
use node_api::{Reply, Request, TraceQuery};

use super::auth::Asked;
use super::l7;
use super::node::Node;
use super::rows::pieces;
use super::socket::Later;

impl Node {
    /// The answer to a question that others than the loop must be asked, if it is one.
    pub(super) fn later(&mut self, question: &Request) -> Option<Later> {
        match question {
            Request::Auth(question) => Some(self.ask(question.clone())),
            Request::AuthWhy(query) => Some(self.why(query.clone())),
            Request::JoinToken { node } => Some(self.join_token(node.clone())),
            Request::TrustBundle => Some(self.trust_bundle()),
            Request::ProxyConnections => Some(self.proxy_connections()),
            Request::ProxyBudgets => Some(self.proxy_budgets()),
            Request::ProxyExplain(query) => Some(self.proxy_explain(query)),
            Request::ProxyRestart => Some(self.proxy_restart()),
            _ => None,
        }
    }

    fn ask(&self, question: AuthQuestion) -> Later {
        let askers = self.auth.askers();
        Box::pin(async move {
            // Nobody here must authenticate to anybody.
            let Some(askers) = askers else { return vec![Reply::Done] };
            match askers.ask(question).await {
                Some(AuthAnswer::Certificates(rows)) => pieces(rows, |_| 1, Reply::Certificates),
                Some(AuthAnswer::Pairs(rows)) => pieces(rows, |_| 1, Reply::Pairs),
                Some(AuthAnswer::Nodes(rows)) => pieces(rows, |_| 1, Reply::Nodes),
                Some(AuthAnswer::Counters(_)) | None => vec![Reply::Error(
                    "the auth-agent does not answer; see `ferromesh status`, and auth.log beside the agent's socket"
                        .to_owned(),
                )],
            }
        })
    }

    fn proxy_connections(&self) -> Later {
        let askers = self.l7.askers();
        Box::pin(async move {
            // Nothing goes by it.
            let Some(askers) = askers else { return vec![Reply::Done] };
            match askers.ask(ProxyQuestion::Connections).await {
                Some(ProxyAnswer::Connections(rows)) => pieces(rows, |_| 1, Reply::ProxyConnections),
                Some(_) | None => vec![Reply::Error(l7::SILENT.to_owned())],
            }
        })
    }

    fn proxy_budgets(&self) -> Later {
        let (askers, planned) = (self.l7.askers(), Arc::clone(&self.planned));
        Box::pin(async move {
            // Nobody has anything of it.
            let Some(askers) = askers else { return vec![Reply::Done] };
            match askers.ask(ProxyQuestion::Budgets).await {
                Some(ProxyAnswer::Budgets(rows)) => {
                    pieces(l7::name(&planned, rows), |_| 1, Reply::ProxyBudgets)
                }
                Some(_) | None => vec![Reply::Error(l7::SILENT.to_owned())],
            }
        })
    }

    fn proxy_explain(&self, query: &ExplainQuery) -> Later {
        let asked = l7::Asked {
            query: query.clone(),
            world: Arc::clone(&self.world),
            planned: Arc::clone(&self.planned),
            askers: self.l7.askers(),
            refusals: self.l7.refusals(),
            request_id: self.l7.gives_request_ids(),
        };
        Box::pin(async move {
            let explained = asked.answer().await;
            vec![explained.map_or_else(Reply::Error, |it| Reply::ProxyExplained(Box::new(it)))]
        })
    }

    fn proxy_restart(&self) -> Later {
        let askers = self.l7.askers();
        Box::pin(async move {
            let restarted =
                match askers {
                    Some(askers) => askers.restart().await,
                    None => Err("there is no L7 proxy: no policy with HTTP rules is about an endpoint here"
                        .to_owned()),
                };
            vec![restarted.map_or_else(Reply::Error, Reply::ProxyRestarted)]
        })
    }

    fn why(&self, query: TraceQuery) -> Later {
        let traced = control::trace(&self.world, &self.planned, &query);
        let (auth, askers) = (self.planned.plan.auth.clone(), self.auth.askers());
        Box::pin(async move {
            vec![match traced {
                Ok(trace) => Reply::AuthWhy(Asked { query, trace, auth, askers }.answer().await),
                Err(error) => Reply::Error(error.to_string()),
            }]
        })
    }

    fn join_token(&mut self, node: String) -> Later {
        let authority = self.auth.authority();
        let address = self.world.configuration.ca_address;
        Box::pin(async move {
            let token = match authority {
                Some(authority) => authority.token(&node).await,
                None => Err(elsewhere(address)),
            };
            vec![token.map_or_else(Reply::Error, Reply::Text)]
        })
    }

    fn trust_bundle(&mut self) -> Later {
        let authority = self.auth.authority();
        let (bundle, address) = (self.auth.bundle(), self.world.configuration.ca_address);
        Box::pin(async move {
            let text = match authority {
                Some(authority) => authority.ready().await.and_then(|()| bundle.read()),
                None => Err(elsewhere(address)),
            };
            vec![text.map_or_else(Reply::Error, Reply::Text)]
        })
    }
}

fn elsewhere(address: Option<std::net::SocketAddr>) -> String {
    let address = address.map(|address| format!(" ({address})")).unwrap_or_default();
    format!("this node has no CA of its own: caAddress{address}; ask the node that has it")
}
