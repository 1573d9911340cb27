//! The agent: keeps the kernel in line with a directory of YAML files, enrols workloads, answers questions.
//!
//! Build → loop → drain. The loop owns everything and does one thing at a time; what arrives meanwhile waits in a channel.
//! Ending it, however, changes nothing in the kernel: programs, maps and links are pinned, and the next agent adopts
//! them. Only `down` takes them away.

mod answer;
pub(crate) mod auth;
mod authentication;
mod build;
mod change;
mod error;
mod events;
pub(crate) mod l7;
mod node;
mod rows;
mod socket;
mod sockets;
mod switching;

use std::io::{self, Write};
use std::time::Duration;

use linux::netlink::OwnRoutes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

pub(crate) use self::error::AgentError;
use self::node::Node;
use self::socket::Call;
use crate::directories::Directories;
use crate::teardown::teardown;

/// How often expired connections are collected.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How long the answer to `down` may take to be read.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often the kernel's counters are read for `/metrics`.
const COUNTING: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to end. Says `node up` on standard output when policy is in force and the socket answers.
pub(crate) async fn agent(directories: &Directories) -> Result<(), AgentError> {
    // Before they are read, so that no change falls between.
    let mut own_routes = OwnRoutes::listen()?;
    let (mut node, mut source, mut emptied, dns) = Node::build(directories).await?;
    let dns = tokio::spawn(dns.run());
    let (sender, mut calls) = mpsc::channel(64);
    tokio::spawn(socket::serve(directories.socket(), sender, node.ring(), node.monitor())?);
    let metrics = tokio::spawn(node.serve_metrics().await?);
    let events = tokio::spawn(node.read_events()?);
    // Whoever waits for this line may be gone; `println!` would panic.
    let _ = writeln!(io::stdout(), "node up: {}, {} endpoints adopted", node.name(), node.adopted());

    let mut proxied = node.l7.events();
    let [mut housekeeping, mut counting] = [HOUSEKEEPING, COUNTING].map(|period| {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A terminal that closes must not end a node.
    let mut hangup = signal(SignalKind::hangup())?;
    let down = loop {
        source.set_pools_in_use(node.pools_in_use());
        tokio::select! {
            world = source.changed() => node.edit(world).await,
            Some(id) = emptied.next() => node.remove(id).await,
            () = own_routes.changed() => node.readdress().await,
            Some(event) = proxied.recv() => node.proxied(event).await,
            () = node.proven(), if node.is_switching() => {
                // The kernel knows of a proxy before it sends anybody there.
                while let Ok(event) = proxied.try_recv() {
                    node.proxied(event).await;
                }
                node.switch().await;
            }
            _ = housekeeping.tick() => node.housekeeping().await,
            _ = counting.tick() => node.count(),
            () = sleep_until(node.settle_at()), if node.is_unsettled() => node.settle(),
            Some(call) = calls.recv() => match call {
                Call::Down(done) => break Some(done),
                call => node.answer(call).await,
            },
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => {}
        }
    };

    // Whoever starts a node next finds everything free: the ring, the ports, the lock on the pins.
    for task in [events, metrics, dns] {
        task.abort();
        let _ = task.await;
    }
    let endpoints = node.close().await;
    if let Some(done) = down {
        let undone = teardown(directories, &endpoints).await;
        // Who asked may be gone; then there is no one to tell.
        let (told, heard) = oneshot::channel();
        let _ = done.send((undone.map_err(|error| error.to_string()), told));
        let _ = timeout(FAREWELL, heard).await;
    }
    Ok(())
}
