//! Agents that break the protocol.

use proptest::prelude::*;

use super::*;

#[test]
fn another_version_or_generation_is_refused() {
    for (version, generation, expected) in
        [(PROTOCOL_VERSION + 1, 3, "protocol version"), (PROTOCOL_VERSION, 4, "generation 4")]
    {
        run(async {
            let (ours, theirs) = tokio::io::duplex(1 << 10);
            let mut agent = Agent { frames: FrameReader::new(theirs) };
            agent.send(Hello { version, generation, unix_time_ns: 0 }.frame(0)).await;
            let error = AgentClient::connect(ours, 3).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        });
    }
}

#[test]
fn malformed_greetings_are_refused() {
    let fatal = Event::Fatal { message: "no memory".into() }.frame(0).to_bytes();
    let greetings: [(Vec<u8>, &str); 5] = [
        (Vec::new(), "closed"),
        (vec![1, 0, 0], "end of file"),
        (Response::Done.frame(0).to_bytes(), "no hello"),
        (b"HTTP/1.1 200 OK\r\n".to_vec(), "unknown frame kind"),
        (fatal, "no memory"),
    ];
    for (bytes, expected) in greetings {
        run(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 10);
            theirs.write_all(&bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            let error = AgentClient::connect(ours, 0).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error} for {expected}");
        });
    }
}

/// Frames of a hostile agent on the stream of a running command, each with the client's error.
#[test]
fn hostile_frames_end_the_connection() {
    let header = |len: u32, stream: u32, kind: u8| {
        let mut bytes = [0; HEADER_LEN].to_vec();
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..8].copy_from_slice(&stream.to_le_bytes());
        bytes[8] = kind;
        bytes
    };
    let data = |channel, len| Frame::data(1, channel, vec![0; len]).to_bytes();
    let overrun = [data(Channel::Stdout, MAX_DATA).repeat(4), data(Channel::Stdout, 1)].concat();
    let after_end = [Frame::end(1, Channel::Stdout).to_bytes(), data(Channel::Stdout, 1)].concat();
    let exited = Response::Exited(ExitStatus::Code(0)).frame(1).to_bytes();
    let hostile: Vec<(&str, Vec<u8>, &str)> = vec![
        ("unknown kind", header(0, 1, 99), "unknown frame kind 99"),
        ("giant body", header(u32::MAX, 1, Kind::Response as u8), "more than"),
        ("giant data", header(MAX_DATA as u32 + 1, 1, Kind::Stdout as u8), "more than"),
        ("end inside a frame", header(MAX_BODY as u32, 1, Kind::Response as u8), "end of file"),
        ("unknown stream", Response::Done.frame(77).to_bytes(), "stream 77"),
        ("data on stream 0", header(0, 0, Kind::Stdout as u8), "stream 0"),
        ("overrun window", overrun, "flow control of Stdout"),
        ("data after the end", after_end, "unexpected output"),
        ("credit never spent", Frame::credit(1, Channel::Stdin, 1).to_bytes(), "flow control"),
        ("credit overflow", Frame::credit(1, Channel::Stdin, u32::MAX).to_bytes(), "flow control"),
        ("credit for output", Frame::credit(1, Channel::Stdout, 1).to_bytes(), "unexpected credit"),
        (
            "credit of a strange channel",
            [header(5, 1, 12), vec![1; 5]].concat(),
            "malformed Credit",
        ),
        ("end without a channel", header(0, 1, 11), "malformed End"),
        ("malformed response", [header(1, 1, 3), vec![200]].concat(), "malformed Response"),
        ("wrong answer", Response::Done.frame(1).to_bytes(), "unexpected response"),
        ("started twice", Response::Started { pid: 1 }.frame(1).to_bytes(), "unexpected response"),
        (
            "talk after the last frame",
            [exited, data(Channel::Stdout, 1)].concat(),
            "after the last",
        ),
        ("our own request", Request::Ping.frame(1).to_bytes(), "unexpected request"),
        ("our own control", Control::Kill.frame(1).to_bytes(), "unexpected control"),
        ("our own input", data(Channel::Stdin, 1), "unexpected standard input"),
    ];
    for (name, bytes, expected) in hostile {
        run(async {
            let (client, mut agent) = connected().await;
            let serve = async {
                agent.start().await;
                agent.send_bytes(&bytes).await;
                if name == "end inside a frame" {
                    return drop(agent);
                }
                agent.expect_hang_up().await;
            };
            let use_it = async {
                let _handle = client.exec(exec(true)).await;
                client.ping().await.unwrap_err()
            };
            let (error, ()) = tokio::join!(use_it, serve);
            assert!(error.to_string().contains(expected), "{name}: {error}");
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever an agent sends, the client neither panics nor hangs, and keeps no more than the
    /// windows.
    #[test]
    fn any_frames_are_survived(
        frames in proptest::collection::vec(
            (0u32..4, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..60),
    ) {
        run(async {
            let (client, mut agent) = connected().await;
            let serve = async {
                agent.start().await;
                for (stream, kind, body) in frames {
                    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
                    bytes.extend_from_slice(&stream.to_le_bytes());
                    bytes.push(kind % 14);
                    bytes.extend_from_slice(&body);
                    agent.send_bytes(&bytes).await;
                }
                drop(agent);
            };
            let (handle, ()) = tokio::join!(client.exec(exec(true)), serve);
            if let Ok(handle) = handle {
                let _ = handle.wait_with_output().await;
            }
        });
    }
}
