//! A reader of DER, strict and without copies: definite, shortest lengths, single-byte tags, nothing left over; and what
//! little it takes to write some.
//!
//! It serves the checks that need to see the very bytes of a certificate or revocation list (X.690).

/// One value with its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// Tag, length and content.
    pub(crate) raw: &'a [u8],
}

impl<'a> Element<'a> {
    /// A reader of what this value holds.
    pub(crate) fn reader(&self) -> Reader<'a> {
        Reader::new(self.content)
    }
}

/// Reads values one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The content of the one value with the given tag that the bytes consist of.
    pub(crate) fn whole(bytes: &'a [u8], tag: u8) -> Result<Self, NotDer> {
        let mut reader = Self::new(bytes);
        let element = reader.take(tag)?;
        reader.finish()?;
        Ok(element.reader())
    }

    pub(crate) fn at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next value, whatever it is.
    pub(crate) fn next(&mut self) -> Result<Element<'a>, NotDer> {
        let (&tag, rest) = self.rest.split_first().ok_or(NotDer)?;
        if tag & 0x1f == 0x1f {
            return Err(NotDer); // Tags of several bytes occur nowhere in X.509.
        }
        let (len, rest) = length(rest)?;
        let content = rest.get(..len).ok_or(NotDer)?;
        let raw = &self.rest[..self.rest.len() - rest.len() + len];
        self.rest = &rest[len..];
        Ok(Element { tag, content, raw })
    }

    /// The next value, which must have the given tag.
    pub(crate) fn take(&mut self, tag: u8) -> Result<Element<'a>, NotDer> {
        let element = self.next()?;
        if element.tag == tag { Ok(element) } else { Err(NotDer) }
    }

    /// The next value if it has the given tag.
    pub(crate) fn take_optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, NotDer> {
        if self.rest.first() == Some(&tag) { self.next().map(Some) } else { Ok(None) }
    }

    /// A BOOLEAN DEFAULT FALSE. DER writes TRUE as 0xff, and leaves FALSE out; a written FALSE is let through.
    pub(crate) fn take_flag(&mut self) -> Result<bool, NotDer> {
        match self.take_optional(BOOLEAN)?.map(|element| element.content) {
            None | Some([0]) => Ok(false),
            Some([0xff]) => Ok(true),
            Some(_) => Err(NotDer),
        }
    }

    /// All remaining values.
    pub(crate) fn all(mut self) -> Result<Vec<Element<'a>>, NotDer> {
        let mut elements = Vec::new();
        while !self.at_end() {
            elements.push(self.next()?);
        }
        Ok(elements)
    }

    /// Nothing may be left.
    pub(crate) fn finish(&self) -> Result<(), NotDer> {
        if self.at_end() { Ok(()) } else { Err(NotDer) }
    }
}

/// The length at the start of the bytes, and what follows it.
fn length(bytes: &[u8]) -> Result<(usize, &[u8]), NotDer> {
    let (&first, rest) = bytes.split_first().ok_or(NotDer)?;
    if first < 0x80 {
        return Ok((usize::from(first), rest));
    }
    let count = usize::from(first & 0x7f);
    if count == 0 || count > LENGTH_BYTES_MAX || rest.len() < count {
        return Err(NotDer);
    }
    let (digits, rest) = rest.split_at(count);
    let len = digits.iter().fold(0_usize, |len, digit| (len << 8) | usize::from(*digit));
    let shortest = digits[0] != 0 && (count > 1 || len >= 0x80);
    if shortest { Ok((len, rest)) } else { Err(NotDer) }
}

/// Writes a value.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = content.len();
    let digits: Vec<u8> = len.to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
    match len {
        0..0x80 => out.push(digits.first().copied().unwrap_or(0)),
        _ => {
            out.push(0x80 | u8::try_from(digits.len()).expect("a length has eight bytes at most"));
            out.extend_from_slice(&digits);
        }
    }
    out.extend_from_slice(content);
    out
}

/// Writes a SEQUENCE of parts that are written already.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

/// Whether the content is a shortest-form INTEGER.
pub(crate) fn is_integer(content: &[u8]) -> bool {
    match content {
        [] => false,
        [0, second, ..] => second & 0x80 != 0,
        [0xff, second, ..] => second & 0x80 == 0,
        [..] => true,
    }
}

/// The bits of a BIT STRING's content: the bytes, once unused bits were found to be few and zero.
pub(crate) fn bits(content: &[u8]) -> Result<&[u8], NotDer> {
    let (&unused, bytes) = content.split_first().ok_or(NotDer)?;
    let last = bytes.last().copied().unwrap_or(0);
    let valid = unused == 0 || (unused < 8 && !bytes.is_empty() && last & ((1_u8 << unused) - 1) == 0);
    if valid { Ok(bytes) } else { Err(NotDer) }
}

/// The bytes are not DER, or not of the structure that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not DER of the expected structure")]
pub(crate) struct NotDer;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const NULL: u8 = 0x05;
pub(crate) const OID: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// The tag `[number]` of a primitive value.
pub(crate) const fn context(number: u8) -> u8 {
    0x80 | number
}

/// The tag `[number]` of a value that holds others.
pub(crate) const fn context_constructed(number: u8) -> u8 {
    0xa0 | number
}

/// Lengths of up to 16 MiB.
const LENGTH_BYTES_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_values_one_after_the_other() {
        let bytes = [0x30, 0x05, 0x02, 0x01, 0x07, 0x05, 0x00];
        let mut inside = Reader::whole(&bytes, SEQUENCE).unwrap();
        let number = inside.take(INTEGER).unwrap();
        assert_eq!((number.content, number.raw), (&[7_u8][..], &bytes[2..5]));
        assert_eq!(inside.take_optional(OID), Ok(None));
        assert!(inside.take(NULL).is_ok() && inside.at_end() && inside.finish().is_ok());
        assert_eq!(inside.next(), Err(NotDer));
    }

    #[test]
    fn refuses_what_der_forbids() {
        for bad in [
            &[0x30, 0x80, 0x00, 0x00][..],   // Indefinite length.
            &[0x30, 0x81, 0x01, 0x00],       // Not the shortest length.
            &[0x30, 0x82, 0x00, 0x80],       // The same.
            &[0x30, 0x02, 0x00],             // Cut off.
            &[0x1f, 0x81, 0x00, 0x00],       // A tag of several bytes.
            &[0x30, 0x84, 0x01, 0, 0, 0, 0], // Too long a length.
            &[],
        ] {
            assert_eq!(Reader::new(bad).next(), Err(NotDer), "{bad:02x?}");
        }
        assert!(Reader::whole(&[0x30, 0x00, 0x00], SEQUENCE).is_err());
        assert_eq!(Reader::new(&[1, 1, 1]).take_flag(), Err(NotDer));
    }

    #[test]
    fn what_is_written_is_read_back_at_each_length() {
        for len in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let written = tlv(OCTET_STRING, &vec![7; len]);
            let mut reader = Reader::new(&written);
            assert_eq!(reader.take(OCTET_STRING).map(|element| element.content.len()), Ok(len));
            assert!(reader.at_end());
        }
        assert_eq!(sequence(&[&[5, 0], &[5, 0]]), [0x30, 4, 5, 0, 5, 0]);
    }

    #[test]
    fn integers_are_shortest() {
        for (content, good) in [
            (&[][..], false),
            (&[0], true),
            (&[0, 0x80], true),
            (&[0, 0x7f], false),
            (&[0xff, 0x7f], true),
            (&[0xff, 0x80], false),
        ] {
            assert_eq!(is_integer(content), good, "{content:02x?}");
        }
    }

    #[test]
    fn unused_bits_are_zero() {
        assert_eq!(bits(&[0]), Ok(&[][..]));
        assert_eq!(bits(&[7, 0x80]), Ok(&[0x80_u8][..]));
        for bad in [&[][..], &[1], &[8, 0], &[7, 0x81]] {
            assert_eq!(bits(bad), Err(NotDer), "{bad:02x?}");
        }
    }
}
