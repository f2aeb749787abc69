//! Names of signals, by Linux numbers: they are the guest's, whatever the host is.

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The number of the first real-time signal.
const RTMIN: i32 = 34;

/// The number of a signal from its name (`SIGTERM`, `TERM`, `RTMIN+3`) or number.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return RTMIN.checked_add(offset).filter(|number| (RTMIN..=64).contains(number));
    }
    NAMES.iter().zip(1..).find_map(|(known, number)| (*known == name).then_some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("SIGTERM", 15), ("kill", 9), ("10", 10), ("SYS", 31)] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        assert_eq!(parse("RTMIN"), Some(34));
        assert_eq!(parse("SIGRTMIN+30"), Some(64));
        for text in ["", "0", "65", "-1", "SIG", "RTMIN+31", "RTMIN-1", "TERMINATE"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
