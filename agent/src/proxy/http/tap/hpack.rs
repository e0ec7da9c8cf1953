//! RFC 7541: header lists from HTTP/2's header blocks. (What `h2` has of it is its own.)

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::Bytes;

/// Follows one sender's blocks, each of which may rest on those before it.
pub(super) struct Decoder {
    /// The latest first.
    table: VecDeque<(Bytes, Bytes)>,
    size: usize,
    most: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), size: 0, most: 4096 }
    }
}

type Result<T> = std::result::Result<T, &'static str>;

impl Decoder {
    /// Names and values, together at most `most` bytes as SETTINGS_MAX_HEADER_LIST_SIZE counts them. After an
    /// error nothing more can be decoded.
    pub(super) fn decode(&mut self, mut block: &[u8], most: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let mut fields = Vec::new();
        let mut left = most;
        while let Some(first) = block.first().copied() {
            let field = match first {
                0x80.. => {
                    let at = integer(&mut block, 7)?;
                    self.entry(at)?
                }
                0x40..=0x7f => {
                    let field = self.literal(&mut block, 6)?;
                    self.insert(field.clone());
                    field
                }
                0x20..=0x3f => {
                    self.resize(integer(&mut block, 5)?)?;
                    continue;
                }
                _ => self.literal(&mut block, 4)?,
            };
            left = left.checked_sub(cost(&field)).ok_or("a head is too long")?;
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, block: &mut &[u8], prefix: u32) -> Result<(Bytes, Bytes)> {
        let name = match integer(block, prefix)? {
            0 => string(block)?,
            at => self.entry(at)?.0,
        };
        Ok((name, string(block)?))
    }

    fn entry(&self, at: usize) -> Result<(Bytes, Bytes)> {
        let at = at.checked_sub(1).ok_or(BROKEN)?;
        if let Some((name, value)) = STATIC.get(at) {
            return Ok((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes())));
        }
        self.table.get(at - STATIC.len()).cloned().ok_or(BROKEN)
    }

    fn insert(&mut self, field: (Bytes, Bytes)) {
        let cost = cost(&field);
        self.shrink(self.most.saturating_sub(cost));
        if cost <= self.most {
            self.size += cost;
            self.table.push_front(field);
        }
    }

    fn resize(&mut self, most: usize) -> Result<()> {
        if most > MOST_TABLE {
            return Err("a header table that is too large");
        }
        self.most = most;
        self.shrink(most);
        Ok(())
    }

    fn shrink(&mut self, to: usize) {
        while self.size > to {
            let Some(last) = self.table.pop_back() else { break };
            self.size -= cost(&last);
        }
    }
}

/// RFC 7541, 4.1.
fn cost((name, value): &(Bytes, Bytes)) -> usize {
    name.len() + value.len() + 32
}

/// RFC 7541, 5.1.
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize> {
    let mask = (1_usize << prefix) - 1;
    let value = usize::from(byte(block)?) & mask;
    if value < mask {
        return Ok(value);
    }
    let mut value = mask;
    // More is larger than anything can be here.
    for shift in [0, 7, 14, 21] {
        let next = byte(block)?;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BROKEN)
}

fn string(block: &mut &[u8]) -> Result<Bytes> {
    let is_huffman = block.first().ok_or(BROKEN)? & 0x80 != 0;
    let len = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(len).ok_or(BROKEN)?;
    *block = rest;
    if is_huffman { huffman(text).map(Bytes::from) } else { Ok(Bytes::copy_from_slice(text)) }
}

fn byte(block: &mut &[u8]) -> Result<u8> {
    let (first, rest) = block.split_first().ok_or(BROKEN)?;
    *block = rest;
    Ok(*first)
}

/// RFC 7541, 5.2.
fn huffman(text: &[u8]) -> Result<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() * 2);
    let (mut code, mut len) = (0_u32, 0_usize);
    for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        code = code << 1 | u32::from(bit);
        len += 1;
        let Some(of_length) = CODES.get(len) else { return Err(BROKEN) };
        if let Some(symbol) =
            code.checked_sub(of_length.first).and_then(|at| of_length.symbols.get(at as usize))
        {
            // The one that ends a text must not be in it.
            decoded.push(u8::try_from(*symbol).map_err(|_| BROKEN)?);
            (code, len) = (0, 0);
        }
    }
    // What fills the last byte is the beginning of the longest code, all ones.
    let is_filling = len < 8 && code == (1 << len) - 1;
    if is_filling { Ok(decoded) } else { Err(BROKEN) }
}

/// The codes of one length: they follow each other, in the order of their symbols.
#[derive(Default)]
struct OfLength {
    first: u32,
    symbols: Vec<u16>,
}

static CODES: LazyLock<Vec<OfLength>> = LazyLock::new(|| {
    let mut next = 0;
    let of = |len: usize| {
        next <<= 1;
        let is_of = |(_, its): &(u16, &u8)| usize::from(**its) == len;
        let symbols: Vec<u16> = (0..).zip(&LENGTHS).filter(is_of).map(|(symbol, _)| symbol).collect();
        let first = next;
        next += u32::try_from(symbols.len()).unwrap_or_default();
        OfLength { first, symbols }
    };
    (0..=30).map(of).collect()
});

const BROKEN: &str = "a header block that does not decode";
const MOST_TABLE: usize = 64 * 1024;

/// RFC 7541, appendix B: how long each byte's code is, and that of the end.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, //
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, //
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, //
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, //
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn told(fields: &[(Bytes, Bytes)]) -> Vec<String> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        fields.iter().map(|(name, value)| format!("{} = {}", text(name), text(value))).collect()
    }

    /// RFC 7541, C.3 and C.4: the same three requests, plain and compressed.
    #[test]
    fn requests_rest_on_those_before_them() {
        for blocks in [
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
        ] {
            let mut decoder = Decoder::default();
            let [first, second, third] =
                blocks.map(|block| told(&decoder.decode(&hex(block), 4096).unwrap()));
            let begin = |scheme: &str, path: &str| {
                [":method = GET", &*format!(":scheme = {scheme}"), &*format!(":path = {path}"), AUTHORITY]
                    .map(str::to_owned)
                    .to_vec()
            };
            const AUTHORITY: &str = ":authority = www.example.com";
            assert_eq!(first, begin("http", "/"));
            assert_eq!(second, [begin("http", "/"), vec!["cache-control = no-cache".into()]].concat());
            let custom = "custom-key = custom-value".to_owned();
            assert_eq!(third, [begin("https", "/index.html"), vec![custom]].concat());
            assert_eq!(decoder.size, 164);
        }
    }

    #[test]
    fn what_does_not_decode_is_an_error_and_no_more_is_held_than_said() {
        for block in [
            "80",                                       // an index of 0
            "be",                                       // nothing is there yet
            "ffffffffff7f",                             // a number without an end
            "400a6162",                                 // a name that is cut off
            "408825a849e95ba97d7e8925a849e95bb8e8b4bf", // filled with something else
            "4084ffffffff0161",                         // the end in the middle
            "3fe1ff0f",                                 // a table of a quarter of a mebibyte
        ] {
            assert!(Decoder::default().decode(&hex(block), 4096).is_err(), "{block}");
        }
        let mut decoder = Decoder::default();
        let entry = [&b"\x40\x01a\x7f\x80\x1e"[..], &[b'x'; 3967]].concat();
        assert_eq!(decoder.decode(&entry, 8192).map(|fields| fields.len()), Ok(1));
        assert!(decoder.decode(&[0xbe; 100], 8192).is_err(), "a small block is a large list");
        decoder.decode(&hex("20"), 8192).unwrap();
        assert_eq!((decoder.size, decoder.table.len()), (0, 0));
    }
}
