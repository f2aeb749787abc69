//! `serve` as its callers find it on its socket.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{UnixListener, UnixStream};

use super::server::{carry, serve_on};
use super::wire::{Answer, Request};
use crate::Error;
use crate::call::{Call, Channel};
use crate::stream::{Duplex, wire};

async fn ask(mut stream: UnixStream, request: Request) -> Answer {
    wire::send(&mut stream, &request).await.unwrap();
    let answer = wire::receive(&mut stream).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the answer was the last");
    answer
}

#[test]
fn each_stream_is_answered_whatever_others_do() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let requests = async {
            // One says nothing, one is gone in the middle of a request, one has asked for something else.
            let _silent = UnixStream::connect(&path).await.unwrap();
            let mut gone = UnixStream::connect(&path).await.unwrap();
            gone.write_all(&[100, 0, 0, 0, b'{']).await.unwrap();
            drop(gone);
            let mut strange = UnixStream::connect(&path).await.unwrap();
            wire::send(&mut strange, &"what?").await.unwrap();
            assert_eq!(strange.read(&mut [0]).await.unwrap(), 0);
            for request in [
                Request::Call(Call::List),
                Request::Open(Channel::LoadedImages),
                Request::Call(Call::Prune),
            ] {
                let stream = UnixStream::connect(&path).await.unwrap();
                let Answer::Failed(error) = ask(stream, request).await else { panic!() };
                assert!(error.to_string().contains("no such home"), "{error}");
            }
        };
        tokio::select! {
            () = serve_on(&listener, Err(Error::internal("no such home"))) => {}
            () = requests => {}
        }
    });
}

/// A channel whose other end takes nothing at first.
fn slow_channel() -> (Box<dyn Duplex>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1024);
    (Box::new(ours), theirs)
}

#[test]
fn input_arrives_although_its_launcher_takes_no_output_any_more() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut launcher, served) = UnixStream::pair().unwrap();
        let (channel, mut the_box) = slow_channel();
        let input = vec![7; 64 << 10];
        launcher.write_all(&input).await.unwrap();
        drop(launcher);
        the_box.write_all(b"an echo").await.unwrap();
        let read = async {
            let mut received = Vec::new();
            the_box.read_to_end(&mut received).await.unwrap();
            drop(the_box);
            received
        };
        let (carried, received) = tokio::join!(carry(served, channel), read);
        assert!(received == input, "{} bytes", received.len());
        assert_eq!(carried.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_channel_closes_when_its_launcher_is_gone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (launcher, served) = UnixStream::pair().unwrap();
        let (channel, mut the_box) = slow_channel();
        the_box.write_all(b"output that nobody reads").await.unwrap();
        let served = tokio::spawn(carry(served, channel));
        launcher.readable().await.unwrap();
        // With unread output, the other end gets an error and not the end.
        drop(launcher);
        assert_eq!(the_box.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(served.await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}
