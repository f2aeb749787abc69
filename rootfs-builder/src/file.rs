//! Bounded reads of whole files.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::sys;

/// Reads a whole file; one longer than `limit` is an error.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = sys::open_regular(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { what: path.display().to_string(), limit });
    }
    Ok(bytes)
}
