//! Bounds messages of the peer that are shown to people.

/// Limit on a message of the peer, in bytes; a guest may send megabytes.
pub const MAX_MESSAGE: usize = 4096;

/// Replaces the text that was cut off.
const CUT: char = '…';

/// Cuts a message of the peer to [`MAX_MESSAGE`].
pub fn truncate(message: &mut String) {
    if message.len() <= MAX_MESSAGE {
        return;
    }
    let end = (0..=MAX_MESSAGE - CUT.len_utf8()).rfind(|end| message.is_char_boundary(*end));
    message.truncate(end.unwrap_or(0));
    message.push(CUT);
    message.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        for (length, expected) in [(MAX_MESSAGE / 2, MAX_MESSAGE), (MAX_MESSAGE, MAX_MESSAGE - 1)] {
            let mut message = "é".repeat(length);
            truncate(&mut message);
            assert_eq!(message.len(), expected);
        }
    }
}
