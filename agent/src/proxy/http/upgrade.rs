//! Streams that turned from HTTP into something else, by the application's consent (WebSocket): bytes both
//! ways, for as long as policy allows the request that began it.

use std::sync::Arc;

use http::Version;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::Connection;
use super::open::Serving;
use crate::model::Cause;

/// Carries bytes once both ends have switched.
pub(super) fn join(
    connection: &Arc<Connection>,
    client: OnUpgrade,
    application: OnUpgrade,
    serving: Arc<Serving>,
    version: Version,
) {
    let of = Arc::clone(connection);
    let ended = connection.ended.clone();
    connection.tunnels.spawn(async move {
        let carrying = async {
            let (client, application) = futures::future::try_join(client, application).await?;
            let (mut client, mut application) = (TokioIo::new(client), TokioIo::new(application));
            tokio::io::copy_bidirectional(&mut client, &mut application).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        // Whatever ends it early drops both ends, which resets them.
        let failed = tokio::select! {
            carried = carrying => carried.err().map(|e| (Cause::ServerReset, e.to_string())),
            () = serving.revoked.cancelled() => {
                Some((Cause::PolicyRevoked, "its request is no longer allowed".to_owned()))
            }
            () = ended.cancelled() => None,
        };
        // In HTTP/2 other streams go on.
        if let Some((cause, why)) = failed.filter(|_| version < Version::HTTP_2) {
            of.fail(cause, why);
        }
    });
}
