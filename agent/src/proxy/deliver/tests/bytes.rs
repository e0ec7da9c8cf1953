//! Every byte, in order, once; and no more of them held than is allowed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;

use super::super::*;
use super::world::*;
use crate::lifecycle::Stop;
use crate::model::{Cause, Direction};
use crate::proxy::tunnel::testing::{eventually, pod};
use crate::proxy::tunnel::*;
use crate::telemetry::Counts;

/// Bytes whose place can be told: the period is a prime, so no buffer's size hides a shift.
fn pattern() -> Vec<u8> {
    let mut x = 1u32;
    (0..65_521)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 24) as u8
        })
        .collect()
}

/// Writes `total` bytes in pieces of changing size, then ends.
async fn write_pattern(to: &mut OwnedWriteHalf, total: usize) {
    let pattern = pattern().repeat(3);
    let (mut at, mut size) = (0, 1);
    while at < total {
        let n = size.min(total - at).min(pattern.len() / 2);
        let from = at % 65_521;
        to.write_all(&pattern[from..from + n]).await.unwrap();
        at += n;
        size = size * 5 % 99_991 + 1;
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end, pausing now and then, and gives the count.
async fn check_pattern(from: &mut OwnedReadHalf) -> usize {
    let pattern = pattern().repeat(3);
    let mut buffer = vec![0; 65_521];
    let (mut at, mut reads) = (0, 0);
    loop {
        let room = 1 + reads * 7919 % buffer.len();
        let n = from.read(&mut buffer[..room]).await.unwrap();
        if n == 0 {
            return at;
        }
        let start = at % 65_521;
        assert!(buffer[..n] == pattern[start..start + n], "other bytes at {at}");
        at += n;
        reads += 1;
        if reads % 200 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn exchange(between: Between, up: usize, down: usize) {
    let w = World::new(between).await;
    exchange_between(w.client, w.server, w.agents, up, down).await;
}

async fn exchange_between(client: TcpStream, server: TcpStream, agents: Vec<Agent>, up: usize, down: usize) {
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let (_, _, at_server, at_client) = tokio::join!(
        write_pattern(&mut client_write, up),
        write_pattern(&mut server_write, down),
        check_pattern(&mut server_read),
        check_pattern(&mut client_read),
    );
    assert_eq!((at_server, at_client), (up, down));
    for agent in agents {
        assert_eq!(agent.ended.await.unwrap().cause, Cause::Closed);
        let counted = (&agent.counts.sent, &agent.counts.received);
        assert_eq!(counted.0.load(Ordering::Relaxed), up as u64);
        assert_eq!(counted.1.load(Ordering::Relaxed), down as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_arrive_as_they_were_sent() {
    exchange(Between::Tunnel, 100_000_000, 7_654_321).await;
    exchange(Between::Plain, 7_654_321, 100_000_000).await;
}

#[tokio::test]
async fn every_small_size_arrives() {
    for between in BOTH {
        for size in [0, 1, 255, 256, 257, 4095, 4096, 16_383, 16_384, 16_385, 65_536, 65_537, 300_000] {
            exchange(between, size, size / 2).await;
        }
    }
}

/// The server application does not read. What the agents hold is bounded by the stream's window and the
/// sender's queue, and when it reads all is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_who_stops_makes_the_writer_stop() {
    let w = World::new(Between::Tunnel).await;
    let (mut client_read, mut client_write) = w.client.into_split();
    let (mut server_read, mut server_write) = w.server.into_split();
    let total = 60_000_000;
    let writing = tokio::spawn(async move {
        write_pattern(&mut client_write, total).await;
        client_write
    });
    let sent = |n: usize| w.agents[n].counts.sent.load(Ordering::Relaxed);
    let held = || sent(0).saturating_sub(sent(1));
    let mut last = (0, 0);
    for _ in 0..5 {
        // Until nothing moves any more.
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = (sent(0), sent(1));
            if now == std::mem::replace(&mut last, now) {
                break;
            }
        }
        assert!(!writing.is_finished());
        assert!(held() <= (4 << 20) + (256 << 10) + (64 << 10), "{} bytes held", held());
        assert!(held() > 1 << 20, "the window is used: {} bytes held", held());
        server_read.read_exact(&mut [0; 65_521]).await.unwrap();
    }
    let rest = check_pattern(&mut server_read).await;
    assert_eq!(rest + 5 * 65_521, total);
    server_write.shutdown().await.unwrap();
    assert_eq!(client_read.read(&mut [0]).await.unwrap(), 0);
    drop(writing.await.unwrap());
}

/// `h2` counts small frames that lie with it, and ends a tunnel that has too many: with all its streams,
/// for one application that writes single bytes and another that does not read.
#[tokio::test]
async fn single_bytes_for_a_slow_reader_do_not_end_the_tunnel() {
    let pool = Pool::new(pod("a"), ClientSettings::default());
    let (mut near, far) = tunnel(&pool, &CancellationToken::new(), Drain::default()).await;
    let (mut server, server_side) = tcp_pair().await;
    socket2::SockRef::from(&server_side).set_send_buffer_size(4096).unwrap();
    let counts = Arc::new(Counts::default());
    let copying = tokio::spawn({
        let counts = Arc::clone(&counts);
        let stop = Stop::default();
        async move { copy(server_side, far, Direction::Inbound, &counts, &stop, None).await }
    });
    // More than the kernel's buffers take, and ten times `h2`'s budget for what it holds.
    fill(&server, &mut near, &counts).await;
    for n in 0..300_000u32 {
        near.send(Bytes::copy_from_slice(&[(n % 251) as u8])).unwrap();
        if n % 100 == 0 {
            std::future::poll_fn(|cx| near.poll_flushed(cx)).await;
        }
    }
    near.finish().unwrap();
    server.shutdown().await.unwrap();
    let (all, end) = read_all(&mut server).await;
    end.unwrap();
    let tail = &all[all.len() - 300_000..];
    assert!(tail.iter().enumerate().all(|(n, b)| *b as usize == n % 251));
    assert_eq!(copying.await.unwrap().cause, Cause::Closed);
}

/// Sends until the server's socket takes nothing more.
async fn fill(_server: &TcpStream, near: &mut TunnelStream, counts: &Counts) {
    let mut total = 0u64;
    let piece = Bytes::from(vec![0; 1 << 16]);
    loop {
        near.send(piece.clone()).unwrap();
        total += piece.len() as u64;
        std::future::poll_fn(|cx| near.poll_flushed(cx)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if counts.sent.load(Ordering::Relaxed) < total {
            return;
        }
    }
}

/// One tunnel, many connections, each with its own bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_tunnel_do_not_mix() {
    let pool = Pool::new(pod("a"), ClientSettings::default());
    let never = CancellationToken::new();
    let mut all = Vec::new();
    for (n, stream) in streams(&pool, &never, Drain::default(), 20).await.into_iter().enumerate() {
        let (client, server, agents) = through(stream, &Stop::default()).await;
        all.push(tokio::spawn(exchange_between(client, server, agents, 300_000 + n, 1_200_000 - n)));
    }
    for one in all {
        one.await.unwrap();
    }
    assert_eq!(pool.views().len(), 1);
}

/// Memory per idle connection is what limits how many there can be.
#[tokio::test]
async fn an_idle_copy_is_small() {
    let pool = Pool::new(pod("a"), ClientSettings::default());
    let (near, _far) = tunnel(&pool, &CancellationToken::new(), Drain::default()).await;
    let (_client, client_side) = tcp_pair().await;
    let (counts, stop) = (Counts::default(), Stop::default());
    let future = copy(client_side, near, Direction::Outbound, &counts, &stop, None);
    let size = std::mem::size_of_val(&future);
    assert!(size <= 1536, "the state of one copy is {size} bytes");
    drop(future);
    eventually("the place is free", || pool.views()[0].streams == 0).await;
}
