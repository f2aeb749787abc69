//! gzip, zstd, bzip2, xz or nothing: what engines take for layers, archives and copies.
//!
//! The content decides, as in Docker, and not the media type: tools get that wrong, and a wrong
//! guess cannot do harm, because the uncompressed bytes must match the diff id.

use std::fmt;
use std::io::{self, BufReader, Chain, Cursor, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

const BUFFER: usize = 128 << 10;

/// A frame that needs more than 2^27 bytes (128 MiB) of window is refused: it bounds our memory, and is the
/// zstd tool's own limit for what it decompresses without being told otherwise.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The memory that xz may need, in bytes: twice what its highest level does.
const XZ_MEMORY_MAX: u64 = 128 << 20;

/// What the first block of a bzip2 stream begins with, or the end of one without blocks.
const BZIP2_BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
const BZIP2_END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
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
    /// This many bytes are enough to tell.
    pub const MAGIC_LEN: usize = 10;

    /// Tells it from the first bytes.
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, in front of others.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A tar may begin with the name of a file: three letters would not do.
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

/// What was read to look at the magic, then the rest.
type Whole<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Decompresses whatever is in `R`. All members or frames are read, up to the end of `R`; garbage
/// behind them is an error.
pub struct Decoder<R: Read> {
    compression: Compression,
    codec: Codec<R>,
}

enum Codec<R: Read> {
    None(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(zstd::Decoder<'static, Whole<R>>),
    Bzip2(MultiBzDecoder<Whole<R>>),
    Xz(XzDecoder<Whole<R>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `input`.
    ///
    /// # Errors
    /// When it cannot be read.
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

    /// Whether there is anything to decompress.
    pub(crate) fn is_compressed(&self) -> bool {
        !matches!(self.codec, Codec::None(_))
    }

    /// The reader below.
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

/// These decoders do not say what they are. Errors of the reader below stay what they are.
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
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    pub(crate) fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
        liblzma::encode_all(bytes, 1).unwrap()
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut decoded = Vec::new();
        Decoder::new(bytes)?.read_to_end(&mut decoded)?;
        Ok(decoded)
    }

    #[test]
    fn everything_comes_back() {
        let plain: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        assert_eq!(decode(&plain).unwrap(), plain);
        assert_eq!(decode(&gzip(&plain)).unwrap(), plain);
        assert_eq!(decode(&zstd(&plain)).unwrap(), plain);
        assert_eq!(decode(&bzip2(&plain)).unwrap(), plain);
        assert_eq!(decode(&xz(&plain)).unwrap(), plain);
        for empty in [gzip(b""), zstd(b""), bzip2(b""), xz(b"")] {
            assert_eq!(decode(&empty).unwrap(), b"");
        }
        assert_eq!(decode(b"").unwrap(), b"");
        assert_eq!(decode(b"\x1f").unwrap(), b"\x1f");
    }

    #[test]
    fn members_and_frames_are_joined() {
        assert_eq!(decode(&[gzip(b"one "), gzip(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(decode(&[zstd(b"one "), zstd(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(decode(&[bzip2(b"one "), bzip2(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(decode(&[xz(b"one "), xz(b"two")].concat()).unwrap(), b"one two");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frames = [skippable.clone(), zstd(b"one"), skippable].concat();
        assert_eq!(decode(&frames).unwrap(), b"one");
    }

    #[test]
    fn short_and_damaged_input_is_an_error() {
        let plain: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
        for whole in [gzip(&plain), zstd(&plain), bzip2(&plain), xz(&plain)] {
            for len in [10, 20, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
                assert!(decode(&whole[..len]).is_err(), "{len} of {}", whole.len());
            }
            assert!(decode(&[&whole[..], b"garbage"].concat()).is_err());
        }
        let mut flipped = gzip(&plain);
        let crc = flipped.len() - 6;
        flipped[crc] ^= 1;
        assert!(decode(&flipped).is_err());
        assert!(decode(b"BZh91AY&SY").unwrap_err().to_string().contains("bzip2"));
    }

    #[test]
    fn a_name_that_begins_like_bzip2_is_a_name() {
        for name in [&b"BZh"[..], b"BZh9.txt", b"BZhello world", b"BZh91AY&SX"] {
            assert_eq!(Compression::of(name), Compression::None, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn an_xz_dictionary_above_the_limit_is_refused() {
        use liblzma::stream::{Check, Filters, LzmaOptions};
        let mut options = LzmaOptions::new_preset(0).unwrap();
        options.dict_size(512 << 20);
        let mut filters = Filters::new();
        filters.lzma2(&options);
        let stream = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(b"small").unwrap();
        let error = decode(&encoder.finish().unwrap()).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }

    #[test]
    fn a_zstd_window_above_the_limit_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(b"small").unwrap();
        let error = decode(&encoder.finish().unwrap()).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
