//! Tests of verification: valid layers pass, every wrong digest or length fails.

use super::super::compression::tests::{gzip, zstd};
use super::*;

fn layer(dir: &tempfile::TempDir, blob: &[u8], plain: &[u8]) -> Layer {
    let path = dir.path().join("blob");
    std::fs::write(&path, blob).unwrap();
    Layer {
        digest: Some(Digest::sha256(blob)),
        size: Some(blob.len() as u64),
        diff_id: Digest::sha256(plain),
        location: Location::File(path),
    }
}

fn read(layer: &Layer, limit: u64) -> Result<Vec<u8>> {
    let mut stream = VerifiedLayer::open(layer, "the layer".into(), limit)?;
    let mut all = Vec::new();
    let mut buf = [0; 1000];
    loop {
        match stream.read_verified(&mut buf) {
            Ok(0) => {
                assert_eq!(stream.read_verified(&mut buf).unwrap(), 0);
                return Ok(all);
            }
            Ok(count) => all.extend(&buf[..count]),
            Err(error) => {
                // A read after the error must not look like the end.
                assert!(stream.read(&mut buf).is_err());
                return Err(error);
            }
        }
    }
}

#[test]
fn valid_layers_pass() {
    let dir = tempfile::tempdir().unwrap();
    let plain = vec![7; 100_000];
    for blob in [plain.clone(), gzip(&plain), zstd(&plain)] {
        assert_eq!(read(&layer(&dir, &blob, &plain), 100_000).unwrap(), plain);
    }
}

#[test]
fn every_wrong_digest_or_length_is_an_error_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let plain: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    for blob in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let good = layer(&dir, &blob, &plain);
        let other = Digest::sha256(b"other");

        let wrong_blob = Layer { digest: Some(other.clone()), ..good.clone() };
        assert!(matches!(
            read(&wrong_blob, u64::MAX),
            Err(Error::DigestMismatch { expected, .. }) if expected == other
        ));
        let wrong_diff = Layer { diff_id: other.clone(), ..good.clone() };
        let error = read(&wrong_diff, u64::MAX).unwrap_err();
        assert!(error.to_string().contains("the content of the layer"), "{error}");
        for size in [blob.len() as u64 - 1, blob.len() as u64 + 1] {
            let wrong_size = Layer { size: Some(size), ..good.clone() };
            assert!(matches!(read(&wrong_size, u64::MAX), Err(Error::Corrupt { .. })));
        }
        let bomb = read(&good, plain.len() as u64 - 1);
        assert!(matches!(bomb, Err(Error::TooLarge { .. })));

        let truncated = Layer { size: None, digest: None, ..good.clone() };
        std::fs::write(dir.path().join("blob"), &blob[..blob.len() - 100]).unwrap();
        assert!(read(&truncated, u64::MAX).is_err());
    }
}
