//! The connection on which the CA tells of another bundle.
//!
//! Promise: there is at most one; it is made anew, less and less often while that fails, and whenever what it was made
//! with is no longer so.

use std::sync::Arc;

use certs::bundle::{Bundle, Fingerprint};
use certs::enrol::{Client, EnrolError};
use certs::svid::Svid;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::super::trust::Trust;
use super::{Heard, random};
use crate::event::Time;

/// A connection that failed is made again after so long at first, and at last.
const RETRY: (Time, Time) = (1_000_000_000, 30_000_000_000);

/// What has been heard on it: another bundle; none: it is up, and there is none.
pub(in crate::driver) struct Word {
    number: u64,
    result: Result<Option<Bundle>, EnrolError>,
}

/// The connection, or the want of it.
#[derive(Default)]
pub(super) struct Watching {
    /// Of the latest one.
    number: u64,
    open: Option<Open>,
    due: Time,
    failures: u32,
}

/// Ends with this.
struct Open {
    /// The node's certificate that it shows, and the bundle that the node has.
    with: (String, Fingerprint),
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    /// Opens one, unless there is one or it is not yet time.
    pub(super) fn ensure(
        &mut self,
        client: &Client,
        own: &Arc<Svid>,
        trust: &Trust,
        words: &mpsc::Sender<Heard>,
        now: Time,
    ) {
        let domain = own.id().trust_domain();
        let Some(known) = trust.bundles.load().bundle(domain).map(|bundle| bundle.fingerprint()) else {
            return;
        };
        let with = (own.serial().to_owned(), known);
        if self.due > now || self.open.as_ref().is_some_and(|open| open.with == with) {
            return;
        }
        self.number += 1;
        let task = tokio::spawn(listen(client.clone(), Arc::clone(own), known, self.number, words.clone()));
        self.open = Some(Open { with, task: task.abort_handle() });
    }

    /// What was heard, unless that was on an earlier connection.
    pub(super) fn hear(&mut self, word: Word, now: Time) -> Option<Result<Option<Bundle>, String>> {
        if self.open.is_none() || word.number != self.number {
            return None;
        }
        match &word.result {
            Ok(_) => self.failures = 0,
            Err(_) => {
                let wait = RETRY.0.saturating_mul(1 << self.failures.min(10)).min(RETRY.1);
                self.failures = self.failures.saturating_add(1);
                self.end(now.saturating_add(wait / 2 + random(wait / 2)));
            }
        }
        Some(word.result.map_err(|error| error.to_string()))
    }

    /// Nothing more is heard on it; the next is for then at the earliest.
    pub(super) fn end(&mut self, due: Time) {
        (self.open, self.due) = (None, due);
    }
}

async fn listen(client: Client, own: Arc<Svid>, known: Fingerprint, number: u64, words: mpsc::Sender<Heard>) {
    let tell = async |result| words.send(Heard::Word(Word { number, result })).await;
    let mut watch = match client.watch(&own).await {
        Ok(watch) => watch,
        Err(error) => return drop(tell(Err(error)).await),
    };
    loop {
        let result = watch.next(known).await;
        let is_over = !matches!(result, Ok(None));
        if tell(result).await.is_err() || is_over {
            return;
        }
    }
}
