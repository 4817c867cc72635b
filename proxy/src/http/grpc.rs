//! Counting the messages of a gRPC stream as its bytes pass.

/// Follows length-prefixed messages.
#[derive(Debug, Default)]
pub(crate) struct MessageCount {
    header: [u8; 5],
    have: usize,
    left: usize,
    count: u64,
}

impl MessageCount {
    /// Follows the next bytes of the stream.
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.header.len() - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.header.len() {
                let [_, a, b, c, d] = self.header;
                (self.left, self.have) = (u32::from_be_bytes([a, b, c, d]) as usize, 0);
                self.count += 1;
            }
        }
    }

    /// How many messages have begun.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let stream: Vec<u8> = [3_u32, 0, 300]
            .iter()
            .flat_map(|len| {
                let mut message = vec![0];
                message.extend(len.to_be_bytes());
                message.resize(5 + *len as usize, 7);
                message
            })
            .collect();
        for size in [1, 2, 5, 7, stream.len()] {
            let mut count = MessageCount::default();
            stream.chunks(size).for_each(|chunk| count.follow(chunk));
            assert_eq!(count.count(), 3, "{size}");
        }
    }
}
