//! Common programs through the network: iperf3, curl, nginx and others.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::NetworkOptions;

use crate::lab::{OUTSIDE, OUTSIDE6, in_lab, missing};

/// A program that runs until it is dropped.
struct Server(Child);

impl Server {
    fn start(program: &str, args: &[&str], port: u16) -> Self {
        let mut command = Command::new(program);
        let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        let line = format!(":{port:04X} ");
        // No trial connection: the program may serve one client only.
        let listens = || {
            ["tcp", "tcp6"].iter().any(|table| {
                let table = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap();
                table.lines().any(|l| l.contains(&line) && l.contains(" 0A "))
            })
        };
        while !listens() {
            assert!(Instant::now() < deadline, "{program} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn iperf3_in_both_directions() {
    if let Some(reason) = missing(&["iperf3"]) {
        return println!("SKIPPED: {reason}");
    }
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        let _server = Server::start("iperf3", &["--server", "--port", "5201"], 5201);
        for (address, extra) in [
            (OUTSIDE, &[][..]),
            (OUTSIDE, &["--reverse"]),
            (OUTSIDE, &["--parallel", "8", "--bidir"]),
            (OUTSIDE6, &["--reverse"]),
            (OUTSIDE, &["--udp", "--bitrate", "50M"]),
            (OUTSIDE, &["--udp", "--bitrate", "50M", "--reverse"]),
        ] {
            let args = [&["--client", address, "--time", "1", "--json"], extra].concat();
            let output = lab.guest_run("iperf3", &args);
            let report = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{args:?}: {report}");
            assert!(!report.contains("\"bits_per_second\":\t0,"), "{args:?}: {report}");
        }
        assert_eq!(network.counters().malformed, 0);
    });
}

#[test]
fn curl_fetches_from_nginx() {
    if let Some(reason) = missing(&["curl", "nginx"]) {
        return println!("SKIPPED: {reason}");
    }
    in_lab(|lab| {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(97) >> 8) as u8).collect();
        fs::write(dir.path().join("large"), &data).unwrap();
        fs::write(dir.path().join("small"), "small\n").unwrap();
        let root = dir.path().display();
        let conf = dir.path().join("nginx.conf");
        let text = format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/error;\n\
             events {{}}\nhttp {{ access_log off; client_body_temp_path {root};\n\
             server {{ listen 8080; listen [::]:8080; root {root}; }} }}\n"
        );
        fs::write(&conf, text).unwrap();
        let _server = Server::start("nginx", &["-c", conf.to_str().unwrap()], 8080);
        let network = lab.start(NetworkOptions::default());
        for host in [OUTSIDE.to_owned(), format!("[{OUTSIDE6}]")] {
            let url = |file| format!("http://{host}:8080/{file}");
            let fetched = lab.guest_run("curl", &["--silent", "--fail", &url("large")]);
            assert!(fetched.stdout == data, "{} bytes: {:?}", fetched.stdout.len(), fetched.status);
            // One connection, many requests; then many connections at once.
            let urls = vec![url("small"); 50];
            for parallel in [&[][..], &["--parallel", "--parallel-max", "25"]] {
                let args = [&["--silent", "--fail", "--no-progress-meter"], parallel].concat();
                let args: Vec<&str> =
                    args.into_iter().chain(urls.iter().map(String::as_str)).collect();
                let fetched = lab.guest_run("curl", &args);
                assert_eq!(fetched.stdout, "small\n".repeat(50).as_bytes(), "{:?}", fetched.status);
            }
        }
        network.wait_for("all flows end", |c| c.tcp_open == 0);
    });
}
