//! The network of boxes: policy, published ports, names, counters.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_tests::{Launcher, Sandbox, unique};

use crate::distribution::is_reachable;
use crate::noise;

/// Timeout for network operations that an emulated box takes part in.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A web server in a box.
const SERVER: &str = "mkdir -p /www; echo served >/www/index.html; httpd -f -p 80 -h /www";

/// A server on the host's loopback that greets its clients, and counts them.
struct HostServer {
    address: SocketAddr,
    guests: Arc<AtomicUsize>,
}

impl HostServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let guests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&guests);
        thread::spawn(move || {
            for mut guest in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = guest.write_all(b"hello from the host\n");
            }
        });
        Self { address, guests }
    }

    /// A shell command that prints what a box receives from it at a name or address.
    fn ask(&self, host: &str) -> String {
        format!("timeout 60 nc {host} {} </dev/null || echo closed", self.address.port())
    }
}

/// Fetches a page from a web server that may still be starting.
fn fetch(address: SocketAddr) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = try_fetch(address);
        match answer {
            Ok(text) if text.contains("served") => return text,
            answer => assert!(Instant::now() < deadline, "{address}: {answer:?}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn try_fetch(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The host's address of a published port.
#[track_caller]
pub(crate) fn published(sandbox: &Sandbox<'_>, port: &str) -> SocketAddr {
    let text = sandbox.on(["port"]).args([port]).output().success();
    let first = text.lines().next().unwrap_or_default();
    first.parse().unwrap_or_else(|_| panic!("`port` says {text:?}"))
}

/// The events of a box, once a line of them contains all parts of each of `expected`: a guest may be quicker than the
/// box's process, which writes them.
#[track_caller]
fn events_of(sandbox: &Sandbox<'_>, expected: &[&[&str]]) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let events = sandbox.on(["events", "--since", "1h", "--box"]).output().success();
        let has = |parts: &[&str]| {
            events.lines().any(|line| parts.iter().all(|part| line.contains(part)))
        };
        let Some(missing) = expected.iter().find(|parts| !has(parts)) else { return events };
        assert!(Instant::now() < deadline, "no {missing:?} in {events}");
    }
}

/// Waits until the address is free.
#[track_caller]
fn wait_until_free(address: SocketAddr) {
    let deadline = Instant::now() + SOON;
    while let Err(e) = TcpListener::bind(address) {
        assert!(Instant::now() < deadline, "{address}: {e}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_box_has_a_configured_network_and_keeps_edited_files() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::idle(&launcher, "configured", &[]);
    let addresses = sandbox.shell("ip addr show eth0");
    for part in ["mtu 65520", "02:62:6f:78:00:02", "192.168.127.2/24", "fdb0:786c:6974::2/64"] {
        assert!(addresses.contains(part), "{part}: {addresses}");
    }
    assert!(!addresses.contains("2/64 scope global tentative"), "{addresses}");
    sandbox.shell("ping -c 1 192.168.127.1 && ping -6 -c 1 fdb0:786c:6974::1");
    let own = sandbox.shell("cat /etc/hosts; hostname");
    assert!(own.contains("host.boxlite.internal host.docker.internal"), "{own}");
    assert_eq!(own.matches(sandbox.name()).count(), 2, "{own}");
    // The resolver knows the host's name, too.
    let host =
        sandbox.shell("sed -i /boxlite.internal/d /etc/hosts; nslookup host.boxlite.internal");
    assert!(host.contains("192.168.127.254"), "{host}");
    sandbox.shell("echo 192.0.2.7 mine >>/etc/hosts; echo nameserver 192.0.2.9 >/etc/resolv.conf");
    sandbox.on(["stop"]).output().success();
    sandbox.on(["start"]).output().success();
    let edited = sandbox.shell("cat /etc/hosts /etc/resolv.conf");
    assert!(edited.contains("192.0.2.7 mine\n"), "{edited}");
    assert!(edited.ends_with("nameserver 192.0.2.9"), "{edited}");
    assert_eq!(edited.matches("host.boxlite.internal").count(), 1, "{edited}");
}

#[test]
fn without_a_network_a_box_has_only_its_loopback() {
    let Some(launcher) = Launcher::find() else { return };
    let links =
        launcher.shell(["--network", "none"], "ls /sys/class/net; ping -c 1 127.0.0.1").output();
    let links = links.success();
    assert!(links.starts_with("lo\nPING"), "{links}");
    for option in [["-p", "1:1"], ["--allow", "any"], ["--limit-up", "1M"]] {
        let run = launcher.shell(["--network", "none", option[0], option[1]], "true").output();
        run.fails_with(&["--network nat"]);
    }
    launcher.shell(["--deny", "10.0.0.0/99"], "true").output().fails_with(&["--deny", "TARGET"]);
}

#[test]
fn the_hosts_loopback_is_closed_unless_it_is_allowed() {
    let Some(launcher) = Launcher::find() else { return };
    let server = HostServer::start();
    let sandbox = Sandbox::idle(&launcher, "closed", &[]);
    // By name, by the address of the host in the software host, and by the loopback addresses.
    for host in ["host.boxlite.internal", "host.docker.internal", "10.0.2.2", "127.0.0.1", "::1"] {
        let output = sandbox.shell(&server.ask(host));
        assert!(output.ends_with("closed") && !output.contains("hello"), "{host}: {output}");
    }
    assert_eq!(server.guests.load(Ordering::SeqCst), 0);
    // A repeated flow is reported once.
    let again = sandbox.shell(&server.ask("host.boxlite.internal"));
    assert!(again.ends_with("closed"), "{again}");
    // A later flow, whose event comes after all of these.
    sandbox.shell("nc 192.168.127.254 9 </dev/null || true");
    let events = events_of(&sandbox, &[&["192.168.127.254:9"]]);
    let denied: Vec<_> = events.lines().filter(|line| line.contains("denied")).collect();
    let port = server.address.port().to_string();
    assert_eq!(denied.len(), 2, "{events}");
    assert!(denied[0].contains(&port) && denied[0].contains("loopback is closed"), "{denied:?}");
    let metrics = sandbox.on(["stats", "--no-stream", "--format", "json"]).output().success();
    let metrics: serde_json::Value = serde_json::from_str(&metrics).expect("JSON");
    let network = &metrics["machine"]["network"];
    for counter in ["denied", "bytes_sent", "packets_sent", "bytes_received", "packets_received"] {
        assert!(network[counter].as_u64() > Some(0), "{counter}: {network}");
    }

    let options = ["--allow", &format!("tcp:host:{port}")];
    let open = launcher.shell(options, &server.ask("host.docker.internal")).output().success();
    assert_eq!(open, "hello from the host");
    let other = launcher.shell(["--allow", "tcp:host:1"], &server.ask("host.docker.internal"));
    assert_eq!(other.output().success().lines().last(), Some("closed"));
}

/// An address of this host on its network.
fn own_address() -> Option<IpAddr> {
    // Nothing is sent: the kernel only chooses a source address.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.254:9").or_else(|_| socket.connect("10.255.255.254:9")).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

#[test]
fn the_hosts_own_addresses_are_closed_unless_they_are_allowed() {
    let Some(launcher) = Launcher::find() else { return };
    let Some(own) = own_address() else {
        return println!("SKIPPED: this host has no address but its loopback's");
    };
    let port = format!("{own}:0:80");
    let server = Sandbox::run(&launcher, "reachable", &["-p", &port], SERVER);
    let address = published(&server, "80");
    assert_eq!(address.ip(), own);
    fetch(address);
    let ask = format!("timeout 60 wget -qO- http://{address}/ || echo closed");
    let client = Sandbox::idle(&launcher, "neighbour", &[]);
    assert_eq!(client.shell(&ask), "closed");
    events_of(&client, &[&["addresses of the host are closed"]]);
    assert_eq!(launcher.shell(["--allow", "host"], &ask).output().success(), "served");

    let warned = launcher.shell(["--deny", "tcp:example.org:443"], "true").output();
    assert_eq!(
        warned.stderr.matches("warning: --deny tcp:example.org:443 ").count(),
        1,
        "{}",
        warned.stderr
    );
    warned.says(&["--allow"]).success();
}

#[test]
fn published_ports_are_open_while_the_box_runs() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::run(&launcher, "published", &["-p", "0:80", "-p", "80"], SERVER);
    let address = published(&sandbox, "80");
    assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
    fetch(address);
    let all = sandbox.on(["port"]).output().success();
    assert_eq!(all.lines().count(), 2, "{all}");
    let listed = launcher.command(["ls"]).output().success();
    assert!(listed.contains(&format!("{address}->80/tcp")), "{listed}");
    assert_eq!(sandbox.inspect()["ports"][0]["host"], address.to_string());
    sandbox.on(["port"]).args(["81"]).output().refuses_with(&["81/tcp", "not published"]);

    // A port in use is an error before anything boots, and the message names port and remedy.
    let taken = address.port().to_string();
    let begun = Instant::now();
    let second = launcher.shell(["-p", &format!("{taken}:80")], "echo booted").output();
    let second = second.fails_with(&[&taken, "in use", "choose another"]);
    assert!(!second.stdout_lossy().contains("booted"));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());

    // The port is free when the box has stopped, and published again when it has started.
    sandbox.on(["stop", "-t", "0"]).output().success();
    wait_until_free(address);
    let gone = sandbox.on(["port"]).args(["80"]).output();
    gone.refuses_with(&["does not run"]);
    sandbox.on(["start"]).output().success();
    fetch(published(&sandbox, "80"));

    // Another box does not reach it through the host.
    let port = published(&sandbox, "80").port();
    let other = format!("timeout 60 wget -qO- http://host.boxlite.internal:{port}/ || echo closed");
    assert_eq!(launcher.shell([] as [&str; 0], &other).output().success(), "closed");
}

#[test]
fn the_ports_of_a_temporary_box_are_free_after_it_is_killed() {
    let Some(launcher) = Launcher::find() else { return };
    let name = unique("thrown");
    let sandbox = Sandbox::named(&launcher, name.clone());
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let port = format!("{}:80", free.port());
    let options = ["--rm", "--name", &name, "-p", &port, "--memory", "192M"];
    let mut run = launcher.shell(options, &format!("echo up; {SERVER}")).spawn();
    run.wait_for("up");
    fetch(free);
    sandbox.on(["kill"]).output().success();
    run.wait().expect(137);
    wait_until_free(free);
}

#[test]
fn large_transfers_are_complete_in_both_directions() {
    const LEN: usize = 16 << 20;
    let Some(launcher) = Launcher::find() else { return };
    let data = noise(LEN);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let sent = data.clone();
    let server = thread::spawn(move || {
        let (mut guest, _) = listener.accept().expect("a guest");
        guest.write_all(&sent).expect("a guest that reads");
        guest.shutdown(Shutdown::Write).expect("an end");
        let (mut guest, _) = listener.accept().expect("a guest again");
        let mut back = Vec::new();
        guest.read_to_end(&mut back).expect("a guest that writes");
        back
    });
    let script = format!(
        "nc host.boxlite.internal {port} </dev/null >/tmp/data; wc -c </tmp/data; \
         nc host.boxlite.internal {port} </tmp/data"
    );
    let output = launcher.shell(["--allow", "host"], &script).output().success();
    assert_eq!(output, LEN.to_string());
    assert!(server.join().expect("the server") == data, "the data that came back differs");
}

#[test]
fn a_name_opens_its_addresses_and_nothing_else() {
    const NAME: &str = "deb.debian.org";
    let Some(launcher) = Launcher::find() else { return };
    if !is_reachable(NAME, 80) {
        return println!("SKIPPED: {NAME} cannot be reached from this machine");
    }
    let options = ["--allow", "deb.debian.org:80", "--deny", "*.security.debian.org"];
    let sandbox = Sandbox::idle(&launcher, "named", &options);
    let get = |url: &str| {
        sandbox.shell(&format!("timeout 20 wget -qO /dev/null {url} && echo got || echo not"))
    };
    assert_eq!(get("http://deb.debian.org/debian/dists/stable/Release"), "got");
    // Another port, another name, an address without a name.
    assert_eq!(get("http://deb.debian.org:81/"), "not");
    assert_eq!(get("http://www.example.org/"), "not");
    assert_eq!(get("http://192.0.2.1/"), "not");
    let denied = [":81: no rule", "the name \"www.example.org\"", "tcp to 192.0.2.1:80"];
    events_of(&sandbox, &[&denied[..1], &denied[1..2], &denied[2..]]);
}

#[test]
fn rules_match_networks_and_rates_are_limited() {
    let Some(launcher) = Launcher::find() else { return };
    // 192.0.2.0/24 has no hosts: a flow that is not denied gets no answer, or another error.
    let probe = "nc -w 3 192.0.2.1 80 </dev/null; nc -w 3 198.51.100.1 81 </dev/null; true";
    let sandbox = Sandbox::idle(
        &launcher,
        "ruled",
        &[
            "--allow",
            "192.0.2.0/24",
            "--allow",
            "host",
            "--deny",
            "tcp:192.0.2.1:80",
            "--limit-down",
            "100K",
        ],
    );
    sandbox.shell(probe);
    let denied: [&[&str]; 2] = [
        &["tcp to 192.0.2.1:80", "rule `deny tcp:192.0.2.1/32:80`"],
        &["tcp to 198.51.100.1:81", "no rule allows it"],
    ];
    events_of(&sandbox, &denied);
    // 300 KB at 100 KiB a second, after a burst of an eighth of that.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        let (mut guest, _) = listener.accept().expect("a guest");
        let _ = guest.write_all(&[b'x'; 300_000]);
    });
    let script = format!("nc host.boxlite.internal {port} </dev/null | wc -c; cat /proc/uptime");
    let begun = sandbox.shell("cat /proc/uptime");
    let ended = sandbox.shell(&script);
    let (bytes, ended) = ended.split_once('\n').expect("two lines");
    let uptime = |text: &str| text.split(' ').next().and_then(|s| s.parse::<f64>().ok());
    let took = uptime(ended).zip(uptime(begun.trim())).map(|(ended, begun)| ended - begun);
    assert_eq!(bytes.trim(), "300000");
    assert!(took > Some(2.0), "{took:?} s");
}

/// A segment of TCP over IPv4.
struct Segment<'a> {
    from: u16,
    to: u16,
    /// SYN and ACK of its flags.
    syn: bool,
    ack: bool,
    payload: &'a [u8],
}

/// The frames in a capture file, whose header is checked.
#[track_caller]
fn frames(file: &[u8]) -> Vec<&[u8]> {
    let number = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let (nanoseconds, ethernet) = (0xa1b2_3c4d, 1);
    assert_eq!((number(0), number(20)), (nanoseconds, ethernet), "no capture of Ethernet frames");
    let (mut frames, mut at) = (Vec::new(), 24);
    while at < file.len() {
        let end = at + 16 + number(at + 8) as usize;
        frames.push(&file[at + 16..end]);
        at = end;
    }
    frames
}

fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0] && frame[23] == 6)?;
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let tcp = &packet[usize::from(packet[0] & 0xf) * 4..word(packet, 2).into()];
    let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
    let (syn, ack) = (tcp[13] & 2 != 0, tcp[13] & 16 != 0);
    Some(Segment { from: word(tcp, 0), to: word(tcp, 2), syn, ack, payload })
}

/// Whether frames have a DNS query for the host's name, and its answer.
fn have_the_hosts_name(frames: &[&[u8]]) -> bool {
    let name = b"\x04host\x07boxlite\x08internal";
    frames.iter().filter(|frame| frame.windows(name.len()).any(|part| part == name)).count() > 1
}

#[test]
fn packets_are_recorded_in_a_file_of_this_machine() {
    let Some(launcher) = Launcher::find() else { return };
    let (server, folder) = (HostServer::start(), launcher.folder());
    let path = folder.path().join("box.pcap");
    // It is replaced.
    std::fs::write(&path, [7; 1 << 20]).expect("a file");
    let options = ["--allow", "host", "--pcap", path.to_str().expect("a path")];
    let script = format!("nslookup host.boxlite.internal; {}", server.ask("192.168.127.254"));
    let said = launcher.shell(options, &script).output().success();
    assert!(said.ends_with("hello from the host"), "{said}");

    let file = std::fs::read(&path).expect("a capture");
    let frames = frames(&file);
    assert!(have_the_hosts_name(&frames), "{} frames", frames.len());
    let port = server.address.port();
    let segments = frames.iter().filter_map(|frame| segment(frame));
    let flow: Vec<_> = segments.filter(|it| it.to == port || it.from == port).collect();
    assert!(flow.len() > 3, "{} segments", flow.len());
    assert!(flow[0].to == port && flow[0].syn && !flow[0].ack, "the first is no SYN");
    assert!(flow[1].from == port && flow[1].syn && flow[1].ack, "the second is no SYN-ACK");
    let answers = flow.iter().filter(|it| it.from == port);
    let heard: Vec<u8> = answers.flat_map(|it| it.payload).copied().collect();
    assert_eq!(String::from_utf8_lossy(&heard), "hello from the host\n");
}

#[test]
fn a_start_records_packets_and_what_cannot_be_recorded_is_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let (file, other) = (path("box.pcap"), path("other.pcap"));
    let script = "nslookup host.boxlite.internal >/dev/null; echo asked; sleep 1000";
    let sandbox = Sandbox::create(&launcher, "recorded", &[], script);
    let mut running = sandbox.on(["start", "-a", "--pcap", &file]).spawn();
    running.wait_for("asked");
    let again = sandbox.on(["start", "-a", "--pcap", &other]).output();
    again.fails_with(&["runs already", "stop it first"]);
    launcher.shell(["--pcap", &file], "true").output().fails_with(&["another box", &file]);
    sandbox.on(["stop", "-t", "0"]).output().success();
    let ended = running.wait();
    assert!(!ended.stderr.contains("incomplete"), "{ended:?}");
    let recorded = std::fs::read(&file).expect("a capture");
    assert!(have_the_hosts_name(&frames(&recorded)), "{} bytes", recorded.len());

    let missing = path("no/folder.pcap");
    launcher.shell(["--pcap", &missing], "true").output().fails_with(&[&missing]);
    let none = launcher.shell(["--network", "none", "--pcap", &other], "true").output();
    none.fails_with(&["--pcap", "--network nat"]);
    launcher.command(["start", "--pcap", &other, "a", "b"]).output().refuses_with(&["one box"]);
    if launcher.has_hardware() {
        sandbox.on(["start", "--pcap", &other]).output().success();
        sandbox.on(["stop", "-t", "0"]).output().success();
        assert!(frames(&std::fs::read(&other).expect("a capture")).len() > 1);
    } else {
        let background = launcher.shell(["-d", "--pcap", &other], "true").output();
        background.fails_with(&["--pcap", "software host", "foreground"]);
    }
}

#[test]
fn a_capture_that_breaks_off_is_reported() {
    let Some(launcher) = Launcher::find() else { return };
    if launcher.has_hardware() {
        // The box's process writes the file itself.
        return;
    }
    let folder = launcher.folder();
    let file = folder.path().join("box.pcap").to_str().expect("a path").to_owned();
    let script = "nslookup host.boxlite.internal >/dev/null; echo asked; sleep 1000";
    let sandbox = Sandbox::create(&launcher, "broken-off", &[], script);
    let mut running = sandbox.on(["start", "-a", "--pcap", &file]).spawn();
    running.wait_for("asked");
    let status = launcher.home().join("boxes").join(sandbox.id()).join("status.json");
    let kill = r#"kill -KILL $(sed 's/.*"pid":\([0-9]*\).*/\1/' "$1")"#;
    let kill = launcher.softhost(["sh", "-c", kill, "sh"]).args([&status]);
    kill.output().success();
    let incomplete = format!("warning: the capture {file} is incomplete: it broke off");
    running.wait().fails_with(&[&incomplete, "--pcap", "ended unexpectedly"]);
    assert!(std::fs::metadata(&file).expect("a capture").len() > 0);
}
