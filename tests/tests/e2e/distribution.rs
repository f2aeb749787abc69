//! A distribution's own tools on a box's network: name resolution, package managers, datagrams.

use std::fs;
use std::net::{IpAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use boxlite_tests::{Launcher, Sandbox, unique};
use sha2::{Digest, Sha256};

use crate::network::{SOON, published};

/// Interpreters are slow under emulation.
const DEADLINE: Duration = Duration::from_secs(900);

/// This machine's certificate authorities, which may be more than the image's.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A box of Debian that may reach the host's loopback, with a web server there for the test's own packages.
struct Debian<'a> {
    launcher: &'a Launcher,
    sandbox: Sandbox<'a>,
    files: tempfile::TempDir,
    server: Server,
}

/// A folder, served on the host's loopback for as long as this value is there.
struct Server(Child, u16);

impl Server {
    fn start(folder: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.expect("a free port").port();
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]);
        command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn().expect("this machine has python3"), port);
        let deadline = Instant::now() + SOON;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn url(&self) -> String {
        format!("http://host.boxlite.internal:{}", self.1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Debian<'a> {
    /// Starts it. None, after printing `SKIPPED`, without Python on this machine to serve files.
    fn start(launcher: &'a Launcher, name: &str, options: &[&str]) -> Option<Self> {
        if Command::new("python3").arg("--version").output().is_err() {
            println!("SKIPPED: python3 is not installed");
            return None;
        }
        let image = launcher.debian();
        let name = unique(name);
        let make = launcher.command(["create", "--name", &name, "--idle", "--memory", "512M"]);
        make.args(["--allow", "host"]).args(options).args([&image]).output().success();
        let sandbox = Sandbox::named(launcher, name);
        sandbox.on(["start"]).output().success();
        let files = launcher.folder();
        let server = Server::start(files.path());
        Some(Self { launcher, sandbox, files, server })
    }

    #[track_caller]
    fn shell(&self, script: &str) -> String {
        self.sandbox.exec([] as [&str; 0], script).deadline(DEADLINE).output().success()
    }

    #[track_caller]
    fn copy_in(&self, from: &Path, to: &str) {
        let to = format!("{}:{to}", self.sandbox.name());
        let copy = self.launcher.command(["cp".as_ref(), from.as_os_str(), to.as_ref()]);
        copy.deadline(DEADLINE).output().success();
    }
}

#[test]
fn datagrams_and_name_resolution_work() {
    let Some(launcher) = Launcher::find() else { return };
    let Some(debian) = Debian::start(&launcher, "datagrams", &["-p", "0:5300/udp"]) else { return };
    let echo = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5300))\n\
                while True: d, a = s.recvfrom(65536); s.sendto(d.upper(), a)";
    let server = format!("exec python3 -c \"{echo}\"");
    debian.sandbox.exec(["-d"], &server).output().success();
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.connect(published(&debian.sandbox, "5300/udp")).expect("a peer");
    client.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let deadline = Instant::now() + SOON;
    let mut answer = [0; 64];
    loop {
        // Datagrams are lost until the server listens.
        let _ = client.send(b"datagram");
        match client.recv(&mut answer) {
            Ok(len) => break assert_eq!(answer.get(..len), Some(&b"DATAGRAM"[..])),
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
    }

    let resolve = |name: &str| {
        let script = format!("import socket; print(socket.getaddrinfo('{name}', 80)[0][4][0])");
        debian.shell(&format!("python3 -c \"{script}\" 2>&1 | tail -n 1"))
    };
    assert_eq!(resolve("host.docker.internal"), "192.168.127.254");
    assert_eq!(resolve(debian.sandbox.name()), "192.168.127.2");
    assert!(resolve("there-is-none.invalid").contains("gaierror"));
    let name = "deb.debian.org";
    match (name, 80).to_socket_addrs() {
        Ok(_) => assert!(resolve(name).parse::<IpAddr>().is_ok(), "{}", resolve(name)),
        Err(e) => println!("SKIPPED: this machine cannot resolve {name}: {e}"),
    }
}

#[test]
fn apt_installs_packages() {
    let Some(launcher) = Launcher::find() else { return };
    let Some(debian) = Debian::start(&launcher, "apt", &[]) else { return };
    let install = |source: &str| {
        debian.shell(&format!(
            "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; echo '{source}' >/etc/apt/sources.list"
        ));
        let clock = "-o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false";
        debian.shell(&format!(
            "apt-get {clock} update && \
             DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends hello && hello"
        ))
    };
    make_repository(debian.files.path());
    let output = install(&format!("deb [trusted=yes] {}/ ./", debian.server.url()));
    assert!(output.ends_with("hello out of a repository of one"), "{output}");

    let suite = debian.shell(". /etc/os-release && echo $VERSION_CODENAME");
    match mirror() {
        Some(mirror) => {
            debian.shell("apt-get remove -y hello");
            let output = install(&format!("deb {mirror} {suite} main"));
            assert!(output.ends_with("Hello, world!"), "{output}");
        }
        None => println!("SKIPPED: the mirror of this machine's packages cannot be reached"),
    }
    let metrics =
        debian.sandbox.on(["stats", "--no-stream", "--format", "json"]).output().success();
    let metrics: serde_json::Value = serde_json::from_str(&metrics).expect("JSON");
    let network = &metrics["machine"]["network"];
    assert!(network["tcp_flows"].as_u64() > Some(0), "{network}");
}

/// A repository with one package, `hello`.
fn make_repository(folder: &Path) {
    let root = folder.join("hello");
    fs::create_dir_all(root.join("DEBIAN")).expect("a folder");
    fs::create_dir_all(root.join("usr/bin")).expect("a folder");
    let program = root.join("usr/bin/hello");
    fs::write(&program, "#!/bin/sh\necho hello out of a repository of one\n").expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let control = "Package: hello\nVersion: 0.1\nArchitecture: all\n\
                   Maintainer: nobody <nobody@example.org>\nDescription: says hello\n";
    fs::write(root.join("DEBIAN/control"), control).expect("a file");
    let status = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build", "hello", "hello.deb"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("this machine has dpkg-deb").success());
    let package = fs::read(folder.join("hello.deb")).expect("the package");
    let digest: String =
        Sha256::digest(&package).iter().map(|byte| format!("{byte:02x}")).collect();
    let len = package.len();
    let index = format!("{control}Filename: ./hello.deb\nSize: {len}\nSHA256: {digest}\n");
    fs::write(folder.join("Packages"), index).expect("a file");
}

/// The package mirror of this machine, if it is reachable without TLS.
fn mirror() -> Option<String> {
    let targets = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let output = Command::new("apt-get").args(targets).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let is_reachable = |uri: &&str| {
        let host = uri.strip_prefix("http://").and_then(|rest| rest.split('/').next());
        host.is_some_and(|host| is_reachable(host, 80))
    };
    text.lines().find(is_reachable).map(str::to_owned)
}

/// Whether another machine accepts connections there.
pub(crate) fn is_reachable(host: &str, port: u16) -> bool {
    let addresses = (host, port).to_socket_addrs().into_iter().flatten();
    let mut others = addresses.filter(|address| !address.ip().is_loopback());
    others.any(|other| TcpStream::connect_timeout(&other, Duration::from_secs(5)).is_ok())
}

#[test]
fn pip_downloads_packages() {
    let Some(launcher) = Launcher::find() else { return };
    let Some(pip) = ask_python("import pip, os; print(os.path.dirname(pip.__file__))") else {
        return println!("SKIPPED: this machine has no pip to copy into the box");
    };
    let Some(debian) = Debian::start(&launcher, "pip", &[]) else { return };
    debian.shell("mkdir -p /root/lib");
    debian.copy_in(&PathBuf::from(pip), "/root/lib/");
    let download = |options: &str| {
        debian.shell(&format!(
            "rm -rf /tmp/wheels; PYTHONPATH=/root/lib python3 -m pip download -q --no-deps --no-cache-dir \
             --disable-pip-version-check --retries 1 -d /tmp/wheels {options} six && ls /tmp/wheels"
        ))
    };
    make_index(debian.files.path());
    let url = debian.server.url();
    let local = download(&format!("-i {url}/simple --trusted-host host.boxlite.internal"));
    assert_eq!(local, "six-0.1-py3-none-any.whl");

    let index = ask_python(
        "import subprocess, sys; print(subprocess.run([sys.executable, '-m', 'pip', 'config', 'get', \
         'global.index-url'], capture_output=True, text=True).stdout.strip() or 'https://pypi.org/simple')",
    );
    let index = index.expect("python runs");
    let host = index.strip_prefix("https://").and_then(|rest| rest.split('/').next());
    match host.filter(|host| is_reachable(host, 443) && Path::new(CERTIFICATES).exists()) {
        Some(_) => {
            debian.copy_in(Path::new(CERTIFICATES), "/root/trusted.crt");
            let found = download(&format!("-i {index} --cert /root/trusted.crt"));
            assert!(found.starts_with("six-1"), "{found}");
        }
        None => println!("SKIPPED: the index of this machine's pip cannot be reached by TLS"),
    }
}

/// An index with one wheel, `six`.
fn make_index(folder: &Path) {
    let wheel = folder.join("simple/six");
    fs::create_dir_all(&wheel).expect("a folder");
    let link = "<a href=\"six-0.1-py3-none-any.whl\">six-0.1-py3-none-any.whl</a>";
    fs::write(wheel.join("index.html"), link).expect("a file");
    let script = "import sys, zipfile\n\
                  z = zipfile.ZipFile(sys.argv[1], 'w')\n\
                  z.writestr('six-0.1.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: six\\nVersion: 0.1\\n')\n\
                  z.writestr('six-0.1.dist-info/WHEEL', 'Wheel-Version: 1.0\\nTag: py3-none-any\\n')\n\
                  z.close()";
    let path = wheel.join("six-0.1-py3-none-any.whl");
    let status = Command::new("python3").arg("-c").arg(script).arg(path).status();
    assert!(status.expect("this machine has python3").success());
}

/// The output of a Python script on this machine; none if it fails or prints nothing.
fn ask_python(script: &str) -> Option<String> {
    let output = Command::new("python3").args(["-c", script]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
