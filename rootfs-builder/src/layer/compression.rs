//! gzip, zstd or nothing.
//!
//! The content decides, as in Docker, and not the media type: tools get that wrong, and a wrong
//! guess cannot do harm, because the uncompressed bytes must match the diff id.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

const BUFFER: usize = 128 << 10;

/// A frame that needs more than 2^27 bytes (128 MiB) of window is refused: it bounds our memory, and is the
/// zstd tool's own limit for what it decompresses without being told otherwise.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Recognized, but not read here.
    Other(&'static str),
}

impl Compression {
    /// This many bytes are enough to tell.
    pub(crate) const MAGIC_LEN: usize = 6;

    /// Tells it from the first bytes.
    pub(crate) fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, in front of others.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

/// What was read to look at the magic, then the rest.
type Whole<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Decompresses whatever is in `R`. All members or frames are read, up to the end of `R`; garbage
/// behind them is an error.
pub(crate) enum Decoder<R: Read> {
    None(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(zstd::Decoder<'static, Whole<R>>),
}

impl<R: Read> Decoder<R> {
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(Compression::MAGIC_LEN);
        input.by_ref().take(Compression::MAGIC_LEN as u64).read_to_end(&mut magic)?;
        let compression = Compression::of(&magic);
        let whole = BufReader::with_capacity(BUFFER, Cursor::new(magic).chain(input));
        match compression {
            Compression::None => Ok(Self::None(whole)),
            Compression::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(whole)))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(whole)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Ok(Self::Zstd(decoder))
            }
            Compression::Other(name) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it is compressed with {name}, which is not supported; use gzip or zstd"),
            )),
        }
    }

    /// The reader below.
    pub(crate) fn input(&mut self) -> &mut R {
        let whole = match self {
            Self::None(whole) => whole,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        };
        whole.get_mut().get_mut().1
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(whole) => whole.read(buf),
            Self::Gzip(decoder) => decoder.read(buf),
            Self::Zstd(decoder) => decoder.read(buf),
        }
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
        assert_eq!(decode(b"").unwrap(), b"");
        assert_eq!(decode(b"\x1f").unwrap(), b"\x1f");
    }

    #[test]
    fn members_and_frames_are_joined() {
        assert_eq!(decode(&[gzip(b"one "), gzip(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(decode(&[zstd(b"one "), zstd(b"two")].concat()).unwrap(), b"one two");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frames = [skippable.clone(), zstd(b"one"), skippable].concat();
        assert_eq!(decode(&frames).unwrap(), b"one");
    }

    #[test]
    fn short_and_damaged_input_is_an_error() {
        let plain: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
        for whole in [gzip(&plain), zstd(&plain)] {
            for len in [7, 20, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
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
    fn a_zstd_window_above_the_limit_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(b"small").unwrap();
        let error = decode(&encoder.finish().unwrap()).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
