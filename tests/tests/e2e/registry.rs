//! Images from a registry: a real docker-registry on this machine, filled by skopeo.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use boxlite_tests::image::{Compression, ImageBuilder, Layer};
use boxlite_tests::{BUSYBOX, Launcher};

/// A docker-registry, killed when dropped.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// Starts one. None, after printing `SKIPPED`, if docker-registry or skopeo is not installed.
    fn start(folder: &Path) -> Option<Self> {
        for tool in ["docker-registry", "skopeo"] {
            if Command::new(tool).arg("--version").output().is_err() {
                println!("SKIPPED: {tool} is not installed");
                return None;
            }
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (config, log) = (folder.join("config.yml"), folder.join("registry.log"));
        let data = folder.join("data");
        let text = format!(
            "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
             http: {{ addr: '127.0.0.1:{port}', secret: none }}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null());
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let registry = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// Copies an image into it.
    fn push(&self, from: &str, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", from]);
        let status = command.arg(format!("docker://127.0.0.1:{}/{name}", self.port)).status();
        assert!(status.unwrap().success(), "{name} cannot be pushed");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn boxes_run_images_of_a_registry() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let Some(registry) = Registry::start(folder.path()) else { return };
    let image = |mark: &str| {
        ImageBuilder::on(&launcher.layout(BUSYBOX))
            .layer(Layer::new().file("mark", 0o644, mark), Compression::Gzip)
            .write(&folder.path().join(mark))
            .reference()
    };
    registry.push(&image("first"), "team/tool:v1");
    // This machine's address, seen from where images are pulled.
    let host = if launcher.has_hardware() { "127.0.0.1" } else { "10.0.2.2" };
    let address = format!("{host}:{}", registry.port);
    let settings = folder.path().join("registries.json");
    fs::write(&settings, format!("{{ {address:?}: {{ \"insecure\": true }} }}")).unwrap();
    let command = |args: &[&str]| launcher.command(args).env("BOXLITE_REGISTRIES", &settings);

    let name = format!("{address}/team/tool:v1");
    command(&["run", "--pull", "never", &name, "true"]).output().fails_with(&[&name]);
    assert_eq!(command(&["run", &name, "cat", "/mark"]).output().success(), "first");
    assert!(command(&["image", "ls"]).output().success().contains("team/tool"));
    // A moved tag is used only with `--pull always`.
    registry.push(&image("second"), "team/tool:v1");
    assert_eq!(command(&["run", &name, "cat", "/mark"]).output().success(), "first");
    let always = ["run", "--pull", "always", &name, "cat", "/mark"];
    assert_eq!(command(&always).output().success(), "second");

    let missing = format!("{address}/team/tool:v2");
    command(&["image", "pull", &missing]).output().refuses_with(&[&address, "v2"]);
    drop(registry);
    assert_eq!(command(&["run", &name, "cat", "/mark"]).output().success(), "second");
    command(&always).output().fails_with(&[&address]);
    command(&["image", "rm", &name]).output().success();
}
