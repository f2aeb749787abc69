//! The network of boxes: what they reach and what they do not, ports of the host that lead into them, names, and what
//! is counted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_tests::{Launcher, Sandbox, unique};

/// How long something of the network may take that emulated machines have a part in.
const SOON: Duration = Duration::from_secs(20);

/// A web server in a box.
const SERVER: &str = "mkdir -p /www; echo served >/www/index.html; httpd -f -p 80 -h /www";

/// A server on the host's loopback that says a word to everybody, and counts them.
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

    /// A shell command that says what a box hears from it under a name or address.
    fn ask(&self, host: &str) -> String {
        format!("timeout 10 nc {host} {} </dev/null || echo closed", self.address.port())
    }
}

/// What a web server says, which may be about to begin.
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

/// Where the host is told to listen for a port of a box.
#[track_caller]
fn published(sandbox: &Sandbox<'_>, port: &str) -> SocketAddr {
    let text = sandbox.on(["port"]).args([port]).output().success();
    text.parse().unwrap_or_else(|_| panic!("`port` says {text:?}"))
}

/// What has happened to a box.
#[track_caller]
fn events_of(sandbox: &Sandbox<'_>) -> String {
    // What a box's process writes down is there at once; a guest may be quicker all the same.
    thread::sleep(Duration::from_millis(200));
    sandbox.on(["events", "--since", "1h", "--box"]).output().success()
}

/// Waits until nobody listens there.
#[track_caller]
fn wait_until_free(address: SocketAddr) {
    let deadline = Instant::now() + SOON;
    while let Err(e) = TcpListener::bind(address) {
        assert!(Instant::now() < deadline, "{address}: {e}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_box_is_configured_and_keeps_what_its_user_edits() {
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
    // The resolver knows the host, too, and is the one that programs ask.
    let host = sandbox.shell("sed -i /boxlite.internal/d /etc/hosts; nslookup host.boxlite.internal");
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
fn without_a_network_there_is_the_loopback_only() {
    let Some(launcher) = Launcher::find() else { return };
    let links = launcher.shell(["--network", "none"], "ls /sys/class/net; ping -c 1 127.0.0.1").output();
    let links = links.success();
    assert!(links.starts_with("lo\nPING"), "{links}");
    for option in [["-p", "1:1"], ["--allow", "any"], ["--limit-up", "1M"]] {
        let run = launcher.shell(["--network", "none", option[0], option[1]], "true").output();
        run.fails_with(&["--network nat"]);
    }
    launcher.shell(["--deny", "10.0.0.0/99"], "true").output().fails_with(&["--deny", "TARGET"]);
}

#[test]
fn the_hosts_loopback_is_closed_unless_it_is_asked_for() {
    let Some(launcher) = Launcher::find() else { return };
    let server = HostServer::start();
    let sandbox = Sandbox::idle(&launcher, "closed", &[]);
    // By its name, by the addresses that lead there where boxes run in the software host, and by itself.
    for host in ["host.boxlite.internal", "host.docker.internal", "10.0.2.2", "127.0.0.1", "::1"] {
        let heard = sandbox.shell(&server.ask(host));
        assert!(heard.ends_with("closed") && !heard.contains("hello"), "{host}: {heard}");
    }
    assert_eq!(server.guests.load(Ordering::SeqCst), 0);
    // Twice the same flow is told of once.
    let again = sandbox.shell(&server.ask("host.boxlite.internal"));
    assert!(again.ends_with("closed"), "{again}");
    let events = events_of(&sandbox);
    let denied: Vec<_> = events.lines().filter(|line| line.contains("denied")).collect();
    let port = server.address.port().to_string();
    assert_eq!(denied.len(), 1, "{events}");
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

#[test]
fn ports_of_the_host_lead_into_boxes_for_as_long_as_they_run() {
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
    sandbox.on(["port"]).args(["81"]).output().refuses_with(&["81/tcp", "no port leads there"]);

    // A port in use is an error before anything boots, and says which and what to do.
    let taken = address.port().to_string();
    let begun = Instant::now();
    let second = launcher.shell(["-p", &format!("{taken}:80")], "echo booted").output();
    let second = second.fails_with(&[&taken, "in use", "choose another"]);
    assert!(!second.stdout_lossy().contains("booted"));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());

    // It is free when the box has stopped, and leads there again when it has started.
    sandbox.on(["stop", "-t", "0"]).output().success();
    wait_until_free(address);
    let gone = sandbox.on(["port"]).args(["80"]).output();
    gone.refuses_with(&["does not run"]);
    sandbox.on(["start"]).output().success();
    fetch(published(&sandbox, "80"));

    // Neither the box itself nor another one reaches it through the host.
    let port = published(&sandbox, "80").port();
    let other = format!("wget -T 5 -qO- http://host.boxlite.internal:{port}/ || echo closed");
    assert_eq!(launcher.shell([] as [&str; 0], &other).output().success(), "closed");
}

#[test]
fn a_box_that_is_thrown_away_has_ports_and_gives_them_back_when_it_is_killed() {
    let Some(launcher) = Launcher::find() else { return };
    let name = unique("thrown");
    let sandbox = Sandbox::named(&launcher, name.clone());
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
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
fn rules_decide_by_network_and_rates_are_kept() {
    let Some(launcher) = Launcher::find() else { return };
    // 192.0.2.0/24 is nobody's: what is not denied gets no answer, or another error than this one.
    let probe = "nc -w 3 192.0.2.1 80 </dev/null; nc -w 3 198.51.100.1 81 </dev/null; true";
    let sandbox = Sandbox::idle(
        &launcher,
        "ruled",
        &["--allow", "192.0.2.0/24", "--allow", "host", "--deny", "tcp:192.0.2.1:80", "--limit-down", "100K"],
    );
    sandbox.shell(probe);
    let events = events_of(&sandbox);
    for (flow, why) in [
        ("tcp to 192.0.2.1:80", "rule `deny tcp:192.0.2.1/32:80`"),
        ("tcp to 198.51.100.1:81", "no rule allows it"),
    ] {
        let told = events.lines().any(|line| line.contains(flow) && line.contains(why));
        assert!(told, "{flow}: {events}");
    }
    // 300 KB at 100 KiB a second, of which an eighth goes at once.
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

#[test]
fn programs_of_a_distribution_find_their_servers() {
    let Some(launcher) = Launcher::find() else { return };
    let image = launcher.debian();
    let name = unique("debian-net");
    let make = launcher.command(["create", "--name", &name, "--idle", "--memory", "512M"]);
    make.args(["-p", "0:5300/udp", "-p", "0:8000", &image]).output().success();
    let sandbox = Sandbox::named(&launcher, name);
    sandbox.on(["start"]).output().success();
    let shell = |script: &str| {
        let command = sandbox.exec([] as [&str; 0], script).deadline(Duration::from_secs(900));
        command.output().success()
    };

    // Datagrams, through a port of the host, there and back.
    let echo = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5300))\n\
                while True: d, a = s.recvfrom(65536); s.sendto(d.upper(), a)";
    sandbox.exec(["-d"], &format!("exec python3 -c \"{echo}\"")).output().success();
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.connect(published(&sandbox, "5300/udp")).expect("a peer");
    client.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let deadline = Instant::now() + SOON;
    let mut answer = [0; 64];
    loop {
        // Until the server is up, nobody hears.
        let _ = client.send(b"datagram");
        match client.recv(&mut answer) {
            Ok(len) => break assert_eq!(answer.get(..len), Some(&b"DATAGRAM"[..])),
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
    }

    names_are_resolved_as_on_the_host(&shell);
    packages_are_installed(&launcher, &sandbox, &shell);
    wheels_are_downloaded(&launcher, &sandbox, &shell);
}

/// A name that this machine can resolve, a box can.
fn names_are_resolved_as_on_the_host(shell: &dyn Fn(&str) -> String) {
    let name = "deb.debian.org";
    let Ok(mut found) = (name, 80).to_socket_addrs() else {
        return println!("SKIPPED: this machine cannot resolve {name}");
    };
    let expected = found.next().expect("an address");
    let script = format!("import socket; print(socket.getaddrinfo('{name}', 80)[0][4][0])");
    let heard = shell(&format!("python3 -c \"{script}\""));
    assert!(heard.parse::<std::net::IpAddr>().is_ok(), "{name} is {expected} here, and {heard} there");
}

/// A package is installed as anybody would, from where this machine gets its own, else from a repository that is made
/// here and served on the host's loopback.
fn packages_are_installed(sandbox: &Sandbox<'_>, shell: &dyn Fn(&str) -> String) {
    let Some(mirror) = mirror() else {
        return println!("SKIPPED: this machine's own packages come from no mirror that can be reached");
    };
    let suite = shell(". /etc/os-release && echo $VERSION_CODENAME");
    shell(&format!(
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; \
         echo 'deb {mirror} {suite} main' >/etc/apt/sources.list"
    ));
    let clock = "-o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false";
    let install = "apt-get install -y --no-install-recommends hello";
    shell(&format!("apt-get {clock} update && DEBIAN_FRONTEND=noninteractive {install} && hello"));
    let network = metrics(sandbox);
    for (counter, least) in [("bytes_received", 1_000_000), ("tcp_flows", 1), ("dns_queries", 1)] {
        assert!(network[counter].as_u64() > Some(least - 1), "{counter}: {network}");
    }
}

/// Where this machine's packages come from, without TLS, if that can be reached.
fn mirror() -> Option<String> {
    let targets = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let output = Command::new("apt-get").args(targets).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find(|uri| is_reachable(uri).is_some()).map(str::to_owned)
}

fn is_reachable(uri: &str) -> Option<TcpStream> {
    // Whoever has a mirror on this machine, or behind a proxy, has one that a box does not reach.
    let host = uri.strip_prefix("http://")?.split('/').next()?;
    let address = (host, 80).to_socket_addrs().ok()?.find(|address| !address.ip().is_loopback())?;
    TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()
}

/// A package for Python is downloaded from where this machine gets its own, else from a folder that is served on the
/// host's loopback.
fn wheels_are_downloaded(sandbox: &Sandbox<'_>, shell: &dyn Fn(&str) -> String) {
    const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
    let Some(pip) = wheel_of_pip() else {
        return println!("SKIPPED: this machine has no wheel of pip");
    };
    sandbox.copy_in(&pip, "/root/");
    let pip = pip.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    // Whom this machine trusts may be more than whom the image does.
    if std::path::Path::new(CERTIFICATES).exists() {
        sandbox.copy_in(std::path::Path::new(CERTIFICATES), "/root/trusted.crt");
    }
    let config = Command::new("python3").args(["-m", "pip", "config", "get", "global.index-url"]);
    let index = config.output_text().unwrap_or_else(|| "https://pypi.org/simple".into());
    let download = format!(
        "python3 /root/{pip}/pip download --no-deps --no-cache-dir --disable-pip-version-check \
         --retries 1 -d /tmp/wheels"
    );
    if is_reachable_tls(&index) {
        shell(&format!("{download} --cert /root/trusted.crt -i {index} six"));
    } else {
        // A wheel of nothing, in an index of one.
        println!("{index} cannot be reached: a local index takes its place");
    }
    assert!(shell("ls /tmp/wheels").starts_with("six-"));
}
