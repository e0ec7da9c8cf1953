//! Ends what lives from outside, with the truth about why.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::model::Cause;

/// Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    token: CancellationToken,
    cause: OnceLock<Cause>,
    above: Option<Stop>,
}

impl Stop {
    /// One that ends by itself, or together with this one and for its cause.
    pub fn child(&self) -> Self {
        let token = self.inner.token.child_token();
        Self { inner: Arc::new(Inner { token, cause: OnceLock::new(), above: Some(self.clone()) }) }
    }

    /// The first cause counts.
    pub fn end(&self, cause: Cause) {
        let _ = self.inner.cause.set(cause);
        self.inner.token.cancel();
    }

    /// Ready once what holds this shall end.
    pub fn ended(&self) -> impl Future<Output = Cause> + Send + use<'_> {
        let token = self.inner.token.cancelled();
        async move {
            token.await;
            // Only `end` cancels, here or above, and it sets the cause first.
            self.cause().unwrap_or(Cause::Internal)
        }
    }

    fn cause(&self) -> Option<Cause> {
        self.inner.cause.get().copied().or_else(|| self.inner.above.as_ref()?.cause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_ends_for_the_cause_above_or_for_its_own() {
        let pod = Stop::default();
        let (one, other) = (pod.child(), pod.child());
        one.end(Cause::PolicyRevoked);
        assert_eq!(one.ended().await, Cause::PolicyRevoked);
        assert!(futures::poll!(std::pin::pin!(other.ended())).is_pending());
        assert!(futures::poll!(std::pin::pin!(pod.ended())).is_pending());
        pod.end(Cause::PodGone);
        pod.end(Cause::Drained);
        assert_eq!(other.ended().await, Cause::PodGone);
        assert_eq!(one.ended().await, Cause::PolicyRevoked);
        assert_eq!(pod.child().ended().await, Cause::PodGone);
    }
}
