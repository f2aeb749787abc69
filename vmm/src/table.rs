//! Tables with aligned columns, whose cells cannot control the terminal.

use std::borrow::Cow;

use console::{Alignment, measure_text_width, pad_str};

/// The gap between two columns.
const GAP: &str = "   ";

/// Rows under a header.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).to_vec()] }
    }

    /// Adds a row. Cells may have colours; untrusted text must go through [`plain`] first.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, without line breaks.
    pub(crate) fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell =
            |row: &[String], column: usize| row.get(column).map_or("", String::as_str).to_owned();
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().map(|row| measure_text_width(&cell(row, column))).max())
            .map(Option::unwrap_or_default)
            .collect();
        let line = |row: &Vec<String>| {
            let cells = widths.iter().enumerate().map(|(column, width)| {
                pad_str(&cell(row, column), *width, Alignment::Left, None).into_owned()
            });
            cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }

    /// The whole table, with line breaks.
    pub(crate) fn text(&self) -> String {
        self.lines().into_iter().map(|line| line + "\n").collect()
    }
}

/// Untrusted text (of an image, a guest, a label) with control characters escaped.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        let escape = |c: char| match c.is_control() {
            true => c.escape_default().to_string(),
            false => c.to_string(),
        };
        text.chars().map(escape).collect::<String>().into()
    } else {
        text.into()
    }
}

/// Cuts text to `width` columns, with an ellipsis.
pub(crate) fn cut(text: &str, width: usize) -> String {
    console::truncate_str(text, width, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "N"]);
        table.row(["a".into(), "1".into()]);
        table.row(["ärger".into(), "22".into()]);
        table.row(["\u{1b}[32mup\u{1b}[0m".into(), "x".into()]);
        table.row(["世界".into(), String::new()]);
        assert_eq!(
            table.text(),
            "NAME    N\na       1\närger   22\n\u{1b}[32mup\u{1b}[0m      x\n世界\n"
        );
    }

    #[test]
    fn untrusted_text_cannot_move_the_cursor() {
        assert_eq!(plain("sh -c 'x'"), "sh -c 'x'");
        assert_eq!(plain("a\u{1b}[2Jb\r\n\t\u{9b}ü"), "a\\u{1b}[2Jb\\r\\n\\t\\u{9b}ü");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
        assert_eq!(cut("世界世界", 4), "世…");
    }
}
