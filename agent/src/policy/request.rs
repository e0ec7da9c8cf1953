//! What is known of one HTTP request when it is judged.

use http::HeaderMap;

/// Whether it can be a method's name: one that is not in capitals is refused, as Envoy does, and not compared. An
/// application might take `delete` for the DELETE that a policy denies.
pub fn is_method(method: &str) -> bool {
    !method.is_empty() && !method.bytes().any(|b| b.is_ascii_lowercase())
}

/// A request, as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    /// `Host` or `:authority` as sent; empty where there is none.
    pub host: &'a str,
    /// Normalised as the mesh's setting says, without query; begins with `/`, or is `*`.
    pub path: &'a str,
    /// What follows the `?`, as sent.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}
