//! Takes back what enrolment gave to namespaces, without an agent that remembers them.

use std::collections::HashSet;

use super::{Numbers, find, plumbing};
use crate::model::NetnsCookie;
use crate::sys::SysError;

/// Removes rules, routes and sysctls from the namespaces with these cookies, and says what became of
/// each that was found. Those that are not found have ended.
pub fn restore_namespaces(
    cookies: impl IntoIterator<Item = NetnsCookie>,
    numbers: Numbers,
) -> Vec<(String, Result<(), SysError>)> {
    let cookies: HashSet<NetnsCookie> = cookies.into_iter().collect();
    find::by_cookie(&cookies)
        .iter()
        .map(|netns| (netns.path().display().to_string(), plumbing::remove(netns, numbers)))
        .collect()
}
