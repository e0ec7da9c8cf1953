//! Fields that a message has and its .proto has not. prost drops them without a word, and what is dropped may have
//! narrowed a rule.

use std::collections::BTreeMap;

/// Which fields a message has, by their numbers.
pub(super) struct Known {
    /// Those that hold a value.
    pub values: &'static [u32],
    /// Those that are lists of messages, with their names.
    pub lists: &'static [(u32, &'static str, &'static Known)],
}

/// The first unknown field of each message in `bytes` that has one, by where the message is: `groups[0].rules[2]`, and
/// the empty string for the outermost.
///
/// # Errors
/// It is no message, or one with groups, which nothing of today writes.
pub(super) fn find(bytes: &[u8], known: &Known) -> Result<BTreeMap<String, u32>, Malformed> {
    let mut found = BTreeMap::new();
    look(bytes, known, "", &mut found)?;
    Ok(found)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no message")]
pub(super) struct Malformed;

fn look(
    mut bytes: &[u8],
    known: &Known,
    at: &str,
    found: &mut BTreeMap<String, u32>,
) -> Result<(), Malformed> {
    let mut counts = vec![0_usize; known.lists.len()];
    while !bytes.is_empty() {
        let (number, payload) = field(&mut bytes)?;
        let list = known.lists.iter().zip(&mut counts).find(|((of, ..), _)| *of == number);
        if let Some(((_, name, known), count)) = list {
            let dot = if at.is_empty() { "" } else { "." };
            look(payload, known, &format!("{at}{dot}{name}[{count}]"), found)?;
            *count += 1;
        } else if !known.values.contains(&number) {
            found.entry(at.to_string()).or_insert(number);
        }
    }
    Ok(())
}

/// Takes one field off: its number, and what is in it where that has a length of its own.
fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u32, &'a [u8]), Malformed> {
    let key = varint(bytes)?;
    let number = u32::try_from(key >> 3).map_err(|_| Malformed)?;
    let length = match key & 7 {
        0 => return varint(bytes).map(|_| (number, [].as_slice())),
        1 => return take(bytes, 8).map(|_| (number, [].as_slice())),
        2 => usize::try_from(varint(bytes)?).map_err(|_| Malformed)?,
        5 => return take(bytes, 4).map(|_| (number, [].as_slice())),
        _ => return Err(Malformed),
    };
    Ok((number, take(bytes, length)?))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

/// At most ten bytes, seven bits in each.
fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}
