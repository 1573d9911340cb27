//! What is said to a process of the proxy that is of another build, and what it says.
//!
//! Promise: it is told nothing but [`ToProxy::Drain`], for what else is said it could take for something else, and let through
//! what it must not. So with the first change of the rules that it has it must end.

use std::time::Duration;

use node_api::proxy::{FromProxy, ToProxy};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Sink;
use super::talk::{GRACE, Lost, Numbered, Told, WITHIN, drain, ended, lingers, over};
use crate::agent::auth::process::Link;

/// Goes on until it is lost. It has the rules of the plan of this number.
pub(super) async fn escort(
    mut link: Link<ToProxy, serde_json::Value>,
    mut told: Told,
    plan: u64,
    sink: Sink,
    patience: Duration,
) -> Lost {
    let mut end = None;
    loop {
        let due = *told.drain.borrow_and_update();
        if due && !matches!(timeout(patience, link.channel.send(&drain())).await, Ok(Ok(()))) {
            return Lost::Hangs("it cannot be told to end by and by".to_owned());
        }
        end = end.or(due.then(|| Instant::now() + WITHIN + GRACE));
        loop {
            tokio::select! {
                biased;
                () = differs(&mut told.wanted, plan) => {
                    return Lost::Hangs("rules have changed, which one of another build cannot be told".to_owned());
                }
                Ok(()) = told.drain.changed() => break,
                () = over(end) => return lingers(),
                message = link.channel.receive() => {
                    let message = match message {
                        Ok(message) => message,
                        Err(error) => return ended(error),
                    };
                    if message["message"] != "flows" && message["message"] != "report" {
                        continue;
                    }
                    match serde_json::from_value(message) {
                        Ok(FromProxy::Flows(flows)) => sink.take(flows),
                        Ok(FromProxy::Report(report)) => sink.report(*report),
                        // It says it otherwise than this build. It waits for its answer all the same.
                        Ok(_) | Err(_) => {}
                    }
                    if !matches!(timeout(patience, link.channel.send(&ToProxy::Taken)).await, Ok(Ok(()))) {
                        return Lost::Hangs("it does not listen".to_owned());
                    }
                }
            }
        }
    }
}

/// Until another plan is wanted than the one of this number, or none any more.
async fn differs(wanted: &mut watch::Receiver<Numbered>, plan: u64) {
    let _ = wanted.wait_for(|(number, _)| *number != plan).await;
}
