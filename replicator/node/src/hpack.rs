//! Reads compressed HTTP/2 headers (RFC 7541). Only reading: our own answers use the static table and plain literals.
//! Input is whatever the peer sends: every length is checked, the dynamic table is bounded, nothing panics.

use std::collections::VecDeque;

/// What a decoded block of headers may occupy together.
const BLOCK_BYTES_MAX: usize = 16 << 10;
/// What the peer's encoder may keep in our table; the default of HTTP/2, we announce no other.
const TABLE_BYTES_MAX: usize = 4096;

/// A block of headers that cannot be read. Compression state is lost with it, so the connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compressed headers are malformed")]
pub struct Malformed;

type Field = (Vec<u8>, Vec<u8>);

/// The state one connection keeps between blocks of headers.
#[derive(Debug)]
pub struct Decoder {
    table: VecDeque<Field>,
    table_bytes: usize,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), table_bytes: 0, limit: TABLE_BYTES_MAX }
    }
}

impl Decoder {
    /// The fields of one block, in order.
    pub fn decode(&mut self, mut block: &[u8]) -> Result<Vec<Field>, Malformed> {
        let mut fields = Vec::new();
        let mut decoded_bytes = 0;
        while let Some(&first) = block.first() {
            let field = if first & 0x80 != 0 {
                self.indexed(integer(&mut block, 7)?)?
            } else if first & 0xc0 == 0x40 {
                let field = self.literal(&mut block, 6)?;
                self.insert(field.clone());
                field
            } else if first & 0xe0 == 0x20 {
                self.limit = Some(integer(&mut block, 5)?).filter(|&size| size <= TABLE_BYTES_MAX).ok_or(Malformed)?;
                self.evict();
                continue;
            } else {
                self.literal(&mut block, 4)?
            };
            decoded_bytes += weight(&field);
            if decoded_bytes > BLOCK_BYTES_MAX {
                return Err(Malformed);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, block: &mut &[u8], prefix: u32) -> Result<Field, Malformed> {
        let index = integer(block, prefix)?;
        let name = if index == 0 { string(block)? } else { self.indexed(index)?.0 };
        Ok((name, string(block)?))
    }

    fn indexed(&self, index: usize) -> Result<Field, Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        match STATIC.get(index) {
            Some((name, value)) => Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec())),
            None => self.table.get(index - STATIC.len()).cloned().ok_or(Malformed),
        }
    }

    fn insert(&mut self, field: Field) {
        self.table_bytes += weight(&field);
        self.table.push_front(field);
        self.evict();
    }

    fn evict(&mut self) {
        while self.table_bytes > self.limit {
            let Some(oldest) = self.table.pop_back() else { break };
            self.table_bytes -= weight(&oldest);
        }
    }
}

fn weight((name, value): &Field) -> usize {
    name.len() + value.len() + 32
}

fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (&first, mut rest) = block.split_first().ok_or(Malformed)?;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value == mask {
        // Four more bytes say anything that is allowed here.
        for shift in [0, 7, 14, 21, 28] {
            let (&byte, after) = rest.split_first().ok_or(Malformed)?;
            rest = after;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            if shift == 28 {
                return Err(Malformed);
            }
        }
    }
    *block = rest;
    Ok(value)
}

fn string(block: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let compressed = block.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or(Malformed)?;
    *block = rest;
    if compressed { huffman(bytes) } else { Ok(bytes.to_vec()) }
}

/// Lengths of the codes. Codes of one length are consecutive in the order of their symbols, and follow from those of the
/// length before, so the lengths are the whole table.
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6,
    6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6,
    6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22,
    20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23,
    22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22,
    23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22,
    25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const CODE_LENGTH_MAX: usize = 30;

struct Codes {
    /// Per length: the first code, and where its symbols begin in `symbols`.
    first: [(u32, usize); CODE_LENGTH_MAX + 2],
    symbols: [u8; 256],
}

const CODES: Codes = {
    let mut first = [(0, 0); CODE_LENGTH_MAX + 2];
    let mut symbols = [0; 256];
    let (mut code, mut at, mut length) = (0_u32, 0, 1);
    while length <= CODE_LENGTH_MAX {
        first[length] = (code, at);
        let mut symbol = 0;
        while symbol < 256 {
            if CODE_LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u8;
                at += 1;
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    first[CODE_LENGTH_MAX + 1] = (code, at);
    Codes { first, symbols }
};

fn huffman(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut length) = (0_u32, 0);
    for &byte in bytes {
        for bit in (0..8).rev() {
            code = (code << 1) | u32::from(byte >> bit & 1);
            length += 1;
            if length > CODE_LENGTH_MAX {
                return Err(Malformed);
            }
            let (first, at) = CODES.first[length];
            let count = CODES.first[length + 1].1 - at;
            if let Some(offset) = code.checked_sub(first).filter(|&offset| (offset as usize) < count) {
                text.push(CODES.symbols[at + offset as usize]);
                (code, length) = (0, 0);
            }
        }
    }
    // What is left is padding: fewer than eight bits, all ones.
    if length < 8 && code == (1 << length) - 1 { Ok(text) } else { Err(Malformed) }
}

#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn text(fields: Vec<Field>) -> Vec<String> {
        fields
            .into_iter()
            .map(|(name, value)| format!("{}={}", String::from_utf8(name).unwrap(), String::from_utf8(value).unwrap()))
            .collect()
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7541, C.4: three requests on one connection, compressed strings.
        let mut decoder = Decoder::default();
        for (block, expected) in [
            (
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                &[":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"][..],
            ),
            (
                "828684be5886a8eb10649cbf",
                &[":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com", "cache-control=no-cache"],
            ),
            (
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
                &[
                    ":method=GET",
                    ":scheme=https",
                    ":path=/index.html",
                    ":authority=www.example.com",
                    "custom-key=custom-value",
                ],
            ),
        ] {
            assert_eq!(text(decoder.decode(&bytes(block)).unwrap()), expected);
        }
        assert_eq!(decoder.table_bytes, 164);
    }

    #[test]
    fn the_table_forgets_its_oldest_when_told_to_shrink() {
        let mut decoder = Decoder::default();
        decoder.decode(&bytes("418cf1e3c2e5f23a6ba0ab90f4ff")).unwrap();
        assert!(decoder.decode(&bytes("be")).is_ok());
        assert_eq!(decoder.decode(&bytes("20be")), Err(Malformed));
    }

    #[test]
    fn nothing_a_peer_sends_panics_or_grows_without_bound() {
        // An indexed field that expands again and again.
        let mut decoder = Decoder::default();
        let mut block = bytes("407f8101");
        block.extend_from_slice(&[b'n'; 256]);
        block.extend_from_slice(&bytes("7f8101"));
        block.extend_from_slice(&[b'v'; 256]);
        decoder.decode(&block).unwrap();
        assert_eq!(decoder.decode(&[0xbe; 1000]), Err(Malformed));
        // Bytes from a small generator: only the absence of panics is asked for.
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut block = [0; 24];
            for byte in &mut block {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            let mut decoder = Decoder::default();
            if decoder.decode(&block).is_ok() {
                assert!(decoder.table_bytes <= TABLE_BYTES_MAX);
            }
        }
    }
}
