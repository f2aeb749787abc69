//! Tests of tar header fields and PAX records.

use super::*;

#[test]
fn numbers() {
    let mut field = [0xff; 12];
    number(&mut field, 0o1234);
    assert_eq!(&field, b"00000001234\0");
    number(&mut field, 1 << 40);
    assert_eq!(field, [0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let mut field = [0; 8];
    number(&mut field, u32::MAX.into());
    assert_eq!(field, [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn pax_lengths_count_themselves() {
    assert_eq!(pax_xattr(b"user.a", b"b"), b"25 SCHILY.xattr.user.a=b\n");
    for len in 60..100 {
        let record = pax_xattr(b"n", &vec![b'v'; len]);
        let text = String::from_utf8(record.clone()).unwrap();
        assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), record.len());
    }
}
