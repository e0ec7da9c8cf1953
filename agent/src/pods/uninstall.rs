//! Takes back what enrolment gave to namespaces, without an agent that remembers them.

use std::collections::HashSet;

use super::{Numbers, find, plumbing};
use crate::model::NetnsCookie;
use crate::sys::SysError;
use crate::sys::netns::Netns;

/// Removes rules, routes and sysctls from the namespaces with these cookies, and says what became of
/// each that was found. Those that are not found have ended, and those that another agent has enrolled
/// meanwhile need what they have.
pub fn restore_namespaces(
    cookies: impl IntoIterator<Item = NetnsCookie>,
    numbers: Numbers,
    is_others: impl Fn(&Netns) -> bool,
) -> Vec<(String, Result<(), SysError>)> {
    let cookies: HashSet<NetnsCookie> = cookies.into_iter().collect();
    find::by_cookie(&cookies)
        .iter()
        .filter(|netns| !is_others(netns))
        .map(|netns| (netns.path().display().to_string(), plumbing::remove(netns, numbers)))
        .collect()
}
