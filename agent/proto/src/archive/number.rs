//! Parses the two notations of numbers in a tar: decimal text in PAX records, fields of fixed length in headers.

use super::ArchiveError;

/// Parses a decimal number without a sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses a numeric field: octal digits, or with the first bit set, big-endian two's complement (GNU base-256).
/// A blank field is 0.
pub(super) fn field(what: &str, field: &[u8]) -> Result<i64, ArchiveError> {
    let malformed = || ArchiveError::bad(format!("its {what} is not a number"));
    match field {
        [first @ (0x80 | 0xff), rest @ ..] => {
            // Bytes beyond the low eight must only repeat the sign.
            let sign = if *first == 0xff { 0xff } else { 0 };
            let (high, low) = rest.split_at(rest.len().saturating_sub(8));
            let mut bytes = [sign; 8];
            bytes[8 - low.len()..].copy_from_slice(low);
            let value = i64::from_be_bytes(bytes);
            let fits = high.iter().all(|b| *b == sign) && (value < 0) == (sign == 0xff);
            if fits { Ok(value) } else { Err(malformed()) }
        }
        _ => {
            let digits = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
            let mut value = 0_i64;
            for digit in digits {
                value = match digit {
                    b'0'..=b'7' => value.checked_mul(8).map(|v| v + i64::from(digit - b'0')),
                    _ => None,
                }
                .ok_or_else(malformed)?;
            }
            Ok(value)
        }
    }
}

/// Parses a [`field`] that must not be negative.
pub(super) fn unsigned(what: &str, field: &[u8]) -> Result<u64, ArchiveError> {
    u64::try_from(self::field(what, field)?)
        .map_err(|_| ArchiveError::bad(format!("its {what} is negative")))
}

#[cfg(test)]
mod tests {

    #[test]
    fn numbers_in_every_notation() {
        let ok = |field: &[u8]| super::field("field", field).unwrap();
        assert_eq!(ok(b"0000644\0"), 0o644);
        assert_eq!(ok(b"   644 \0"), 0o644);
        assert_eq!(ok(b"\0\0\0\0"), 0);
        assert_eq!(ok(b"        "), 0);
        assert_eq!(ok(b"77777777777"), 0o77777777777);
        assert_eq!(ok(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), 2 << 32);
        assert_eq!(ok(&[0xff; 12]), -1);
        assert_eq!(ok(&[0x80, 0, 0, 1]), 1);
        for bad in [
            &b"0000x44\0"[..],
            b"12 34",
            b"-1",
            &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0],
            &[0xc0, 0, 0, 1],
        ] {
            assert!(super::field("field", bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
