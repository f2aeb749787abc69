//! Turns an exec request into a running process, or into the failure that says why it cannot run.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use boxlite_proto::message::{Exec, Failure, FailureKind, LISTENER};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::Pid;

use super::cgroup::Cgroup;
use super::namespace::Namespace;
use super::stdio::Stdio;
use super::user::{self, Identity};
use super::{Kind, init};
use crate::sys::process::{Namespaces, Plan, Spawned, Step, spawn};

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A started command.
pub(crate) struct Started {
    pub(crate) process: Spawned,
    /// The namespace that was made for a main command.
    pub(crate) namespace: Option<Namespace>,
    /// The agent's ends of its stdio.
    pub(crate) stdio: Stdio,
}

/// Starts `exec`. A `detached` one has no streams to the host.
pub(crate) fn start(
    exec: &Exec,
    kind: Kind<'_>,
    detached: bool,
    cgroup: Option<&Cgroup>,
) -> Result<Started, Failure> {
    let identity =
        user::resolve(&exec.user).map_err(|e| failure(FailureKind::UnknownUser, e.to_string()))?;
    let command = ExecArgs::new(exec, &identity)?;
    make_working_dir(&command.working_dir)?;
    let stdio = match exec.terminal {
        Some(size) => Stdio::terminal(size, identity.uid()),
        None if detached => Stdio::null(),
        None => Stdio::pipes(exec.stdin, identity.uid()),
    }
    .map_err(|e| other("cannot open the command's stdio", e))?;
    let cgroup = cgroup.map(Cgroup::open_procs).transpose();
    let cgroup = cgroup.map_err(|e| other("cannot open the command's control group", e))?;
    let cgroup = cgroup.as_ref().map(AsFd::as_fd);
    let groups: Vec<_> =
        identity.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect();
    let init = match kind {
        Kind::Main { init: true } => Some(start_init(&identity, &groups, cgroup)?),
        _ => None,
    };
    let namespaces = match (kind, &init) {
        (_, Some(init)) => Namespaces::Join(init.handle()),
        (Kind::Main { .. }, None) => Namespaces::New,
        (Kind::Beside(Some(main)), None) => Namespaces::Join(main),
        (Kind::Beside(None) | Kind::Server(_), None) => Namespaces::Same,
    };
    let inherited = match kind {
        Kind::Server(listener) => Some((listener, LISTENER)),
        Kind::Main { .. } | Kind::Beside(_) => None,
    };
    let spawned = spawn(&Plan {
        programs: &as_refs(&command.programs),
        argv: &as_refs(&command.argv),
        env: &as_refs(&command.env),
        working_dir: &command.working_dir,
        uid: identity.uid(),
        gid: identity.gid(),
        groups: &groups,
        stdio: stdio.command_ends(),
        inherited,
        terminal: exec.terminal.is_some(),
        cgroup,
        namespaces,
    });
    let process = match spawned {
        Ok(process) => process,
        Err((step, errno)) => {
            init.iter().for_each(Namespace::kill);
            return Err(command.explain(step, errno));
        }
    };
    let namespace = match kind {
        Kind::Main { init: false } => Some(namespace_of(process.pid, false)?),
        _ => init,
    };
    Ok(Started { process, namespace, stdio })
}

/// Starts an init as the first process of a namespace, with the user and groups of its command.
fn start_init(
    identity: &Identity,
    groups: &[rustix::process::Gid],
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Namespace, Failure> {
    let stdio = Stdio::null().map_err(|e| other("cannot open the init's stdio", e))?;
    let spawned = spawn(&Plan {
        // The file of this program was removed from the initramfs at boot, so it has no other path.
        programs: &[c"/proc/self/exe"],
        argv: &[init::NAME],
        env: &[],
        working_dir: c"/",
        uid: identity.uid(),
        gid: identity.gid(),
        groups,
        stdio: stdio.command_ends(),
        inherited: None,
        terminal: false,
        cgroup,
        namespaces: Namespaces::New,
    });
    let process = spawned
        .map_err(|(step, e)| other(&format!("cannot start the box's init ({step:?})"), e))?;
    namespace_of(process.pid, true)
}

fn namespace_of(first: Pid, has_init: bool) -> Result<Namespace, Failure> {
    Namespace::of(first, has_init).map_err(|e| {
        let _ = rustix::process::kill_process(first, rustix::process::Signal::KILL);
        other("cannot refer to the box's first process", e)
    })
}

fn as_refs(strings: &[CString]) -> Vec<&CStr> {
    strings.iter().map(CString::as_c_str).collect()
}

/// The arguments of `execve(2)`, as C strings.
struct ExecArgs {
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    working_dir: CString,
}

impl ExecArgs {
    fn new(exec: &Exec, identity: &Identity) -> Result<Self, Failure> {
        let program = match exec.argv.first() {
            Some(program) if !program.is_empty() => program,
            _ => return Err(failure(FailureKind::NotFound, "the command is empty".into())),
        };
        let mut env = exec
            .env
            .iter()
            .map(|variable| c_string("an environment variable", variable))
            .collect::<Result<Vec<_>, _>>()?;
        if value_of(&exec.env, b"HOME").is_none() {
            env.push(c_string("the home directory", &[b"HOME=", &identity.home[..]].concat())?);
        }
        let path = value_of(&exec.env, b"PATH").unwrap_or_else(|| {
            env.extend(CString::new([b"PATH=", DEFAULT_PATH].concat()));
            DEFAULT_PATH
        });
        let programs = if program.contains(&b'/') {
            vec![c_string("the command", program)?]
        } else {
            path.split(|b| *b == b':')
                .map(|dir| {
                    let dir = if dir.is_empty() { b"." } else { dir };
                    c_string("the command", &[dir, b"/", program].concat())
                })
                .collect::<Result<_, _>>()?
        };
        let argv = exec
            .argv
            .iter()
            .map(|argument| c_string("an argument", argument))
            .collect::<Result<_, _>>()?;
        let working_dir = match &exec.working_dir[..] {
            [] => c"/".to_owned(),
            [b'/', ..] => c_string("the working directory", &exec.working_dir)?,
            relative => c_string("the working directory", &[b"/", relative].concat())?,
        };
        Ok(Self { programs, argv, env, working_dir })
    }

    /// The failure of a start at this step.
    fn explain(&self, step: Step, errno: Errno) -> Failure {
        let name = self.argv.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        match (step, errno) {
            (Step::Exec, Errno::NOENT | Errno::NOTDIR) => {
                let [path] = &self.programs[..] else {
                    return failure(FailureKind::NotFound, format!("{name}: not found in PATH"));
                };
                let why = if rustix::fs::stat(path.as_c_str()).is_ok() {
                    "the interpreter that it names is not there"
                } else {
                    "no such file"
                };
                failure(FailureKind::NotFound, format!("{name}: {why}"))
            }
            (Step::Exec, Errno::NAMETOOLONG | Errno::LOOP) => {
                failure(FailureKind::NotFound, format!("{name}: {errno}"))
            }
            (Step::Exec, Errno::TOOBIG) => {
                other("the arguments and the environment are too large together", errno)
            }
            (Step::Exec, Errno::NOMEM | Errno::AGAIN | Errno::NFILE) => other(&name, errno),
            (Step::Exec, errno) => {
                let why = match errno {
                    Errno::ACCESS => "permission denied, or a directory".to_owned(),
                    Errno::NOEXEC => "not a program that this machine can run".to_owned(),
                    errno => errno.to_string(),
                };
                failure(FailureKind::NotExecutable, format!("{name}: {why}"))
            }
            (Step::WorkingDir, errno) => working_dir_failure(&self.working_dir, errno),
            // The kernel's errors for a namespace that is ending.
            (Step::Clone | Step::Namespaces, Errno::NOMEM | Errno::SRCH) => other(
                "cannot start a process; the box's main command has ended, or memory ran out",
                errno,
            ),
            (Step::Clone, errno) => other("cannot start a process", errno),
            (Step::Namespaces, errno) => other("cannot enter the box's namespaces", errno),
            (Step::Session, errno) => other("cannot open a session on the terminal", errno),
            (Step::Stdio, errno) => other("cannot connect the command's stdio", errno),
            (Step::Cgroup, errno) => other("cannot enter the command's control group", errno),
            (Step::User, errno) => other("cannot become the user", errno),
        }
    }
}

/// The value of the last variable with this name.
fn value_of<'a>(env: &'a [Vec<u8>], name: &[u8]) -> Option<&'a [u8]> {
    env.iter().rev().find_map(|variable| variable.strip_prefix(name)?.strip_prefix(b"="))
}

/// Makes a missing working directory, which belongs to root, as container engines do.
fn make_working_dir(dir: &CStr) -> Result<(), Failure> {
    if rustix::fs::stat(dir).is_ok() {
        return Ok(());
    }
    let bytes = dir.to_bytes();
    let ends = bytes.iter().enumerate().skip(1).filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    for end in ends.chain([bytes.len()]) {
        match rustix::fs::mkdir(&bytes[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(working_dir_failure(dir, errno)),
        }
    }
    Ok(())
}

fn working_dir_failure(dir: &CStr, errno: Errno) -> Failure {
    let dir = dir.to_string_lossy();
    failure(FailureKind::WorkingDir, format!("cannot enter the working directory {dir}: {errno}"))
}

fn c_string(what: &str, bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| {
        let bytes = String::from_utf8_lossy(bytes);
        failure(FailureKind::Other, format!("{what} contains a NUL byte: {bytes:?}"))
    })
}

fn other(what: &str, errno: Errno) -> Failure {
    failure(FailureKind::Other, format!("{what}: {errno}"))
}

fn failure(kind: FailureKind, message: String) -> Failure {
    Failure { kind, message }
}
