//! An API server for tests: objects by path, versions, watches, merge patches, and the refusals of the real one.
//! It runs on a thread of its own, so that tests of blocking commands may ask it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures::stream;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The server; it ends with the value.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    state: Shared,
    stop: tokio_util::sync::CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

type Shared = Arc<Api>;

struct Api {
    inner: Mutex<Inner>,
    changed: watch::Sender<usize>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Value>,
    version: u64,
    log: Vec<Entry>,
    /// Watches from before this version are too old.
    oldest: u64,
    asked: Vec<Asked>,
    faults: Vec<Fault>,
    reviews: BTreeMap<String, Value>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// As `GET /api/v1/…?…`.
    pub(crate) line: String,
    pub(crate) accept: String,
    pub(crate) authorization: String,
    kind: String,
    pub(crate) body: Value,
}

/// What the next requests that contain `of` are answered with, so many times.
#[derive(Clone)]
pub(crate) struct Fault {
    pub(crate) of: &'static str,
    pub(crate) times: usize,
    pub(crate) status: u16,
    pub(crate) header: Option<(&'static str, &'static str)>,
    pub(crate) body: String,
    pub(crate) delay: Duration,
}

impl Fault {
    pub(crate) fn new(of: &'static str, status: u16) -> Self {
        let (times, header, delay) = (1, None, Duration::ZERO);
        Self { of, times, status, header, body: told(status, "fault", "as the test wants it"), delay }
    }
}

#[derive(Clone)]
enum Entry {
    Event { version: u64, kind: &'static str, path: String, object: Value },
    Bookmark,
    Close,
    Expired,
}

const COLLECTIONS: [&str; 5] = ["secrets", "pods", "configmaps", "namespaces", "clustertrustbundles"];

impl Fake {
    pub(crate) fn start() -> Self {
        Self::run(None)
    }

    /// With this server certificate and key.
    pub(crate) fn start_tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::run(Some(config.into()))
    }

    fn run(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let state = Shared::new(Api { inner: Mutex::default(), changed: watch::channel(0).0 });
        let stop = tokio_util::sync::CancellationToken::new();
        let (send, receive) = std::sync::mpsc::channel();
        let (api, stopped) = (Arc::clone(&state), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(stopped.run_until_cancelled(serve(api, tls, send)));
        });
        Self { address: receive.recv().unwrap(), state, stop, thread: Some(thread) }
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self, folder: &Path, authority: Option<&str>) -> PathBuf {
        let path = folder.join("kubeconfig");
        let (scheme, port) = (if authority.is_some() { "https" } else { "http" }, self.address.port());
        let authority = authority.map_or(String::new(), |path| format!(", certificate-authority: {path}"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{scheme}://127.0.0.1:{port}\"{authority}}}}}]\n\
             users: [{{name: u, user: {{token: let-me-in}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.state.inner.lock().unwrap()
    }

    /// Makes or replaces an object.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.change(|inner| drop(inner.put(path, object)));
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.change(|inner| {
            let object = inner.objects.remove(path).unwrap();
            inner.event("DELETED", path, object);
        });
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.inner().objects.get(path).cloned()
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.inner().faults.push(fault);
    }

    pub(crate) fn mend(&self) {
        self.inner().faults.clear();
    }

    /// What a TokenReview of this token says.
    pub(crate) fn review(&self, token: &str, status: Value) {
        self.inner().reviews.insert(token.into(), status);
    }

    /// Ends the watches that are open.
    pub(crate) fn close(&self) {
        self.state.change(|inner| inner.log.push(Entry::Close));
    }

    /// Forgets what happened until now: open watches and those that would go on from there hear 410.
    pub(crate) fn expire(&self) {
        self.state.change(|inner| {
            inner.version += 1;
            inner.oldest = inner.version;
            inner.log.push(Entry::Expired);
        });
    }

    pub(crate) fn bookmark(&self) {
        self.state.change(|inner| {
            inner.version += 1;
            inner.log.push(Entry::Bookmark);
        });
    }

    pub(crate) fn version(&self) -> u64 {
        self.inner().version
    }

    /// Every request that had this in its line.
    pub(crate) fn asked(&self, of: &str) -> Vec<Asked> {
        self.inner().asked.iter().filter(|asked| asked.line.contains(of)).cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn serve(
    state: Shared,
    tls: Option<tokio_rustls::TlsAcceptor>,
    send: std::sync::mpsc::Sender<SocketAddr>,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    send.send(listener.local_addr().unwrap()).unwrap();
    let app = Router::new().fallback(answer).with_state(state);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (app, tls) = (TowerToHyperService::new(app.clone()), tls.clone());
        tokio::spawn(async move {
            let builder = Builder::new();
            match tls {
                None => drop(builder.serve_connection(TokioIo::new(stream), app).await),
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        drop(builder.serve_connection(TokioIo::new(stream), app).await);
                    }
                }
            }
        });
    }
}

async fn answer(State(state): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 4 << 20).await.unwrap();
    let header = |name: &str| parts.headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
    let asked = Asked {
        line: format!("{} {}", parts.method, parts.uri),
        accept: header("accept"),
        authorization: header("authorization"),
        kind: header("content-type"),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    if let Some(fault) = state.meet(&asked) {
        tokio::time::sleep(fault.delay).await;
        let mut response = Response::builder().status(fault.status);
        if let Some((name, value)) = fault.header {
            response = response.header(name, value);
        }
        return response.body(Body::from(fault.body)).unwrap();
    }
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/")))
        .collect();
    if query.get("watch").is_some_and(|w| w == "true") {
        return watched(&state, parts.uri.path(), &query, asked.metadata_only());
    }
    let (status, body) =
        state.change(|inner| inner.call(parts.method.as_str(), parts.uri.path(), &query, &asked));
    Response::builder().status(status).body(Body::from(body)).unwrap()
}

impl Asked {
    fn metadata_only(&self) -> bool {
        self.accept.contains("PartialObjectMetadata")
    }
}

impl Api {
    fn meet(&self, asked: &Asked) -> Option<Fault> {
        let mut inner = self.inner.lock().unwrap();
        inner.asked.push(asked.clone());
        let fault = inner.faults.iter_mut().find(|fault| fault.times > 0 && asked.line.contains(fault.of))?;
        fault.times -= 1;
        Some(fault.clone())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock().unwrap();
        let done = change(&mut inner);
        self.changed.send_replace(inner.log.len());
        done
    }
}

impl Inner {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.version += 1;
        object["metadata"]["name"] = path.rsplit('/').next().unwrap().into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        let version = self.version;
        self.log.push(Entry::Event { version, kind, path: path.to_owned(), object: object.clone() });
        object
    }

    fn event(&mut self, kind: &'static str, path: &str, mut object: Value) {
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.log.push(Entry::Event { version, kind, path: path.to_owned(), object });
    }

    fn call(
        &mut self,
        method: &str,
        path: &str,
        query: &BTreeMap<String, String>,
        asked: &Asked,
    ) -> (u16, String) {
        let (body, metadata_only) = (&asked.body, asked.metadata_only());
        let (above, last) = path.rsplit_once('/').unwrap();
        let is_collection = COLLECTIONS.contains(&last) && !self.objects.contains_key(path);
        let in_collection = COLLECTIONS.iter().any(|name| above.ends_with(&format!("/{name}")));
        let absent = || (404, told(404, "NotFound", &format!("{last:?} not found")));
        match method {
            "POST" if path == "/apis/authentication.k8s.io/v1/tokenreviews" => {
                let token = body["spec"]["token"].as_str().unwrap_or_default();
                let unknown = json!({ "authenticated": false, "error": "invalid bearer token" });
                let status = self.reviews.get(token).cloned().unwrap_or(unknown);
                let mut answer = body.clone();
                answer["status"] = status;
                (201, answer.to_string())
            }
            "GET" if is_collection => {
                let items = self.objects.iter().filter(|(at, object)| belongs(path, at, object, query));
                let all: Vec<Value> = items.map(|(_, object)| shown(object, metadata_only)).collect();
                let from = query.get("continue").and_then(|at| at.parse().ok()).unwrap_or(0usize);
                let limit = query.get("limit").and_then(|at| at.parse().ok()).unwrap_or(usize::MAX).min(PAGE);
                let to = from.saturating_add(limit).min(all.len());
                let more = if to < all.len() { to.to_string() } else { String::new() };
                let meta = json!({ "resourceVersion": self.version.to_string(), "continue": more });
                (200, json!({ "kind": "List", "metadata": meta, "items": all[from..to] }).to_string())
            }
            "POST" if is_collection => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return (409, told(409, "AlreadyExists", "it is there already"));
                }
                (201, self.put(&path, body.clone()).to_string())
            }
            "GET" if in_collection => match self.objects.get(path) {
                Some(object) => (200, shown(object, metadata_only).to_string()),
                None => absent(),
            },
            "PATCH" if in_collection => {
                let Some(mut object) = self.objects.get(path).cloned() else { return absent() };
                assert_eq!(asked.kind, "application/merge-patch+json");
                let version = &body["metadata"]["resourceVersion"];
                if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
                    return (409, told(409, "Conflict", "the object has been modified"));
                }
                merge(&mut object, body);
                (200, self.put(path, object).to_string())
            }
            _ => (404, "404 page not found\n".into()),
        }
    }
}

/// Fewer than are asked for, as the real one may.
const PAGE: usize = 3;

fn shown(object: &Value, metadata_only: bool) -> Value {
    match metadata_only {
        true => json!({ "kind": "PartialObjectMetadata", "metadata": object["metadata"] }),
        false => object.clone(),
    }
}

fn belongs(collection: &str, path: &str, object: &Value, query: &BTreeMap<String, String>) -> bool {
    let here = path.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/'));
    let selector = query.get("fieldSelector").cloned().unwrap_or_default();
    let mut fields = selector.split(',').filter_map(|field| field.split_once('='));
    here.is_some_and(|rest| !rest.contains('/'))
        && fields.all(|(field, value)| {
            object.pointer(&format!("/{}", field.replace('.', "/"))) == Some(&value.into())
        })
}

fn merge(into: &mut Value, change: &Value) {
    for (key, value) in change.as_object().unwrap() {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            Value::Object(_) => {
                if !into[key].is_object() {
                    into[key] = json!({});
                }
                merge(&mut into[key], value);
            }
            other => into[key] = other.clone(),
        }
    }
}

/// Kubernetes' `Status`.
pub(crate) fn told(code: u16, reason: &str, message: &str) -> String {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message })
        .to_string()
}

fn watched(state: &Shared, path: &str, query: &BTreeMap<String, String>, metadata_only: bool) -> Response {
    let from: u64 = query["resourceVersion"].parse().unwrap();
    let begun = {
        let inner = state.inner.lock().unwrap();
        if from < inner.oldest {
            let body = Body::from(told(410, "Expired", "too old resource version"));
            return Response::builder().status(410).body(body).unwrap();
        }
        inner.log.len()
    };
    let (state, path, query) = (Arc::clone(state), path.to_owned(), query.clone());
    let changed = state.changed.subscribe();
    let lines = stream::unfold((0, changed, false), move |(mut at, mut changed, ended)| {
        let (state, path, query) = (Arc::clone(&state), path.clone(), query.clone());
        async move {
            if ended {
                return None;
            }
            loop {
                changed.borrow_and_update();
                let (entry, now) = {
                    let inner = state.inner.lock().unwrap();
                    (inner.log.get(at).cloned(), inner.version)
                };
                let Some(entry) = entry else {
                    changed.changed().await.ok()?;
                    continue;
                };
                at += 1;
                let line =
                    |kind: &str, object: Value| json!({ "type": kind, "object": object }).to_string() + "\n";
                match entry {
                    Entry::Event { version, kind, path: of, object }
                        if version > from && belongs(&path, &of, &object, &query) =>
                    {
                        return Some((
                            Ok::<_, std::io::Error>(line(kind, shown(&object, metadata_only))),
                            (at, changed, false),
                        ));
                    }
                    Entry::Bookmark if at > begun => {
                        let object =
                            json!({ "kind": "X", "metadata": { "resourceVersion": now.to_string() } });
                        return Some((Ok(line("BOOKMARK", object)), (at, changed, false)));
                    }
                    Entry::Close if at > begun => return None,
                    Entry::Expired if at > begun => {
                        let status = serde_json::from_str(&told(410, "Expired", "too old resource version"));
                        return Some((Ok(line("ERROR", status.unwrap())), (at, changed, true)));
                    }
                    _ => {}
                }
            }
        }
    });
    Response::builder().status(200).body(Body::from_stream(lines)).unwrap()
}
