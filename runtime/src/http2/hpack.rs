//! Header compression (RFC 7541): everything a client may send is read; what we send needs no table.

use std::collections::VecDeque;

use super::huffman;

/// The client's table and how large it may be.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    table: VecDeque<(Box<[u8]>, Box<[u8]>)>,
    /// As the standard counts: names, values and 32 bytes each.
    size: usize,
    size_max: usize,
    /// What `size_max` may be set to.
    limit: usize,
}

/// A header block that is not understood. From then on nothing is: the connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbled;

impl Decoder {
    /// A client may use [`TABLE_BYTES`] until it has heard that we want none.
    pub(super) fn new() -> Self {
        Self { table: VecDeque::new(), size: 0, size_max: TABLE_BYTES, limit: TABLE_BYTES }
    }

    /// The client has heard that it may keep no table.
    pub(super) fn keep_none(&mut self) {
        *self = Self { table: VecDeque::new(), size: 0, size_max: 0, limit: 0 };
    }

    /// Reads a whole block and hands each field to `take`.
    pub(super) fn decode(&mut self, mut block: &[u8], mut take: impl FnMut(&[u8], &[u8])) -> Result<(), Garbled> {
        let (mut name, mut value) = (Vec::new(), Vec::new());
        let mut begun = false;
        while let Some(first) = block.first().copied() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.field(index)?;
                take(name, value);
            } else if first & 0xe0 == 0x20 {
                // Only in front of the fields (section 4.2).
                let size = integer(&mut block, 5)?;
                if begun || size > self.limit {
                    return Err(Garbled);
                }
                self.size_max = size;
                self.make_room(0);
                continue;
            } else {
                let is_kept = first & 0x40 != 0;
                let index = integer(&mut block, if is_kept { 6 } else { 4 })?;
                name.clear();
                match index {
                    0 => string(&mut block, &mut name)?,
                    index => name.extend_from_slice(self.field(index)?.0),
                }
                value.clear();
                string(&mut block, &mut value)?;
                take(&name, &value);
                if is_kept {
                    self.keep(&name, &value);
                }
            }
            begun = true;
        }
        Ok(())
    }

    fn field(&self, index: usize) -> Result<(&[u8], &[u8]), Garbled> {
        let index = index.checked_sub(1).ok_or(Garbled)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        self.table.get(index - STATIC.len()).map(|(name, value)| (&**name, &**value)).ok_or(Garbled)
    }

    fn keep(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + FIELD_BYTES;
        self.make_room(size);
        // One that is larger than the table empties it, and that is all (section 4.4).
        if size <= self.size_max {
            self.size += size;
            self.table.push_front((name.into(), value.into()));
        }
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.size_max {
            let Some((name, value)) = self.table.pop_back() else { return };
            self.size -= name.len() + value.len() + FIELD_BYTES;
        }
    }
}

/// A number that begins in the last `bits` of a byte (section 5.1).
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Garbled> {
    let (first, rest) = block.split_first().ok_or(Garbled)?;
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*first) & mask;
    *block = rest;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = block.split_first().ok_or(Garbled)?;
        value += usize::from(byte & 0x7f) << shift;
        *block = rest;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Garbled)
}

/// Appends a string (section 5.2).
fn string(block: &mut &[u8], text: &mut Vec<u8>) -> Result<(), Garbled> {
    let is_coded = block.first().ok_or(Garbled)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (sent, rest) = block.split_at_checked(length).ok_or(Garbled)?;
    *block = rest;
    if is_coded {
        return huffman::decode(sent, text).ok_or(Garbled);
    }
    text.extend_from_slice(sent);
    Ok(())
}

/// Says that our table is empty: due once a client wants a smaller one than the standard's (section 4.2).
pub(super) fn put_no_table(block: &mut Vec<u8>) {
    block.push(0x20);
}

/// Writes `:status`.
pub(super) fn put_status(block: &mut Vec<u8>, status: http::StatusCode) {
    if status == http::StatusCode::OK {
        block.push(0x80 | STATUS_OK);
    } else {
        block.push(STATUS_OK);
        put_string(block, status.as_str().as_bytes());
    }
}

/// Writes a field that no table keeps.
pub(super) fn put_field(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    put_string(block, name);
    put_string(block, value);
}

fn put_string(block: &mut Vec<u8>, text: &[u8]) {
    match u8::try_from(text.len()) {
        Ok(length @ ..0x7f) => block.push(length),
        _ => {
            block.push(0x7f);
            let mut left = text.len() - 0x7f;
            while left >= 0x80 {
                block.push(u8::try_from(left & 0x7f).unwrap_or_default() | 0x80);
                left >>= 7;
            }
            block.push(u8::try_from(left).unwrap_or_default());
        }
    }
    block.extend_from_slice(text);
}

/// The table that a connection begins with (RFC 9113, section 6.5.2).
pub(super) const TABLE_BYTES: usize = 4096;
/// What a field counts beyond its name and value.
pub(super) const FIELD_BYTES: usize = 32;
/// The place of `:status: 200` in [`STATIC`].
const STATUS_OK: u8 = 8;

/// Appendix A.
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

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Garbled> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn three_requests_of_the_standard_share_a_table() {
        // RFC 7541, appendix C.4.
        let mut decoder = Decoder::new();
        let first =
            [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        let common = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        assert_eq!(read(&mut decoder, &first).unwrap(), pairs(&common));
        assert_eq!(decoder.size, 57);
        let second = [0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        let expected = [&common[..], &[("cache-control", "no-cache")]].concat();
        assert_eq!(read(&mut decoder, &second).unwrap(), pairs(&expected));
        assert_eq!(decoder.size, 110);
        let third = [
            0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f, 0x89, 0x25, 0xa8, 0x49,
            0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
        ];
        let expected = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        assert_eq!(read(&mut decoder, &third).unwrap(), pairs(&expected));
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn the_table_stays_within_its_size() {
        let mut decoder = Decoder::new();
        let block = |value: &str| {
            let mut block = vec![0x40];
            put_string(&mut block, b"name");
            put_string(&mut block, value.as_bytes());
            block
        };
        for _ in 0..1_000 {
            read(&mut decoder, &block(&"v".repeat(200))).unwrap();
            assert!(decoder.size <= TABLE_BYTES);
        }
        read(&mut decoder, &block(&"v".repeat(TABLE_BYTES))).unwrap();
        assert_eq!((decoder.size, decoder.table.len()), (0, 0), "one that is larger than the table empties it");
        read(&mut decoder, &block("v")).unwrap();
        assert_eq!(read(&mut decoder, &[0xbe]).unwrap(), pairs(&[("name", "v")]));
        decoder.keep_none();
        assert_eq!(read(&mut decoder, &[0xbe]), Err(Garbled));
        read(&mut decoder, &[&[0x20][..], &block("v")].concat()).unwrap();
        assert_eq!(decoder.table.len(), 0);
        assert_eq!(read(&mut decoder, &[0x21]), Err(Garbled), "larger than we let it be");
    }

    #[test]
    fn nonsense_is_told() {
        let cases: [&[u8]; 12] = [
            &[0x80],
            &[0xff],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0xbe],
            &[0x40],
            &[0x00, 0x01],
            &[0x00, 0x01, b'n'],
            &[0x00, 0x7f, 0xff, 0xff, 0x7f],
            &[0x00, 0x81, 0x00, 0x00],
            &[0x82, 0x20],
            &[0x3f, 0xff, 0x7f],
            &[0x7f],
        ];
        for block in cases {
            assert_eq!(read(&mut Decoder::new(), block), Err(Garbled), "{block:x?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = "x".repeat(70_000);
        let mut block = Vec::new();
        put_no_table(&mut block);
        put_status(&mut block, http::StatusCode::OK);
        put_field(&mut block, b"grpc-status", b"0");
        put_field(&mut block, b"empty", b"");
        for length in [126, 127, 128, 254, 255, 256, 70_000] {
            put_field(&mut block, b"long", &long.as_bytes()[..length]);
        }
        put_status(&mut block, http::StatusCode::NOT_FOUND);
        let fields = read(&mut Decoder::new(), &block).unwrap();
        assert_eq!(fields[..3], pairs(&[(":status", "200"), ("grpc-status", "0"), ("empty", "")]));
        let lengths: Vec<_> = fields[3..10].iter().map(|(_, value)| value.len()).collect();
        assert_eq!(lengths, [126, 127, 128, 254, 255, 256, 70_000]);
        assert_eq!(fields[10..], pairs(&[(":status", "404")]));
    }
}
