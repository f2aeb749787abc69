//! `serve` as its callers find it on its socket.

use boxlite_proto::message::Failure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::client::lost;
use super::server::serve_on;
use super::wire::{Answer, Request};
use crate::Error;
use crate::call::{Call, Channel};
use crate::client::{self, FailureKind};
use crate::stream::wire;

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

#[test]
fn an_agent_without_sockets_is_an_older_releases() {
    let failed = |kind| client::Error::Failed(Failure { kind, message: "no".to_owned() });
    let message = |kind| lost(failed(kind).into()).to_string();
    assert!(message(FailureKind::Unsupported).contains("an older release"));
    assert!(message(FailureKind::Other).contains("cannot reach"));
    assert!(lost(std::io::ErrorKind::ConnectionReset.into()).to_string().contains("is gone"));
}
