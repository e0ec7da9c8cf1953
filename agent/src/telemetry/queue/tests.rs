use super::*;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::telemetry::testing::Output;

/// An output that takes a batch only when it is told to.
struct Gate {
    open: Receiver<()>,
    output: Output,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gated(soft_limit: usize) -> (LogQueue, Sender<()>, Output) {
    let ((open, gate), output) = (channel(), Output::default());
    (LogQueue::start(Gate { open: gate, output: output.clone() }, soft_limit).unwrap(), open, output)
}

#[test]
fn every_line_arrives_in_order_from_many_threads() {
    let output = Output::default();
    let queue = LogQueue::start(output.clone(), 0).unwrap();
    thread::scope(|scope| {
        for thread in 0..8 {
            let queue = &queue;
            scope.spawn(move || {
                for n in 0..20_000 {
                    queue.push(format!("{thread} {n}\n").as_bytes());
                }
            });
        }
    });
    queue.flush();
    let mut next = [0; 8];
    for line in output.text().lines() {
        let (thread, n) = line.split_once(' ').unwrap();
        let expected = &mut next[thread.parse::<usize>().unwrap()];
        assert_eq!(n.parse(), Ok(*expected));
        *expected += 1;
    }
    assert_eq!(next, [20_000; 8]);
    assert_eq!(queue.stats(), QueueStats { queued_bytes: 0, lines: 160_000, lost_lines: 0 });
}

#[test]
fn dropping_the_queue_writes_what_is_left() {
    let output = Output::default();
    let queue = LogQueue::start(output.clone(), 0).unwrap();
    queue.push(b"last\n");
    drop(queue);
    assert_eq!(output.text(), "last\n");
}

#[test]
fn a_stuck_output_holds_back_new_connections_and_bounds_the_buffer() {
    let soft = BATCH;
    let (queue, open, output) = gated(soft);
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let has_room = || runtime.block_on(async { futures::poll!(std::pin::pin!(queue.room())).is_ready() });

    for _ in 0..soft / line.len() {
        queue.push(&line);
        assert!(has_room());
    }
    queue.push(&line);
    assert!(!has_room());
    // Connections that are already open still get their lines in, up to twice the limit.
    while queue.stats().queued_bytes + (line.len() as u64) <= 2 * soft as u64 {
        queue.push(&line);
    }
    thread::scope(|scope| {
        let blocked = scope.spawn(|| queue.push(&line));
        assert!(matches!(
            queue.flush_within(Duration::from_millis(1)),
            Err(TelemetryError::Unflushed { left, .. }) if left == 2 * soft
        ));
        assert!(!blocked.is_finished());
        // The reader comes back: nothing was lost, and everybody goes on.
        for _ in 0..4 {
            open.send(()).unwrap();
        }
        blocked.join().unwrap();
        queue.flush();
    });
    assert!(has_room());
    assert_eq!(output.text().lines().count(), 2 * soft / line.len() + 1);
    assert_eq!(queue.stats().queued_bytes, 0);
}

#[tokio::test]
async fn whoever_waits_for_room_is_woken() {
    let (queue, open, _output) = gated(0);
    queue.push(&b"x\n".repeat(BATCH));
    let room = queue.room();
    tokio::pin!(room);
    assert!(futures::poll!(&mut room).is_pending());
    open.send(()).unwrap();
    room.await;
}

#[test]
fn lines_that_the_output_refuses_are_counted() {
    let (queue, open, output) = gated(0);
    drop(open);
    queue.push(b"one\ntwo\n");
    queue.flush();
    assert_eq!(queue.stats(), QueueStats { queued_bytes: 0, lines: 1, lost_lines: 2 });
    assert_eq!(output.text(), "");
}

#[test]
fn an_output_that_is_interrupted_or_not_ready_loses_nothing() {
    struct Reluctant(u8, Output);
    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.wrapping_add(1);
            match self.0 % 3 {
                1 => Err(io::ErrorKind::Interrupted.into()),
                2 => Err(io::ErrorKind::WouldBlock.into()),
                // And never takes more than a little.
                _ => self.1.write(&bytes[..bytes.len().min(3)]),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let output = Output::default();
    let queue = LogQueue::start(Reluctant(0, output.clone()), 0).unwrap();
    queue.push(b"all of it\n");
    queue.flush();
    assert_eq!(output.text(), "all of it\n");
}
