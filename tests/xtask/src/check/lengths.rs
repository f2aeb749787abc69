//! Limits on length: a function has at most 70 lines, a file of Rust at most 600.
//!
//! Lengths are counted on the tokens of `proc-macro2`, so that braces in strings, comments and
//! macros do not mislead the count. Every `.rs` file of the repository counts, tests included.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::build;
use crate::check::report::Outcome;
use crate::check::sources::rust_files;

/// The most lines a function may have, from the line of `fn` to that of its closing brace.
const FUNCTION_LIMIT: usize = 70;
/// The most lines a file may have.
const FILE_LIMIT: usize = 600;

/// What may be longer, and why. An exception that no longer applies is an error, too.
const EXCEPTIONS: [Exception; 2] = [
    Exception {
        path: "agent/proto/tests/golden.rs",
        function: Some("frames"),
        reason: "a table of fixtures, one for each message of the protocol",
    },
    Exception {
        path: "agent/tests/common/mod.rs",
        function: Some("tree_of_everything"),
        reason: "a table of everything that a tar can hold",
    },
];

/// One file or function that may exceed its limit.
#[derive(Clone, Copy)]
struct Exception {
    /// The end of the file's path, from a whole component on.
    path: &'static str,
    /// `None` is the file as a whole.
    function: Option<&'static str>,
    #[expect(dead_code, reason = "for whoever reads the list")]
    reason: &'static str,
}

/// A file or function that exceeds its limit.
#[derive(Debug, PartialEq, Eq)]
struct TooLong {
    /// Relative to the repository's top folder.
    path: String,
    line: usize,
    function: Option<String>,
    lines: usize,
}

impl TooLong {
    fn is_excused(&self, exception: &Exception) -> bool {
        Path::new(&self.path).ends_with(exception.path)
            && self.function.as_deref() == exception.function
    }

    fn message(&self) -> String {
        let Self { path, line, function, lines } = self;
        match function {
            Some(name) => format!(
                "{path}:{line}: function {name} has {lines} lines; at most {FUNCTION_LIMIT}"
            ),
            None => format!("{path}:{line}: the file has {lines} lines; at most {FILE_LIMIT}"),
        }
    }
}

/// A function with a body: where its `fn` stands and how many lines it spans.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// No function and no file is longer than its limit.
pub(super) fn check() -> Result<Outcome> {
    let root = build::root();
    let mut too_long = Vec::new();
    for path in rust_files(&root)? {
        let source = fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        too_long.append(&mut measure(&path.to_string_lossy(), &source)?);
    }
    let broken = violations(&too_long, &EXCEPTIONS);
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(Outcome::passed())
}

/// What is too long in the file at `path`, whose contents are `source`.
fn measure(path: &str, source: &str) -> Result<Vec<TooLong>> {
    let lines = source.lines().count();
    let whole = TooLong { path: path.to_owned(), line: 1, function: None, lines };
    let functions = functions(source).with_context(|| format!("{path} is not Rust"))?;
    let functions = functions.into_iter().filter(|it| it.lines > FUNCTION_LIMIT).map(|it| {
        TooLong { path: path.to_owned(), line: it.line, function: Some(it.name), lines: it.lines }
    });
    Ok((lines > FILE_LIMIT).then_some(whole).into_iter().chain(functions).collect())
}

/// One line for each length without an exception, and for each exception without a use.
fn violations(too_long: &[TooLong], exceptions: &[Exception]) -> Vec<String> {
    let unexcused =
        too_long.iter().filter(|it| !exceptions.iter().any(|exception| it.is_excused(exception)));
    let unused =
        exceptions.iter().filter(|exception| !too_long.iter().any(|it| it.is_excused(exception)));
    unexcused
        .map(TooLong::message)
        .chain(unused.map(|Exception { path, function, .. }| {
            let what = function.map_or_else(|| "the file".to_owned(), |name| format!("fn {name}"));
            format!("{path}: {what} needs no exception in {} any more", file!())
        }))
        .collect()
}

/// The functions of a file, those inside of others and of macros included.
fn functions(source: &str) -> Result<Vec<Function>> {
    let tokens: TokenStream = source.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut found = Vec::new();
    collect(tokens, &mut found);
    Ok(found)
}

fn collect(tokens: TokenStream, found: &mut Vec<Function>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if word == "fn" => found.extend(function_at(&tokens[at..])),
            TokenTree::Group(group) => collect(group.stream(), found),
            _ => {}
        }
    }
}

/// The function that begins with `tokens[0]`, a `fn`; `None` for a declaration without a body and
/// for a type (`fn(u8)`).
fn function_at(tokens: &[TokenTree]) -> Option<Function> {
    let TokenTree::Ident(name) = tokens.get(1)? else { return None };
    let line = tokens[0].span().start().line;
    let mut angles = 0_usize;
    let mut arrow = false;
    for token in &tokens[2..] {
        match token {
            TokenTree::Punct(mark) => {
                match mark.as_char() {
                    ';' => return None,
                    '<' => angles += 1,
                    '>' if !arrow => angles = angles.saturating_sub(1),
                    _ => {}
                }
                arrow = mark.as_char() == '-';
            }
            // Braces between angle brackets are a constant: `Ring<{ N + 1 }>`.
            TokenTree::Group(body) if body.delimiter() == Delimiter::Brace && angles == 0 => {
                let lines = body.span_close().end().line - line + 1;
                return Some(Function { name: name.to_string(), line, lines });
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(source: &str) -> Vec<(String, usize, usize)> {
        let functions = functions(source).unwrap();
        functions.into_iter().map(|it| (it.name, it.line, it.lines)).collect()
    }

    fn one(name: &str, line: usize, lines: usize) -> (String, usize, usize) {
        (name.to_owned(), line, lines)
    }

    #[test]
    fn a_function_is_counted_from_fn_to_its_brace() {
        let source =
            "/// Doc.\n#[inline]\npub fn a(\n    x: u8,\n) -> u8 {\n    // why\n    x\n}\n";
        assert_eq!(counted(source), [one("a", 3, 6)]);
        assert_eq!(counted("fn b() {}"), [one("b", 1, 1)]);
    }

    #[test]
    fn braces_in_literals_and_comments_are_not_counted() {
        let source = "fn a() {\n  let s = \"}\"; // }\n  let c = '}'; /* } /* } */ */\n  \
                      let r = r#\"}\"\n\"#;\n}\nfn b<'a>(x: &'a str) {\n}\n";
        assert_eq!(counted(source), [one("a", 1, 6), one("b", 7, 2)]);
    }

    #[test]
    fn types_and_declarations_are_no_functions() {
        let source = "type F = fn(u8) -> u8;\ntrait T { fn a(&self) -> [u8; 4];\nfn b(&self) {\n} }\n\
                      struct S { f: fn() }\n";
        assert_eq!(counted(source), [one("b", 3, 2)]);
    }

    #[test]
    fn a_constant_in_a_signature_is_no_body() {
        let source = "fn a<T>() -> Ring<{ 1 + 1 }>\nwhere\n    T: Fn() -> Vec<Vec<u8>>,\n{\n}\n";
        assert_eq!(counted(source), [one("a", 1, 5)]);
    }

    #[test]
    fn functions_in_functions_and_macros_are_found() {
        let source = "fn a() {\n    fn b() {\n    }\n}\n\
                      macro_rules! m { ($n:ident) => { fn $n() {\n} fn c() {\n} } }\n\
                      m! { fn d() {\n} }\n";
        let found = [one("a", 1, 4), one("b", 2, 2), one("c", 6, 2), one("d", 8, 2)];
        assert_eq!(counted(source), found);
    }

    #[test]
    fn the_limits_are_inclusive() {
        let body = |lines: usize| format!("fn a() {{\n{}}}\n", "    b();\n".repeat(lines - 2));
        assert!(measure("a.rs", &body(FUNCTION_LIMIT)).unwrap().is_empty());
        let too_long = measure("a.rs", &body(FUNCTION_LIMIT + 1)).unwrap();
        assert_eq!(violations(&too_long, &[]), ["a.rs:1: function a has 71 lines; at most 70"]);
        assert!(measure("a.rs", &"// b\n".repeat(FILE_LIMIT)).unwrap().is_empty());
        let too_long = measure("a.rs", &"// b\n".repeat(FILE_LIMIT + 1)).unwrap();
        assert_eq!(violations(&too_long, &[]), ["a.rs:1: the file has 601 lines; at most 600"]);
    }

    #[test]
    fn an_exception_holds_for_what_it_names_while_it_is_needed() {
        let long = |function: Option<&str>| TooLong {
            path: "a.rs".to_owned(),
            line: 7,
            function: function.map(str::to_owned),
            lines: 999,
        };
        let excused = Exception { path: "a.rs", function: Some("a"), reason: "a test" };
        assert!(violations(&[long(Some("a"))], &[excused]).is_empty());
        assert_eq!(violations(&[long(Some("a")), long(None)], &[excused]).len(), 1);
        let unused = violations(&[], &[excused]);
        assert_eq!(unused.len(), 1);
        assert!(unused[0].starts_with("a.rs: fn a needs no exception"), "{unused:?}");
    }

    #[test]
    fn what_is_no_rust_is_an_error() {
        assert!(measure("a.rs", "fn a() {").is_err());
    }
}
