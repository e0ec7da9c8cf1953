//! A pool against peers that behave, and peers that do not. Time stands still unless all tasks wait.

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use http::{Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::super::testing::*;
use super::super::wire::read_frame;
use super::super::*;
use crate::model::Cause;
use crate::tls::Trust;
use crate::tls::testing::{Authority, bundles};

const MINUTE: Duration = Duration::from_secs(60);

fn limited(max_streams: usize) -> ClientSettings {
    ClientSettings { max_streams, ..ClientSettings::default() }
}

async fn echo_peer(far: DuplexStream, _: usize) {
    echo_server(far, ServerSettings::default(), Drain::default()).await;
}

async fn open<C, F, T>(pool: &Pool, n: u8, connector: C) -> Result<TunnelStream, TunnelError>
where
    C: Fn() -> F,
    F: Future<Output = Result<Dialled<T>, DialError>> + Send + 'static,
    T: Transport,
{
    pool.open(&key(n), &request(), connector).await
}

fn streams(pool: &Pool) -> Vec<usize> {
    let mut all: Vec<_> = pool.views().iter().map(|v| v.streams).collect();
    all.sort_unstable();
    all
}

#[tokio::test(start_paused = true)]
async fn one_tunnel_carries_many_streams_of_one_key() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let mut all = Vec::new();
    for n in 0..10 {
        let mut stream = open(&pool, 1, || peers.dial()).await.unwrap();
        assert_eq!(ping(&mut stream, &format!("hello {n}")).await, format!("hello {n}"));
        all.push(stream);
    }
    assert_eq!(peers.dials(), 1);
    let view = &pool.views()[0];
    assert_eq!((view.streams, view.opened, view.max_streams, view.established), (10, 10, 100, true));
    assert_eq!(view.next_hop, "10.0.0.1:15008");
}

#[tokio::test(start_paused = true)]
async fn different_keys_never_share() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let (x, y) = (identity("x"), identity("y"));
    let keys = [
        (Key::new(pod("a"), hop(1), std::slice::from_ref(&x)), 1),
        (Key::new(pod("a"), hop(1), std::slice::from_ref(&y)), 2),
        (Key::new(pod("a"), hop(2), std::slice::from_ref(&x)), 3),
        (Key::new(pod("a"), hop(1), &[x.clone(), y.clone()]), 4),
        // The same set in another order, and one name twice.
        (Key::new(pod("a"), hop(1), &[y.clone(), x.clone(), y]), 4),
        (Key::new(pod("a"), hop(1), std::slice::from_ref(&x)), 4),
        // Our own certificate was renewed.
        (Key::new(pod("a"), hop(1), std::slice::from_ref(&x)).with_certificate(2), 5),
        (Key::new(pod("a"), hop(1), std::slice::from_ref(&x)).with_certificate(2), 5),
    ];
    for (key, dials) in keys {
        pool.open(&key, &request(), || peers.dial()).await.unwrap();
        assert_eq!(peers.dials(), dials, "{key:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_pods_request_is_refused() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    open(&pool, 1, || peers.dial()).await.unwrap();
    let foreign = Key::new(pod("b"), hop(1), &[identity("server")]);
    let error = pool.open(&foreign, &request(), || peers.dial()).await.err().unwrap();
    assert!(matches!(error, TunnelError::ForeignPod { .. }), "{error}");
    assert_eq!((peers.dials(), error.cause()), (1, Cause::Internal));
}

#[tokio::test(start_paused = true)]
async fn places_of_ended_streams_are_used_again() {
    let (pool, peers) = (pool(limited(3)), Peers::new(echo_peer));
    let place = async || open(&pool, 1, || peers.dial()).await.unwrap();
    let mut first = vec![place().await, place().await, place().await];
    let _fourth = place().await;
    assert_eq!((peers.dials(), streams(&pool)), (2, vec![1, 3]));
    first.pop();
    let _fifth = place().await;
    assert_eq!((peers.dials(), streams(&pool)), (2, vec![1, 3]), "the freed place was taken");
    for n in 0..1000 {
        first.pop();
        let mut stream = place().await;
        assert_eq!(ping(&mut stream, "x").await, "x", "{n}");
        first.push(stream);
    }
    assert_eq!(peers.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn callers_share_a_handshake_as_far_as_its_streams_go() {
    let (pool, peers) = (pool(limited(20)), Peers::new(echo_peer));
    let started = Instant::now();
    let slow = || {
        let dialled = peers.dial();
        async move {
            sleep(Duration::from_secs(5)).await;
            dialled.await
        }
    };
    let calls = (0..50).map(|_| open(&pool, 1, slow));
    let all: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!((all.len(), peers.dials(), streams(&pool)), (50, 3, vec![10, 20, 20]));
    assert_eq!(started.elapsed().as_secs(), 5, "nobody waited for two handshakes");
}

#[tokio::test(start_paused = true)]
async fn a_slow_handshake_delays_nobody_else() {
    let (pool, peers) = (pool(limited(1)), Peers::new(echo_peer));
    let never = || std::future::pending::<Result<Dialled<DuplexStream>, DialError>>();
    let held = open(&pool, 1, || peers.dial()).await.unwrap();
    let started = Instant::now();
    // The standing tunnel of key 1 is full, so this one dials, and hangs until its time is up.
    let stuck = async {
        let error = open(&pool, 1, never).await.err().unwrap();
        (error.cause(), error.to_string(), started.elapsed())
    };
    let others = async {
        open(&pool, 2, || peers.dial()).await.unwrap();
        drop(held);
        // A place in the standing tunnel is free: the handshake under way is nobody's business.
        open(&pool, 1, || peers.dial()).await.unwrap();
        started.elapsed()
    };
    let ((cause, text, after), others) = tokio::join!(stuck, others);
    assert_eq!(others, Duration::ZERO);
    assert_eq!((cause, after.as_secs()), (Cause::PeerUnreachable, 20), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_handshake_fails_its_waiters_with_the_cause_and_is_tried_again() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let failing = || async {
        sleep(Duration::from_secs(1)).await;
        Err::<Dialled<DuplexStream>, _>(DialError::new(Cause::WrongIdentity, "the peer is somebody else"))
    };
    let calls = (0..10).map(|_| open(&pool, 1, failing));
    for error in join_all(calls).await.into_iter().map(|r| r.err().unwrap()) {
        assert_eq!(error.cause(), Cause::WrongIdentity);
        assert_eq!(error.to_string(), "the peer is somebody else");
    }
    assert!(pool.views().is_empty());
    open(&pool, 1, || peers.dial()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_leaves_nobody_waiting() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let broken = || async { panic!("as a test") as Result<Dialled<DuplexStream>, DialError> };
    let error = open(&pool, 1, broken).await.err().unwrap();
    assert!(matches!(error, TunnelError::HandshakeVanished), "{error}");
    open(&pool, 1, || peers.dial()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_speaks_no_http2_is_named() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|mut far: DuplexStream, _| async move {
        use tokio::io::AsyncWriteExt;
        let _ = far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let error = open(&pool, 1, || peers.dial()).await.err().unwrap();
    assert_eq!(error.cause(), Cause::TunnelFailed, "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_caller_that_dialled_may_leave() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let (go, went) = oneshot::channel::<Infallible>();
    let went = Mutex::new(Some(went));
    let first = open(&pool, 1, || {
        let (went, dialled) = (went.lock().unwrap().take().unwrap(), peers.dial());
        async move {
            let _ = went.await;
            dialled.await
        }
    });
    assert!(timeout(Duration::from_secs(1), first).await.is_err());
    assert_eq!(streams(&pool), [0], "its place is free");
    let second = open(&pool, 1, || peers.dial());
    let (stream, ()) = tokio::join!(second, async { drop(go) });
    stream.unwrap();
    assert_eq!(peers.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_have_their_causes() {
    for (status, cause) in [
        (200, None),
        (401, Some(Cause::DeniedByPeer)),
        (400, Some(Cause::RejectedByPeer)),
        (403, Some(Cause::RejectedByPeer)),
        (503, Some(Cause::RejectedByPeer)),
        (204, Some(Cause::RejectedByPeer)),
        (301, Some(Cause::RejectedByPeer)),
    ] {
        let pool = pool(ClientSettings::default());
        let peers = Peers::new(move |far, _| async move {
            let _ = plain_server(far, h2::server::Builder::new(), move |_, mut respond| async move {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                let _ = respond.send_response(response, status != 200);
            })
            .await;
        });
        let error = open(&pool, 1, || peers.dial()).await.err();
        assert_eq!(error.as_ref().map(TunnelError::cause), cause, "{status}");
        if let Some(error) = error {
            assert_eq!(error.status().unwrap().as_u16(), status);
            assert_eq!(streams(&pool), [0], "a refusal costs the tunnel nothing");
        }
    }
}

/// The peer stops one tunnel after another in the middle of traffic: streams go on, requests find others.
#[tokio::test(start_paused = true)]
async fn goaway_loses_no_request_and_no_stream() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far, n| async move {
        let drain = Drain::default();
        let begin = drain.begin.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(3 + n as u64)).await;
            begin.cancel();
        });
        echo_server(far, ServerSettings::default(), drain).await;
    });
    let one = async |n: u64| {
        sleep(Duration::from_micros(n * 100)).await;
        let mut stream = open(&pool, 1, || peers.dial()).await.unwrap();
        for round in 0..10 {
            let text = format!("{n}.{round}");
            assert_eq!(ping(&mut stream, &text).await, text);
            sleep(Duration::from_millis(1)).await;
        }
    };
    join_all((0..500).map(one)).await;
    assert!(peers.dials() > 4, "there was a GOAWAY: {} tunnels", peers.dials());
}

/// Told to go away, it lives on for its streams, and nobody is sent to it again.
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_goes_away_is_offered_to_nobody() {
    let pool = pool(ClientSettings::default());
    let drain = Drain::default();
    let begin = drain.begin.clone();
    let peers = Peers::new(move |far, n| {
        let drain = if n == 1 { drain.clone() } else { Drain::default() };
        async move { drop(echo_server(far, ServerSettings::default(), drain).await) }
    });
    let mut old = open(&pool, 1, || peers.dial()).await.unwrap();
    begin.cancel();
    sleep(Duration::from_millis(10)).await;
    let mut new = open(&pool, 1, || peers.dial()).await.unwrap();
    assert_eq!(ping(&mut old, "old").await, "old");
    assert_eq!(ping(&mut new, "new").await, "new");
    assert_eq!((streams(&pool), peers.dials()), (vec![1], 2), "the old one is still in the table");
}

/// GOAWAY says that the very first request of a tunnel was not looked at.
#[tokio::test(start_paused = true)]
async fn a_request_beyond_the_last_stream_of_goaway_is_tried_elsewhere() {
    const HEADERS: u8 = 1;
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|mut far: DuplexStream, n| async move {
        if n > 1 {
            return drop(echo_server(far, ServerSettings::default(), Drain::default()).await);
        }
        far.read_exact(&mut [0; 24]).await.unwrap();
        far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        while read_frame(&mut far).await.kind != HEADERS {}
        far.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
        std::future::pending().await
    });
    let mut stream = open(&pool, 1, || peers.dial()).await.unwrap();
    assert_eq!(ping(&mut stream, "x").await, "x");
    assert_eq!(peers.dials(), 2);
}

/// The peer refuses every other stream of the first tunnel, as one does that is overloaded.
#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_tried_elsewhere() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far, n| async move {
        let _ = plain_server(far, h2::server::Builder::new(), move |request, mut respond| async move {
            if n == 1 {
                respond.send_reset(Reason::REFUSED_STREAM);
            } else {
                plain_echo(request, respond).await;
            }
        })
        .await;
    });
    let mut stream = open(&pool, 1, || peers.dial()).await.unwrap();
    assert_eq!(ping(&mut stream, "x").await, "x");
    assert_eq!(peers.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_refuses_everything_is_not_asked_for_ever() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far, _| async move {
        let _ = plain_server(far, h2::server::Builder::new(), |_, mut respond| async move {
            respond.send_reset(Reason::REFUSED_STREAM);
        })
        .await;
    });
    let error = open(&pool, 1, || peers.dial()).await.err().unwrap();
    assert_eq!((error.cause(), peers.dials()), (Cause::TunnelFailed, 4), "{error}");
}

/// Another reset is no licence to ask again: the peer may have acted on the request.
#[tokio::test(start_paused = true)]
async fn a_reset_that_is_not_a_refusal_is_final() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far, _| async move {
        let _ = plain_server(far, h2::server::Builder::new(), |_, mut respond| async move {
            respond.send_reset(Reason::INTERNAL_ERROR);
        })
        .await;
    });
    let error = open(&pool, 1, || peers.dial()).await.err().unwrap();
    assert!(matches!(error, TunnelError::Reset(Reason::INTERNAL_ERROR)), "{error}");
    assert_eq!((peers.dials(), streams(&pool)), (1, vec![0]), "the tunnel lives on");
}

/// 50 callers meet a peer that allows ten streams, which they learn when they have all asked. Streams
/// live on, so whoever queued behind them would wait for ever.
#[tokio::test(start_paused = true)]
async fn a_lower_limit_of_the_peer_strands_nobody() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far, _| async move {
        let settings = ServerSettings { max_streams: 10, ..ServerSettings::default() };
        echo_server(far, settings, Drain::default()).await;
    });
    let calls = (0..50).map(|_| open(&pool, 1, || peers.dial()));
    let all = timeout(MINUTE, join_all(calls)).await;
    let all = all.unwrap_or_else(|_| panic!("somebody waits: {:?}", pool.views()));
    let mut all = all.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    assert!(pool.views().iter().all(|v| v.streams <= 10 && v.max_streams == 10), "{:?}", pool.views());
    for stream in &mut all {
        assert_eq!(ping(stream, "x").await, "x");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_and_never_a_request_is_not_waited_for_for_ever() {
    let never = |inbound: Inbound| std::mem::forget(inbound.respond);
    let peers = Peers::new(move |far, _| async move {
        serve(far, &ServerSettings::default(), Drain::default(), never).await;
    });
    let pool = pool(ClientSettings::default());
    let begun = Instant::now();
    let error = open(&pool, 1, || peers.dial()).await.err().unwrap();
    assert!(matches!(error, TunnelError::NoAnswer(_)), "{error}");
    assert_eq!((error.cause(), begun.elapsed()), (Cause::NoAnswer, MINUTE));
    eventually("the place is free", || streams(&pool) == [0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dropped_and_replaced() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far: DuplexStream, n| async move {
        if n > 1 {
            echo_server(far, ServerSettings::default(), Drain::default()).await;
            return;
        }
        // Answers the first stream and then never moves again.
        let mut connection = h2::server::handshake(far).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        std::future::poll_fn(|cx| {
            let _ = connection.poll_closed(cx);
            std::task::Poll::Ready(())
        })
        .await;
        std::future::pending::<()>().await;
    });
    let started = Instant::now();
    let mut stream = open(&pool, 1, || peers.dial()).await.unwrap();
    let lost = next(&mut stream).await.unwrap_err();
    // The first PING after 10 seconds, and 20 for the answer.
    assert_eq!(started.elapsed().as_secs(), 30);
    assert!(matches!(lost, StreamError::Lost { cause: Cause::TunnelFailed, .. }), "{lost}");
    eventually("the table is pruned", || pool.views().is_empty()).await;
    open(&pool, 1, || peers.dial()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_is_kept_for_hours() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let mut stream = open(&pool, 1, || peers.dial()).await.unwrap();
    sleep(3 * 60 * MINUTE).await;
    assert_eq!(ping(&mut stream, "still there?").await, "still there?");
    assert_eq!(peers.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_without_streams_is_released() {
    let pool = pool(ClientSettings::default());
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let peers = Peers::new(move |far, _| {
        let ended = ended.clone();
        async move {
            let end = echo_server(far, ServerSettings::default(), Drain::default()).await;
            ended.send(end).unwrap();
        }
    });
    let stream = open(&pool, 1, || peers.dial()).await.unwrap();
    sleep(20 * MINUTE).await;
    assert_eq!(streams(&pool), [1], "a stream keeps it, however idle");
    drop(stream);
    sleep(4 * MINUTE).await;
    assert_eq!(streams(&pool), [0]);
    open(&pool, 1, || peers.dial()).await.unwrap();
    sleep(4 * MINUTE).await;
    assert_eq!((streams(&pool), peers.dials()), (vec![0], 1), "use begins the time anew");
    sleep(2 * MINUTE).await;
    assert!(pool.views().is_empty());
    assert!(matches!(end.recv().await, Some(Ended::Closed)), "in order, for the peer too");
}

/// The peer's node went away while the tunnel was idle, and nobody noticed.
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_died_in_the_pool_is_replaced_unseen() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far: DuplexStream, n| async move {
        let only = if n == 1 { 1 } else { usize::MAX };
        let mut connection = h2::server::handshake(far).await.unwrap();
        for _ in 0..only {
            let Some(Ok((request, respond))) = connection.accept().await else { return };
            tokio::spawn(plain_echo(request, respond));
        }
        // The next request is read, and then the connection drops without a word.
        let _ = connection.accept().await;
    });
    let first = open(&pool, 1, || peers.dial()).await.unwrap();
    drop(first);
    open(&pool, 1, || peers.dial()).await.unwrap();
    assert_eq!(peers.dials(), 2);
}

/// No such excuse for a tunnel that is new: the peer may have acted on the request.
#[tokio::test(start_paused = true)]
async fn a_new_tunnel_that_dies_with_the_request_is_not_replaced() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far: DuplexStream, _| async move {
        let _ = h2::server::handshake(far).await.unwrap().accept().await;
    });
    let error = open(&pool, 1, || peers.dial()).await.err().unwrap();
    assert_eq!((error.cause(), peers.dials()), (Cause::TunnelFailed, 1), "{error}");
}

/// Tunnels to peers of two authorities; one of them goes, and the peers behind it with all that they carry.
#[tokio::test]
async fn a_tunnel_whose_peer_is_trusted_no_more_ends_with_its_streams() {
    let (old, new) = (Authority::root(), Authority::root());
    let both = bundles(&[("mesh.test", &old), ("mesh.test", &new)]);
    let trust = Trust::from(both);
    let shown = |by: &Authority| by.leaf("spiffe://mesh.test/ns/shop/sa/till", |_| {}).chain;
    let (by_old, by_new) = (shown(&old), shown(&new));
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let dial = |chain: &[rustls_pki_types::CertificateDer<'static>]| {
        let (dialling, peer) = (peers.dial(), trust.hold(chain));
        async move {
            let peer = peer.map_err(|e| DialError::new(e.cause(), e))?;
            Ok(Dialled { peer: Some(peer), ..dialling.await? })
        }
    };
    let mut lost =
        [open(&pool, 1, || dial(&by_old)).await.unwrap(), open(&pool, 1, || dial(&by_old)).await.unwrap()];
    let mut kept = open(&pool, 2, || dial(&by_new)).await.unwrap();
    drop(open(&pool, 3, || dial(&by_old)).await.unwrap());
    assert_eq!((peers.dials(), trust.in_use().by_root().into_values().sum::<usize>()), (3, 3));

    trust.set(bundles(&[("mesh.test", &new)]).into());
    for stream in &mut lost {
        let end = next(stream).await.unwrap_err();
        assert!(matches!(end, StreamError::Lost { cause: Cause::TrustRevoked, .. }), "{end}");
    }
    eventually("the idle one ended too", || pool.views().len() == 1).await;
    assert_eq!(ping(&mut kept, "still here").await, "still here");
    let error = open(&pool, 1, || dial(&by_old)).await.err().unwrap();
    assert_eq!(error.cause(), Cause::TlsFailed, "its root is unknown: {error}");
    // The peer got a certificate of the new root.
    open(&pool, 1, || dial(&by_new)).await.unwrap();
    assert_eq!(trust.in_use().by_root().into_values().collect::<Vec<_>>(), [2]);
}

/// Nothing was asked of the peer yet, and it may have another certificate by now.
#[tokio::test]
async fn a_request_that_finds_its_tunnel_lost_is_tried_elsewhere() {
    let (old, new) = (Authority::root(), Authority::root());
    let trust = Trust::from(bundles(&[("mesh.test", &old), ("mesh.test", &new)]));
    let shown = |by: &Authority| by.leaf("spiffe://mesh.test/ns/shop/sa/till", |_| {}).chain;
    let chains = Mutex::new(vec![shown(&new), shown(&old)]);
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let dial = || {
        let chain = chains.lock().unwrap().pop().unwrap();
        let (dialling, trust, left) = (peers.dial(), trust.clone(), bundles(&[("mesh.test", &new)]));
        async move {
            let peer = trust.hold(&chain).unwrap();
            trust.set(left.into());
            if trust.hold(&chain).is_err() {
                peer.lost().await;
            }
            Ok(Dialled { peer: Some(peer), ..dialling.await? })
        }
    };
    let mut stream = open(&pool, 1, dial).await.unwrap();
    assert_eq!((&*ping(&mut stream, "x").await, peers.dials()), ("x", 2));
}

#[tokio::test(start_paused = true)]
async fn close_all_ends_everything_with_the_cause() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let mut stream = open(&pool, 1, || peers.dial()).await.unwrap();
    let never = || std::future::pending::<Result<Dialled<DuplexStream>, DialError>>();
    let waiting = open(&pool, 2, never);
    let (error, ()) = tokio::join!(waiting, async { pool.close_all(Cause::PodGone) });
    assert_eq!(error.err().unwrap().cause(), Cause::PodGone);
    let lost = next(&mut stream).await.unwrap_err();
    assert!(matches!(lost, StreamError::Lost { cause: Cause::PodGone, .. }), "{lost}");
    let late = open(&pool, 1, || peers.dial()).await.err().unwrap();
    assert_eq!(late.cause(), Cause::PodGone);
    assert!(pool.views().is_empty());
}

#[tokio::test(start_paused = true)]
async fn retire_all_keeps_streams_and_takes_new_tunnels() {
    let (pool, peers) = (pool(ClientSettings::default()), Peers::new(echo_peer));
    let mut old = open(&pool, 1, || peers.dial()).await.unwrap();
    pool.retire_all();
    let mut new = open(&pool, 1, || peers.dial()).await.unwrap();
    assert_eq!(peers.dials(), 2);
    assert_eq!(ping(&mut old, "old").await, "old");
    assert_eq!(ping(&mut new, "new").await, "new");
    // The pool itself may go as well.
    drop(pool);
    assert_eq!(ping(&mut old, "old").await, "old");
    assert_eq!(ping(&mut new, "new").await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_retired_tunnel_closes_with_its_last_stream() {
    let pool = pool(ClientSettings::default());
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let peers = Peers::new(move |far, _| {
        let ended = ended.clone();
        async move {
            let end = echo_server(far, ServerSettings::default(), Drain::default()).await;
            ended.send(end).unwrap();
        }
    });
    let stream = open(&pool, 1, || peers.dial()).await.unwrap();
    pool.retire_all();
    sleep(MINUTE).await;
    assert!(end.try_recv().is_err(), "it had a stream");
    drop(stream);
    let end = timeout(MINUTE, end.recv()).await;
    assert!(matches!(end, Ok(Some(Ended::Closed))), "{end:?}");
}

/// Callers come, wait a little, and go, whatever state the tunnels are in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_callers_harm_nobody() {
    let pool = pool(limited(7));
    let peers = Peers::new(|far, _| async move {
        let settings = ServerSettings { max_streams: 5, ..ServerSettings::default() };
        echo_server(far, settings, Drain::default()).await;
    });
    let one = async |n: u64| {
        for round in 0..20 {
            let opening = open(&pool, (n % 3) as u8, || peers.dial());
            let patience = Duration::from_micros((n * 31 + round * 17) % 400);
            if n.is_multiple_of(2) {
                let _ = timeout(patience, opening).await;
            } else {
                let mut stream = opening.await.unwrap();
                assert_eq!(ping(&mut stream, "whole").await, "whole");
            }
        }
    };
    join_all((0..60).map(one)).await;
    eventually("all places are free", || streams(&pool).iter().all(|n| *n == 0)).await;
}

/// An application that dials and hangs up sixty times in one moment must not cost its pod's tunnel: plain
/// `h2`, and so ztunnel, ends a connection for twenty requests that arrive together with their resets.
#[tokio::test(start_paused = true)]
async fn abandoned_requests_do_not_look_like_an_attack() {
    let pool = pool(ClientSettings::default());
    let peers = Peers::new(|far, _| async move {
        let _ = plain_server(far, h2::server::Builder::new(), plain_echo).await;
    });
    let mut live = open(&pool, 1, || peers.dial()).await.unwrap();
    for _ in 0..10 {
        for _ in 0..60 {
            let opening = open(&pool, 1, || peers.dial());
            assert!(opening.now_or_never().is_none());
        }
        assert_eq!(ping(&mut live, "alive").await, "alive");
        eventually("their places are free", || streams(&pool) == [1]).await;
    }
    assert_eq!(peers.dials(), 1);
}

/// SETTINGS and the connection's window as ztunnel sends them.
#[tokio::test]
async fn the_clients_settings_on_the_wire() {
    let pool = pool(ClientSettings::default());
    let (near, mut far) = duplex(64 * 1024);
    let near = Mutex::new(Some(near));
    let dial = || {
        let near = near.lock().unwrap().take().unwrap();
        async move { Ok(near.into()) }
    };
    let mut preface = [0; 24];
    let opening = open(&pool, 1, dial);
    let read = async {
        far.read_exact(&mut preface).await.unwrap();
        (read_frame(&mut far).await, read_frame(&mut far).await)
    };
    let (settings, update) = tokio::select! {
        _ = opening => unreachable!("nobody answers"),
        frames = read => frames,
    };
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(settings.kind, 4);
    let expected = [(2, 0), (4, 4 << 20), (5, 1 << 20), (6, 16 << 10)];
    assert_eq!(settings.settings(), expected);
    assert_eq!((update.kind, update.word(0)), (8, (16 << 20) - 65_535));
}
