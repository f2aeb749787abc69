//! The resolver at the gateway: forwards queries to the host's name servers, and answers those for the
//! host's own names.
//!
//! - `message`: checks queries and answers; answers for the host's own names
//! - `config`: the host's current resolver configuration
//! - `query`: one query, sent to one name server after the other
//! - `stream`: DNS over TCP: one end of a socket pair; a TCP flow has the other end
//! - `resolver`: all queries and streams

mod config;
mod message;
mod query;
mod resolver;
mod stream;

pub(crate) use config::Config;
pub(crate) use resolver::Resolver;

/// Encodes names in the wire format of DNS, one after the other, as many as fit in `most` bytes.
pub(crate) fn wire_names(names: &[String], most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in names {
        let mut wire = Vec::new();
        let labels = name.trim_end_matches('.').split('.');
        let fits = labels.clone().all(|label| (1..=63).contains(&label.len()));
        for label in labels {
            wire.push(u8::try_from(label.len()).unwrap_or(0));
            wire.extend(label.bytes());
        }
        wire.push(0);
        if fits && wire.len() <= 255 && bytes.len() + wire.len() <= most {
            bytes.extend(wire);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::wire_names;

    #[test]
    fn names_that_fit_are_written() {
        let names =
            ["example.org.".to_owned(), "a..b".to_owned(), "x".repeat(64), "lan".to_owned()];
        assert_eq!(wire_names(&names, 100), b"\x07example\x03org\0\x03lan\0");
        assert_eq!(wire_names(&names, 14), b"\x07example\x03org\0");
        assert_eq!(wire_names(&names, 4), b"");
        assert_eq!(wire_names(&[String::new()], 100), b"");
    }
}
