//! What a route does with a request that is admitted to it: changes of headers, and redirects. They decide
//! nothing about who is admitted, and what is judged is what the client sent.

use std::fmt;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{StatusCode, Uri};

use super::super::request::Request;
use super::super::resource::DefectKind;
use super::clients::is_dns_label;
use super::matching::{Path, RequestMatch};
use super::read::{Faults, Fields, Node};

/// Those of the rule that a request is of, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilters {
    filters: Arc<[Filter]>,
    /// Bytes of the path that the rule asks for as its beginning.
    prefix: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    RequestHeaders(HeaderChanges),
    ResponseHeaders(HeaderChanges),
    Redirect(Redirect),
}

/// First what is added, then what is set, then what is removed, as Linkerd has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    add: Vec<(HeaderName, HeaderValue)>,
    set: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

/// What is not said stays as the request has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<Scheme>,
    hostname: Option<Arc<str>>,
    port: Option<u16>,
    path: Option<NewPath>,
    status: StatusCode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NewPath {
    /// And its query.
    Full(PathAndQuery),
    /// Instead of what the rule asks for, without a slash at its end.
    Prefix(Arc<str>),
}

/// A request that does not say whom it is for cannot be led elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a redirect whose place the request does not tell")]
pub struct NoLocation;

impl RouteFilters {
    /// Of a rule for the paths below `prefix`, as YAML says them.
    #[cfg(test)]
    pub(crate) fn from_yaml(prefix: &str, filters: &str) -> Self {
        let value = serde_saphyr::from_str(&format!("filters: {filters}")).expect("YAML");
        let resource = super::super::ResourceRef {
            kind: super::super::Kind::HttpRoute,
            namespace: "shop".into(),
            name: "r".into(),
        };
        let mut faults = Faults::new(resource, "");
        let one = RequestMatch { path: Path::prefix(prefix), ..RequestMatch::any() };
        let rule = Node::spec(&value).fields(&["filters"], &mut faults);
        let read = read(&rule, std::slice::from_ref(&one), &mut faults);
        assert!(faults.defects.is_empty(), "{filters}: {:?}", faults.defects);
        Self::of(&read, &one)
    }

    pub(super) fn of(filters: &Arc<[Filter]>, one: &RequestMatch) -> Self {
        let prefix = if let Path::Prefix(prefix) = &one.path { prefix.len() } else { 0 };
        Self { filters: filters.clone(), prefix }
    }

    /// Where the request is led, of which `scheme` is said. A redirect to where it is already does nothing.
    ///
    /// # Errors
    /// It has to be led elsewhere, and where to cannot be told.
    pub fn redirect(
        &self,
        request: &Request<'_>,
        scheme: &Scheme,
    ) -> Result<Option<(StatusCode, Uri)>, NoLocation> {
        for filter in &*self.filters {
            if let Filter::Redirect(redirect) = filter
                && let Some(location) = redirect.location(request, scheme, self.prefix)?
            {
                return Ok(Some((redirect.status, location)));
            }
        }
        Ok(None)
    }

    pub fn change_request(&self, headers: &mut HeaderMap) {
        self.of_requests().for_each(|changes| changes.change(headers));
    }

    pub fn change_request_trailers(&self, trailers: &mut HeaderMap) {
        self.of_requests().for_each(|changes| changes.take_from(trailers));
    }

    pub fn change_response(&self, headers: &mut HeaderMap) {
        self.of_responses().for_each(|changes| changes.change(headers));
    }

    pub fn change_response_trailers(&self, trailers: &mut HeaderMap) {
        self.of_responses().for_each(|changes| changes.take_from(trailers));
    }

    fn of_requests(&self) -> impl Iterator<Item = &HeaderChanges> {
        self.filters.iter().filter_map(|filter| match filter {
            Filter::RequestHeaders(changes) => Some(changes),
            _ => None,
        })
    }

    fn of_responses(&self) -> impl Iterator<Item = &HeaderChanges> {
        self.filters.iter().filter_map(|filter| match filter {
            Filter::ResponseHeaders(changes) => Some(changes),
            _ => None,
        })
    }
}

impl HeaderChanges {
    fn change(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// Some applications read trailers as if they were headers: what is not the sender's to say is in neither.
    fn take_from(&self, trailers: &mut HeaderMap) {
        for name in self.set.iter().map(|(name, _)| name).chain(&self.remove) {
            trailers.remove(name);
        }
    }
}

impl Redirect {
    fn location(
        &self,
        request: &Request<'_>,
        scheme: &Scheme,
        prefix: usize,
    ) -> Result<Option<Uri>, NoLocation> {
        let sent: PathAndQuery = with_query(request.path, request.query)?;
        let host = request.host.parse::<Authority>().ok();
        let to = self.scheme.as_ref().unwrap_or(scheme);
        let path = match &self.path {
            None => sent.clone(),
            Some(NewPath::Full(path)) => path.clone(),
            Some(NewPath::Prefix(new)) => {
                let rest = request.path.get(prefix..).ok_or(NoLocation)?;
                let path = format!("{new}{rest}");
                with_query(if path.is_empty() { "/" } else { &path }, request.query)?
            }
        };
        let location = uri(to, self.authority(host.as_ref(), to)?, path)?;
        let here = host.and_then(|host| uri(scheme, host, sent).ok());
        Ok((here.as_ref() != Some(&location)).then_some(location))
    }

    /// A port that the scheme has anyway is left out.
    fn authority(&self, host: Option<&Authority>, scheme: &Scheme) -> Result<Authority, NoLocation> {
        let usual = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        let (name, port) = match (&self.hostname, self.port) {
            (None, None) => return host.cloned().ok_or(NoLocation),
            (Some(name), None) => (&**name, host.and_then(Authority::port_u16)),
            (Some(name), port) => (&**name, port),
            (None, port) => (host.ok_or(NoLocation)?.host(), port),
        };
        let authority = match port.filter(|port| *port != usual) {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        authority.parse().map_err(|_| NoLocation)
    }
}

fn with_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, NoLocation> {
    match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    }
    .map_err(|_| NoLocation)
}

fn uri(scheme: &Scheme, authority: Authority, path: PathAndQuery) -> Result<Uri, NoLocation> {
    let built = Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query(path).build();
    built.map_err(|_| NoLocation)
}

/// Of a rule with these matches. One that cannot be applied, and without which the application would get what
/// it must not, breaks the route.
pub(super) fn read(rule: &Fields<'_>, matches: &[RequestMatch], faults: &mut Faults) -> Arc<[Filter]> {
    let nodes = rule.items("filters", faults);
    let mut filters = Vec::new();
    for node in &nodes {
        filters.extend(filter(node, matches, faults));
    }
    at_most(&nodes, &rule.path("filters"), faults);
    filters.into()
}

fn filter(node: &Node<'_>, matches: &[RequestMatch], faults: &mut Faults) -> Option<Filter> {
    let kind = node.any_fields(faults).required("type", faults)?.text(faults)?;
    // A call's client follows no redirect.
    let grpc = matches.iter().any(|one| matches!(one.path, Path::Rpc { .. }));
    Some(match kind {
        "RequestHeaderModifier" => {
            Filter::RequestHeaders(changes(&settings(node, "requestHeaderModifier", faults)?, faults))
        }
        "ResponseHeaderModifier" => {
            Filter::ResponseHeaders(changes(&settings(node, "responseHeaderModifier", faults)?, faults))
        }
        "RequestRedirect" if !grpc => {
            Filter::Redirect(redirect(&settings(node, "requestRedirect", faults)?, matches, faults)?)
        }
        // Without them the application gets what it would get, and nobody more than asked for.
        "RequestMirror" | "CORS" => {
            let message = format!("{kind} is not applied; requests are judged as if it were not there");
            faults.tell(DefectKind::Unsupported, &node.path, message);
            return None;
        }
        _ => {
            let what = format!("the filter {kind} cannot be applied");
            faults.refuse(DefectKind::Unsupported, &node.path, what);
            return None;
        }
    })
}

fn settings<'a>(node: &Node<'a>, key: &str, faults: &mut Faults) -> Option<Node<'a>> {
    node.fields(&["type", key], faults).required(key, faults)
}

fn changes(node: &Node<'_>, faults: &mut Faults) -> HeaderChanges {
    let fields = node.fields(&["add", "set", "remove"], faults);
    let mut changes = HeaderChanges::default();
    for (key, to) in [("add", &mut changes.add), ("set", &mut changes.set)] {
        let nodes = fields.items(key, faults);
        for node in &nodes {
            let Some((name, value)) = header(node, faults) else { continue };
            // Of several of one name the first counts.
            if !to.iter().any(|(other, _)| *other == name) {
                to.push((name, value));
            }
        }
        at_most(&nodes, &fields.path(key), faults);
    }
    let nodes = fields.items("remove", faults);
    for node in &nodes {
        changes.remove.extend(node.name(faults).and_then(|name| header_name(name, &node.path, faults)));
    }
    at_most(&nodes, &fields.path("remove"), faults);
    changes
}

fn header(node: &Node<'_>, faults: &mut Faults) -> Option<(HeaderName, HeaderValue)> {
    let fields = node.fields(&["name", "value"], faults);
    let name = fields.required("name", faults)?.name(faults)?;
    let name = header_name(name, &fields.path("name"), faults)?;
    let text = fields.required("value", faults)?.name(faults)?;
    let value = HeaderValue::from_str(text);
    if value.is_err() {
        faults.invalid(&fields.path("value"), format_args!("{text:?} is no header's value"));
    }
    Some((name, value.ok()?))
}

fn header_name(text: &str, at: &str, faults: &mut Faults) -> Option<HeaderName> {
    let Ok(name) = text.parse::<HeaderName>() else {
        faults.invalid(at, format_args!("{text:?} is no header's name"));
        return None;
    };
    // Where a message ends, and for whom it is, is not said twice in two ways.
    if OF_THE_CONNECTION.contains(&name) {
        faults.refuse(DefectKind::Unsupported, at, format_args!("{name} is not a filter's to change"));
        return None;
    }
    Some(name)
}

fn redirect(node: &Node<'_>, matches: &[RequestMatch], faults: &mut Faults) -> Option<Redirect> {
    let fields = node.fields(&["scheme", "hostname", "port", "path", "statusCode"], faults);
    // What is not understood breaks the route, so that what is put for it here leads nobody anywhere.
    let scheme = fields.get("scheme").and_then(|node| match node.text(faults)? {
        "http" => Some(Scheme::HTTP),
        "https" => Some(Scheme::HTTPS),
        other => {
            faults.invalid(&node.path, format_args!("{other:?} is neither http nor https"));
            None
        }
    });
    let hostname = fields.get("hostname").and_then(|node| {
        let text = node.name(faults)?;
        if !text.split('.').all(is_dns_label) {
            faults.invalid(&node.path, format_args!("{text:?} is no host name"));
            return None;
        }
        Some(Arc::from(text))
    });
    let port = fields.get("port").and_then(|node| {
        let port = number(&node).filter(|port| *port > 0);
        if port.is_none() {
            faults.invalid(&node.path, format_args!("{} is no port", node.value()));
        }
        port
    });
    let status = fields.get("statusCode").map_or(Some(StatusCode::FOUND), |node| {
        let status = number(&node).filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308));
        if status.is_none() {
            faults.invalid(&node.path, format_args!("{} is no redirect's status", node.value()));
        }
        StatusCode::from_u16(status?).ok()
    });
    let path = fields.get("path").and_then(|node| new_path(&node, matches, faults));
    Some(Redirect { scheme, hostname, port, path, status: status? })
}

fn new_path(node: &Node<'_>, matches: &[RequestMatch], faults: &mut Faults) -> Option<NewPath> {
    let kind = node.any_fields(faults).required("type", faults)?.text(faults)?;
    match kind {
        "ReplaceFullPath" => {
            let node = settings(node, "replaceFullPath", faults)?;
            let text = node.text(faults)?;
            let path = PathAndQuery::try_from(text).ok();
            let path = path.filter(|path| path.as_str() == text && text.starts_with('/'));
            if path.is_none() {
                faults.invalid(&node.path, format_args!("{text:?} is no path that begins with \"/\""));
            }
            path.map(NewPath::Full)
        }
        "ReplacePrefixMatch" => {
            let at = node.path.clone();
            let node = settings(node, "replacePrefixMatch", faults)?;
            let text = node.text(faults)?;
            let new = text.trim_end_matches('/');
            let is_path = new.is_empty()
                || new.starts_with('/') && PathAndQuery::try_from(new).is_ok_and(|path| path.path() == new);
            if !is_path {
                faults.invalid(&node.path, format_args!("{text:?} is no path that begins with \"/\""));
                return None;
            }
            if !matches.iter().all(|one| matches!(one.path, Path::Prefix(_))) {
                faults.invalid(
                    &at,
                    "not every match of the rule is by PathPrefix, so there is none to replace",
                );
                return None;
            }
            Some(NewPath::Prefix(new.into()))
        }
        other => {
            let at = format!("{}.type", node.path);
            faults.invalid(&at, format_args!("{other:?} is no way to change a path"));
            None
        }
    }
}

fn number(node: &Node<'_>) -> Option<u16> {
    node.value().as_u64().and_then(|number| u16::try_from(number).ok())
}

/// As the CRDs have it.
fn at_most(nodes: &[Node<'_>], at: &str, faults: &mut Faults) {
    if nodes.len() > MOST {
        faults.invalid(at, format_args!("there are more than {MOST}"));
    }
}

const MOST: usize = 16;

const OF_THE_CONNECTION: [HeaderName; 11] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestHeaders(changes) => write!(f, "request headers: {changes}"),
            Self::ResponseHeaders(changes) => write!(f, "response headers: {changes}"),
            Self::Redirect(redirect) => {
                write!(f, "answered by a redirect ({}), unless it is there already", redirect.status.as_u16())
            }
        }
    }
}

impl fmt::Display for HeaderChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |of: &[(HeaderName, HeaderValue)]| of.iter().map(|(name, _)| name.clone()).collect();
        let all = [("adds", named(&self.add)), ("sets", named(&self.set)), ("removes", self.remove.clone())];
        let told = |(verb, names): &(&str, Vec<HeaderName>)| {
            let names: Vec<_> = names.iter().map(HeaderName::as_str).collect();
            (!names.is_empty()).then(|| format!("{verb} {}", names.join(", ")))
        };
        let told: Vec<_> = all.iter().filter_map(told).collect();
        f.write_str(if told.is_empty() { "nothing" } else { "" })?;
        f.write_str(&told.join("; "))
    }
}
