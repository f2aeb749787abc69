//! Linux's limits for a command, checked before a box is created or a request is sent.

use boxlite_proto::message::{Exec, Failure, FailureKind};

use super::problem::{BoxOption, Problem};

/// The longest argument or variable in bytes, including its terminating zero byte (`MAX_ARG_STRLEN`: 32 pages).
const MAX_STRING: usize = 128 << 10;

/// The limit of all arguments and variables in bytes, with their zero bytes and a pointer to each: a quarter of the
/// 8 MiB stack that the guest's kernel gives a process.
const MAX_ALL: usize = 2 << 20;

/// The part of [`MAX_ALL`] for additions in the box: `HOME`, `PATH`, `TERM`, the path of the program, an interpreter.
const SPARE: usize = 16 << 10;

/// The longest path or user name in bytes, including its zero byte (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Checks a command; the error names the option.
pub(super) fn check(exec: &Exec) -> Result<(), Problem> {
    for (number, word) in exec.argv.iter().enumerate() {
        check_string(BoxOption::Entrypoint, || format!("word {}", number + 1), word)?;
    }
    for variable in &exec.env {
        let name = variable.split(|byte| *byte == b'=').next().unwrap_or_default();
        let name = || format!("variable {:.60}", String::from_utf8_lossy(name));
        check_string(BoxOption::Env, name, variable)?;
    }
    let paths =
        [(BoxOption::WorkingDir, &exec.working_dir[..]), (BoxOption::User, exec.user.as_bytes())];
    for (option, path) in paths {
        if path.len() >= MAX_PATH {
            let message = format!("{} bytes: Linux allows {}", path.len(), MAX_PATH - 1);
            return Err(Problem::new(option, message));
        }
    }
    check_sum(exec)
}

fn check_string(
    option: BoxOption,
    name: impl Fn() -> String,
    string: &[u8],
) -> Result<(), Problem> {
    if string.len() < MAX_STRING {
        return Ok(());
    }
    let (len, most) = (string.len(), MAX_STRING - 1);
    Err(Problem::new(option, format!("{}: {len} bytes: Linux allows {most} for one", name())))
}

fn check_sum(exec: &Exec) -> Result<(), Problem> {
    let size = |strings: &[Vec<u8>]| -> usize {
        strings.iter().map(|string| string.len() + 1 + size_of::<usize>()).sum()
    };
    let (words, variables) = (size(&exec.argv), size(&exec.env));
    let most = MAX_ALL - SPARE;
    if words + variables <= most {
        return Ok(());
    }
    let option = if variables >= words { BoxOption::Env } else { BoxOption::Entrypoint };
    let message = format!(
        "the environment ({variables} bytes) and the command ({words} bytes) are too large: Linux allows \
         {most} bytes together; put some of it into a file in the box"
    );
    Err(Problem::new(option, message))
}

/// The failure that the agent would report.
pub(super) fn failure(problem: &Problem) -> Failure {
    let message = format!("the command cannot be run: {}", problem.message);
    Failure { kind: FailureKind::Other, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(argv: Vec<Vec<u8>>, env: Vec<Vec<u8>>) -> Exec {
        Exec { argv, env, ..Exec::default() }
    }

    fn variable(len: usize) -> Vec<u8> {
        [b"NAME=".to_vec(), vec![b'x'; len - 5]].concat()
    }

    #[test]
    fn commands_are_allowed_up_to_the_limits_of_linux() {
        let longest = variable(MAX_STRING - 1);
        check(&exec(vec![longest.clone()], vec![longest.clone()])).unwrap();
        let problem = check(&exec(vec![], vec![variable(MAX_STRING)])).unwrap_err();
        let said = problem.to_string();
        assert!(said.contains("env: variable NAME: 131072 bytes"), "{said}");
        let problem = check(&exec(vec![vec![], vec![b'x'; MAX_STRING]], vec![])).unwrap_err();
        assert!(problem.to_string().contains("word 2: 131072 bytes"), "{problem}");
        // 15 fill 1.9 MiB; the 16th and some pointers are too much.
        check(&exec(vec![], vec![longest.clone(); 15])).unwrap();
        let problem = check(&exec(vec![], vec![longest; 16])).unwrap_err();
        assert!(problem.message.contains("file in the box"), "{problem}");
        // Many small ones count with their pointers.
        assert!(check(&exec(vec![vec![b'x']; 300_000], vec![])).is_err());
        check(&exec(vec![vec![b'x']; 200_000], vec![])).unwrap();
        let long = Exec { working_dir: vec![b'/'; MAX_PATH], ..Exec::default() };
        assert_eq!(check(&long).unwrap_err().option, BoxOption::WorkingDir);
    }

    #[test]
    fn the_largest_command_fits_a_frame() {
        use boxlite_proto::frame::MAX_BODY;
        use boxlite_proto::message::Request;
        let mut largest = exec(vec![vec![b'x']; 150_000], vec![variable(MAX_STRING - 1); 4]);
        check(&largest).unwrap();
        largest.env.extend(vec![variable(MAX_STRING - 1); 15]);
        largest.argv.clear();
        let body = Request::Exec(largest).frame(1).body.len();
        assert!(body <= MAX_BODY, "{body}");
    }
}
