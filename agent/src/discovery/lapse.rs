//! Exceptions from mutual TLS end by the clock: warned of while somebody can still do something, and then not in force
//! any more, as if their resources had been deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::Store;
use crate::policy::own::Exception;

/// Publishes a mesh without each exception that lapses, and tells of those that are about to. Ends with the store.
pub async fn watch(store: Store) {
    let mut snapshots = store.subscribe();
    let mut told = Told::default();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if store.has_lapsed() {
            let store = store.clone();
            if tokio::task::spawn_blocking(move || store.lapse()).await.is_err() {
                tracing::error!("judging the mesh without what has lapsed failed; it is tried again");
                tokio::time::sleep(LONGEST).await;
            }
            continue;
        }
        let now = store.now();
        for warning in told.due(snapshot.exceptions(), now) {
            warning.tell();
        }
        let next = snapshot.exceptions().filter_map(|one| one.next(now)).min();
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait(next, now)), if next.is_some() => {}
        }
    }
}

/// The system's clock may be set forward meanwhile, which no timer hears of.
const LONGEST: Duration = Duration::from_secs(1);

fn wait(next: Option<OffsetDateTime>, now: OffsetDateTime) -> Duration {
    let left = next.and_then(|next| Duration::try_from(next - now).ok()).unwrap_or(LONGEST);
    left.clamp(Duration::from_millis(1), LONGEST)
}

/// What has been told already, of each exception and its end.
#[derive(Debug, Default)]
struct Told(HashMap<(Arc<str>, OffsetDateTime), usize>);

#[derive(Debug, PartialEq, Eq)]
struct Warning {
    exception: Arc<Exception>,
    /// None: it has lapsed.
    left: Option<Duration>,
}

impl Told {
    /// The warnings that are due and were not given, of each exception the latest. What is gone, or has another end,
    /// begins anew.
    fn due<'a>(
        &mut self,
        exceptions: impl Iterator<Item = &'a Arc<Exception>>,
        now: OffsetDateTime,
    ) -> Vec<Warning> {
        let before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for exception in exceptions {
            let key = (Arc::from(exception.resource().to_string()), exception.until);
            let warnings = exception.warnings(now);
            if before.get(&key).is_none_or(|told| *told < warnings) && warnings > 0 {
                let left = Duration::try_from(exception.until - now).ok().filter(|left| !left.is_zero());
                due.push(Warning { exception: Arc::clone(exception), left });
            }
            self.0.insert(key, warnings);
        }
        due
    }
}

impl Warning {
    fn tell(&self) {
        let (exception, reason) = (self.exception.resource(), &self.exception.reason);
        let until = self.exception.until_text();
        match self.left {
            Some(left) => tracing::warn!(%exception, %reason, until,
                "an exception lapses in {}: from then on its clients need mutual TLS; move them into the mesh, or set spec.until later",
                words(left)),
            None => tracing::warn!(%exception, %reason, until,
                "an exception has lapsed: its clients are refused without mutual TLS; delete it, or set spec.until later"),
        }
    }
}

/// `13 days`, `23 hours`, `5 minutes`, `40 seconds`: whole ones, rounded down.
pub fn words(left: Duration) -> String {
    let seconds = left.as_secs();
    let (count, unit) = [(86_400, "day"), (3600, "hour"), (60, "minute")]
        .into_iter()
        .find(|(length, _)| seconds >= *length)
        .map_or((seconds, "second"), |(length, unit)| (seconds / length, unit));
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use time::Duration as Span;
    use time::format_description::well_known::Rfc3339;

    use super::*;
    use crate::discovery::file::parse;
    use crate::model::InboundAction;

    fn at(text: &str) -> OffsetDateTime {
        OffsetDateTime::parse(text, &Rfc3339).unwrap()
    }

    /// A STRICT pod, and an exception for it until then.
    fn mesh(until: &str) -> crate::discovery::State {
        let text = format!(
            "mesh: {{mtls: STRICT}}
localPods:
- {{uid: p, name: db, namespace: shop, serviceAccount: db, netns: /run/netns/p, addresses: [10.0.0.1]}}
workloads:
- {{uid: p, name: db, namespace: shop, serviceAccount: db, workloadIps: [10.0.0.1], protocol: HBONE}}
resources:
- apiVersion: underpass.io/v1alpha1
  kind: PlaintextException
  metadata: {{name: batch, namespace: shop}}
  spec: {{from: [{{ipBlocks: [10.9.0.0/16]}}], ports: [5432], reason: r, until: {until:?}}}
"
        );
        parse(&text).unwrap_or_else(|e| panic!("{e}")).state
    }

    fn is_open(store: &Store) -> bool {
        let snapshot = store.current();
        let pod = snapshot.local_pods().next().unwrap();
        snapshot.inbound_policy(pod).kernel_plan().action(5432) == InboundAction::Steer
    }

    /// A clock that a test sets.
    fn clock(text: &str) -> (Arc<Mutex<OffsetDateTime>>, Store) {
        let time = Arc::new(Mutex::new(at(text)));
        let system = Arc::clone(&time);
        (time, Store::with_clock(move || *system.lock().unwrap()))
    }

    #[test]
    fn a_clock_that_is_set_back_revives_nothing() {
        let (time, store) = clock("2027-01-01T00:00:00Z");
        store.publish(mesh("2027-02-01T00:00:00Z"));
        assert!(is_open(&store) && !store.has_lapsed());
        *time.lock().unwrap() = at("2027-02-01T00:00:00Z");
        assert!(store.has_lapsed());
        let lapsed = store.lapse();
        assert!(!is_open(&store) && !store.has_lapsed());
        assert_eq!(lapsed.revision(), 2);
        *time.lock().unwrap() = at("2027-01-01T00:00:00Z");
        store.lapse();
        assert!(!is_open(&store), "by the clock alone");
        store.publish(mesh("2027-02-01T00:00:00Z"));
        assert!(!is_open(&store), "by news of the mesh");
        assert_eq!(store.now(), at("2027-02-01T00:00:00Z"));
        // What is extended holds again.
        store.publish(mesh("2027-02-01T00:00:01Z"));
        assert!(is_open(&store));
    }

    #[test]
    fn what_has_lapsed_while_nobody_looked_does_not_begin() {
        let (_time, store) = clock("2027-03-01T00:00:00Z");
        store.publish(mesh("2027-02-01T00:00:00Z"));
        assert!(!is_open(&store) && !store.has_lapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_mesh_is_judged_anew_at_the_moment_of_the_lapse() {
        let (start, began) = (at("2027-01-01T00:00:00Z"), tokio::time::Instant::now());
        let store = Store::with_clock(move || start + began.elapsed());
        store.publish(mesh("2027-01-01T00:00:40.5Z"));
        let mut snapshots = store.subscribe();
        snapshots.borrow_and_update();
        let watching = tokio::spawn(watch(store.clone()));
        snapshots.changed().await.unwrap();
        let after = began.elapsed();
        assert!(after >= Duration::from_millis(40_500) && after < Duration::from_millis(40_600), "{after:?}");
        assert!(!is_open(&store));
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!snapshots.has_changed().unwrap() && !watching.is_finished(), "once");
        watching.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_forward_is_noticed() {
        let (time, store) = clock("2027-01-01T00:00:00Z");
        store.publish(mesh("2027-06-01T00:00:00Z"));
        let mut snapshots = store.subscribe();
        snapshots.borrow_and_update();
        let watching = tokio::spawn(watch(store.clone()));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(is_open(&store) && !snapshots.has_changed().unwrap());
        *time.lock().unwrap() = at("2027-06-01T00:00:00Z");
        tokio::time::timeout(2 * LONGEST, snapshots.changed()).await.unwrap().unwrap();
        assert!(!is_open(&store));
        watching.abort();
    }

    #[test]
    fn each_warning_is_given_once_and_of_those_missed_the_latest() {
        let until = "2027-02-01T00:00:00Z";
        let snapshot = crate::discovery::Snapshot::build(1, mesh(until));
        let mut told = Told::default();
        let mut due = |left: Span| -> Vec<Option<String>> {
            let due = told.due(snapshot.exceptions(), at(until) - left);
            due.iter().map(|warning| warning.left.map(words)).collect()
        };
        let some = |text: &str| vec![Some(text.to_owned())];
        assert_eq!(due(Span::days(20)), []);
        assert_eq!(due(Span::days(14)), some("14 days"));
        assert_eq!(due(Span::days(13)), []);
        assert_eq!(due(Span::days(3) - Span::MINUTE), some("2 days"));
        assert_eq!(due(Span::hours(25)), []);
        assert_eq!(due(Span::hours(24)), some("1 day"));
        assert_eq!(due(Span::SECOND), []);
        assert_eq!(due(Span::ZERO), [None]);
        assert_eq!(due(-Span::DAY), []);
        // An agent that starts late says so at once, and once.
        let mut late = Told::default();
        let hour = |told: &mut Told| told.due(snapshot.exceptions(), at(until) - Span::HOUR).len();
        assert_eq!((hour(&mut late), hour(&mut late)), (1, 0));
        let longer = crate::discovery::Snapshot::build(2, mesh("2027-02-08T00:00:00Z"));
        assert_eq!(late.due(longer.exceptions(), at(until)).len(), 1, "another end is warned of anew");
    }
}
