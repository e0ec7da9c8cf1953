//! A stream of bytes that tells at every offset whether it is still the right one.

use std::fmt;
use std::io::{self, Read, Write};

/// The byte at an offset. The period (a prime near 2^16) shares no factor with any buffer's size, so a
/// lost, doubled or swapped buffer shows.
pub fn byte(offset: usize) -> u8 {
    const PERIOD: usize = 65_521;
    let x = (offset % PERIOD) as u32;
    (x.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// Writes the first `bytes` of the pattern.
pub fn write(to: &mut impl Write, bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut done = 0;
    while done < bytes {
        let n = buffer.len().min(bytes - done);
        for (i, b) in buffer[..n].iter_mut().enumerate() {
            *b = byte(done + i);
        }
        to.write_all(&buffer[..n])?;
        done += n;
    }
    Ok(())
}

/// Reads to the end.
pub fn read(from: &mut impl Read) -> io::Result<Check> {
    let mut check = Check::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(check),
            n => check.take(&buffer[..n]),
        }
    }
}

/// How much came and where it first went wrong. Printed as `<bytes> exact` or `<bytes> wrong at <offset>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Check {
    pub bytes: usize,
    pub wrong_at: Option<usize>,
}

impl Check {
    pub fn take(&mut self, piece: &[u8]) {
        if self.wrong_at.is_none() {
            let wrong = piece.iter().enumerate().find(|(i, b)| **b != byte(self.bytes + i));
            self.wrong_at = wrong.map(|(i, _)| self.bytes + i);
        }
        self.bytes += piece.len();
    }

    /// What the other end prints when exactly so much came, all of it right.
    pub fn exact(bytes: usize) -> String {
        Self { bytes, wrong_at: None }.to_string()
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wrong_at {
            None => write!(f, "{} exact", self.bytes),
            Some(at) => write!(f, "{} wrong at {at}", self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_a_doubled_and_a_changed_piece_show() {
        let mut all = vec![];
        write(&mut all, 300_000).unwrap();
        assert_eq!(read(&mut &all[..]).unwrap().to_string(), Check::exact(300_000));

        let mut lost = all.clone();
        lost.drain(1 << 16..1 << 17);
        let mut doubled = all.clone();
        doubled.splice(1 << 16..1 << 16, all[..1 << 16].to_vec());
        let mut changed = all.clone();
        changed[200_000] ^= 1;
        for (what, bytes) in [("lost", lost), ("doubled", doubled), ("changed", changed)] {
            assert!(read(&mut &bytes[..]).unwrap().wrong_at.is_some(), "{what}");
        }
    }
}
