//! The stream of one identity's certificates.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Streaming;
use underpass_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use underpass_proto::spire::api::agent::delegatedidentity::v1::{
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use underpass_proto::spire::api::types::Selector;

use super::answer::{self, Svid};
use super::{Shared, Streamed, failure};
use crate::certs::{CertError, Nudge, renewal};
use crate::model::{SpiffeId, TrustDomain};

/// How long nobody may want what is streamed before the stream is ended: nobody says that the last pod of an
/// identity has gone.
const UNWANTED: Duration = Duration::from_secs(300);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(30);

pub(super) struct Subscription {
    state: watch::Receiver<Streamed<Arc<Svid>>>,
    asked: watch::Sender<Asked>,
    /// What the newest certificate came with; it stays when an entry goes.
    federates: Federates,
    task: AbortHandle,
}

type Federates = Arc<Mutex<BTreeSet<TrustDomain>>>;

/// Who wants it.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    /// The latest was answered with an error: once there is something better, somebody should ask again.
    failed: bool,
}

impl Subscription {
    pub(super) fn stop(&self) {
        self.task.abort();
    }

    pub(super) fn federates(&self) -> BTreeSet<TrustDomain> {
        // It is replaced as a whole, so a panic elsewhere leaves it usable.
        self.federates.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn start(shared: &Arc<Shared>, identity: &SpiffeId) -> Self {
        let state = watch::Sender::default();
        let (asked, wanted) = watch::channel(Asked { at: Instant::now(), failed: false });
        let (seen, federates) = (state.subscribe(), Federates::default());
        let stream = Stream {
            shared: shared.clone(),
            identity: identity.clone(),
            state,
            wanted,
            federates: federates.clone(),
            nudged: None,
        };
        Self { state: seen, asked, federates, task: tokio::spawn(stream.run()).abort_handle() }
    }
}

/// The newest certificate, which may be one that was given before.
pub(super) async fn newest(shared: &Arc<Shared>, identity: &SpiffeId) -> Result<Arc<Svid>, CertError> {
    let (state, asked) = {
        let mut subscriptions = shared.subscriptions();
        let subscription =
            subscriptions.entry(identity.clone()).or_insert_with(|| Subscription::start(shared, identity));
        // Under the lock: the stream looks at it before it ends itself.
        subscription.asked.send_modify(|asked| asked.at = Instant::now());
        (subscription.state.clone(), subscription.asked.clone())
    };
    let waited = tokio::time::timeout(shared.config.deadline, settled(state)).await;
    let got = waited.unwrap_or_else(|_elapsed| Err(failure::late(&shared.config, &identity.to_string())));
    asked.send_modify(|asked| asked.failed = got.is_err());
    got
}

async fn settled(mut state: watch::Receiver<Streamed<Arc<Svid>>>) -> Result<Arc<Svid>, CertError> {
    let known = state.wait_for(|s| s.value.is_some() || s.error.is_some()).await;
    let known = known.map_err(|_closed| CertError::Issuer("the stream has ended: ask again".into()))?;
    match &*known {
        Streamed { value: Some(svid), .. } if svid.is_fresh(SystemTime::now()) => Ok(svid.clone()),
        Streamed { error: Some(error), .. } => Err(error.clone()),
        // The same certificate again would only be asked for again.
        _ => Err(CertError::Issuer(
            "the SPIRE agent has not replaced the certificate though most of its time has passed: see its log, and \
             whether it reaches the SPIRE server"
                .into(),
        )),
    }
}

/// The sending end.
struct Stream {
    shared: Arc<Shared>,
    identity: SpiffeId,
    state: watch::Sender<Streamed<Arc<Svid>>>,
    wanted: watch::Receiver<Asked>,
    federates: Federates,
    nudged: Option<Instant>,
}

impl Stream {
    /// Until nobody wants it any more.
    async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            let heard = match self.open().await {
                Ok(answers) => match self.stay(answers).await {
                    Some(heard) => heard,
                    None => return,
                },
                Err(()) => false,
            };
            failures = if heard { 1 } else { failures.saturating_add(1) };
            tokio::time::sleep(renewal::backoff(failures, rand::random())).await;
            if self.is_over() {
                return;
            }
        }
    }

    async fn open(&mut self) -> Result<Streaming<SubscribeToX509sviDsResponse>, ()> {
        let mut client = DelegatedIdentityClient::new(self.shared.channel.clone())
            .max_decoding_message_size(answer::MOST_BYTES);
        let selector = |value| Selector { r#type: "k8s".into(), value };
        // Of pods: theirs are service accounts.
        let (namespace, account) = self.identity.account().unwrap_or_default();
        let selectors = vec![selector(format!("ns:{namespace}")), selector(format!("sa:{account}"))];
        let opened = client.subscribe_to_x509svi_ds(SubscribeToX509sviDsRequest { selectors, pid: 0 });
        match tokio::time::timeout(self.shared.config.deadline, opened).await {
            Ok(Ok(answers)) => Ok(answers.into_inner()),
            Ok(Err(status)) => {
                self.fail(&status);
                Err(())
            }
            Err(_elapsed) => {
                self.note(failure::late(&self.shared.config, &self.identity.to_string()), false);
                Err(())
            }
        }
    }

    /// Until the stream ends: whether it brought anything; `None` when it is not wanted any more.
    async fn stay(&mut self, mut answers: Streaming<SubscribeToX509sviDsResponse>) -> Option<bool> {
        let mut heard = false;
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        heard = true;
                        match answer::read(answer, &self.identity) {
                            Ok(svid) => self.take(svid),
                            Err(error) => self.note(error, true),
                        }
                    }
                    Ok(None) => {
                        self.note(failure::ended(&self.shared.config, &self.identity.to_string()), false);
                        return Some(heard);
                    }
                    Err(status) => {
                        self.fail(&status);
                        return Some(heard);
                    }
                },
                () = tokio::time::sleep(LOOK) => if self.is_over() {
                    return None;
                },
            }
        }
    }

    fn take(&mut self, svid: Svid) {
        let failed = self.wanted.borrow().failed;
        *self.federates.lock().unwrap_or_else(PoisonError::into_inner) = svid.federates.clone();
        let mut first = false;
        let mut news = false;
        self.state.send_modify(|state| {
            first = state.value.is_none() && state.error.is_none();
            news = !state.value.as_ref().is_some_and(|held| held.is_the_same(&svid));
            *state = Streamed { value: Some(Arc::new(svid)), error: None };
        });
        // Whoever asked first is still waiting, or has given up.
        if news && (!first || failed) {
            self.nudge();
        }
    }

    fn fail(&mut self, status: &tonic::Status) {
        let error = failure::of(status, &self.shared.config, &self.identity.to_string());
        self.note(error, failure::is_refusal(status));
    }

    /// `refused`: what is held is not given to anybody any more either.
    fn note(&mut self, error: CertError, refused: bool) {
        let mut held = false;
        self.state.send_modify(|state| {
            held = state.value.is_some();
            if refused {
                state.value = None;
            }
            state.error = Some(error);
        });
        if refused && held {
            // Who has the certificate should know that there will be no other.
            self.nudge();
        }
    }

    fn nudge(&mut self) {
        self.nudged = Some(Instant::now());
        // Without a manager nobody has certificates.
        self.shared.nudges.send(Nudge::Identity(self.identity.clone())).ok();
    }

    /// Takes it off the table if nobody answered a nudge, or asked for what is not there.
    fn is_over(&self) -> bool {
        let mut subscriptions = self.shared.subscriptions();
        let asked = self.wanted.borrow().at;
        let since = match self.nudged {
            Some(nudged) if nudged > asked => nudged,
            _ if self.state.borrow().value.is_none() => asked,
            _ => return false,
        };
        let over = since.elapsed() > UNWANTED;
        if over {
            subscriptions.remove(&self.identity);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use underpass_proto::spire::api::agent::delegatedidentity::v1::X509svidWithKey;
    use underpass_proto::spire::api::types::{Spiffeid, X509svid};

    use super::*;
    use crate::certs::{Issuer, SpireConfig, SpireIssuer};
    use crate::tls::testing::{Authority, id};

    const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";

    /// Nobody tells the issuer that a pod has gone; streams of pods that have would pile up.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_nobody_wants_is_ended_and_one_that_somebody_wants_is_not() {
        let issuer = SpireIssuer::new(SpireConfig {
            admin_socket: "/nowhere".into(),
            trust_domain: "mesh.test".parse().unwrap(),
            deadline: LOOK,
        });
        let mut nudges = issuer.nudges().unwrap();
        let (shared, identity) = (issuer.shared.clone(), id(CART));
        let state = watch::Sender::default();
        let (asked, wanted) = watch::channel(Asked { at: Instant::now(), failed: false });
        let idle = tokio::spawn(std::future::pending::<()>()).abort_handle();
        let subscription =
            Subscription { state: state.subscribe(), asked, federates: Federates::default(), task: idle };
        shared.subscriptions().insert(identity.clone(), subscription);
        let mut stream = Stream {
            shared: shared.clone(),
            identity: identity.clone(),
            state,
            wanted,
            federates: Federates::default(),
            nudged: None,
        };
        let ask = || shared.subscriptions()[&identity].asked.send_modify(|asked| asked.at = Instant::now());
        let later = async || tokio::time::advance(UNWANTED + LOOK).await;
        assert!(!stream.is_over());
        stream.take(svid());
        later().await;
        assert!(!stream.is_over(), "who has the certificate need not ask again");
        stream.take(svid());
        assert_eq!(nudges.try_recv(), Ok(Nudge::Identity(identity.clone())));
        assert!(!stream.is_over());
        tokio::time::advance(LOOK).await;
        ask();
        later().await;
        assert!(!stream.is_over(), "the nudge was answered");
        stream.take(svid());
        later().await;
        assert!(stream.is_over(), "nobody wants the news");
        assert!(shared.subscriptions().is_empty());
    }

    fn svid() -> Svid {
        let shown = Authority::root().leaf(CART, |_| {});
        let theirs = Spiffeid { trust_domain: "mesh.test".into(), path: "/ns/shop/sa/cart".into() };
        let cert_chain = vec![shown.chain[0].to_vec()];
        let svid = X509svid { cert_chain, id: Some(theirs), ..Default::default() };
        let with_key =
            X509svidWithKey { x509_svid: Some(svid), x509_svid_key: shown.key().secret_der().to_vec() };
        let answer = SubscribeToX509sviDsResponse { x509_svids: vec![with_key], ..Default::default() };
        answer::read(answer, &id(CART)).unwrap()
    }
}
