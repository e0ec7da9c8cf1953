//! Follows the names of a collection: a list, then what changes in it, and a list again when that is too
//! long ago. Only names and versions are asked for, and nothing of what is inside.

use std::time::Duration;

use http::StatusCode;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::timeout;

use super::Cluster;
use super::call::{Call, CallError, Status, Verb, next_part, verdict};

/// What was seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// All that there are; what is not among them is gone.
    All(Vec<String>),
    /// It is new, or another one than before.
    Here(String),
    Gone(String),
}

/// Goes on from where it was, also after an error.
pub(super) struct Follower {
    cluster: Cluster,
    list: Call,
    /// As of which the collection is known.
    version: Option<String>,
    lines: Option<Lines>,
}

impl Follower {
    /// `list` says which.
    pub(super) fn new(cluster: &Cluster, list: Call) -> Self {
        let list = Call { verb: Verb::List, metadata_only: true, ..list };
        Self { cluster: cluster.clone(), list, version: None, lines: None }
    }

    /// Waits for what comes next. After an error it may be called again, and should not be at once.
    pub(super) async fn next(&mut self) -> Result<Seen, CallError> {
        loop {
            let Some(version) = self.version.clone() else { return self.all().await.map(Seen::All) };
            let lines = match &mut self.lines {
                Some(lines) => lines,
                none => match watch(&self.cluster, &self.list, &version).await {
                    Ok(lines) => none.insert(lines),
                    Err(CallError::TooOld(_)) => {
                        self.version = None;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let line = match timeout(self.cluster.patience.watch, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                ended => {
                    let heard = lines.heard;
                    self.lines = None;
                    match ended {
                        // A server that closes at once must not be asked in a loop.
                        Ok(Ok(None)) if !heard => tokio::time::sleep(PAUSE).await,
                        Ok(Err(why)) => return Err(CallError::Failed(format!("{}: {why}", self.watched()))),
                        _ => {}
                    }
                    continue;
                }
            };
            let unclear = || CallError::Failed(format!("{}: an event does not parse", self.watched()));
            let event: Event = serde_json::from_slice(&line).map_err(|_| unclear())?;
            if event.kind == "ERROR" {
                (self.lines, self.version) = (None, None);
                let status: Status = serde_json::from_value(event.object).unwrap_or_default();
                let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                match verdict(&self.watched(), code, &status.message, true) {
                    CallError::TooOld(_) => continue,
                    error => return Err(error),
                }
            }
            let object: Named = serde_json::from_value(event.object).map_err(|_| unclear())?;
            self.version = Some(object.metadata.resource_version);
            match event.kind.as_str() {
                "ADDED" | "MODIFIED" => return Ok(Seen::Here(object.metadata.name)),
                "DELETED" => return Ok(Seen::Gone(object.metadata.name)),
                // A bookmark: nothing but a later version to go on from.
                _ => {}
            }
        }
    }

    async fn all(&mut self) -> Result<Vec<String>, CallError> {
        let (mut names, mut more) = (Vec::new(), String::new());
        loop {
            let mut page = self.list.clone().with("limit", PAGE);
            if !more.is_empty() {
                page = page.with("continue", more);
            }
            let page: Page = self.cluster.ask(&page, None).await?;
            names.extend(page.items.into_iter().map(|item| item.metadata.name));
            more = page.metadata.more;
            if more.is_empty() {
                self.version = Some(page.metadata.resource_version);
                return Ok(names);
            }
        }
    }

    fn watched(&self) -> Call {
        Call { verb: Verb::Watch, ..self.list.clone() }
    }
}

async fn watch(cluster: &Cluster, list: &Call, version: &str) -> Result<Lines, CallError> {
    let call = Call { verb: Verb::Watch, ..list.clone() }
        .with("watch", "true")
        .with("allowWatchBookmarks", "true")
        .with("timeoutSeconds", OPEN)
        .with("resourceVersion", version);
    let patience = cluster.patience.answer;
    let answer = timeout(patience, cluster.send(&call, None)).await;
    let answer =
        answer.map_err(|_| CallError::Failed(format!("{call}: no answer within {patience:?}")))??;
    Ok(Lines { body: answer.into_body(), read: Vec::new(), heard: false })
}

/// A watch's answer, line by line.
struct Lines {
    body: Body,
    read: Vec<u8>,
    heard: bool,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=end).collect();
                line.pop();
                self.heard = true;
                return Ok(Some(line));
            }
            if self.read.len() > LONGEST {
                return Err(format!("an event has more than {LONGEST} bytes"));
            }
            match next_part(&mut self.body).await? {
                Some(part) => self.read.extend_from_slice(&part),
                None => return Ok(None),
            }
        }
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    #[serde(default)]
    items: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: String,
}

#[derive(Deserialize)]
struct Named {
    metadata: Meta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    /// A bookmark has none.
    #[serde(default)]
    name: String,
    resource_version: String,
}

const PAGE: &str = "500";
/// After so many seconds the server ends a watch.
const OPEN: &str = "290";
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: usize = 2 << 20;
