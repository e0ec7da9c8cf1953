//! What is known of a connection and a request, in the form in which matches compare it.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use crate::model::SpiffeId;

use super::compiled::Conn;
use super::request::Request;

/// Made once per decision. Texts that are put together are only made when a match asks for them.
pub(super) struct Peer<'a> {
    pub(super) identity: Option<&'a SpiffeId>,
    /// Who is known at the address of a client without identity.
    at_source: Option<&'a SpiffeId>,
    /// None: not known.
    pub(super) source_ip: Option<IpAddr>,
    /// None: not known.
    pub(super) destination_ip: Option<IpAddr>,
    /// None: one that no policy names.
    pub(super) port: Option<u16>,
    /// None: not known.
    pub(super) sni: Option<&'a str>,
    /// None: not known.
    pub(super) request: Option<&'a Request<'a>>,
    linkerd_namespace: &'a str,
    principal: OnceCell<String>,
    linkerd_identity: OnceCell<String>,
    host: OnceCell<Cow<'a, str>>,
}

impl<'a> Peer<'a> {
    pub(super) fn new(conn: &'a Conn, request: Option<&'a Request<'a>>, linkerd_namespace: &'a str) -> Self {
        Self {
            identity: conn.source.as_ref(),
            at_source: conn.at_source.as_ref(),
            source_ip: Some(conn.source_ip),
            destination_ip: Some(conn.destination_ip),
            port: Some(conn.destination_port),
            sni: Some(conn.sni.as_deref().unwrap_or_default()),
            request,
            linkerd_namespace,
            principal: OnceCell::new(),
            linkerd_identity: OnceCell::new(),
            host: OnceCell::new(),
        }
    }

    /// Any connection without identity to this port; `None` is every port that no policy names.
    pub(super) fn plaintext(port: Option<u16>) -> Self {
        Self {
            identity: None,
            at_source: None,
            source_ip: None,
            destination_ip: None,
            port,
            sni: None,
            request: None,
            linkerd_namespace: "",
            principal: OnceCell::new(),
            linkerd_identity: OnceCell::new(),
            host: OnceCell::new(),
        }
    }

    /// The same client as if it had proved to be who is known at its address; for exceptions only.
    pub(super) fn by_address(&self) -> Peer<'a> {
        Peer {
            identity: self.at_source,
            at_source: None,
            source_ip: self.source_ip,
            destination_ip: self.destination_ip,
            port: self.port,
            sni: self.sni,
            request: self.request,
            linkerd_namespace: self.linkerd_namespace,
            principal: OnceCell::new(),
            linkerd_identity: OnceCell::new(),
            host: OnceCell::new(),
        }
    }

    /// Empty for whoever has no identity, and for one that is no service account.
    pub(super) fn namespace(&self) -> &str {
        self.identity.and_then(SpiffeId::namespace).unwrap_or_default()
    }

    pub(super) fn trust_domain(&self) -> &str {
        self.identity.map_or("", |id| id.trust_domain().as_str())
    }

    /// The SPIFFE id without its scheme, as policies write principals.
    pub(super) fn principal(&self) -> Option<&str> {
        let id = self.identity?;
        let text = || format!("{}{}", id.trust_domain(), id.path());
        Some(self.principal.get_or_init(text))
    }

    /// Linkerd has such a name for service accounts only, and names others by their SPIFFE id.
    pub(super) fn linkerd_identity(&self) -> Option<&str> {
        let id = self.identity?;
        let (namespace, account) = id.account()?;
        let (domain, system) = (id.trust_domain(), self.linkerd_namespace);
        let text = || format!("{account}.{namespace}.serviceaccount.identity.{system}.{domain}");
        Some(self.linkerd_identity.get_or_init(text))
    }

    /// In lower case.
    pub(super) fn host(&self) -> Option<&str> {
        let host = self.request?.host;
        let lower = || match host.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        };
        Some(self.host.get_or_init(lower))
    }
}

/// The values of one header, joined by commas. None: it is not sent.
///
/// What HTTP/2 sends beside its headers goes by HTTP/1.1's name and by its own.
pub(super) fn header<'r>(request: &Request<'r>, name: &str) -> Option<Cow<'r, [u8]>> {
    let text = |text: &'r str| (!text.is_empty()).then_some(Cow::Borrowed(text.as_bytes()));
    match name {
        "host" | ":authority" => return text(request.host),
        ":method" => return text(request.method),
        ":path" => {
            return match request.query {
                None => text(request.path),
                Some(query) => Some(Cow::Owned(format!("{}?{query}", request.path).into_bytes())),
            };
        }
        _ => {}
    }
    let mut values = request.headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
    let mut joined = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(joined))
}
