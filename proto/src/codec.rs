//! How messages of the services here become bytes: as tonic does it, but with buffers of the size that messages have.
//!
//! A stream keeps its buffer as long as it is open, and thousands of workloads keep one open to their node's agent, most of the
//! time with nothing to say.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Protocol Buffers with buffers of [`BUFFER_BYTES`] to begin with.
#[derive(Debug)]
pub(crate) struct FrugalCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for FrugalCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for FrugalCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

/// What a buffer has room for at first; it grows with the message.
const BUFFER_BYTES: usize = 1 << 10;
/// So much is gathered of several messages before it is sent, as tonic does by default.
const YIELD_BYTES: usize = 32 << 10;
