//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header"): `LENGTH KEY=VALUE\n` records.
//!
//! The length delimits a record, not the newline: values are bytes and may contain newlines, as those of
//! `SCHILY.xattr.security.capability` do.

use super::ArchiveError;
use super::number::decimal;
use super::sparse::PaxSparse;
use super::time::Time;

/// The records of a PAX header, which describe the next member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    /// Parses all records. Unknown keys are skipped.
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let (key, value, rest) = record(records)
                .ok_or_else(|| ArchiveError::bad("its PAX header has a malformed record"))?;
            pax.set(key, value).ok_or_else(|| {
                ArchiveError::bad(format!(
                    "its PAX record {} is malformed",
                    super::name::shown(key)
                ))
            })?;
            records = rest;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        // An empty value removes an earlier record.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let number = || if value.is_empty() { Some(None) } else { decimal(value).map(Some) };
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => {
                self.mtime = if value.is_empty() { None } else { Some(Time::parse(value)?) };
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
            }
        }
        Some(())
    }
}

/// Splits the first record off: its key, its value, and the rest.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(21).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(key: &[u8], value: &[u8]) -> Vec<u8> {
        let payload = key.len() + value.len() + 3;
        let mut len = payload + 1;
        while len != payload + len.to_string().len() {
            len = payload + len.to_string().len();
        }
        [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    #[test]
    fn records_are_framed_by_their_length() {
        let records = [
            encode(b"SCHILY.xattr.security.capability", b"\x01\0\n\0 9 x=\n\n"),
            encode(b"path", "dir/ü\nname".as_bytes()),
            encode(b"size", b"8589934592"),
            encode(b"mtime", b"1700000000.123456789"),
            encode(b"comment", b"whatever"),
            encode(b"uid", b"4000000000"),
            encode(b"uid", b""),
        ]
        .concat();
        let pax = Pax::parse(&records).unwrap();
        let capability = (b"security.capability".to_vec(), b"\x01\0\n\0 9 x=\n\n".to_vec());
        assert_eq!(pax.xattrs, [capability]);
        assert_eq!(pax.path.unwrap(), "dir/ü\nname".as_bytes());
        assert_eq!(pax.size, Some(8 << 30));
        assert_eq!(pax.mtime, Some(Time { seconds: 1_700_000_000, nanoseconds: 123_456_789 }));
        assert_eq!(pax.uid, None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"path=x\n"[..],
            b"8 path=x",
            b"99 path=x\n",
            b"9 path=x\n\n",
            b"7 pathx\n",
            b"-9 path=x\n",
            b"6 =xy\n",
            b"999999999999999999999999 path=x\n",
            b"10 size=1x\n",
            b"11 mtime=..\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(bytes: Vec<u8>) {
            let _ = Pax::parse(&bytes);
        }

        #[test]
        fn any_value_survives(name in "[a-z.]{1,30}", value: Vec<u8>) {
            let key = format!("SCHILY.xattr.{name}");
            let pax = Pax::parse(&encode(key.as_bytes(), &value)).unwrap();
            prop_assert_eq!(pax.xattrs, vec![(name.into_bytes(), value)]);
        }
    }
}
