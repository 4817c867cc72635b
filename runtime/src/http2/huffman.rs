//! The Huffman code of strings in header blocks (RFC 7541, section 5.2 and appendix B).
//!
//! It is canonical: codes of one length follow each other in the order of their symbols, so a table of lengths and one of
//! symbols say everything.

/// Codes of one length.
struct Row {
    bits: u32,
    /// The first of them.
    first: u64,
    /// Where its symbol stands.
    at: usize,
    count: usize,
}

/// Appends what `coded` says to `text`. `None` when it is no such code: an unknown one, the end-of-string symbol, padding that
/// is too long or not of ones.
pub(super) fn decode(coded: &[u8], text: &mut Vec<u8>) -> Option<()> {
    let (mut held, mut bits, mut rest) = (0_u64, 0_u32, coded.iter());
    loop {
        while bits < ROWS[ROWS.len() - 1].bits {
            let Some(byte) = rest.next() else { break };
            (held, bits) = (held << 8 | u64::from(*byte), bits + 8);
        }
        let found = ROWS.iter().take_while(|row| row.bits <= bits).find_map(|row| {
            let code = held >> (bits - row.bits) & ((1 << row.bits) - 1);
            let place = usize::try_from(code.checked_sub(row.first)?).ok()?;
            (place < row.count).then_some((row, place))
        });
        match found {
            Some((row, place)) => {
                // The symbol behind the last ends strings and must not be written.
                text.push(*SYMBOLS.get(row.at + place)?);
                bits -= row.bits;
            }
            None => {
                let padding = (1 << bits) - 1;
                return (bits < 8 && held & padding == padding).then_some(());
            }
        }
    }
}

const ROWS: [Row; 21] = [
    Row { bits: 5, first: 0x0, at: 0, count: 10 },
    Row { bits: 6, first: 0x14, at: 10, count: 26 },
    Row { bits: 7, first: 0x5c, at: 36, count: 32 },
    Row { bits: 8, first: 0xf8, at: 68, count: 6 },
    Row { bits: 10, first: 0x3f8, at: 74, count: 5 },
    Row { bits: 11, first: 0x7fa, at: 79, count: 3 },
    Row { bits: 12, first: 0xffa, at: 82, count: 2 },
    Row { bits: 13, first: 0x1ff8, at: 84, count: 6 },
    Row { bits: 14, first: 0x3ffc, at: 90, count: 2 },
    Row { bits: 15, first: 0x7ffc, at: 92, count: 3 },
    Row { bits: 19, first: 0x7fff0, at: 95, count: 3 },
    Row { bits: 20, first: 0xfffe6, at: 98, count: 8 },
    Row { bits: 21, first: 0x1fffdc, at: 106, count: 13 },
    Row { bits: 22, first: 0x3fffd2, at: 119, count: 26 },
    Row { bits: 23, first: 0x7fffd8, at: 145, count: 29 },
    Row { bits: 24, first: 0xffffea, at: 174, count: 12 },
    Row { bits: 25, first: 0x1ffffec, at: 186, count: 4 },
    Row { bits: 26, first: 0x3ffffe0, at: 190, count: 15 },
    Row { bits: 27, first: 0x7ffffde, at: 205, count: 19 },
    Row { bits: 28, first: 0xfffffe2, at: 224, count: 29 },
    Row { bits: 30, first: 0x3ffffffc, at: 253, count: 4 },
];

/// In the order of their codes.
#[rustfmt::skip]
const SYMBOLS: [u8; 256] = [
    48, 49, 50, 97, 99, 101, 105, 111, 115, 116, 32, 37, 45, 46, 47, 51, 52, 53, 54, 55, 56, 57, 61, 65, 95, 98, 100,
    102, 103, 104, 108, 109, 110, 112, 114, 117, 58, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82,
    83, 84, 85, 86, 87, 89, 106, 107, 113, 118, 119, 120, 121, 122, 38, 42, 44, 59, 88, 90, 33, 34, 40, 41, 63, 39, 43,
    124, 35, 62, 0, 36, 64, 91, 93, 126, 94, 125, 60, 96, 123, 92, 195, 208, 128, 130, 131, 162, 184, 194, 224, 226,
    153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230, 129, 132, 133, 134, 136, 146, 154, 156, 160, 163,
    164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232, 233, 1, 135, 137, 138, 139, 140, 141,
    143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239, 9,
    142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237, 199, 207, 234, 235, 192, 193, 200, 201, 202, 205, 210, 213,
    218, 219, 238, 240, 242, 243, 255, 203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251,
    252, 253, 254, 2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 127,
    220, 249, 10, 13, 22,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        decode(coded, &mut text).map(|()| text)
    }

    /// The bits of a symbol, by the same tables: what is decoded must be what was coded.
    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut digits = String::new();
        for byte in text {
            let at = SYMBOLS.iter().position(|symbol| symbol == byte).unwrap();
            let row = ROWS.iter().find(|row| (row.at..row.at + row.count).contains(&at)).unwrap();
            let code = row.first + (at - row.at) as u64;
            digits.push_str(&format!("{code:0width$b}", width = row.bits as usize));
        }
        digits.push_str(&"1".repeat((8 - digits.len() % 8) % 8));
        digits
            .as_bytes()
            .chunks(8)
            .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
            .collect()
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7541, appendix C.4 and C.6.
        let example = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&example).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
        assert_eq!(decoded(&[0x64, 0x02]).unwrap(), b"302");
        let date = [
            0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66, 0xe0, 0x82,
            0xa6, 0x2d, 0x1b, 0xff,
        ];
        assert_eq!(decoded(&date).unwrap(), b"Mon, 21 Oct 2013 20:13:21 GMT");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    #[test]
    fn every_byte_has_its_code() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encoded(&all)).unwrap(), all);
        // The codes of all lengths together use up every pattern of bits: none is missing, none is there twice.
        let used: u64 = ROWS.iter().map(|row| (row.count as u64) << (30 - row.bits)).sum();
        assert_eq!(used, 1 << 30);
    }

    #[test]
    fn wrong_padding_and_the_end_of_string_symbol_are_refused() {
        for coded in [&[0xff][..], &[0xff, 0xff, 0xff, 0xff], &[0x00], &[0xf8, 0xff], &[0x66]] {
            assert_eq!(decoded(coded), None, "{coded:x?}");
        }
    }
}
