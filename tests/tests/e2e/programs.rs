//! Real programs: a distribution with its interpreters, compiler and package manager.

use std::time::Duration;

use boxlite_tests::{Launcher, Output, is_long};

const DEADLINE: Duration = Duration::from_secs(600);

/// Quick modules of python's own regression tests, which together use files, processes, sockets, threads, numbers and
/// text.
const PYTHON_MODULES: [&str; 5] =
    ["test_struct", "test_textwrap", "test_base64", "test_heapq", "test_posixpath"];
const MORE_PYTHON_MODULES: [&str; 6] =
    ["test_json", "test_os", "test_subprocess", "test_socket", "test_threading", "test_mmap"];

fn bash(launcher: &Launcher, options: &[&str], script: &str) -> Output {
    launcher
        .command(["run"])
        .args(options)
        .args([&launcher.debian(), "bash", "-euo", "pipefail", "-c", script])
        .deadline(DEADLINE)
        .output()
}

#[test]
fn pythons_own_regression_tests_pass() {
    let Some(launcher) = Launcher::find() else { return };
    let mut modules = PYTHON_MODULES.join(" ");
    if is_long() {
        modules.push(' ');
        modules.push_str(&MORE_PYTHON_MODULES.join(" "));
    }
    let script = format!("cd /tmp && python3 -m test {modules}");
    let output = bash(&launcher, &["--memory", "1G"], &script).success();
    let passed = output.contains("Result: SUCCESS") || output.contains("Tests result: SUCCESS");
    assert!(passed, "{output}");
}

#[test]
fn a_c_program_is_compiled_and_run() {
    let Some(launcher) = Launcher::find() else { return };
    let script = r#"cd /tmp
cat > a.c <<'END'
#include <math.h>
#include <pthread.h>
#include <stdio.h>
static void *work(void *arg) { *(double *)arg = sqrt(*(double *)arg); return 0; }
int main(void) {
    pthread_t threads[4];
    double values[4] = {1, 4, 9, 16};
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, &values[i]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
    printf("%g %g %g %g\n", values[0], values[1], values[2], values[3]);
    return 3;
}
END
gcc -O2 -Wall -Werror -o a a.c -pthread -lm
./a"#;
    let output = bash(&launcher, &["--cpus", "2"], script).expect(3);
    assert_eq!(output.stdout_lossy(), "1 2 3 4\n");
}

#[test]
fn interpreters_and_a_database_work() {
    let Some(launcher) = Launcher::find() else { return };
    let script = r#"cd /tmp
perl -MDigest::SHA=sha256_hex -e 'print sha256_hex("abc"), "\n"'
python3 - <<'END'
import sqlite3
db = sqlite3.connect("/tmp/x.db")
db.execute("pragma journal_mode = wal")
with db:
    db.execute("create table t (n integer primary key, s text)")
    db.executemany("insert into t values (?, ?)", ((n, str(n) * 3) for n in range(5000)))
db.close()
db = sqlite3.connect("/tmp/x.db")
print(db.execute("pragma integrity_check").fetchone()[0])
print(db.execute("select count(*), sum(n), max(s) from t").fetchone())
END"#;
    let output = bash(&launcher, &[], script).success();
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\nok\n\
                    (5000, 12497500, '999999999')";
    assert_eq!(output, expected);
}

#[test]
fn every_file_of_the_distribution_matches_its_package() {
    let Some(launcher) = Launcher::find() else { return };
    // dpkg prints files that differ; the image's recipe removes and changes no file of a package.
    let output = bash(&launcher, &[], "dpkg --verify; dpkg --audit; echo verified").success();
    assert_eq!(output, "verified");
}

#[test]
fn a_large_file_is_written_synced_and_read_back() {
    let Some(launcher) = Launcher::find() else { return };
    let script = r#"cd /root
head -c 209715200 /dev/urandom | tee data | sha256sum > written
sync
echo 3 > /proc/sys/vm/drop_caches
sha256sum < data > read
cmp written read
stat -c %s data"#;
    // Less memory than data, so that the data cannot all stay in a cache.
    assert_eq!(bash(&launcher, &["--memory", "192M"], script).success(), "209715200");
}

#[test]
fn no_process_of_a_box_reaches_its_agent() {
    let Some(launcher) = Launcher::find() else { return };
    // Sends the host's greeting and a request to every address that an agent could have; then looks for processes
    // other than the command's, and for devices that every user may write to.
    let script = r#"
import fcntl, os, socket, stat, struct
with open("/dev/vsock") as device:
    own = struct.unpack("I", fcntl.ioctl(device, 0x7b9, bytes(4)))[0]
hello = bytes.fromhex("030000000000000001010000" "01000000010000000200")

def ask(cid, port, bound):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        s.settimeout(60)
        try:
            if bound: s.bind((0xffffffff, 900 + cid))
            s.connect((cid, port))
            s.sendall(hello)
            if s.recv(1): print("reached", cid, port, os.getuid())
        except (ConnectionError, OSError) as e:
            if isinstance(e, TimeoutError): print("reached, perhaps", cid, port, os.getuid())

def try_all():
    for cid in (1, 2, own):
        for port in (1024, 1025):
            ask(cid, port, os.getuid() == 0)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as comm:
                if comm.read().strip() != "python3": print("reached", pid)
        except FileNotFoundError: pass

try_all()
if os.fork() == 0:
    os.setresuid(65534, 65534, 65534)
    try_all()
    os._exit(0)
os.wait()
for folder, _, names in os.walk("/dev"):
    for name in names:
        path = os.path.join(folder, name)
        mode = os.lstat(path).st_mode
        if mode & 2 and not stat.S_ISLNK(mode): print(path)
print("own", own)
"#;
    let output = launcher
        .command(["run", &launcher.debian(), "python3", "-c", script])
        .deadline(DEADLINE)
        .output()
        .success();
    let harmless = ["full", "null", "ptmx", "random", "tty", "urandom", "zero"];
    let mut found: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("/dev/")).collect();
    found.retain(|name| !name.starts_with("pts/"));
    found.sort_unstable();
    assert!(!output.contains("reached") && output.contains("own 3"), "{output}");
    assert_eq!(found, harmless, "{output}");
}
