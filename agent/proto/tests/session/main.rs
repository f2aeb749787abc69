//! Tests the sessions of both sides: with input split anywhere, with each other, and with hostile bytes.

mod back_to_back;
mod hostile;
mod pieces;

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::message::Hello;
use boxlite_proto::session::{Assembler, Client, ClientEvent, Server, ServerEvent, Violation};

fn hello() -> Hello {
    Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 }
}

/// The bytes that wait in an outbox.
fn drain(outbox: &mut boxlite_proto::session::Outbox) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = outbox.write_with(|slices| {
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        Ok::<_, ()>(slices.iter().map(|slice| slice.len()).sum())
    });
    assert!(written.is_ok() && outbox.is_empty());
    bytes
}

/// All events in the bytes that have arrived, and the violation that ended them.
fn client_events<T>(
    client: &mut Client<T>,
    input: &mut Assembler,
) -> (Vec<ClientEvent<T>>, Option<Violation>) {
    let mut events = Vec::new();
    loop {
        match client.receive(input) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, None),
            Err(violation) => return (events, Some(violation)),
        }
    }
}

fn server_events<T>(
    server: &mut Server<T>,
    input: &mut Assembler,
) -> (Vec<ServerEvent>, Option<Violation>) {
    let mut events = Vec::new();
    loop {
        match server.receive(input) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, None),
            Err(violation) => return (events, Some(violation)),
        }
    }
}

/// A client and a server that have exchanged hellos.
fn greeted() -> (Client<()>, Server<()>) {
    let (mut client, mut server) = (Client::new(&hello()), Server::default());
    let mut input = Assembler::default();
    input.extend(&drain(client.outbox()));
    let (events, violation) = server_events(&mut server, &mut input);
    assert!(matches!(events[..], [ServerEvent::Hello(_)]) && violation.is_none());
    input.extend(&drain(server.outbox()));
    let (events, violation) = client_events(&mut client, &mut input);
    assert!(matches!(events[..], [ClientEvent::Hello(_)]) && violation.is_none());
    (client, server)
}
