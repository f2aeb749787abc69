//! Connections to sockets of the nested host.

use boxlite_proto::message::{Connect, ServerExec};

use super::*;

impl Agent {
    /// The stream of the next connection.
    async fn connected(&mut self) -> u32 {
        let (stream, request) = self.request().await;
        assert_eq!(request, Request::Connect(Connect { name: b"name".to_vec() }));
        stream
    }
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    run(async {
        let (client, mut agent) = connected().await;
        let talk = async {
            let mut socket = client.connect_socket(b"name").unwrap();
            socket.write_all(b"question").await.unwrap();
            socket.shutdown().await.unwrap();
            let error = socket.write_all(b"more").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
        };
        let serve = async {
            let stream = agent.connected().await;
            let question = agent.next().await.unwrap();
            assert_eq!(question, Frame::data(stream, Channel::Stdin, *b"question"));
            assert_eq!(agent.next().await.unwrap(), Frame::end(stream, Channel::Stdin));
            agent.send(Frame::data(stream, Channel::Stdout, *b"answer")).await;
            agent.send(Frame::end(stream, Channel::Stdout)).await;
            agent.send(Response::Done.frame(stream)).await;
        };
        tokio::join!(talk, serve);
    });
}

#[test]
fn each_socket_waits_for_its_own_reader_only() {
    run(async {
        let (client, mut agent) = connected().await;
        let mut stuck = client.connect_socket(b"name").unwrap();
        let mut other = client.connect_socket(b"name").unwrap();
        let (first, second) = (agent.connected().await, agent.connected().await);
        // The other side takes nothing of what the first sends: a window goes out, and no more.
        let data = vec![5; WINDOW as usize + 1];
        let talk = async {
            tokio::select! {
                biased;
                _ = stuck.write_all(&data) => panic!("more than the window was sent"),
                byte = other.read_u8() => assert_eq!(byte.unwrap(), 9),
            }
        };
        let serve = async {
            let mut sent = 0;
            while sent < WINDOW as usize {
                let frame = agent.next().await.unwrap();
                assert_eq!((frame.stream, frame.kind), (first, Kind::Stdin));
                sent += frame.body.len();
            }
            assert_eq!(sent, WINDOW as usize);
            agent.send(Frame::data(second, Channel::Stdout, [9])).await;
        };
        tokio::join!(talk, serve);
    });
}

#[test]
fn a_dropped_socket_is_closed_before_its_input_ends() {
    run(async {
        let (client, mut agent) = connected().await;
        let mut socket = client.connect_socket(b"name").unwrap();
        socket.write_all(b"half").await.unwrap();
        drop(socket);
        let stream = agent.connected().await;
        assert_eq!(agent.next().await.unwrap(), Frame::data(stream, Channel::Stdin, *b"half"));
        let kill = agent.next().await.unwrap();
        assert_eq!((kill.stream, kill.decode::<Control>().unwrap()), (stream, Control::Kill));
        // What the other side says meanwhile is nothing to anybody.
        agent.send(Frame::data(stream, Channel::Stdout, *b"late")).await;
        agent.send(Response::Done.frame(stream)).await;
        let asked = async { client.ping().await.unwrap() };
        let answer = async {
            let (stream, request) = loop {
                let frame = agent.next().await.unwrap();
                if frame.kind == Kind::Request {
                    break (frame.stream, frame.decode::<Request>().unwrap());
                }
            };
            assert_eq!(request, Request::Ping);
            agent.send(Response::Done.frame(stream)).await;
        };
        tokio::join!(asked, answer);
    });
}

#[test]
fn a_socket_that_is_dropped_after_the_end_of_its_input_is_not_cancelled() {
    run(async {
        let (client, mut agent) = connected().await;
        let mut socket = client.connect_socket(b"name").unwrap();
        socket.write_all(b"all").await.unwrap();
        socket.shutdown().await.unwrap();
        drop(socket);
        let stream = agent.connected().await;
        assert_eq!(agent.next().await.unwrap(), Frame::data(stream, Channel::Stdin, *b"all"));
        assert_eq!(agent.next().await.unwrap(), Frame::end(stream, Channel::Stdin));
        assert_eq!(agent.next().await.unwrap(), Frame::end(stream, Channel::Stdout));
        agent.send(Response::Done.frame(stream)).await;
        // Nothing is between the end of the stream and the next request.
        let asked = async { client.ping().await.unwrap() };
        let answer = async {
            let (stream, request) = agent.request().await;
            assert_eq!(request, Request::Ping);
            agent.send(Response::Done.frame(stream)).await;
        };
        tokio::join!(asked, answer);
    });
}

#[test]
fn reads_and_writes_say_why_there_is_no_connection() {
    run(async {
        let (client, mut agent) = connected().await;
        let mut socket = client.connect_socket(b"name").unwrap();
        let stream = agent.connected().await;
        let failure = Failure { kind: FailureKind::Other, message: "nobody listens".to_owned() };
        agent.send(Response::Failed(failure).frame(stream)).await;
        assert_eq!(socket.read_u8().await.unwrap_err().to_string(), "nobody listens");
        assert_eq!(socket.write_all(b"x").await.unwrap_err().to_string(), "nobody listens");
        // A guest that is gone is another matter.
        let mut socket = client.connect_socket(b"name").unwrap();
        agent.connected().await;
        drop(agent);
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let error = socket.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(client.connect_socket(b"name"), Err(Error::Lost(_))));
    });
}

#[test]
fn a_connection_does_not_wait_for_the_server_behind_it() {
    run(async {
        let (client, mut agent) = connected().await;
        let server = client.exec_server(Exec::default(), b"name".to_vec()).unwrap();
        let mut socket = server.connect().unwrap();
        socket.write_all(b"early").await.unwrap();
        let (command, request) = agent.request().await;
        let Request::ExecServer(ServerExec { socket: name, .. }) = request else { panic!() };
        assert_eq!(name, b"name");
        let stream = agent.connected().await;
        assert_eq!(agent.next().await.unwrap(), Frame::data(stream, Channel::Stdin, *b"early"));
        assert!(server.failure().is_none());
        let failure = Failure { kind: FailureKind::NotFound, message: "no such file".into() };
        agent.send(Response::Failed(failure.clone()).frame(command)).await;
        let refused = Failure { kind: FailureKind::Other, message: "refused".into() };
        agent.send(Response::Failed(refused).frame(stream)).await;
        socket.read_u8().await.unwrap_err();
        assert!(matches!(server.failure(), Some(Error::Failed(f)) if f == failure));
    });
}
