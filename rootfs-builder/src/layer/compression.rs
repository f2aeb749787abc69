//! gzip, zstd, bzip2, xz or none: what engines accept for layers, archives and copies.
//!
//! Detected from the content, as in Docker, not from the media type: tools get that wrong, and a
//! wrong guess does no harm, because the uncompressed bytes must match the diff ID.

use std::fmt;
use std::io::{self, BufReader, Chain, Cursor, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

const BUFFER: usize = 128 << 10;

/// Largest zstd window, 2^27 bytes (128 MiB): bounds memory, and is the default limit of the zstd
/// tool.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Memory limit of the xz decoder, in bytes: twice what its highest level needs.
const XZ_MEMORY_MAX: u64 = 128 << 20;

/// Magic of a bzip2 block, and of the end of a stream without blocks.
const BZIP2_BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
const BZIP2_END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];

/// A compression format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Uncompressed.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl Compression {
    /// Number of bytes that [`of`](Self::of) needs.
    pub const MAGIC_LEN: usize = 10;

    /// Detects the format from the first bytes.
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame before others.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A tar may begin with a file name: the three letters alone are not enough.
            [b'B', b'Z', b'h', b'1'..=b'9', block @ ..]
                if block.starts_with(&BZIP2_BLOCK) || block.starts_with(&BZIP2_END) =>
            {
                Self::Bzip2
            }
            _ => Self::None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }
}

/// The bytes read for detection, then the rest.
type Peeked<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Decompresses `R`: all members or frames up to its end. Garbage after them is an error.
pub struct Decoder<R: Read> {
    compression: Compression,
    codec: Codec<R>,
}

enum Codec<R: Read> {
    None(Peeked<R>),
    Gzip(Box<MultiGzDecoder<Peeked<R>>>),
    Zstd(zstd::Decoder<'static, Peeked<R>>),
    Bzip2(MultiBzDecoder<Peeked<R>>),
    Xz(XzDecoder<Peeked<R>>),
}

impl<R: Read> Decoder<R> {
    /// Detects the format of `input`.
    ///
    /// # Errors
    /// `input` cannot be read.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(Compression::MAGIC_LEN);
        input.by_ref().take(Compression::MAGIC_LEN as u64).read_to_end(&mut magic)?;
        let compression = Compression::of(&magic);
        let whole = BufReader::with_capacity(BUFFER, Cursor::new(magic).chain(input));
        let codec = match compression {
            Compression::None => Codec::None(whole),
            Compression::Gzip => Codec::Gzip(Box::new(MultiGzDecoder::new(whole))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(whole)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Codec::Zstd(decoder)
            }
            Compression::Bzip2 => Codec::Bzip2(MultiBzDecoder::new(whole)),
            Compression::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, CONCATENATED)?;
                Codec::Xz(XzDecoder::new_stream(whole, stream))
            }
        };
        Ok(Self { compression, codec })
    }

    /// Whether the input is compressed.
    pub(crate) fn is_compressed(&self) -> bool {
        !matches!(self.codec, Codec::None(_))
    }

    /// The underlying reader.
    pub(crate) fn input(&mut self) -> &mut R {
        let whole = match &mut self.codec {
            Codec::None(whole) => whole,
            Codec::Gzip(decoder) => decoder.get_mut(),
            Codec::Zstd(decoder) => decoder.get_mut(),
            Codec::Bzip2(decoder) => decoder.get_mut(),
            Codec::Xz(decoder) => decoder.get_mut(),
        };
        whole.get_mut().get_mut().1
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.codec {
            Codec::None(whole) => return whole.read(buf),
            Codec::Gzip(decoder) => return decoder.read(buf),
            Codec::Zstd(decoder) => return decoder.read(buf),
            Codec::Bzip2(decoder) => decoder.read(buf),
            Codec::Xz(decoder) => decoder.read(buf),
        };
        read.map_err(|error| explain(self.compression, error))
    }
}

/// Adds the format's name to errors of these decoders; errors of the underlying reader pass
/// unchanged.
fn explain(compression: Compression, error: io::Error) -> io::Error {
    if error.get_ref().is_some_and(|inner| inner.is::<crate::error::Error>()) {
        return error;
    }
    let name = compression.name();
    io::Error::new(error.kind(), format!("its {name} data cannot be read: {error}"))
}

impl<R: Read> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("compression", &self.compression).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
