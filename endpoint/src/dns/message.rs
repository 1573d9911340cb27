//! Questions and answers as bytes (RFC 1035, 6891).
//!
//! Promise: whatever the bytes are, [`receive`] returns a question, the refusal that it deserves, or nothing; what is
//! itself an answer never gets one, so no two servers can be set on each other.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::StaticCompressor;
use domain::base::name::{FlattenInto, ParsedName, ToLabelIter, ToName};
use domain::base::opt::{AllOptData, Opt, OptRecord};
use domain::base::{Header, Message, MessageBuilder, Question};
use domain::rdata::ZoneRecordData;

use super::forward::Told;
use super::zone::{Answer, Owner, Resource};

/// What fits through every path without fragments (DNS flag day 2020); ours and what we tell others.
pub(super) const DATAGRAM: u16 = 1232;
/// What those can take who do not say (RFC 1035, 4.2.1).
const SMALLEST: u16 = 512;
/// Length of an OPT record without options.
const OPT_LENGTH: usize = 11;
/// Where the question begins.
const HEADER_LENGTH: usize = 12;

/// How a question came, and how its answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What the extension record of a question says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Edns {
    /// What the client can take in a datagram.
    pub(super) size: u16,
    /// It wants signatures.
    pub(super) signatures: bool,
}

/// A question that can be answered.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Query {
    pub(super) header: Header,
    pub(super) question: Question<Owner>,
    pub(super) edns: Option<Edns>,
}

/// What came in.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Received {
    Query(Query),
    /// It gets this answer, whatever the zone is.
    Refused(Rcode, Vec<u8>),
    /// It gets none.
    Dropped,
}

/// Reads a packet.
pub(super) fn receive(packet: &[u8]) -> Received {
    let Ok(message) = Message::from_slice(packet) else { return Received::Dropped };
    let header = message.header();
    if header.qr() {
        return Received::Dropped;
    }
    let refuse = |rcode| {
        let mut builder = MessageBuilder::new_vec();
        *builder.header_mut() = answering(header, rcode);
        Received::Refused(rcode, builder.finish())
    };
    if header.opcode() != Opcode::QUERY {
        return refuse(Rcode::NOTIMP);
    }
    let Some(question) = sole_question(message) else { return refuse(Rcode::FORMERR) };
    let Ok(edns) = edns(message) else { return refuse(Rcode::FORMERR) };
    let query = Query { header, question, edns: edns.map(|(edns, _)| edns) };
    let transfer = [Rtype::AXFR, Rtype::IXFR].contains(&query.question.qtype());
    match edns {
        Some((_, version)) if version != 0 => refuse_with(&query, OptRcode::BADVERS),
        _ if transfer || query.question.qclass() != Class::IN => {
            refuse_with(&query, OptRcode::from(Rcode::REFUSED))
        }
        _ => Received::Query(query),
    }
}

fn refuse_with(query: &Query, rcode: OptRcode) -> Received {
    let answer = Answer::empty(rcode.rcode());
    let packet = compose(query, &answer, rcode, Transport::Udp);
    Received::Refused(rcode.rcode(), packet)
}

fn sole_question(message: &Message<[u8]>) -> Option<Question<Owner>> {
    let question = message.sole_question().ok()?;
    Some(Question::new(question.qname().to_vec(), question.qtype(), question.qclass()))
}

/// Something is wrong with the records of a question.
struct Malformed;

/// The extension record and its version; the first part of it, all others that may be there are not for us.
fn edns(message: &Message<[u8]>) -> Result<Option<(Edns, u8)>, Malformed> {
    let mut found = None;
    for record in message.additional().map_err(|_| Malformed)? {
        let record = record.map_err(|_| Malformed)?;
        if record.rtype() != Rtype::OPT {
            continue;
        }
        let opt = record.into_record::<Opt<_>>().ok().flatten().ok_or(Malformed)?;
        let opt = OptRecord::from_record(opt);
        let sound = opt.opt().iter::<AllOptData<_, _>>().all(|option| option.is_ok());
        if found.is_some() || !sound {
            return Err(Malformed);
        }
        let edns = Edns { size: opt.udp_payload_size(), signatures: opt.dnssec_ok() };
        found = Some((edns, opt.version()));
    }
    Ok(found)
}

/// The header of an answer.
fn answering(question: Header, rcode: Rcode) -> Header {
    let mut header = Header::new();
    header.set_id(question.id());
    header.set_opcode(question.opcode());
    header.set_qr(true);
    header.set_rd(question.rd());
    header.set_cd(question.cd());
    header.set_ra(true);
    header.set_rcode(rcode);
    header
}

/// Writes an answer; one that is too long for a datagram is cut and says so.
pub(super) fn write(query: &Query, answer: &Answer, transport: Transport) -> Vec<u8> {
    compose(query, answer, OptRcode::from(answer.rcode), transport)
}

fn compose(query: &Query, answer: &Answer, rcode: OptRcode, transport: Transport) -> Vec<u8> {
    // Writing into memory cannot fail; that something does not fit is known by the limit.
    let Ok(mut builder) = MessageBuilder::from_target(StaticCompressor::new(Vec::new()));
    *builder.header_mut() = answering(query.header, rcode.rcode());
    builder.header_mut().set_aa(answer.authoritative);
    let reserved = if query.edns.is_some() { OPT_LENGTH } else { 0 };
    builder.set_push_limit(query.limit(transport).saturating_sub(reserved));
    let mut section = builder.question();
    let mut whole = section.push(&query.question).is_ok();
    let mut section = section.answer();
    whole = whole && answer.answers.iter().all(|record| section.push(record).is_ok());
    let mut section = section.authority();
    whole = whole && answer.authority.iter().all(|record| section.push(record).is_ok());
    let mut section = section.additional();
    // The first one that does not fit ends it, without a word: they can be asked for.
    let _ = whole && answer.additional.iter().all(|record| section.push(record).is_ok());
    section.header_mut().set_tc(!whole && transport == Transport::Udp);
    section.clear_push_limit();
    if let Some(edns) = query.edns {
        let written = section.opt(|opt| {
            opt.set_udp_payload_size(DATAGRAM);
            opt.set_rcode(rcode);
            opt.set_dnssec_ok(edns.signatures);
            Ok(())
        });
        debug_assert!(written.is_ok(), "room was kept for it");
    }
    section.finish().into_target()
}

impl Query {
    /// How long an answer may be.
    pub(super) fn limit(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => self.edns.map_or(SMALLEST, |edns| edns.size.clamp(SMALLEST, DATAGRAM)).into(),
        }
    }

    /// The same question about another name, as we ask it ourselves.
    pub(super) fn about(&self, name: Owner) -> Self {
        let question = Question::new(name, self.question.qtype(), self.question.qclass());
        Self { question, ..self.clone() }
    }

    /// The question as it is sent on. Of the client's extensions only those go along that an answer depends on.
    pub(super) fn ask(&self, id: u16) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(self.header.rd());
        header.set_cd(self.header.cd());
        header.set_ad(self.header.ad());
        let mut section = builder.question();
        let mut written = section.push(&self.question);
        let mut section = section.additional();
        if let Some(edns) = self.edns {
            written = written.and(section.opt(|opt| {
                opt.set_udp_payload_size(DATAGRAM);
                opt.set_dnssec_ok(edns.signatures);
                Ok(())
            }));
        }
        debug_assert!(written.is_ok(), "memory has no limit");
        section.finish()
    }
}

/// Whether `packet` answers `asked`: same id, same question. Letters may differ in case.
pub(super) fn answers(asked: &[u8], packet: &[u8], question: &Question<Owner>) -> bool {
    let Ok(message) = Message::from_slice(packet) else { return false };
    let header = message.header();
    let end = HEADER_LENGTH + usize::from(question.qname().compose_len());
    let name = |packet: &[u8]| packet.get(HEADER_LENGTH..end).map(<[u8]>::to_ascii_lowercase);
    let kind = |packet: &[u8]| packet.get(end..end + 4).map(<[u8]>::to_vec);
    header.qr()
        && header.opcode() == Opcode::QUERY
        && packet.get(..2) == asked.get(..2)
        && message.header_counts().qdcount() == 1
        && name(packet).is_some_and(|found| Some(found) == name(asked))
        && kind(packet).is_some_and(|found| Some(found) == kind(asked))
}

/// Passes on an answer of another server, under the client's id and spelling.
pub(super) fn pass_on(query: &Query, told: Told, transport: Transport) -> Vec<u8> {
    let Told { asked, mut packet } = told;
    if packet.len() > query.limit(transport) {
        let rcode = Message::from_slice(&packet).map_or(Rcode::SERVFAIL, |message| message.header().rcode());
        return truncated(query, rcode);
    }
    packet[..2].copy_from_slice(&query.header.id().to_be_bytes());
    let end = HEADER_LENGTH + usize::from(query.question.qname().compose_len());
    if let (Some(to), Some(from)) = (packet.get_mut(HEADER_LENGTH..end), asked.get(HEADER_LENGTH..end)) {
        to.copy_from_slice(from);
    }
    packet
}

/// An answer that says: ask again by TCP.
fn truncated(query: &Query, rcode: Rcode) -> Vec<u8> {
    let mut packet = write(query, &Answer::empty(rcode), Transport::Udp);
    if let Ok(message) = Message::try_from_octets(packet.as_mut_slice()) {
        let mut message = message;
        message.header_mut().set_tc(true);
    }
    packet
}

/// The answer about an alias, of what we know and what another server said of its target.
pub(super) fn continued(chain: Vec<Resource>, packet: &[u8]) -> Option<Answer> {
    let message = Message::from_slice(packet).ok()?;
    let (_, answers, authority, _) = message.sections().ok()?;
    let mut answer = Answer { answers: chain, ..Answer::empty(message.header().rcode()) };
    for (section, records) in [(answers, &mut answer.answers), (authority, &mut answer.authority)] {
        for record in section {
            let record = record.ok()?;
            let record = record.to_record::<ZoneRecordData<_, ParsedName<_>>>().ok()??;
            records.push(record.flatten_into());
        }
    }
    Some(answer)
}

/// A message as it goes over a connection: its length before it (RFC 1035, 4.2.2). None is longer than that can say.
pub(super) fn framed(packet: &[u8]) -> Vec<u8> {
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), packet].concat()
}

#[cfg(test)]
mod tests;
