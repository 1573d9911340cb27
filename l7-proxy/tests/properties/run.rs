//! Conversations in memory.

/// Runs a conversation in memory, by a clock that moves when nothing else does.
pub fn run<T>(conversation: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(conversation))
}
