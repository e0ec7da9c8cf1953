//! What a TLS server chose, as anybody on the link can read it.

use anyhow::{Context, Result, ensure};

/// The answer to a ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    pub suite: u16,
    /// The key exchange, by its number in TLS.
    pub group: u16,
}

/// ML-KEM-768 beside X25519.
pub const X25519MLKEM768: u16 = 0x11ec;
pub const X25519: u16 = 0x001d;
pub const P256: u16 = 0x0017;

const KEY_SHARE: u16 = 51;

impl ServerHello {
    /// Reads the begin of what a server sent.
    ///
    /// # Errors
    /// It is anything else, or not of TLS 1.3.
    pub fn read(stream: &[u8]) -> Result<Self> {
        let mut rest = stream;
        ensure!(take(&mut rest, 1)? == [22], "the first record is no handshake");
        take(&mut rest, 4)?;
        ensure!(take(&mut rest, 1)? == [2], "the first message is no ServerHello");
        // Its length, the old version, the random.
        take(&mut rest, 3 + 2 + 32)?;
        let session = usize::from(take(&mut rest, 1)?[0]);
        take(&mut rest, session)?;
        let suite = number(&mut rest)?;
        take(&mut rest, 1)?;
        let length = usize::from(number(&mut rest)?);
        let mut extensions = take(&mut rest, length)?;
        while !extensions.is_empty() {
            let (kind, length) = (number(&mut extensions)?, number(&mut extensions)?);
            let mut extension = take(&mut extensions, length.into())?;
            if kind == KEY_SHARE {
                return Ok(Self { suite, group: number(&mut extension)? });
            }
        }
        anyhow::bail!("a ServerHello without a key share")
    }
}

fn take<'a>(from: &mut &'a [u8], bytes: usize) -> Result<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(bytes).context("a ServerHello that is cut off")?;
    *from = rest;
    Ok(taken)
}

fn number(from: &mut &[u8]) -> Result<u16> {
    Ok(u16::from_be_bytes(take(from, 2)?.try_into()?))
}
