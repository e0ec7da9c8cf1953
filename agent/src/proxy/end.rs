//! How a connection ended, as its path reports it to the record.

use std::future::Future;

use futures::FutureExt;
use tokio::net::TcpStream;

use super::deliver::{self, Outcome};
use crate::lifecycle::Stop;
use crate::model::Cause;

pub(super) struct End {
    pub cause: Cause,
    pub detail: Option<String>,
}

impl End {
    /// Ends a connection that was never delivered: the application gets a reset, not a clean end, which
    /// it could take for an empty answer.
    pub fn refused(stream: TcpStream, cause: Cause, why: String) -> Self {
        deliver::reset(stream);
        Self { cause, detail: Some(why) }
    }
}

/// What `connecting` answers; unless the client resets its connection first, or somebody ends it. A
/// client that has only sent FIN may well wait for an answer.
///
/// `connecting` is boxed, since a task is as large as the largest thing that it ever waits for, for as long
/// as the connection lives.
pub(super) fn while_wanted<'a, T>(
    client: &'a TcpStream,
    stop: &'a Stop,
    connecting: impl Future<Output = T> + Send + 'a,
) -> impl Future<Output = Result<T, (Cause, String)>> + Send + 'a
where
    T: 'a,
{
    let connecting = connecting.boxed();
    async move {
        tokio::select! {
            answer = connecting => Ok(answer),
            error = deliver::broken(client) => Err((Cause::ClientReset, error.to_string())),
            cause = stop.ended() => Err((cause, "ended while connecting".into())),
        }
    }
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> Self {
        Self { cause: outcome.cause, detail: outcome.detail }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = TcpStream::connect(listener.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dial, listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn a_client_that_resets_is_not_connected_for_also_when_bytes_came_before() {
        for words in [&b""[..], b"hello"] {
            let (mut app, ours) = pair().await;
            app.write_all(words).await.unwrap();
            deliver::reset(app);
            let ended = while_wanted(&ours, &Stop::default(), pending::<()>()).await;
            assert_eq!(ended.unwrap_err().0, Cause::ClientReset);
        }
    }

    #[tokio::test]
    async fn a_client_that_has_said_all_is_connected_for() {
        let (mut app, ours) = pair().await;
        app.shutdown().await.unwrap();
        ours.readable().await.unwrap();
        let stop = Stop::default();
        let mut waiting = pin!(while_wanted(&ours, &stop, pending::<()>()));
        for _ in 0..10 {
            assert!(futures::poll!(waiting.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        stop.end(Cause::Drained);
        assert_eq!(waiting.await.unwrap_err().0, Cause::Drained);
    }
}
