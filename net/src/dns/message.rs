//! DNS messages (RFC 1035): a guest's question, and what may be answered to it.

use std::net::IpAddr;
use std::time::Duration;

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE,
};

use crate::addresses::Addresses;

/// Names that lead to the host's loopback.
const HOST_NAMES: [&str; 2] = ["host.boxlite.internal", "host.docker.internal"];
const GATEWAY_NAME: &str = "gateway.boxlite.internal";
/// Seconds for which names of the host are good.
const HOST_TTL: u32 = 60;
/// Links of a chain of aliases.
const MAX_ALIASES: usize = 32;

/// A question, as the guest asked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) id: u16,
    /// In small letters, without a dot at its end.
    pub(super) name: String,
    kind: QTYPE,
    class: QCLASS,
}

/// What can be made of a message of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Question(Question),
    /// It is answered with an error, which is this.
    Wrong(Vec<u8>),
    /// It is not answered.
    Nonsense,
}

/// What can be made of a name server's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Addresses that it gives to the name, with their times to live.
    Addresses(Vec<(IpAddr, Duration)>),
    /// It is no answer to the question.
    Foreign,
}

/// Understands a message of the guest.
pub(super) fn parse_question(message: &[u8]) -> Asked {
    let Ok(packet) = Packet::parse(message) else { return wrong(message, 1) };
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Asked::Nonsense;
    }
    if packet.opcode() != OPCODE::StandardQuery {
        return wrong(message, 4);
    }
    let [question] = &packet.questions[..] else { return wrong(message, 1) };
    Asked::Question(Question {
        id: packet.id(),
        name: text(&question.qname),
        kind: question.qtype,
        class: question.qclass,
    })
}

/// An answer that only says what is wrong: the header with an error (RFC 1035, section 4.1.1).
fn wrong(message: &[u8], error: u8) -> Asked {
    let &[a, b, flags, ..] = message else { return Asked::Nonsense };
    if flags & 0x80 != 0 || message.len() < 12 {
        return Asked::Nonsense;
    }
    // Response, opcode and recursion as asked; recursion available.
    Asked::Wrong(vec![a, b, 0x80 | flags & 0x79, 0x80 | error, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// A name as text: its labels may hold any bytes, of which only letters are changed.
fn text(name: &Name<'_>) -> String {
    let labels = name.as_bytes().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase());
    labels.collect::<Vec<_>>().join(".")
}

impl Question {
    /// The answer, if it is about a name of the host's.
    pub(super) fn answer_here(&self, query: &[u8], addresses: &Addresses) -> Option<Vec<u8>> {
        let (v4, v6) = if HOST_NAMES.contains(&self.name.as_str()) {
            (addresses.host, addresses.host6)
        } else if self.name == GATEWAY_NAME {
            (addresses.gateway, addresses.gateway6)
        } else {
            return None;
        };
        let mut reply = Packet::parse(query).ok()?.into_reply();
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
        reply.additional_records.clear();
        *reply.opt_mut() = None;
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

    /// An answer without one: the name is there, but not what was asked for.
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
        let mut reply = Packet::parse(query).ok()?.into_reply();
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
        reply.additional_records.clear();
        *reply.opt_mut() = None;
        *reply.rcode_mut() = code;
        reply.build_bytes_vec_compressed().ok()
    }

    /// Reads a name server's answer to this question, which was asked under the number `id`.
    pub(super) fn read_answer(&self, answer: &[u8], id: u16) -> Answer {
        let Ok(packet) = Packet::parse(answer) else { return Answer::Foreign };
        if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
            return Answer::Foreign;
        }
        // A server that fails may leave the question out.
        let same = packet.questions.iter().all(|question| {
            text(&question.qname) == self.name
                && question.qtype == self.kind
                && question.qclass == self.class
        });
        if !same || packet.questions.len() > 1 {
            return Answer::Foreign;
        }
        let mut names = vec![self.name.clone()];
        let mut addresses = Vec::new();
        // Aliases come before what they stand for, in any sane answer.
        for record in &packet.answers {
            let ttl = Duration::from_secs(record.ttl.into());
            let ours = names.contains(&text(&record.name));
            match &record.rdata {
                RData::A(a) => addresses.push((ours, IpAddr::V4(a.address.into()), ttl)),
                RData::AAAA(a) => addresses.push((ours, IpAddr::V6(a.address.into()), ttl)),
                RData::CNAME(alias) if ours && names.len() < MAX_ALIASES => {
                    names.push(text(&alias.0));
                }
                _ => {}
            }
        }
        // Addresses of other names are checked, but lead nowhere.
        let ttl = |ours, ttl| if ours { ttl } else { Duration::ZERO };
        Answer::Addresses(addresses.into_iter().map(|(ours, ip, t)| (ip, ttl(ours, t))).collect())
    }
}

/// Gives a message another number.
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
            Asked::Question(question) => question,
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
                ([1, 2, 3, 4].into(), Duration::from_secs(60)),
                ([127, 0, 0, 1].into(), Duration::ZERO)
            ])
        );
        assert_eq!(question.read_answer(&bytes, 8), Answer::Foreign);
        assert_eq!(question.read_answer(&query, 7), Answer::Foreign);
        let other = Question { name: "other.org".to_owned(), ..question };
        assert_eq!(other.read_answer(&bytes, 7), Answer::Foreign);
    }

    #[test]
    fn errors_answer_what_cannot_be_understood() {
        assert_eq!(parse_question(&[]), Asked::Nonsense);
        let mut two = query("a.org", TYPE::A);
        two[5] = 2;
        let Asked::Wrong(reply) = parse_question(&two) else { panic!() };
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
            if let Asked::Question(question) = parse_question(&bytes) {
                let _ = question.answer_here(&bytes, &Addresses::default());
                let _ = Question::failed(&bytes);
            }
        }
    }
}
