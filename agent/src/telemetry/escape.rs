//! Keeps what a peer sent from forging a line, a field or a terminal command.

/// Appends `value` with `"` and `\` escaped, and as `\u....` every character that a reader could take
/// for a line end, or a terminal for a command or a change of direction. The result stands between
/// quotes in both formats.
pub(super) fn push_escaped(out: &mut Vec<u8>, value: &str) {
    let bytes = value.as_bytes();
    let mut copied = 0;
    for (at, c) in value.char_indices() {
        if !needs_escape(c) {
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + c.len_utf8();
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    push_u(out, *unit);
                }
            }
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

fn needs_escape(c: char) -> bool {
    match c {
        '"' | '\\' => true,
        ' '..='~' => false,
        // C0 and C1 controls, DEL.
        c if c.is_control() => true,
        // Line and paragraph separators end a line for some readers.
        '\u{2028}' | '\u{2029}' => true,
        // Zero-width and bidirectional controls change how the rest of a line looks.
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => true,
        '\u{061c}' | '\u{e0000}'..='\u{e007f}' => true,
        _ => false,
    }
}

fn push_u(out: &mut Vec<u8>, unit: u16) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(HEX[usize::from(unit >> shift) & 0xf]);
    }
}
