use super::*;

#[test]
fn a_message_has_its_length_its_sequence_and_padded_attributes() {
    let mut message = Message::new(libc::RTM_NEWADDR, 0);
    message.attribute(libc::IFA_LOCAL, &[1, 2, 3]);
    message.attribute(libc::IFA_LABEL, b"x");
    let bytes = message.finish(7);
    assert_eq!(bytes.len(), 16 + 8 + 8);
    assert_eq!(bytes[..4], 32_u32.to_ne_bytes());
    assert_eq!(bytes[8..12], 7_u32.to_ne_bytes());
    assert_eq!(bytes[16..18], 7_u16.to_ne_bytes());
    assert_eq!(bytes[20..24], [1, 2, 3, 0]);
}

#[test]
fn an_acknowledgement_has_the_errno() {
    let answer = |kind: u16, error: i32| {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(error.to_ne_bytes());
        bytes
    };
    assert_eq!(acknowledgement(&answer(2, 0)), Ok(()));
    assert_eq!(acknowledgement(&answer(2, -17)), Err(Errno::EXIST));
    assert_eq!(acknowledgement(&answer(3, 0)), Err(Errno::PROTO));
    assert!(acknowledgement(&answer(2, i32::MIN)).is_err());
    assert_eq!(acknowledgement(b"short"), Err(Errno::PROTO));
}
