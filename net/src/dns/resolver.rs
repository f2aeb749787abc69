//! All queries of the guest, from the first byte to the answer.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;

use slab::Slab;

use super::config::Config;
use super::message::{Answer, Parsed, Question, parse_question, with_id};
use super::query::{Client, Progress, Query};
use super::stream::Stream;
use crate::context::{Context, Source};
use crate::quota::Kind;
use crate::timers::Alarm;

/// The most messages of name servers that are read in a row for one query, wrong ones included.
const MAX_MESSAGES: usize = 16;

/// The resolver at the gateway.
pub(crate) struct Resolver {
    config: Config,
    queries: Slab<Query>,
    streams: Slab<Stream>,
    /// Queries and streams so far.
    count: u64,
    secret: RandomState,
    buffer: Box<[u8]>,
}

impl Resolver {
    /// A resolver that forwards to the name servers of `config`.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            queries: Slab::new(),
            streams: Slab::new(),
            count: 0,
            secret: RandomState::new(),
            buffer: vec![0; 65_536].into_boxed_slice(),
        }
    }

    /// The host's search domains.
    pub(crate) fn search(&self) -> Vec<String> {
        self.config.search()
    }

    /// A query of the guest in a datagram.
    pub(crate) fn on_datagram(
        &mut self,
        guest: SocketAddr,
        resolver: SocketAddr,
        message: &[u8],
        cx: &mut Context,
    ) {
        self.on_query(Client::Datagram { guest, resolver }, message, cx);
    }

    /// Takes the streams that the guest opened.
    pub(crate) fn take_streams(&mut self, cx: &mut Context) {
        while let Some((socket, permit)) = cx.dns_streams.pop() {
            self.count += 1;
            let index = self.streams.insert(Stream::new(socket, permit, self.count, cx.now));
            let Some(stream) = self.streams.get(index) else { continue };
            if cx.watch(stream.socket(), Source::DnsStream(index)).is_err() {
                self.streams.remove(index);
            }
        }
    }

    /// Epoll reports that a stream is ready.
    pub(crate) fn on_stream(&mut self, index: usize, cx: &mut Context) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        let number = stream.number;
        let Some(received) = stream.exchange(&mut self.buffer, cx.now) else {
            self.streams.remove(index);
            return;
        };
        for message in received.messages {
            self.on_query(Client::Stream { index, number }, &message, cx);
        }
        if received.eof
            && let Some(stream) = self.streams.get_mut(index)
        {
            stream.set_eof();
        }
        self.close_if_answered(index);
    }

    /// Closes a stream without further queries once all are answered (RFC 7766, section 6.2.3: a client
    /// may close its write half at once).
    fn close_if_answered(&mut self, index: usize) {
        let Some(stream) = self.streams.get(index).filter(|stream| stream.is_over()) else {
            return;
        };
        let client = Client::Stream { index, number: stream.number };
        if !self.queries.iter().any(|(_, query)| query.client == client) {
            self.streams.remove(index);
        }
    }

    fn on_query(&mut self, client: Client, message: &[u8], cx: &mut Context) {
        let question = match parse_question(message) {
            Parsed::Question(question) => question,
            Parsed::Invalid(reply) => return self.reply(client, &reply, cx),
            Parsed::Ignored => return cx.meter.malformed.add(1),
        };
        cx.meter.dns_queries.add(1);
        if let Some(reply) = question.answer_here(message, &cx.addresses) {
            return self.reply(client, &reply, cx);
        }
        if !cx.gate.may_resolve(&question.name) {
            cx.gate.deny_name(&question.name, "no rule allows it");
            if let Some(reply) = Question::refused(message) {
                self.reply(client, &reply, cx);
            }
            return;
        }
        // The guest sends a query again if it is dropped.
        if !cx.may_open(Kind::DnsQuery) {
            return;
        }
        let Some(permit) = cx.quotas.take(Kind::DnsQuery) else { return cx.meter.dropped.add(1) };
        self.config.refresh(cx.now);
        let query = Query::new(client, question, message.to_vec(), permit, cx.now);
        let index = self.queries.insert(query);
        self.ask_next(index, cx);
    }

    /// Sends a query to the next server; reports a failure to the guest if none is left.
    fn ask_next(&mut self, index: usize, cx: &mut Context) {
        self.count += 1;
        // The upper bits of a keyed hash, which others cannot guess.
        let id = (self.secret.hash_one(self.count) >> 48) as u16;
        let Some(query) = self.queries.get_mut(index) else { return };
        let watched = match query.ask_next(&self.config.servers, id, cx.now) {
            Some(socket) => cx.watch(socket, Source::Dns(index)).is_ok(),
            None => false,
        };
        if watched {
            cx.timers.set(query.deadline, Alarm::Dns(index));
            return;
        }
        let query = self.queries.remove(index);
        cx.meter.dns_failures.add(1);
        if let Some(reply) = Question::failed(&query.message) {
            self.reply(query.client, &reply, cx);
        }
    }

    /// Epoll reports that a name server's socket is ready.
    pub(crate) fn on_socket(&mut self, index: usize, cx: &mut Context) {
        for _ in 0..MAX_MESSAGES {
            let Some(query) = self.queries.get_mut(index) else { return };
            let message = match query.progress(&mut self.buffer) {
                Progress::Pending => return,
                Progress::Failed => return self.ask_next(index, cx),
                Progress::Message(message) => message,
            };
            let Answer::Addresses(addresses) = query.question.read_answer(&message, query.id)
            else {
                continue;
            };
            let query = self.queries.remove(index);
            let name = &query.question.name;
            let fits = addresses.iter().all(|(ip, ttl)| cx.gate.answer(name, *ip, *ttl, cx.now));
            if fits {
                let message = with_id(&message, query.question.id);
                return self.reply(query.client, &message, cx);
            }
            cx.gate.deny_name(name, "it resolves to an address of the host");
            if let Some(reply) = Question::no_data(&query.message) {
                self.reply(query.client, &reply, cx);
            }
            return;
        }
    }

    /// A query's alarm goes off.
    pub(crate) fn on_alarm(&mut self, index: usize, cx: &mut Context) {
        // Another query may have the index by now.
        if self.queries.get(index).is_some_and(|query| query.deadline <= cx.now) {
            self.ask_next(index, cx);
        }
    }

    /// Housekeeping; `slept` says that the host was suspended.
    pub(crate) fn housekeep(&mut self, slept: bool, cx: &mut Context) {
        if slept {
            self.config.invalidate();
        }
        if self.config.refresh(cx.now) || slept {
            // Open queries went to servers that may be out of reach now.
            let open: Vec<usize> = self.queries.iter().map(|(index, _)| index).collect();
            for index in open {
                if let Some(query) = self.queries.get_mut(index) {
                    query.restart();
                }
                self.ask_next(index, cx);
            }
        }
        self.streams.retain(|_, stream| !stream.is_idle(cx.now));
    }

    fn reply(&mut self, client: Client, message: &[u8], cx: &mut Context) {
        match client {
            Client::Datagram { guest, resolver } => {
                if !cx.out.udp(resolver, guest, message) {
                    cx.meter.dropped.add(1);
                }
            }
            Client::Stream { index, number } => {
                let stream = self.streams.get_mut(index).filter(|stream| stream.number == number);
                if stream.is_some_and(|stream| stream.answer(message).is_err()) {
                    self.streams.try_remove(index);
                }
                self.close_if_answered(index);
            }
        }
    }
}
