//! Asks about tokens in fair turns, and remembers for a moment what was said.
//!
//! Whoever is not known yet may show any number of tokens. What an address, and each of its connections, asks
//! at once is bounded, and what waits; connections that were a node's before have turns of their own.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine};
use serde::Deserialize;
use tokio::time::Instant;

use super::Claimed;
use crate::ca::attest::{Origin, Refusal};
use crate::ca::turns::{Share, Turn, Turns};
use crate::certs::Clock;
use crate::tls::sha256;

pub(super) struct Reviews {
    connections: Turns<u64>,
    addresses: Turns<IpAddr>,
    proven: Turns<u64>,
    /// By SHA-256 of the token.
    slots: Mutex<Slots>,
    clock: Clock,
}

#[derive(Default)]
struct Slots {
    all: HashMap<[u8; 32], Slot>,
    /// How many there may be before those of no more use are taken out.
    sweep_at: usize,
}

/// Locked by whoever asks about the token, so that others with the same one wait for that answer.
type Slot = Arc<tokio::sync::Mutex<Option<Remembered>>>;

#[derive(Clone)]
struct Remembered {
    said: Result<Claimed, Refusal>,
    until: Instant,
    /// When the token itself ends.
    end: Option<SystemTime>,
}

/// A token that is taken back is good for that long still; its pod is looked at each time.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Refusals are not remembered while there are more tokens than this.
const MOST: usize = 16_384;

/// An agent shows one token; of two it has just got the second.
const OF_A_CONNECTION: usize = 2;
const CONNECTION: Share = Share { at_once: 1 << 20, of_one: OF_A_CONNECTION, waiting: 32 };
pub(super) const ADDRESS: Share = Share { at_once: 32, of_one: 4, waiting: 64 };
const PROVEN: Share = Share { at_once: 32, ..CONNECTION };

impl Reviews {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            connections: Turns::new(CONNECTION),
            addresses: Turns::new(ADDRESS),
            proven: Turns::new(PROVEN),
            slots: Mutex::default(),
            clock,
        }
    }

    /// What was said of the token a moment ago, or what `ask` says when its turn has come.
    pub(super) async fn answer(
        &self,
        token: &str,
        from: Origin,
        ask: impl Future<Output = Result<Claimed, Refusal>>,
    ) -> Result<Claimed, Refusal> {
        let slot = self.slot(sha256(token.as_bytes()));
        let mut held = slot.lock().await;
        if let Some(known) = held.as_ref().filter(|known| known.holds(self.clock.now())) {
            return known.said.clone();
        }
        let too_many = || Refusal::Unavailable("too many tokens are shown from where this one is".into());
        let _turn = self.turn(from).await.ok_or_else(too_many)?;
        let said = ask.await;
        *held = self.remember(token, &said);
        said
    }

    async fn turn(&self, from: Origin) -> Option<(Turn<u64>, Option<Turn<IpAddr>>)> {
        if from.proven {
            return Some((self.proven.wait(&from.connection).await?, None));
        }
        let own = self.connections.wait(&from.connection).await?;
        Some((own, Some(self.addresses.wait(&from.address).await?)))
    }

    fn remember(&self, token: &str, said: &Result<Claimed, Refusal>) -> Option<Remembered> {
        let end = match said {
            Ok(_) => Some(end_of(token)?),
            Err(Refusal::Unavailable(_)) => return None,
            Err(_) if self.slots().all.len() > MOST => return None,
            Err(_) => None,
        };
        Some(Remembered { said: said.clone(), until: Instant::now() + REMEMBERED, end })
    }

    fn slot(&self, digest: [u8; 32]) -> Slot {
        let mut slots = self.slots();
        if slots.all.len() >= slots.sweep_at {
            slots.sweep(self.clock.now());
        }
        Arc::clone(slots.all.entry(digest).or_default())
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn sweep(&mut self, now: SystemTime) {
        self.all.retain(|_, slot| match slot.try_lock() {
            // Whoever waits for the lock has it already.
            Ok(held) => Arc::strong_count(slot) > 1 || held.as_ref().is_some_and(|known| known.holds(now)),
            Err(_) => true,
        });
        self.sweep_at = (2 * self.all.len()).max(1024);
    }
}

impl Remembered {
    fn holds(&self, now: SystemTime) -> bool {
        Instant::now() < self.until && self.end.is_none_or(|end| now < end)
    }
}

/// When a token ends that Kubernetes has found good: `exp` of a JWT. One that does not say is not remembered.
fn end_of(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Payload {
        exp: u64,
    }
    let payload: Payload = serde_json::from_slice(&BASE64URL.decode(token.split('.').nth(1)?).ok()?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(payload.exp))
}

/// As JWTs are written: without padding; bits that are left over at the end are not looked at.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

impl fmt::Debug for Reviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviews").field("tokens", &self.slots().all.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
