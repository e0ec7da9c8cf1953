//! Streams of agents that follow.

use tokio::sync::mpsc;
use tonic::{Code, Streaming};
use underpass_proto::underpass::v1::trust_service_client::TrustServiceClient;
use underpass_proto::underpass::v1::{AgentReport, HeldCertificate, TrustUpdate};

use super::*;
use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME};
use crate::ca::tests::support::domain;

struct Following {
    reports: mpsc::Sender<AgentReport>,
    updates: Streaming<TrustUpdate>,
}

impl World {
    async fn follow(&self, node: &Papered) -> Result<Following, Status> {
        follow(self.channel(Some(&node.shows()))).await
    }
}

async fn follow(channel: Channel) -> Result<Following, Status> {
    let (reports, mut queued) = mpsc::channel(4);
    let stream = futures::stream::poll_fn(move |cx| queued.poll_recv(cx));
    // Larger than the server takes, so that it is the one to refuse.
    let mut client = TrustServiceClient::new(channel).max_encoding_message_size(64 << 20);
    let updates = in_time(client.follow(stream)).await?.into_inner();
    Ok(Following { reports, updates })
}

impl Following {
    async fn update(&mut self) -> Result<TrustUpdate, Status> {
        in_time(self.updates.message()).await.map(|update| update.expect("the stream has ended"))
    }

    async fn report(&self, node: &str, certificates: usize) {
        let held = |at: usize| HeldCertificate { identity: format!("{CART}-{at:04}"), ..Default::default() };
        let certificates = (0..certificates).map(held).collect();
        let report = AgentReport { node: node.into(), certificates, ..AgentReport::default() };
        self.reports.send(report).await.ok();
    }
}

#[tokio::test]
async fn each_follower_is_told_at_once_and_of_every_change() {
    let w = World::start().await;
    let mut followers = [w.follow(&w.n1).await.unwrap(), w.follow(&w.n2).await.unwrap()];
    let mut versions = Vec::new();
    for follower in &mut followers {
        let update = follower.update().await.unwrap();
        assert_eq!((update.bundles.len(), update.bundles[0].roots.len()), (1, 1));
        versions.push(update.version);
    }
    assert_eq!(versions[0], versions[1]);
    let (root, ca) = (w.scratch.join("root"), w.scratch.join("ca"));
    hierarchy::make_intermediate(&root, &ca, &domain(), INTERMEDIATE_LIFETIME, SystemTime::now()).unwrap();
    w.authority.reload().unwrap();
    for follower in &mut followers {
        let update = follower.update().await.unwrap();
        assert!(!versions.contains(&update.version));
        assert_eq!(crate::ca::signing::hex(&update.authority), w.authority.state().borrow().authority);
    }
}

#[tokio::test]
async fn replicas_with_the_same_files_say_the_same() {
    let w = World::start().await;
    let mut here = w.follow(&w.n1).await.unwrap();
    let other = Authority::open(&config(&w.scratch), Clock::system()).unwrap();
    let service = Service::new(
        other,
        Arc::new(Nodes::new(w.list.subscribe())),
        Agents::default(),
        Metrics::new().unwrap(),
        Duration::ZERO,
    );
    let state = service.authority.state();
    let there = update(&state.borrow(), &domain(), service.renew_within);
    assert_eq!(here.update().await.unwrap(), there);
}

#[tokio::test]
async fn the_same_roots_under_a_higher_revision_are_another_version() {
    let w = World::start().await;
    let mut follower = w.follow(&w.n1).await.unwrap();
    let first = follower.update().await.unwrap();
    assert_eq!(first.revision, 0, "nobody has counted");
    let file = w.scratch.join("ca").join(crate::ca::rotation::REVISION);
    std::fs::write(&file, "4\n").unwrap();
    assert!(w.authority.reload().unwrap());
    let second = follower.update().await.unwrap();
    assert_eq!((second.revision, &second.bundles), (4, &first.bundles));
    assert_ne!(second.version, first.version);
    std::fs::write(&file, "four").unwrap();
    let error = w.authority.reload().unwrap_err().to_string();
    assert!(error.contains("revision") && error.contains("no number"), "{error}");
    let state = w.authority.state();
    assert_eq!(state.borrow().revision, 4, "what was there goes on");
}

#[tokio::test]
async fn a_stranger_follows_nobody() {
    let w = World::start().await;
    for shows in [None, Some(&Papered::new().shows())] {
        let refused = follow(w.channel(shows)).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    assert_eq!(w.agents.connected(), 0);
    assert_eq!(w.counted(r#"underpass_ca_streams_total{result="unknown_caller"}"#), 2);
    let _known = w.follow(&w.n1).await.unwrap();
    assert_eq!(w.counted(r#"underpass_ca_streams_total{result="accepted"}"#), 1);
}

#[tokio::test]
async fn a_report_under_another_name_ends_the_stream_and_is_not_kept() {
    let w = World::start().await;
    for name in ["n2", "", "N1", &"x".repeat(100_000)] {
        let mut lying = w.follow(&w.n1).await.unwrap();
        lying.update().await.unwrap();
        lying.report(name, 1).await;
        let refused = lying.update().await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("set the agent's node name to n1"), "{refused}");
        assert!(refused.message().len() < 1024);
    }
    gone(&w).await;
    assert!(w.agents.view().iter().all(|a| a.node == "n1" && a.certificates.is_empty()));
}

#[tokio::test]
async fn a_report_over_the_limit_ends_the_stream_and_one_below_is_kept() {
    let w = World::start().await;
    let mut honest = w.follow(&w.n1).await.unwrap();
    honest.update().await.unwrap();
    honest.report("n1", 10_000).await;
    in_time(async {
        while w.agents.view()[0].certificates.len() != 10_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut greedy = w.follow(&w.n2).await.unwrap();
    greedy.update().await.unwrap();
    greedy.report("n2", 200_000).await;
    let refused = greedy.update().await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
    assert!(w.agents.view().iter().all(|agent| agent.node == "n1" || agent.certificates.is_empty()));
}

#[tokio::test]
async fn a_fifth_stream_of_a_node_is_refused_and_another_nodes_first_is_not() {
    let w = World::start().await;
    let channel = w.channel(Some(&w.n1.shows()));
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(follow(channel.clone()).await.unwrap());
    }
    let refused = follow(channel.clone()).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(w.follow(&w.n2).await.is_ok());
    held.pop();
    in_time(async {
        while follow(channel.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_that_is_taken_out_of_the_list_is_out_at_once() {
    let w = World::start().await;
    let channel = w.channel(Some(&w.n1.shows()));
    let (mut out, mut stays) = (follow(channel.clone()).await.unwrap(), w.follow(&w.n2).await.unwrap());
    out.update().await.unwrap();
    stays.update().await.unwrap();
    assert!(ask(channel.clone(), message(CART, csr(CART))).await.is_ok());
    w.list.send_modify(|list| list.retain(|node| node.name != "n1"));
    assert_eq!(out.update().await.unwrap_err().code(), Code::Unauthenticated);
    // Its connection is the same.
    let refused = ask(channel.clone(), message(CART, csr(CART))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(follow(channel).await.err().unwrap().code(), Code::Unauthenticated);
    assert!(w.ask(&w.n2, TILL).await.is_ok());
    assert_eq!(w.agents.connected(), 1);
}

/// Its receive window is full, and it is to be out all the same.
#[tokio::test]
async fn a_follower_that_reads_nothing_is_out_at_once_too() {
    let w = World::start().await;
    let _deaf = w.follow(&w.n1).await.unwrap();
    let (root, ca) = (w.scratch.join("root"), w.scratch.join("ca"));
    for _ in 0..3 {
        hierarchy::make_intermediate(&root, &ca, &domain(), INTERMEDIATE_LIFETIME, SystemTime::now())
            .unwrap();
        w.authority.reload().unwrap();
    }
    w.list.send_modify(Vec::clear);
    gone(&w).await;
}

#[tokio::test]
async fn a_key_that_becomes_another_nodes_is_not_the_old_node_any_more() {
    let w = World::start().await;
    let mut renamed = w.follow(&w.n1).await.unwrap();
    renamed.update().await.unwrap();
    w.list.send_modify(|list| list[0].name = "n3".into());
    assert_eq!(renamed.update().await.unwrap_err().code(), Code::Unauthenticated);
}

async fn gone(w: &World) {
    in_time(async {
        while w.agents.connected() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
