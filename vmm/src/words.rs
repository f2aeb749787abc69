//! The text of errors in the command line's words: remedies and options, which the library has as data, become
//! commands and flags.

use boxlite_runtime::{BoxOption, Error, Problem, Remedy};

/// The text of an error with its causes, each of them once.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let ours = cause.downcast_ref::<Error>();
        let words = ours.map_or_else(|| cause.to_string(), self::error);
        // Many messages end with their cause.
        if text.is_empty() {
            text = words;
        } else if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        if ours.is_some() {
            break;
        }
    }
    text
}

/// The text of a library's error, with its remedy.
pub(crate) fn error(error: &Error) -> String {
    match error.problems() {
        [] => error.to_string_with(remedy),
        problems => problems.iter().map(problem).collect::<Vec<_>>().join("\n"),
    }
}

/// The text of a problem with an option.
pub(crate) fn problem(problem: &Problem) -> String {
    let mut text = format!("--{} {}", flag(problem.option), problem.message);
    if let Some(other) = problem.other {
        let value = if other == BoxOption::NetworkMode { " nat" } else { "" };
        text += &format!(" (--{}{value})", flag(other));
    }
    if let Some(instead) = &problem.remedy {
        text += &format!("; {}", remedy(instead));
    }
    text
}

/// The text of a remedy.
pub(crate) fn remedy(remedy: &Remedy) -> String {
    let words = match remedy {
        Remedy::StartBox { name } => return format!("start it first (start {name})"),
        Remedy::ResumeBox { name } => return format!("resume it first (resume {name})"),
        Remedy::RemoveOrRename { name } => {
            return format!("choose another name, or remove it (rm {name})");
        }
        Remedy::StopOrForceRemove { .. } => "stop it first, or remove it by force (rm --force)",
        Remedy::ListBoxes => "`ls --all` lists them",
        Remedy::FreeDiskSpace => "free some space there, or choose another home (--home)",
        Remedy::AddMemory => "give it more (--memory)",
        Remedy::ReadConsole => {
            "run with --debug and read console.log in the box's folder, or give it more time \
             (--ready-timeout)"
        }
        Remedy::CopyFiles => "copy files with `cp`",
        Remedy::NameOnImport => {
            "save it with its name, or import it under one: `image import docker-archive:FILE NAME`"
        }
        Remedy::SetHome => "set BOXLITE_HOME or HOME, or pass --home",
        Remedy::RecordElsewhere => {
            "to keep this part, record in another file (--pcap) when you start the box again"
        }
        // The library's words for the others name nothing of its API.
        other => return other.to_string(),
    };
    words.to_owned()
}

/// The flag of an option, without its dashes.
fn flag(option: BoxOption) -> &'static str {
    match option {
        BoxOption::MemoryMib => "memory",
        BoxOption::DiskSizeGib => "disk-size",
        BoxOption::ReadyTimeout => "ready-timeout",
        BoxOption::WorkingDir => "workdir",
        BoxOption::StopSignal => "stop-signal",
        BoxOption::AutoRemove => "rm",
        BoxOption::Labels => "label",
        BoxOption::Health | BoxOption::HealthCommand => "health-cmd",
        BoxOption::HealthInterval => "health-interval",
        BoxOption::HealthTimeout => "health-timeout",
        BoxOption::HealthRetries => "health-retries",
        BoxOption::NoHealthCheck => "no-healthcheck",
        BoxOption::Volumes => "volume",
        BoxOption::Ports => "publish",
        BoxOption::NetworkMode => "network",
        BoxOption::NetworkAllow => "allow",
        BoxOption::NetworkDeny => "deny",
        BoxOption::NetworkLimitDown => "limit-down",
        BoxOption::NetworkLimitUp => "limit-up",
        // The others have the names of their fields.
        same => same.field(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;
    use boxlite_runtime::{BoxOptions, Home, NetworkMode, RestartPolicy};
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn no_remedy_names_an_item_of_the_library() {
        for remedy in Remedy::one_of_each() {
            let words = super::remedy(&remedy);
            assert!(!words.is_empty() && !words.contains("::"), "{words}");
            // A method of the library is a command or a flag here.
            assert_eq!(words != remedy.to_string(), remedy.to_string().contains("::"), "{words}");
        }
    }

    #[test]
    fn every_option_is_a_flag() {
        let cli = Cli::command();
        let create = cli.find_subcommand("create").unwrap();
        for option in BoxOption::ALL {
            let is_flag = |arg: &clap::Arg| arg.get_long() == Some(flag(option));
            assert!(create.get_arguments().any(is_flag), "{option}");
        }
    }

    #[test]
    fn problems_name_flags() {
        let mut options = BoxOptions::new("x").cpus(0).auto_remove(true);
        options.restart = RestartPolicy::Always;
        options.network.mode = NetworkMode::None;
        options.network.allow = vec!["any".into()];
        assert_eq!(
            error(&options.validate().unwrap_err()),
            "--cpus 0: a box has 1 to 64\n\
             --restart cannot restart a box that is removed when it stops (--rm)\n\
             --allow needs a network (--network nat)"
        );
    }

    #[test]
    fn each_cause_is_printed_once() {
        let unusable = Home::open(Some("/dev/null/home".into())).unwrap_err();
        let words = error(&unusable);
        assert_eq!(chain(&unusable.into()), words);
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let error = anyhow::Error::new(missing()).context("cannot read x");
        assert_eq!(chain(&error), format!("cannot read x: {}", missing()));
        let home = Home::open(Some("/dev/null/home".into())).context("--home");
        assert_eq!(chain(&home.unwrap_err()), format!("--home: {words}"));
    }
}
