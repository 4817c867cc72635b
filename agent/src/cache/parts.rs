//! The layout of the sealed file: parts of some 64 KiB, each sealed for its place in this very file, then a head that says what there
//! is, then the head's length. So no more than a part is in memory while it is written, and any part can be read alone.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use identity::seal::{SealError, SealKey};
use identity::{TrustDomain, digest};
use zeroize::Zeroizing;

use super::record::{Malformed, Reader, Writer};

/// What seals the parts of one file.
#[derive(Debug)]
struct Seals {
    key: Arc<SealKey>,
    trust_domain: TrustDomain,
    name: [u8; NAME_BYTES],
}

/// A file that is being written.
pub(super) struct PartsWriter<W> {
    seals: Seals,
    file: W,
    places: Vec<Place>,
    part: Writer,
    /// The key of the first record in `part`.
    first: String,
    is_begun: bool,
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct PartsReader {
    seals: Seals,
    file: File,
    places: Vec<Place>,
}

/// Where a part lies.
#[derive(Debug)]
struct Place {
    /// The key of its first record.
    first: String,
    at: u64,
    bytes: u64,
}

/// Why a file, or a part of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PartsError {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Seals {
    fn purpose(&self, part: usize) -> Vec<u8> {
        let mut purpose = head_purpose(&self.trust_domain);
        purpose.extend_from_slice(&self.name);
        purpose.extend_from_slice(&(part as u64).to_be_bytes());
        purpose
    }
}

fn head_purpose(trust_domain: &TrustDomain) -> Vec<u8> {
    format!("kasbah agent cache 3 {trust_domain} ").into_bytes()
}

impl<W: Write> PartsWriter<W> {
    pub(super) fn new(file: W, key: &Arc<SealKey>, trust_domain: &TrustDomain) -> Self {
        Self {
            seals: Seals { key: key.clone(), trust_domain: trust_domain.clone(), name: digest::random() },
            file,
            places: Vec::new(),
            part: Writer::with_capacity(PART_BYTES + PART_BYTES / 4),
            first: String::new(),
            is_begun: false,
        }
    }

    /// Adds a record; those of one file come in the order of their keys, of each kind.
    pub(super) fn add(&mut self, key: &str, write: impl FnOnce(&mut Writer)) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_begun, true) {
            key.clone_into(&mut self.first);
        }
        write(&mut self.part);
        if self.part.len() >= PART_BYTES { self.end_part() } else { Ok(()) }
    }

    /// Writes the part that was begun, if one was.
    pub(super) fn end_part(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.is_begun) {
            return Ok(());
        }
        let sealed = self.seals.key.seal(&self.seals.purpose(self.places.len()), self.part.bytes());
        let sealed = sealed.map_err(io::Error::other)?;
        self.part.clear();
        self.file.write_all(&sealed)?;
        let at = self.places.last().map_or(0, |last| last.at + last.bytes);
        self.places.push(Place { first: std::mem::take(&mut self.first), at, bytes: sealed.len() as u64 });
        Ok(())
    }

    /// How many parts there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Writes the rest: what `head` writes, and the places of the parts.
    pub(super) fn finish(mut self, head: impl FnOnce(&mut Writer)) -> io::Result<()> {
        self.end_part()?;
        let mut text = Writer::with_capacity(HEAD_BYTES);
        text.raw(&self.seals.name);
        text.number(self.places.len() as u64);
        for place in &self.places {
            text.text(&place.first);
            text.number(place.bytes);
        }
        head(&mut text);
        let sealed = self.seals.key.seal(&head_purpose(&self.seals.trust_domain), text.bytes());
        let sealed = sealed.map_err(io::Error::other)?;
        self.file.write_all(&sealed)?;
        self.file.write_all(&(sealed.len() as u64).to_be_bytes())
    }
}

impl PartsReader {
    /// Opens a file; answers what its head says beside the places of its parts.
    pub(super) fn open(
        file: File,
        key: &Arc<SealKey>,
        trust_domain: &TrustDomain,
        bytes_max: u64,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), PartsError> {
        let length = file.metadata()?.len();
        if length > bytes_max {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        let end = length.checked_sub(LENGTH_BYTES as u64).ok_or(Malformed)?;
        let mut head_bytes = [0; LENGTH_BYTES];
        file.read_exact_at(&mut head_bytes, end)?;
        let head_bytes = u64::from_be_bytes(head_bytes);
        let head_at = end.checked_sub(head_bytes).ok_or(Malformed)?;
        let head = read(&file, head_at, head_bytes)?;
        let head = key.open(&head_purpose(trust_domain), &head)?;
        let mut text = Reader::new(&head);
        let name = text.raw()?;
        let (mut places, mut at) = (Vec::new(), 0_u64);
        for _ in 0..text.number()? {
            let (first, bytes) = (text.text()?.to_owned(), text.number()?);
            places.push(Place { first, at, bytes });
            at = at.checked_add(bytes).ok_or(Malformed)?;
        }
        if at != head_at {
            return Err(Malformed.into());
        }
        let rest = Zeroizing::new(text.rest().to_vec());
        let seals = Seals { key: key.clone(), trust_domain: trust_domain.clone(), name };
        Ok((Self { seals, file, places }, rest))
    }

    /// How many parts there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The part from `from` on in which a record of this key would be.
    pub(super) fn part_of(&self, from: usize, key: &str) -> Option<usize> {
        let places = self.places.get(from..)?;
        let behind = places.partition_point(|place| place.first.as_str() <= key);
        Some(from + behind.checked_sub(1)?)
    }

    /// The records of a part.
    pub(super) fn part(&self, at: usize) -> Result<Zeroizing<Vec<u8>>, PartsError> {
        let place = self.places.get(at).ok_or(Malformed)?;
        let sealed = read(&self.file, place.at, place.bytes)?;
        Ok(self.seals.key.open(&self.seals.purpose(at), &sealed)?)
    }
}

fn read(file: &File, at: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut content, at)?;
    Ok(content)
}

const NAME_BYTES: usize = 16;
const LENGTH_BYTES: usize = 8;
/// Room for the head of a few hundred SVIDs.
const HEAD_BYTES: usize = 8 << 10;
/// What a part has at least, but for the last of each kind.
const PART_BYTES: usize = 64 << 10;
