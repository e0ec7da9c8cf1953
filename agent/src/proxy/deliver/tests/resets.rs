//! A reset stays a reset, and is recorded as what it was.

use std::future::Future;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::super::reset;
use super::world::*;
use crate::model::Cause::{self, *};
use crate::proxy::tunnel::testing::{key, pod, request};
use crate::proxy::tunnel::*;

/// Fails a test that would hang; never what makes one pass.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// What the two agents record; the plain one is alone and is the first.
async fn assert_causes(w: World, expected: Cause, between: Between) {
    let agents = w.agents.len();
    assert_eq!(within("outcome", w.causes()).await, vec![expected; agents], "{between:?}");
}

/// The client hangs up with RST, at each point of a connection's life.
#[tokio::test]
async fn the_clients_reset_reaches_the_server() {
    for between in BOTH {
        for ended_before in ["nothing", "client", "server"] {
            let mut w = World::new(between).await;
            chat(&mut w.client, &mut w.server, "hello").await;
            match ended_before {
                "client" => {
                    w.client.shutdown().await.unwrap();
                    assert_eq!(w.server.read(&mut [0]).await.unwrap(), 0);
                }
                "server" => {
                    w.server.shutdown().await.unwrap();
                    assert_eq!(w.client.read(&mut [0]).await.unwrap(), 0);
                }
                _ => {}
            }
            let World { client, mut server, agents, pool, cable, drain } = w;
            hang_up(client);
            if ended_before == "client" {
                // Who has seen the end of its peer's bytes learns of the reset by writing.
                within("reset", async { while server.write_all(&[0; 4096]).await.is_ok() {} }).await;
            } else {
                let (_, end) = within("reset", read_all(&mut server)).await;
                assert_reset(&end, &format!("{between:?} {ended_before}"));
            }
            let (client, _) = tcp_pair().await;
            let w = World { client, server, agents, pool, cable, drain };
            assert_causes(w, ClientReset, between).await;
        }
    }
}

#[tokio::test]
async fn the_servers_reset_reaches_the_client_after_its_bytes() {
    for between in BOTH {
        for answer in [0, 5, 100_000] {
            let mut w = World::new(between).await;
            chat(&mut w.client, &mut w.server, "question").await;
            let answer = vec![b'a'; answer];
            w.server.write_all(&answer).await.unwrap();
            let World { mut client, server, agents, pool, cable, drain } = w;
            // Unread bytes make the kernel answer with RST when the socket closes, after the data.
            client.write_all(b"more than the server cares for").await.unwrap();
            within("arrival", server.peek(&mut [0])).await.unwrap();
            drop(server);
            let (got, end) = within("reset", read_all(&mut client)).await;
            assert_eq!(got.len(), answer.len(), "{between:?}: bytes that came before the reset");
            assert_reset(&end, "client");
            let (server, _) = tcp_pair().await;
            assert_causes(World { client, server, agents, pool, cable, drain }, ServerReset, between).await;
        }
    }
}

/// The server does not read, everything in between is full, and the client hangs up: nobody reads its
/// socket at that moment, and still it is noticed.
#[tokio::test]
async fn a_reset_is_noticed_while_all_is_full() {
    for between in BOTH {
        let World { mut client, mut server, agents, pool, cable, drain } = World::new(between).await;
        let junk = vec![7; 1 << 16];
        while let Ok(written) = timeout(Duration::from_millis(300), client.write_all(&junk)).await {
            written.unwrap();
        }
        hang_up(client);
        let agents_ended = async {
            let mut causes = Vec::new();
            for agent in agents {
                causes.push(agent.ended.await.unwrap().cause);
            }
            causes
        };
        let causes = within("outcome", agents_ended).await;
        assert!(causes.iter().all(|c| *c == ClientReset), "{between:?} {causes:?}");
        let (_, end) = within("reset", read_all(&mut server)).await;
        assert_reset(&end, "server");
        drop((pool, cable, drain));
    }
}

/// The policy changed: both applications see a reset, the agents record which of them decided.
#[tokio::test]
async fn a_revoked_connection_is_reset_at_both_ends() {
    let mut w = World::new(Between::Tunnel).await;
    chat(&mut w.client, &mut w.server, "hello").await;
    w.agents[1].stop.end(PolicyRevoked);
    assert_reset(&within("reset", read_all(&mut w.client)).await.1, "client");
    assert_reset(&within("reset", read_all(&mut w.server)).await.1, "server");
    assert_eq!(w.causes().await, [DeniedByPeer, PolicyRevoked]);

    let mut w = World::new(Between::Plain).await;
    chat(&mut w.client, &mut w.server, "hello").await;
    w.agents[0].stop.end(PolicyRevoked);
    assert_reset(&within("reset", read_all(&mut w.client)).await.1, "client");
    assert_reset(&within("reset", read_all(&mut w.server)).await.1, "server");
    assert_eq!(w.causes().await, [PolicyRevoked]);
}

/// A connection that cannot be cut is idle, half closed, or full; here half closed.
#[tokio::test]
async fn the_drain_deadline_resets_and_says_so() {
    let mut w = World::new(Between::Tunnel).await;
    chat(&mut w.client, &mut w.server, "hello").await;
    w.client.shutdown().await.unwrap();
    assert_eq!(w.server.read(&mut [0]).await.unwrap(), 0);
    w.drain.begin.cancel();
    chat(&mut w.server, &mut w.client, "still here").await;
    w.drain.cut.end(Drained);
    assert_reset(&within("reset", read_all(&mut w.client)).await.1, "client");
    assert_eq!(w.causes().await, [TunnelFailed, Drained]);
}

#[tokio::test]
async fn the_end_of_a_pods_pool_is_its_connections_cause() {
    let mut w = World::new(Between::Tunnel).await;
    chat(&mut w.client, &mut w.server, "hello").await;
    w.pool.close_all(PodGone);
    assert_reset(&within("reset", read_all(&mut w.client)).await.1, "client");
    assert_reset(&within("reset", read_all(&mut w.server)).await.1, "server");
    assert_eq!(w.causes().await, [PodGone, TunnelFailed]);
}

/// The peer's agent died. Half of a response must not look like a whole one.
#[tokio::test]
async fn a_broken_tunnel_is_no_end_in_order() {
    let mut w = World::new(Between::Tunnel).await;
    chat(&mut w.server, &mut w.client, "half an ans").await;
    w.cable.cancel();
    assert_reset(&within("reset", read_all(&mut w.client)).await.1, "client");
    assert_reset(&within("reset", read_all(&mut w.server)).await.1, "server");
    assert_eq!(w.causes().await, [TunnelFailed, TunnelFailed]);
}

/// The client's agent accepted already when the server's says no: that too has to look like refusal.
#[tokio::test]
async fn a_refused_upstream_resets_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let tls = accept_tls(listener.accept().await.unwrap().0).await;
        let refuse = |i: Inbound| i.respond.reject(StatusCode::SERVICE_UNAVAILABLE);
        let settings = ServerSettings::default();
        serve(tls, &settings, Drain::default(), refuse).await;
    });
    let pool = Pool::new(pod("a"), ClientSettings::default());
    let (mut client, client_side) = tcp_pair().await;
    client.write_all(b"sent too early").await.unwrap();
    let error = pool.open(&key(1), &request(), || connect_tls(addr)).await.err().unwrap();
    assert_eq!((error.cause(), error.status()), (RejectedByPeer, Some(StatusCode::SERVICE_UNAVAILABLE)));
    reset(client_side);
    assert_reset(&within("reset", read_all(&mut client)).await.1, "client");
}

/// The task that copies is aborted: nobody may take that for an end in order.
#[tokio::test]
async fn a_dropped_copy_resets_both() {
    for between in BOTH {
        let mut w = World::new(between).await;
        chat(&mut w.server, &mut w.client, "half an ans").await;
        w.agents[0].ended.abort();
        assert_reset(&within("reset", read_all(&mut w.client)).await.1, "client");
        assert_reset(&within("reset", read_all(&mut w.server)).await.1, "server");
    }
}

/// ztunnel drops streams with CANCEL, and writes END_STREAM where an application's connection was reset:
/// the first is a reset for us, the second cannot be told from an end in order.
#[tokio::test]
async fn how_a_peers_resets_are_read() {
    for (reason, cause) in [
        (Reason::CONNECT_ERROR, Some(ServerReset)),
        (Reason::CANCEL, Some(ServerReset)),
        (Reason::INADEQUATE_SECURITY, Some(DeniedByPeer)),
        (Reason::HTTP_1_1_REQUIRED, Some(NotHttp)),
        (Reason::INTERNAL_ERROR, Some(TunnelFailed)),
        (Reason::PROTOCOL_ERROR, Some(TunnelFailed)),
        (Reason::NO_ERROR, None),
    ] {
        let pool = Pool::new(pod("a"), ClientSettings::default());
        let (near, mut far) = tunnel(&pool, &Default::default(), Drain::default()).await;
        let (mut client, client_side) = tcp_pair().await;
        let copying = tokio::spawn(async move {
            let stop = crate::lifecycle::Stop::default();
            let counts = Default::default();
            super::super::copy(client_side, near, crate::model::Direction::Outbound, &counts, &stop, None)
                .await
        });
        far.reset(reason);
        let (_, end) = within("end", read_all(&mut client)).await;
        match cause {
            Some(_) => assert_reset(&end, &format!("{reason:?}")),
            None => assert!(end.is_ok(), "{reason:?}"),
        }
        let outcome = within("outcome", copying).await.unwrap();
        assert_eq!(outcome.cause, cause.unwrap_or(Closed), "{reason:?}");
    }
}

/// A reader who is slow gets some time for what came before the reset, not for ever.
#[tokio::test]
async fn a_reset_waits_only_so_long_for_a_reader_who_does_not_read() {
    let World { client, mut server, agents, .. } = World::new(Between::Tunnel).await;
    let junk = vec![7; 1 << 16];
    while let Ok(written) = timeout(Duration::from_millis(300), server.write_all(&junk)).await {
        written.unwrap();
    }
    let begun = Instant::now();
    hang_up(server);
    for agent in agents {
        let outcome = within("outcome", agent.ended).await.unwrap();
        assert_eq!(outcome.cause, ServerReset);
    }
    // One second at each end; the rest is leeway for a machine that is busy.
    assert!(begun.elapsed() < Duration::from_secs(20));
    let _: TcpStream = client;
}
