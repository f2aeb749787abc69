//! Copies into sparse files.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

const CHUNK: usize = 64 << 10;

/// Copies all of `from` to the start of `to`, which must be empty: chunks of zeros become holes.
pub(crate) fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut chunk[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if chunk[..filled].iter().any(|byte| *byte != 0) {
            to.write_all_at(&chunk[..filled], at)?;
        }
        at += filled as u64;
        if filled < CHUNK {
            to.set_len(at)?;
            return Ok(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_copy_is_the_same_and_has_holes() {
        let mut bytes = vec![0; 10 * CHUNK + 3];
        bytes[5 * CHUNK..5 * CHUNK + 4].copy_from_slice(b"data");
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(copy(&mut &bytes[..], &mut file).unwrap(), bytes.len() as u64);
        let mut copied = vec![1; bytes.len()];
        file.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == bytes);
        assert!(file.metadata().unwrap().blocks() * 512 < 5 * CHUNK as u64);
    }
}
