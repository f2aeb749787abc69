//! Names and numbers of signals in a guest: those of Linux, whatever the host is.

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Other names of some signals.
const ALIASES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// The numbers of the first and the last real-time signal. C libraries reserve the kernel's first two.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Parses a signal's name (`SIGTERM`, `TERM`, `RTMIN+3`, `RTMAX-3`) or number. Returns its Linux number.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(RTMIN + offset_after('+', offset)?);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(RTMAX - offset_after('-', offset)?);
    }
    let plain = NAMES.iter().copied().zip(1..);
    plain.chain(ALIASES).find_map(|(known, number)| (known == name).then_some(number))
}

fn real_time(number: i32) -> Option<i32> {
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// The number after the sign; 0 for an empty text.
fn offset_after(sign: char, text: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    text.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from)
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
        for (text, number) in [
            ("SIGRTMAX-3", 61),
            ("rtmax", 64),
            ("SIGRTMAX-30", 34),
            ("SIGRTMIN+3", 37),
            ("SIGIOT", 6),
            ("SIGPOLL", 29),
            ("cld", 17),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX+1",
            "RTMAX-31",
            "RTMAX-",
            "RTMAX--3",
            "RTMIN+-3",
            "RTMIN+999999999999",
            "TERMINATE",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
