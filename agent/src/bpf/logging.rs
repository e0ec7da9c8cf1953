//! The kernel programs' own messages, on their way to tracing.

use aya_log::EbpfLogger;
use log::Log;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Runs until dropped. Messages go to the `log` crate, which the agent's subscriber bridges.
pub(super) async fn forward(logger: Option<EbpfLogger<&'static dyn Log>>) {
    let Some(logger) = logger else { return };
    // SAFETY: the logger owns its ring's descriptor, which stays the same and open until both are
    // dropped together.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match logger {
        Ok(logger) => logger,
        Err(e) => {
            tracing::warn!(error = %e, "messages of the kernel programs cannot be read");
            return;
        }
    };
    while let Ok(mut guard) = logger.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}
