//! Requests to a guest other than commands that are awaited.

use boxlite_proto::guest::{
    CopyIn, CopyOut, ExecCounts, FileKind, FileStat, GuestMetrics, MAX_COMMAND, MAX_LINK, MAX_NAME,
    Process, Stat,
};

use super::*;

/// Answers the next request with the frames of these functions.
async fn answer(agent: &mut Agent, response: Response) -> Request {
    let (stream, request) = agent.request().await;
    agent.send(response.frame(stream)).await;
    request
}

fn file_stat(link_target: Vec<u8>) -> FileStat {
    FileStat {
        kind: FileKind::Symlink,
        size: 1,
        mode: 0o777,
        uid: 1,
        gid: 2,
        mtime: 3,
        mtime_ns: 4,
        link_target,
    }
}

#[test]
fn requests_are_answered() {
    run(async {
        let (client, mut agent) = connected().await;
        let metrics = GuestMetrics { memory_total: 7, ..GuestMetrics::default() };
        let processes = vec![Process { pid: 1, name: b"init".to_vec(), ..Process::default() }];
        let counts = ExecCounts { started: 3, failed: 1, ..ExecCounts::default() };
        let path = Stat { path: b"/link".to_vec(), follow: false };
        let ask = async {
            assert_eq!(client.metrics().await.unwrap(), metrics);
            assert_eq!(client.processes().await.unwrap(), processes);
            assert_eq!(client.exec_counts().await.unwrap(), counts);
            assert_eq!(client.stat(path.clone()).await.unwrap(), file_stat(b"to".to_vec()));
            assert_eq!(client.exec_detached(exec(false)).await.unwrap(), 77);
        };
        let answers = async {
            let asked = answer(&mut agent, Response::Metrics(metrics)).await;
            assert_eq!(asked, Request::Metrics);
            let asked = answer(&mut agent, Response::Processes(processes.clone())).await;
            assert_eq!(asked, Request::Processes);
            let asked = answer(&mut agent, Response::ExecCounts(counts)).await;
            assert_eq!(asked, Request::ExecCounts);
            let asked = answer(&mut agent, Response::Stat(file_stat(b"to".to_vec()))).await;
            assert_eq!(asked, Request::Stat(path.clone()));
            let asked = answer(&mut agent, Response::Detached { pid: 77 }).await;
            assert_eq!(asked, Request::ExecDetached(exec(false)));
        };
        tokio::join!(ask, answers);
    });
}

#[test]
fn out_of_memory_is_reported() {
    run(async {
        let (handle, agent) = running(false, |mut agent, stream| async move {
            agent.send(Response::ExitedOutOfMemory(ExitStatus::Signal(9)).frame(stream)).await;
            agent
        })
        .await;
        let handle = handle.unwrap();
        let want = Exit { status: ExitStatus::Signal(9), out_of_memory: true };
        assert_eq!(handle.wait_exit().await.unwrap(), want);
        assert_eq!(handle.exited().await.unwrap(), ExitStatus::Signal(9));
        assert!(handle.wait_with_output().await.unwrap().out_of_memory);
        drop(agent);
    });
}

#[test]
fn an_aborted_copy_is_killed_before_it_ends() {
    run(async {
        let (client, mut agent) = connected().await;
        let (mut feed, tar) = tokio::io::duplex(1 << 10);
        feed.write_all(&[1; 512]).await.unwrap();
        let copy = client.copy_in(CopyIn { path: b"/srv".to_vec(), ..CopyIn::default() }, tar);
        assert!(tokio::time::timeout(Duration::from_millis(50), copy).await.is_err());
        let (_, request) = agent.request().await;
        assert!(matches!(request, Request::CopyIn(CopyIn { create: false, owner: None, .. })));
        assert_eq!(agent.next().await.unwrap().kind, Kind::Stdin);
        let kill = agent.next().await.unwrap();
        assert_eq!(kill.decode::<Control>().unwrap(), Control::Kill);
    });
}

#[test]
fn an_archive_is_complete_only_after_the_guests_answer() {
    run(async {
        let (client, mut agent) = connected().await;
        let tar = noise(3, 600_000);
        let serve = async {
            // Complete, under flow control.
            let (stream, request) = agent.request().await;
            assert!(matches!(request, Request::CopyOut(_)));
            let mut credit = WINDOW as usize;
            for chunk in tar.chunks(MAX_DATA) {
                while credit < chunk.len() {
                    credit += agent.next().await.unwrap().granted_credit().unwrap().1 as usize;
                }
                credit -= chunk.len();
                agent.send(Frame::data(stream, Channel::Stdout, chunk)).await;
            }
            agent.send(Response::Done.frame(stream)).await;
            // Broken off.
            let failed =
                |kind| Response::Failed(Failure { kind, message: "the disk is gone".to_owned() });
            let (stream, _) = loop {
                let frame = agent.next().await.unwrap();
                if frame.kind == Kind::Request {
                    break (frame.stream, ());
                }
            };
            agent.send(Frame::data(stream, Channel::Stdout, &tar[..1000])).await;
            agent.send(failed(FailureKind::Other).frame(stream)).await;
            // Without data.
            let (stream, _) = agent.request().await;
            agent.send(failed(FailureKind::NoSuchPath).frame(stream)).await;
        };
        let ask = async {
            let mut got = Vec::new();
            let mut archive = client.copy_out(CopyOut::default()).await.unwrap();
            archive.read_to_end(&mut got).await.unwrap();
            assert!(got == tar);
            archive.finish().await.unwrap();

            let mut archive = client.copy_out(CopyOut::default()).await.unwrap();
            got.clear();
            let error = archive.read_to_end(&mut got).await.unwrap_err();
            assert_eq!((got.len(), error.to_string()), (1000, "the disk is gone".to_owned()));
            assert!(archive.finish().await.is_err());

            let error = client.copy_out(CopyOut::default()).await.unwrap_err();
            assert_eq!(error.failure().unwrap().kind, FailureKind::NoSuchPath);
        };
        tokio::join!(serve, ask);
    });
}

#[test]
fn a_dropped_archive_ends_the_copy() {
    run(async {
        let (client, mut agent) = connected().await;
        let serve = async {
            let (stream, _) = agent.request().await;
            agent.send(Frame::data(stream, Channel::Stdout, vec![0; 10])).await;
            let mut kinds = [agent.next().await.unwrap().kind, agent.next().await.unwrap().kind];
            kinds.sort_by_key(|kind| *kind as u8);
            assert_eq!(kinds, [Kind::Control, Kind::End]);
        };
        let ask = async { drop(client.copy_out(CopyOut::default()).await.unwrap()) };
        tokio::join!(serve, ask);
    });
}

#[test]
fn oversized_and_misplaced_answers_end_the_connection() {
    let long = |name: usize, command: usize| {
        let (name, command) = (vec![b'n'; name], vec![b'c'; command]);
        Response::Processes(vec![Process { name, command, ..Process::default() }])
    };
    type Ask = fn(AgentClient) -> std::pin::Pin<Box<dyn Future<Output = Option<Error>>>>;
    let processes: Ask = |client| Box::pin(async move { client.processes().await.err() });
    let stat: Ask = |client| Box::pin(async move { client.stat(Stat::default()).await.err() });
    let detach: Ask =
        |client| Box::pin(async move { client.exec_detached(exec(false)).await.err() });
    let copy_out: Ask = |client| {
        Box::pin(async move {
            match client.copy_out(CopyOut::default()).await {
                Ok(archive) => archive.finish().await.err(),
                Err(error) => Some(error),
            }
        })
    };
    let frame = |response: Response| response.frame(1);
    let cases = [
        (processes, frame(long(MAX_NAME + 1, 0)), "length of a process"),
        (processes, frame(long(0, MAX_COMMAND + 1)), "length of a process"),
        (processes, frame(Response::Done), "unexpected response"),
        (processes, Frame::data(1, Channel::Stdout, vec![0; 10]), "unexpected output"),
        (stat, frame(Response::Stat(file_stat(vec![b'x'; MAX_LINK + 1]))), "length of a link"),
        (stat, frame(Response::Detached { pid: 1 }), "unexpected response"),
        (detach, frame(Response::Started { pid: 1 }), "unexpected response"),
        (detach, Frame::credit(1, Channel::Stdin, 1), "unexpected credit"),
        (copy_out, frame(Response::Unpacked { entries: 1, bytes: 1 }), "unexpected response"),
        (copy_out, Frame::data(1, Channel::Stderr, vec![0; 10]), "unexpected output"),
        (copy_out, Frame::end(1, Channel::Stdout), "unexpected end"),
        (copy_out, Frame::end(1, Channel::Stdin), "unexpected end"),
    ];
    for (ask, bad, expected) in cases {
        run(async {
            let (client, mut agent) = connected().await;
            let serve = async {
                agent.request().await;
                agent.send(bad).await;
                agent.expect_hang_up().await;
            };
            let asked = async move {
                let error = ask(client.clone()).await.expect("an error");
                assert!(error.to_string().contains(expected), "{error} for {expected}");
            };
            tokio::join!(serve, asked);
        });
    }
}
