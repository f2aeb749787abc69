//! DNS messages (RFC 1035): queries of the guest, answers of name servers, and answers made here.

use std::net::IpAddr;
use std::time::Duration;

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE,
};

use crate::addresses::Addresses;

/// Names of the host's loopback.
const HOST_NAMES: [&str; 2] = ["host.boxlite.internal", "host.docker.internal"];
const GATEWAY_NAME: &str = "gateway.boxlite.internal";
/// Time to live of answers for the host's names, in seconds.
const HOST_TTL: u32 = 60;
/// The most bytes of a query with all options; a name has at most 255.
const MAX_QUESTION: usize = 4096;
/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 32;

/// The question of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) id: u16,
    /// In lower case, without a dot at its end.
    pub(super) name: String,
    kind: QTYPE,
    class: QCLASS,
}

/// A message of the guest, parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Question(Question),
    /// Not a valid query: this error is the answer.
    Invalid(Vec<u8>),
    /// Not answered.
    Ignored,
}

/// A message of a name server, parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its addresses with their times to live; none for addresses of other names.
    Addresses(Vec<(IpAddr, Option<Duration>)>),
    /// Not an answer to the query.
    Unrelated,
}

/// Parses a message of the guest.
pub(super) fn parse_question(message: &[u8]) -> Parsed {
    if message.len() > MAX_QUESTION {
        return wrong(message, 1);
    }
    let Ok(packet) = Packet::parse(message) else { return wrong(message, 1) };
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Parsed::Ignored;
    }
    if packet.opcode() != OPCODE::StandardQuery {
        return wrong(message, 4);
    }
    let [question] = &packet.questions[..] else { return wrong(message, 1) };
    Parsed::Question(Question {
        id: packet.id(),
        name: text(&question.qname),
        kind: question.qtype,
        class: question.qclass,
    })
}

/// The answer to an invalid query: a header with an error (RFC 1035, section 4.1.1).
fn wrong(message: &[u8], error: u8) -> Parsed {
    let &[a, b, flags, ..] = message else { return Parsed::Ignored };
    if flags & 0x80 != 0 || message.len() < 12 {
        return Parsed::Ignored;
    }
    // Response; opcode and recursion desired are copied; recursion available.
    Parsed::Invalid(vec![a, b, 0x80 | flags & 0x79, 0x80 | error, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// A name as text, in lower case. Labels may hold any bytes; a dot within a label is escaped, so that no
/// name passes for another.
fn text(name: &Name<'_>) -> String {
    let label = |label: &[u8]| {
        String::from_utf8_lossy(label)
            .to_ascii_lowercase()
            .replace('\\', "\\\\")
            .replace('.', "\\.")
    };
    name.as_bytes().map(label).collect::<Vec<_>>().join(".")
}

/// An answer to a query, without records.
fn reply(query: &[u8]) -> Option<Packet<'_>> {
    let query = Packet::parse(query).ok()?;
    // RFC 1035, section 4.1.1: the flag is copied.
    let desired = query.has_flags(PacketFlag::RECURSION_DESIRED);
    let mut reply = query.into_reply();
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if desired {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    reply.additional_records.clear();
    *reply.opt_mut() = None;
    Some(reply)
}

impl Question {
    /// The answer, if the question is about a name of the host.
    pub(super) fn answer_here(&self, query: &[u8], addresses: &Addresses) -> Option<Vec<u8>> {
        let (v4, v6) = if HOST_NAMES.contains(&self.name.as_str()) {
            (addresses.host, addresses.host6)
        } else if self.name == GATEWAY_NAME {
            (addresses.gateway, addresses.gateway6)
        } else {
            return None;
        };
        let mut reply = reply(query)?;
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        let name = reply.questions.first()?.qname.clone();
        let record = |data| ResourceRecord::new(name.clone(), CLASS::IN, HOST_TTL, data);
        let asks = |kind| [QTYPE::ANY, QTYPE::TYPE(kind)].contains(&self.kind);
        if asks(TYPE::A) {
            reply.answers.push(record(RData::A(A::from(v4))));
        }
        if asks(TYPE::AAAA) {
            reply.answers.push(record(RData::AAAA(AAAA::from(v6))));
        }
        reply.build_bytes_vec_compressed().ok()
    }

    /// An answer without records: the name exists, but not with records of this type.
    pub(super) fn no_data(query: &[u8]) -> Option<Vec<u8>> {
        Self::error(query, RCODE::NoError)
    }

    pub(super) fn refused(query: &[u8]) -> Option<Vec<u8>> {
        Self::error(query, RCODE::Refused)
    }

    pub(super) fn failed(query: &[u8]) -> Option<Vec<u8>> {
        Self::error(query, RCODE::ServerFailure)
    }

    fn error(query: &[u8], code: RCODE) -> Option<Vec<u8>> {
        let mut reply = reply(query)?;
        *reply.rcode_mut() = code;
        reply.build_bytes_vec_compressed().ok()
    }

    /// Parses a name server's answer to this question, which was sent under the ID `id`.
    pub(super) fn read_answer(&self, answer: &[u8], id: u16) -> Answer {
        let Ok(packet) = Packet::parse(answer) else { return Answer::Unrelated };
        if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
            return Answer::Unrelated;
        }
        // A server may omit the question from an error.
        let same = packet.questions.iter().all(|question| {
            text(&question.qname) == self.name
                && question.qtype == self.kind
                && question.qclass == self.class
        });
        if !same || packet.questions.len() > 1 {
            return Answer::Unrelated;
        }
        let names = self.aliases(&packet);
        let addresses = packet.answers.iter().filter_map(|record| {
            let ip = match &record.rdata {
                RData::A(a) => IpAddr::V4(a.address.into()),
                RData::AAAA(a) => IpAddr::V6(a.address.into()),
                _ => return None,
            };
            // Addresses of other names are checked, but not pinned.
            let ours = names.contains(&text(&record.name));
            Some((ip, ours.then(|| Duration::from_secs(record.ttl.into()))))
        });
        Answer::Addresses(addresses.collect())
    }

    /// The name and the names that it is an alias of; the records may have any order.
    fn aliases(&self, packet: &Packet<'_>) -> Vec<String> {
        let aliases = packet.answers.iter().filter_map(|record| match &record.rdata {
            RData::CNAME(alias) => Some((text(&record.name), text(&alias.0))),
            _ => None,
        });
        let aliases: Vec<(String, String)> = aliases.take(MAX_ALIASES).collect();
        let mut names = vec![self.name.clone()];
        while let Some((_, next)) =
            aliases.iter().find(|(name, to)| names.contains(name) && !names.contains(to))
        {
            names.push(next.clone());
        }
        names
    }
}

/// A copy of a message with another ID.
pub(super) fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(field) = message.first_chunk_mut::<2>() {
        *field = id.to_be_bytes();
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::rdata::CNAME;

    use super::*;

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        let name = Name::new(name).unwrap();
        packet.questions.push(simple_dns::Question::new(
            name,
            kind.into(),
            CLASS::IN.into(),
            false,
        ));
        packet.build_bytes_vec().unwrap()
    }

    fn question(message: &[u8]) -> Question {
        match parse_question(message) {
            Parsed::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_hosts_names_are_answered_here() {
        let addresses = Addresses::default();
        for (kind, answers) in [(TYPE::A, 1), (TYPE::AAAA, 1), (TYPE::MX, 0)] {
            let query = query("Host.Docker.Internal", kind);
            let reply = question(&query).answer_here(&query, &addresses).unwrap();
            let reply = Packet::parse(&reply).unwrap();
            assert_eq!((reply.id(), reply.rcode()), (7, RCODE::NoError));
            assert_eq!(reply.answers.len(), answers);
        }
        let query = query("example.org", TYPE::A);
        assert_eq!(question(&query).answer_here(&query, &addresses), None);
    }

    #[test]
    fn answers_are_of_the_question_and_follow_aliases() {
        let query = query("www.example.org", TYPE::A);
        let question = question(&query);
        let mut reply = Packet::parse(&query).unwrap().into_reply();
        let record =
            |name, data| ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, 60, data);
        let a = |n| RData::A(A { address: n });
        reply
            .answers
            .push(record("www.example.org", RData::CNAME(CNAME(Name::new("b.net").unwrap()))));
        reply.answers.push(record("b.net", a(0x01020304)));
        reply.answers.push(record("evil.com", a(0x7f000001)));
        let bytes = reply.build_bytes_vec_compressed().unwrap();
        assert_eq!(
            question.read_answer(&bytes, 7),
            Answer::Addresses(vec![
                ([1, 2, 3, 4].into(), Some(Duration::from_secs(60))),
                ([127, 0, 0, 1].into(), None)
            ])
        );
        assert_eq!(question.read_answer(&bytes, 8), Answer::Unrelated);
        assert_eq!(question.read_answer(&query, 7), Answer::Unrelated);
        let other = Question { name: "other.org".to_owned(), ..question };
        assert_eq!(other.read_answer(&bytes, 7), Answer::Unrelated);
    }

    #[test]
    fn aliases_are_followed_in_any_order_and_without_end() {
        let query = query("a.org", TYPE::A);
        let mut reply = Packet::parse(&query).unwrap().into_reply();
        let name = |text| Name::new(text).unwrap();
        let record = |from, data| ResourceRecord::new(name(from), CLASS::IN, 60, data);
        let alias = |from, to| record(from, RData::CNAME(CNAME(name(to))));
        reply.answers.push(record("d.net", RData::A(A { address: 1 })));
        for (from, to) in [("c.net", "d.net"), ("b.net", "c.net"), ("A.ORG", "b.net")] {
            reply.answers.push(alias(from, to));
        }
        reply.answers.push(alias("d.net", "a.org"));
        reply.answers.push(record("evil.com", RData::A(A { address: 2 })));
        let bytes = reply.build_bytes_vec_compressed().unwrap();
        let Answer::Addresses(found) = question(&query).read_answer(&bytes, 7) else { panic!() };
        let ours: Vec<bool> = found.iter().map(|(_, ttl)| ttl.is_some()).collect();
        assert_eq!(ours, [true, false]);
    }

    #[test]
    fn a_dot_in_a_label_is_no_border_and_long_questions_are_none() {
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x09x.Example\x03org\0\0\x01\0\x01");
        assert_eq!(question(&bytes).name, "x\\.example.org");
        let mut long = query("a.org", TYPE::A);
        long.resize(MAX_QUESTION + 1, 0);
        assert!(matches!(parse_question(&long), Parsed::Invalid(_)));
    }

    #[test]
    fn errors_answer_what_cannot_be_understood() {
        assert_eq!(parse_question(&[]), Parsed::Ignored);
        let mut two = query("a.org", TYPE::A);
        two[5] = 2;
        let Parsed::Invalid(reply) = parse_question(&two) else { panic!() };
        assert_eq!(reply[..4], [0, 7, 0x80, 0x81]);
        let refused = Question::refused(&query("a.org", TYPE::A)).unwrap();
        assert_eq!(Packet::parse(&refused).unwrap().rcode(), RCODE::Refused);
        assert!(Question::no_data(&query("a.org", TYPE::A)).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let known = question(&query("a.org", TYPE::A));
            let _ = known.read_answer(&bytes, 7);
            if let Parsed::Question(question) = parse_question(&bytes) {
                let _ = question.answer_here(&bytes, &Addresses::default());
                let _ = Question::failed(&bytes);
            }
        }
    }
}
