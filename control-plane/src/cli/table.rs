//! Tables as kubectl prints them: upper-case heads, columns padded by two blanks, no borders. Pure.

/// Rows under heads.
#[derive(Debug)]
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. An empty cell shows as "-", so that columns can be told apart by eye and by `awk`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells
            .into_iter()
            .map(|cell| if cell.is_empty() { "-".to_owned() } else { cell.replace(['\n', '\r', '\t'], " ") })
            .collect();
        row.resize(self.heads.len(), "-".to_owned());
        self.rows.push(row);
    }

    /// The table as text, each line ended; heads alone when there is no row.
    pub fn render(&self) -> String {
        let mut widths: Vec<usize> = self.heads.iter().map(|head| head.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        let heads: Vec<String> = self.heads.iter().map(|head| (*head).to_owned()).collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let blanks = width + GAP - cell.chars().count();
                line.extend(std::iter::repeat_n(' ', blanks));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Blanks between columns.
const GAP: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_never_collapse() {
        // An empty cell that vanishes shifts every later column for scripts that split at blanks.
        let mut table = Table::new(&["NAME", "AGE"]);
        table.row(["réviews-v1".to_owned(), "5m".to_owned()]);
        table.row([String::new(), "a\nb".to_owned()]);
        table.row(["x".to_owned()]);
        assert_eq!(table.render(), "NAME        AGE\nréviews-v1  5m\n-           a b\nx           -\n");
    }
}
