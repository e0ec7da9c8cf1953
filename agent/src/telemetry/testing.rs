//! Values that this module's tests share.

use std::io;
use std::sync::{Arc, Mutex};

use crate::model::*;

use super::{FlowLeftAlone, Format, Opened, Party, Telemetry, TelemetryConfig};

/// What was written to the log.
#[derive(Clone, Default)]
pub(super) struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn telemetry(change: impl FnOnce(&mut TelemetryConfig)) -> (Telemetry, Output) {
    let output = Output::default();
    let mut config = TelemetryConfig::default();
    config.access_log.format = Format::Json;
    change(&mut config);
    (Telemetry::with_output(&config, output.clone()).unwrap(), output)
}

/// The access log so far, as JSON.
pub(super) fn lines(telemetry: &Telemetry, output: &Output) -> Vec<serde_json::Value> {
    telemetry.flush();
    output.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(super) fn opened(direction: Direction) -> Opened {
    let (client, destination) = match direction {
        Direction::Outbound => ("10.0.1.5:40000", "10.96.0.7:80"),
        Direction::Inbound => ("10.0.1.5:40001", "10.0.2.9:15008"),
    };
    Opened {
        id: ConnectionId::next(),
        direction,
        pod: pod(if direction == Direction::Outbound { "client-1" } else { "server-1" }),
        client: ClientAddr(client.parse().unwrap()),
        destination: OriginalDst(destination.parse().unwrap()),
    }
}

/// A connection that the pod has dialled.
pub(super) fn left_alone(pod: &LocalPod) -> FlowLeftAlone<'_> {
    FlowLeftAlone {
        direction: Direction::Outbound,
        pod,
        workload: None,
        local: "10.0.1.5:40000".parse().unwrap(),
        remote: "192.0.2.1:80".parse().unwrap(),
        peer: None,
        sent: 0,
        received: 0,
    }
}

pub(super) fn pod(name: &str) -> Arc<LocalPod> {
    Arc::new(LocalPod {
        uid: PodUid(format!("uid-{name}").into()),
        namespace: "shop".into(),
        name: name.into(),
        identity: identity("shop", name),
        netns: "/run/netns/none".into(),
        addresses: vec![],
    })
}

pub(super) fn identity(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local".parse().unwrap(), namespace, account).unwrap()
}

pub(super) fn party(name: &str) -> Party {
    Party { workload: Some(Arc::new(workload(name))), identity: Some(identity("shop", name)) }
}

pub(super) fn workload(name: &str) -> Workload {
    let mut workload = Workload::new(
        &format!("c1//Pod/shop/{name}-1"),
        "shop",
        &format!("{name}-1"),
        identity("shop", name),
    );
    workload.cluster = "c1".into();
    workload.canonical_name = name.into();
    workload.canonical_revision = "v2".into();
    workload.workload_name = format!("{name}-deployment").into();
    workload
}

pub(super) fn service(name: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
        vips: vec![],
        ports: vec![],
        subject_alt_names: vec![],
        allow_unhealthy: false,
        load_balancing: Default::default(),
        canonical: false,
        visibility: Default::default(),
    })
}
