//! Records as they lie inside the seal: fields in a fixed order, numbers in eight bytes, texts with their lengths in front.

use zeroize::{Zeroize as _, Zeroizing};

/// Writes fields one behind the other. What it held is wiped.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

/// Reads them in the same order.
pub(super) struct Reader<'a>(&'a [u8]);

/// A record that no writer of ours made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content is no document of ours")]
pub(super) struct Malformed;

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    pub(super) fn number(&mut self, value: u64) {
        self.raw(&value.to_be_bytes());
    }

    pub(super) fn signed(&mut self, value: i64) {
        self.raw(&value.to_be_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.raw(&[u8::from(value)]);
    }

    pub(super) fn sized(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.sized(text.as_bytes());
    }

    /// How many follow, and each.
    pub(super) fn list<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        self.number(items.len() as u64);
        items.for_each(|item| write(self, item));
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        if self.0.capacity() - self.0.len() < bytes.len() {
            // As the vector itself would, but what it leaves behind is wiped.
            let mut larger = Zeroizing::new(Vec::with_capacity(self.0.capacity() * 2 + bytes.len()));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.zeroize();
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn raw<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        self.raw().map(u64::from_be_bytes)
    }

    pub(super) fn signed(&mut self) -> Result<i64, Malformed> {
        self.raw().map(i64::from_be_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        self.raw().map(|[byte]| byte != 0)
    }

    pub(super) fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.sized()?).map_err(|_| Malformed)
    }

    /// As many as were written.
    pub(super) fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.number()?;
        // Each takes a byte at least, so a wrong count makes no room for what is not there.
        if count > self.0.len() as u64 {
            return Err(Malformed);
        }
        (0..count).map(|_| read(self)).collect()
    }
}
