//! Tests of every codec: round trips, joined members, damage, limits.

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
fn every_codec_round_trips() {
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
