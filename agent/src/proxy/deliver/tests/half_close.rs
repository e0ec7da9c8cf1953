//! Each way ends by itself.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::*;
use crate::model::Cause;

/// What the applications do, in this order.
#[derive(Clone, Copy, Debug)]
enum Step {
    ClientSays(usize),
    ServerSays(usize),
    ClientEnds,
    ServerEnds,
}

use Step::*;

const ORDERS: [&[Step]; 8] = [
    &[ClientSays(5), ServerSays(7), ClientEnds, ServerEnds],
    &[ClientSays(5), ServerSays(7), ServerEnds, ClientEnds],
    &[ClientEnds, ServerEnds],
    &[ServerEnds, ClientEnds],
    // The other way goes on after one has ended, for as long as it likes.
    &[ClientSays(5), ClientEnds, ServerSays(7), ServerSays(300_000), ServerSays(1), ServerEnds],
    &[ServerSays(5), ServerEnds, ClientSays(7), ClientSays(300_000), ClientSays(1), ClientEnds],
    &[ClientEnds, ServerSays(300_000), ServerEnds],
    &[ServerEnds, ClientSays(300_000), ClientEnds],
];

#[tokio::test]
async fn every_order_of_ends_is_carried_faithfully() {
    for between in BOTH {
        for order in ORDERS {
            let mut w = World::new(between).await;
            let (mut sent, mut received) = (0, 0);
            for step in order {
                match *step {
                    ClientSays(n) => {
                        chat(&mut w.client, &mut w.server, &"c".repeat(n)).await;
                        sent += n as u64;
                    }
                    ServerSays(n) => {
                        chat(&mut w.server, &mut w.client, &"s".repeat(n)).await;
                        received += n as u64;
                    }
                    ClientEnds => {
                        w.client.shutdown().await.unwrap();
                        assert_eq!(w.server.read(&mut [0]).await.unwrap(), 0);
                    }
                    ServerEnds => {
                        w.server.shutdown().await.unwrap();
                        assert_eq!(w.client.read(&mut [0]).await.unwrap(), 0);
                    }
                }
            }
            let counts: Vec<_> = w.agents.iter().map(|a| std::sync::Arc::clone(&a.counts)).collect();
            let agents = w.agents.len();
            assert_eq!(w.causes().await, vec![Cause::Closed; agents], "{between:?} {order:?}");
            for counts in counts {
                let found = (counts.sent.load(Ordering::Relaxed), counts.received.load(Ordering::Relaxed));
                assert_eq!(found, (sent, received), "{between:?} {order:?}");
            }
        }
    }
}

/// The last bytes and the end come together, and both ends close at once.
#[tokio::test]
async fn both_ends_at_the_same_moment() {
    for between in BOTH {
        for _ in 0..50 {
            let mut w = World::new(between).await;
            w.client.write_all(b"from client").await.unwrap();
            w.client.shutdown().await.unwrap();
            w.server.write_all(b"from server").await.unwrap();
            w.server.shutdown().await.unwrap();
            let (at_server, end) = read_all(&mut w.server).await;
            assert_eq!((&at_server[..], end.is_ok()), (&b"from client"[..], true));
            let (at_client, end) = read_all(&mut w.client).await;
            assert_eq!((&at_client[..], end.is_ok()), (&b"from server"[..], true));
            assert!(w.causes().await.iter().all(|c| *c == Cause::Closed));
        }
    }
}
