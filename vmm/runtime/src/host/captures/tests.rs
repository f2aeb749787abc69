//! Streams as a box's process writes them, and streams that break off.

use std::io::Write as _;

use boxlite_contract::capture::CaptureStream;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::*;

/// A stream of one chunk, with the end if there is one.
fn stream(content: &[u8], end: Option<CaptureEnd>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = CaptureStream::new(&mut bytes);
    stream.write_all(content).unwrap();
    if let Some(end) = end {
        stream.end(end).unwrap();
    }
    bytes
}

struct Fixture {
    folder: tempfile::TempDir,
    captures: Captures,
    /// The box's end of the stream.
    sender: DuplexStream,
}

impl Fixture {
    /// A box whose packets are recorded in `x.pcap`.
    async fn recording() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcap");
        std::fs::write(&path, "of before, and longer than what is new").unwrap();
        let captures = Captures::default();
        let (sender, packets) = tokio::io::duplex(16);
        let file = CaptureFile::open(path).unwrap();
        captures.begin("a", file, packets).await.unwrap();
        Self { folder, captures, sender }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("x.pcap")
    }

    fn error(&self) -> Option<Error> {
        lock(&self.captures.0).get("a")?.written.borrow().clone()?.err()
    }

    /// Sends bytes, closes the stream, and returns the file and the error once the capture has ended.
    async fn end_with(mut self, bytes: &[u8]) -> (Vec<u8>, Option<Error>) {
        self.sender.write_all(bytes).await.unwrap();
        self.sender.shutdown().await.unwrap();
        self.captures.ended("a").await;
        // Unlocked.
        CaptureFile::open(self.path()).unwrap();
        (std::fs::read(self.path()).unwrap(), self.error())
    }
}

#[tokio::test]
async fn a_file_is_complete_when_its_end_was_waited_for() {
    let fixture = Fixture::recording().await;
    fixture.captures.ended("b").await;
    assert!(fixture.error().is_none());
    let all = stream(b"all the box's packets", Some(CaptureEnd::default()));
    let (file, error) = fixture.end_with(&all).await;
    assert_eq!(file, b"all the box's packets");
    assert!(error.is_none(), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_breaks_off_leaves_an_incomplete_file() {
    let all = stream(b"all the box's packets", Some(CaptureEnd::default()));
    // Within the length, within a chunk, between two chunks, within the end.
    for len in [0, 3, 10, 25, 27, 29, all.len() - 1] {
        let (file, error) = Fixture::recording().await.end_with(&all[..len]).await;
        assert_eq!(file, &b"all the box's packets"[..len.clamp(4, 25) - 4]);
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::CaptureIncomplete);
        assert_eq!(error.remedy(), Some(&Remedy::RecordElsewhere));
        for part in ["x.pcap is incomplete", "broke off", "was killed"] {
            assert!(error.message().contains(part), "{len}: {error}");
        }
    }
}

#[tokio::test]
async fn a_box_tells_what_is_missing() {
    let cases = [
        (CaptureEnd { full: true, skipped: 0 }, "its limit of 1024 MiB"),
        (CaptureEnd { full: false, skipped: 7 }, "7 packets are missing"),
    ];
    for (end, words) in cases {
        let (file, error) = Fixture::recording().await.end_with(&stream(b"some", Some(end))).await;
        assert_eq!(file, b"some");
        let error = error.unwrap();
        assert!(error.message().contains(words), "{error}");
        assert_eq!(error.remedy(), Some(&Remedy::RecordLess));
    }
}

#[tokio::test]
async fn a_lost_link_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = CaptureFile::open(folder.path().join("x.pcap")).unwrap();
    let reset = io::Error::new(io::ErrorKind::ConnectionReset, "lost the connection\nits console");
    let packets = then_failing(stream(b"some", None), reset);
    let error = write(file, packets, MAX_CAPTURE).await.unwrap_err().to_string();
    assert!(error.ends_with("has stopped (lost the connection)"), "{error}");
}

/// A reader of `bytes` that then fails.
fn then_failing(bytes: Vec<u8>, error: io::Error) -> impl AsyncRead + Unpin {
    struct Failing(Option<io::Error>);
    impl AsyncRead for Failing {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(self.0.take().map_or(Ok(()), Err))
        }
    }
    io::Cursor::new(bytes).chain(Failing(Some(error)))
}

#[tokio::test]
async fn a_hostile_stream_is_refused_and_fills_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pcap");
    let end_of =
        |length: u32, json: &str| [&[0; 4], &length.to_le_bytes()[..], json.as_bytes()].concat();
    let streams = [
        stream(&[7; 300], None),
        (CHUNK as u32 + 1).to_le_bytes().to_vec(),
        end_of(MAX_END as u32 + 1, ""),
        end_of(2, "[]"),
    ];
    for bytes in streams {
        let file = CaptureFile::open(path.clone()).unwrap();
        let loss = write(file, &bytes[..], 299).await.unwrap_err();
        assert!(matches!(loss, Loss::Malformed), "{loss}");
        assert_eq!(path.metadata().unwrap().len(), 0);
    }
    let file = CaptureFile::open(path.clone()).unwrap();
    let whole = [stream(&[7; 300], None), end_of(28, r#"{"full":false,"skipped":0}  "#)].concat();
    write(file, &whole[..], 300).await.unwrap();
    assert_eq!(path.metadata().unwrap().len(), 300);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_incomplete() {
    let file = CaptureFile::open("/dev/full".into()).unwrap();
    let whole = stream(b"some", Some(CaptureEnd::default()));
    let loss = write(file, &whole[..], MAX_CAPTURE).await.unwrap_err();
    assert!(matches!(loss, Loss::WriteFailed(_)), "{loss}");
}

#[tokio::test]
async fn a_slow_file_is_given_up_unless_it_is_written_after_all() {
    let fixture = Fixture::recording().await;
    fixture.captures.give_up("a");
    let error = fixture.error().unwrap();
    assert!(error.message().contains("too slow"), "{error}");
    let all = stream(b"all", Some(CaptureEnd::default()));
    let captures = &fixture.captures;
    let mut written = lock(&captures.0).get("a").unwrap().written.subscribe();
    let mut fixture = fixture;
    fixture.sender.write_all(&all).await.unwrap();
    written.wait_for(|written| matches!(written, Some(Ok(())))).await.unwrap();
    assert!(fixture.error().is_none());
}

#[tokio::test]
async fn a_start_forgets_the_capture_before_it() {
    let fixture = Fixture::recording().await;
    fixture.captures.forget("a");
    assert!(lock(&fixture.captures.0).contains_key("a"), "the box is still recorded");
    fixture.captures.give_up("a");
    fixture.captures.forget("b");
    assert!(fixture.error().is_some());
    fixture.captures.forget("a");
    assert!(fixture.error().is_none());
}
