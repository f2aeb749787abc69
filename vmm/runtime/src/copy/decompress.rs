//! Decompression of tars. As in docker, the first bytes of a tar tell whether it is compressed.
//!
//! A thread decodes between two bounded pipes, and the decoders bound their own memory. The size of a decompressed tar
//! is bounded by the box's disk.

use std::io::{self, Write};

use boxlite_rootfs_builder::{Compression, Decoder};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;

use super::pipe::{self, Feed, TaskReader};

/// Reads the first bytes of `tar`. Returns its compression, and a reader of all of it.
pub(super) async fn recognize<R: AsyncRead + Unpin>(
    mut tar: R,
) -> io::Result<(Compression, impl AsyncRead + Unpin + use<R>)> {
    let mut start = Vec::with_capacity(Compression::MAGIC_LEN);
    let mut rest = (&mut tar).take(Compression::MAGIC_LEN as u64);
    while rest.read_buf(&mut start).await? > 0 {}
    Ok((Compression::of(&start), io::Cursor::new(start).chain(tar)))
}

/// Starts a thread that decompresses. Returns its input, its output, and its result.
pub(super) fn start() -> (Feed, TaskReader, JoinHandle<io::Result<()>>) {
    let (feed, compressed) = pipe::to_thread();
    let (mut writer, plain) = pipe::from_thread();
    let decoding = crate::in_background(move || {
        io::copy(&mut Decoder::new(compressed)?, &mut writer)?;
        writer.flush()?;
        writer.end();
        Ok(())
    });
    (feed, plain, decoding)
}

#[cfg(test)]
mod tests {
    use super::super::pump;
    use super::*;

    async fn decompressed(input: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, whole) = recognize(input).await?;
        let (feed, mut plain, decoding) = start();
        let mut bytes = Vec::new();
        let (fed, read) = tokio::join!(pump(whole, feed), plain.read_to_end(&mut bytes));
        decoding.await??;
        fed?;
        read?;
        Ok((compression, bytes))
    }

    #[tokio::test]
    async fn a_compressed_tar_comes_out_whole_and_a_damaged_one_does_not() {
        let tar: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        // Without it, a decoder need not see that a literal is another.
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&tar).unwrap();
        let zstd = encoder.finish().unwrap();
        assert!(decompressed(&zstd).await.unwrap() == (Compression::Zstd, tar.clone()));
        for plain in [&tar[..], b"", b"short"] {
            assert!(decompressed(plain).await.unwrap() == (Compression::None, plain.to_vec()));
        }
        let mut damaged = zstd.clone();
        damaged[1000] ^= 1;
        for bad in [&zstd[..zstd.len() - 1], &damaged] {
            assert!(decompressed(bad).await.is_err());
        }
    }
}
