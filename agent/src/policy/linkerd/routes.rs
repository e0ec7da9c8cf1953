//! The routes of a Server, so filed that a request is compared with few of them however many there are.

use std::collections::HashSet;
use std::sync::Arc;

use http::HeaderName;

use super::super::index::{Index, WORTH_IT};
use super::super::matcher::{Field, Fields, Values};
use super::super::peer::Peer;
use super::super::request::Request;
use super::super::rule_list::RuleList;
use super::super::rules::{Match, PathMatch, StringMatch};
use super::super::set::Lists;
use super::super::tri::Tri;
use super::super::values::{Strings, as_is};
use super::filters::RouteFilters;
use super::inbound::Route;
use super::matching::{Closeness, Host, Path, RequestMatch, Text, closeness, host_name};

/// By precedence.
#[derive(Debug, Default)]
pub struct Routes {
    all: Vec<Arc<Route>>,
    /// For every match of all counted through, its route and which of its matches it is.
    places: Vec<(u32, u32)>,
    /// Of many.
    index: Option<Index>,
    /// Whom any of them admits.
    clients: Arc<RuleList>,
    /// Every request is one of theirs, and each of them was understood.
    complete: bool,
    /// One of them does something with what it admits.
    filtered: bool,
}

/// Comparable by what they are; the rest follows from it.
impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Eq for Routes {}

impl Routes {
    pub(super) fn new(all: Vec<Arc<Route>>, lists: &Lists) -> Self {
        let mut places = Vec::new();
        for (at, route) in (0..).zip(&all) {
            places.extend((0..).zip(&route.matches).map(|(n, _)| (at, n)));
        }
        let index = (places.len() >= WORTH_IT).then(|| index(&all));
        let mut seen = HashSet::new();
        let authorizations = all.iter().flat_map(|route| route.authorizations.iter());
        let clients = authorizations.filter(|one| seen.insert(Arc::as_ptr(one)));
        let clients = lists.get(clients.map(|one| one.matcher.clone()).collect());
        let everything =
            |route: &Arc<Route>| route.hostnames.is_empty() && route.matches.iter().any(RequestMatch::is_any);
        let complete = all.iter().any(everything) && all.iter().all(|route| route.broken.is_none());
        let filtered = all.iter().any(|route| !route.filters.is_empty());
        Self { all, places, index, clients, complete, filtered }
    }

    pub fn all(&self) -> &[Arc<Route>] {
        &self.all
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether some request of the client is admitted by its route.
    pub(super) fn admit(&self, peer: &Peer<'_>) -> Tri {
        self.clients.judge(peer)
    }

    /// As it is sent.
    pub(super) fn take_everything(&self) -> bool {
        self.complete && !self.filtered
    }

    pub(super) fn have_filters(&self) -> bool {
        self.filtered
    }

    /// What becomes of the request if it is admitted.
    pub(super) fn filters(&self, request: &Request<'_>) -> RouteFilters {
        match self.filtered.then(|| self.find(request)) {
            Some(Ok(Some((route, one)))) => RouteFilters::of(&route.filters, one),
            _ => RouteFilters::default(),
        }
    }

    /// Which one the request is of. An error: one that could not be understood, and which requests that one
    /// means to take from others nobody knows.
    pub(super) fn of(&self, request: &Request<'_>) -> Result<Option<&Route>, &Route> {
        Ok(self.find(request)?.map(|(route, _)| route))
    }

    /// And by which of its matches.
    fn find(&self, request: &Request<'_>) -> Result<Option<(&Route, &RequestMatch)>, &Route> {
        let host = host_name(request.host);
        let mut broken: Option<u32> = None;
        let mut closest: Option<(Closeness, u32, &RequestMatch)> = None;
        self.each(&host, request, &mut |at, route, one| {
            #[cfg(test)]
            super::super::matcher::JUDGED.with(|judged| judged.set(judged.get() + 1));
            let Some(close) = closeness(&route.hostnames, one, &host, request) else { return };
            if route.broken.is_some() {
                broken = Some(broken.map_or(at, |first| first.min(at)));
            }
            // Of several as close the first, which is the oldest.
            if closest.is_none_or(|(best, first, _)| close > best || (close == best && at < first)) {
                closest = Some((close, at, one));
            }
        });
        if let Some(broken) = broken.and_then(|at| self.at(at)) {
            return Err(broken);
        }
        Ok(closest.and_then(|(_, at, one)| Some((self.at(at)?, one))))
    }

    /// Every match that can hold for a request to `host`, in no particular order.
    fn each<'a>(
        &'a self,
        host: &str,
        request: &Request<'_>,
        show: &mut dyn FnMut(u32, &'a Route, &'a RequestMatch),
    ) {
        let mut show = |(at, n): (u32, u32)| {
            let Some(route) = self.at(at) else { return };
            let one = usize::try_from(n).ok().and_then(|n| route.matches.get(n));
            one.into_iter().for_each(|one| show(at, route, one));
        };
        let Some(index) = &self.index else {
            return self.places.iter().copied().for_each(show);
        };
        let request = Request { host, ..*request };
        let mut peer = Peer::plaintext(None);
        peer.request = Some(&request);
        index.each(&peer, &mut |list| {
            let places = list.iter().filter_map(|at| self.places.get(usize::try_from(*at).ok()?));
            places.copied().for_each(&mut show);
        });
    }

    fn at(&self, at: u32) -> Option<&Route> {
        self.all.get(usize::try_from(at).ok()?).map(|route| &**route)
    }
}

fn index(routes: &[Arc<Route>]) -> Index {
    let matches = |route: &Arc<Route>| {
        let hosts: Vec<_> = route.hostnames.iter().map(at_least_host).collect();
        route.matches.iter().map(|one| at_least(one, &hosts)).collect::<Vec<_>>()
    };
    let fields: Vec<_> = routes.iter().flat_map(matches).collect();
    Index::new(&fields.iter().map(|fields| vec![std::slice::from_ref(fields)]).collect::<Vec<_>>())
}

/// What a request has to be, at least, for one of a route's matches to hold.
fn at_least(one: &RequestMatch, hosts: &[StringMatch]) -> Fields {
    let exact = |text: &Arc<str>| StringMatch::Exact(text.clone());
    let rpc = matches!(one.path, Path::Rpc { .. }).then(|| StringMatch::Exact("POST".into()));
    let request = Match {
        hosts: hosts.to_vec(),
        methods: one.method.as_ref().map(exact).or(rpc).into_iter().collect(),
        paths: at_least_paths(&one.path).into_iter().map(PathMatch::String).collect(),
        ..Match::default()
    };
    let header = |(name, text): &(HeaderName, Text)| match text {
        Text::Pattern(_) => None,
        Text::Exact(text) => {
            let line = Strings::new(&[exact(text)], as_is);
            Some(Field { negative: false, values: Values::HeaderLine(name.as_str().into(), line) })
        }
    };
    let fields = Fields::new(&request).0.into_iter().chain(one.headers.iter().filter_map(header));
    Fields(fields.collect())
}

fn at_least_host(host: &Host) -> StringMatch {
    match host {
        Host::Exact(name) => StringMatch::Exact(name.clone()),
        Host::Below(parent) => StringMatch::Suffix(format!(".{parent}").into()),
    }
}

/// One of these; of none, any.
fn at_least_paths(path: &Path) -> Vec<StringMatch> {
    let below = |path: &str| StringMatch::Prefix(format!("{path}/").into());
    match path {
        Path::Exact(path) => vec![StringMatch::Exact(path.clone())],
        Path::Prefix(prefix) if prefix.is_empty() => Vec::new(),
        Path::Prefix(prefix) => vec![StringMatch::Exact(prefix.clone()), below(prefix)],
        Path::Rpc { service: Some(Text::Exact(service)), method: Some(Text::Exact(method)) } => {
            vec![StringMatch::Exact(format!("/{service}/{method}").into())]
        }
        Path::Rpc { service: Some(Text::Exact(service)), .. } => vec![below(&format!("/{service}"))],
        Path::Rpc { method: Some(Text::Exact(method)), .. } => {
            vec![StringMatch::Suffix(format!("/{method}").into())]
        }
        Path::Pattern(_) | Path::Rpc { .. } => Vec::new(),
    }
}
