//! Counters for what the agent does not see happen.

use crate::maps::COUNTERS;

/// Adds one to a counter of [`underpass_common::counter`], on this CPU.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own. A program that interrupts this one on the same CPU may
        // lose it a count, nothing else.
        unsafe { *counter += 1 };
    }
}
