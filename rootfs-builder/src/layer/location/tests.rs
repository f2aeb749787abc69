//! Tests of slices of files.

use super::*;

#[test]
fn slices_end_where_they_should() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"0123456789", 0).unwrap();
    let slice = |start, len| {
        let mut text = String::new();
        let mut slice = Slice { file: Arc::new(file.try_clone().unwrap()), start, len };
        slice.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(slice(2, 3), "234");
    assert_eq!(slice(8, 5), "89");
    assert_eq!(slice(20, 5), "");
}
