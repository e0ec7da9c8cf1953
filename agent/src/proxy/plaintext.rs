//! A plaintext connection from outside to one of our pods, which the kernel steered here because a
//! policy must see it: authorized without an identity → delivered → recorded.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::capture::{self, Captured};
use super::deliver;
use super::end::{End, while_wanted};
use super::http;
use super::inbound::{Heard, judged_requests};
use super::node::PodProxy;
use super::outbound::dial_cause;
use crate::model::{AppAddr, Cause};
use crate::policy::Conn;
use crate::telemetry::{Party, Record};

pub async fn serve(pod: Arc<PodProxy>, stream: TcpStream) {
    let captured = match capture::plaintext(&pod, stream) {
        Some(Ok(captured)) => captured,
        Some(Err(refused)) => return refused.record.finish(refused.cause, Some(refused.why)),
        None => return,
    };
    let snapshot = pod.node.snapshot();
    let record = &captured.record;
    record.set_source(Party { workload: snapshot.workload(captured.client.ip()).cloned(), identity: None });
    record.set_destination(Party {
        workload: snapshot.workload_of(&pod.enrolled.pod).cloned(),
        identity: Some(pod.enrolled.pod.identity.clone()),
    });
    let known = snapshot.known_at(captured.client.ip()).cloned();
    drop(snapshot);
    let Captured { stream, client, destination, record } = captured;
    let app = destination.0;
    let conn = Conn { at_source: known, ..Conn::new(None, client.ip(), app.ip(), app.port()) };
    let end = judged(&pod, stream, client, conn, &record).await;
    record.finish(end.cause, end.detail);
}

async fn judged(
    pod: &Arc<PodProxy>,
    stream: TcpStream,
    client: crate::model::ClientAddr,
    conn: Conn,
    record: &Record,
) -> End {
    let app = AppAddr(SocketAddr::new(conn.destination_ip, conn.destination_port));
    pod.authorizer.note(&conn, record);
    let permit = match pod.authorizer.authorize(record.id(), conn, &pod.enrolled.cut) {
        Ok(permit) => permit,
        Err(denied) => {
            record.set_denial(&denied.told);
            return End::refused(stream, Cause::PolicyDenied, denied.why);
        }
    };
    permit.tell(record.teller());
    if let Some(policy) = permit.policy() {
        record.set_policy(Arc::clone(policy));
    }
    if let Some(exception) = permit.exception() {
        record.set_exception(Arc::clone(exception));
    }
    let upstream = match while_wanted(&stream, permit.stop(), pod.deliver_as(app, client)).await {
        Ok(Ok(upstream)) => upstream,
        Ok(Err(e)) => return End::refused(stream, dial_cause(&e), e.to_string()),
        Err((cause, why)) => return End::refused(stream, cause, why),
    };
    record.established();
    pod.node.telemetry.plaintext_admitted(permit.exception());
    match permit.requests() {
        Some(judge) if judge.binding() => {
            let (client, told) = (http::Socket::new(stream), permit.stop().child());
            judged_requests(pod, client, told, upstream, judge, record, permit.stop()).await
        }
        advised => {
            let mut heard = Heard::of(pod, advised);
            let watch = heard.as_mut().map(Heard::watch);
            let ended = deliver::copy_tcp(stream, upstream, record.counts(), permit.stop(), watch).await;
            heard.into_iter().for_each(|heard| heard.tell(record));
            ended.into()
        }
    }
}
